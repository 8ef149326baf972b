"""Page walks in every paging mode (SDM 3A 4.3 to 4.5), read from guest memory without touching accessed and dirty bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from kvmpy import x86
from kvmpy.errors import MemoryAccessError

ADDRESS = 0x000FFFFFFFFFF000
_LEVEL_NAMES = {5: "PML5", 4: "PML4", 3: "PDPT", 2: "PD", 1: "PT"}


class Memory(Protocol):
    """What a walk needs of GuestMemory."""

    def read_u32(self, gpa: int) -> int: ...
    def read_u64(self, gpa: int) -> int: ...


@dataclass(frozen=True)
class Step:
    """One table entry of a walk: the table's name, where the entry lies (GPA), its value."""

    table: str
    address: int
    entry: int

    def __str__(self) -> str:
        return f"{self.table:5} [{self.address:#x}] = {self.entry:#018x}  {entry_text(self.entry, self.table)}"


@dataclass
class Walk:
    """A walk for one linear address. `gpa` is None when the address is not mapped, and `problem` says why."""

    linear: int
    mode: str
    gpa: int | None = None
    page_size: int = 0
    writable: bool = True
    user: bool = True
    executable: bool = True
    steps: list[Step] = field(default_factory=list)
    problem: str = ""

    def lines(self) -> list[str]:
        """The walk as text, one line per table and one for the outcome."""
        out = [f"page walk of {self.linear:#x} ({self.mode})"]
        out += [f"  {step}" for step in self.steps]
        if self.gpa is None:
            out.append(f"  not mapped: {self.problem}")
        else:
            rights = "".join(("r", "w" if self.writable else "-", "x" if self.executable else "-"))
            who = "user" if self.user else "supervisor"
            size = f", {self.page_size >> 10} KiB page" if self.page_size else ""
            out.append(f"  -> {self.gpa:#x} ({rights}, {who}{size})" + (f"; {self.problem}" if self.problem else ""))
        return out

    def __str__(self) -> str:
        return "\n".join(self.lines())


def entry_text(entry: int, table: str = "") -> str:
    """Bits of a page table entry by name."""
    if not entry & x86.PTE_P:
        return "not present"
    names = ["P"]
    bits = ((x86.PTE_RW, "RW"), (x86.PTE_US, "US"), (x86.PTE_PWT, "PWT"), (x86.PTE_PCD, "PCD"), (x86.PTE_A, "A"), (x86.PTE_D, "D"))
    names += [name for bit, name in bits if entry & bit]
    if entry & x86.PTE_PS:
        names.append("PAT" if table == "PT" else "PS")
    if entry & x86.PTE_G:
        names.append("G")
    if entry & x86.PTE_NX:
        names.append("NX")
    return " ".join(names)


def walk(memory: Memory, linear: int, *, cr0: int, cr3: int, cr4: int, efer: int) -> Walk:
    """Walks the tables for a linear address under the control registers given."""
    if not cr0 & x86.CR0_PG:
        linear &= 0xFFFFFFFF
        return Walk(linear, "paging off", gpa=linear)
    try:
        if efer & x86.EFER_LMA:
            return _walk_long(memory, linear & ((1 << 64) - 1), cr3, 5 if cr4 & x86.CR4_LA57 else 4, bool(efer & x86.EFER_NXE))
        if cr4 & x86.CR4_PAE:
            return _walk_pae(memory, linear & 0xFFFFFFFF, cr3, bool(efer & x86.EFER_NXE))
        return _walk_32(memory, linear & 0xFFFFFFFF, cr3, bool(cr4 & x86.CR4_PSE))
    except _Broken as broken:
        return broken.walk


class _Broken(Exception):
    """Carries an unfinished walk out of a helper."""

    def __init__(self, walk: Walk, problem: str) -> None:
        super().__init__(problem)
        walk.problem = problem
        walk.gpa = None
        self.walk = walk


def _step(memory: Memory, walk: Walk, table: str, address: int, size: int = 8) -> int:
    try:
        entry = memory.read_u64(address) if size == 8 else memory.read_u32(address)
    except MemoryAccessError:
        raise _Broken(walk, f"the {table} entry would lie at {address:#x}, where no memory is") from None
    walk.steps.append(Step(table, address, entry))
    if not entry & x86.PTE_P:
        raise _Broken(walk, f"the {table} entry is not present")
    return entry


def _rights(walk: Walk, entry: int) -> None:
    walk.writable &= bool(entry & x86.PTE_RW)
    walk.user &= bool(entry & x86.PTE_US)
    walk.executable &= not entry & x86.PTE_NX


def _no_nx(walk: Walk, entry: int, table: str, nxe: bool) -> None:
    if entry & x86.PTE_NX and not nxe:
        raise _Broken(walk, f"the {table} entry has bit 63 set while EFER.NXE is 0 (reserved bit)")


def _page(walk: Walk, entry: int, shift: int) -> Walk:
    mask = (1 << shift) - 1
    walk.gpa = entry & ADDRESS & ~mask | walk.linear & mask
    walk.page_size = 1 << shift
    # Bit 12 of a large page's entry is PAT; the bits from there up to the page's size are reserved.
    if shift > 12 and entry & ADDRESS & mask & ~(1 << 12):
        raise _Broken(walk, "the large page's entry has reserved address bits set")
    return walk


def _walk_long(memory: Memory, linear: int, cr3: int, levels: int, nxe: bool) -> Walk:
    result = Walk(linear, f"{levels}-level paging")
    width = 12 + 9 * levels
    sign = linear >> (width - 1)
    if sign not in (0, (1 << (65 - width)) - 1):
        raise _Broken(result, "the address is not canonical")
    table = cr3 & ADDRESS
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        name = _LEVEL_NAMES[level]
        entry = _step(memory, result, name, table + 8 * (linear >> shift & 511))
        _no_nx(result, entry, name, nxe)
        _rights(result, entry)
        if level == 1:
            return _page(result, entry, 12)
        if entry & x86.PTE_PS:
            if level > 3:
                raise _Broken(result, f"the {name} entry has bit 7 set (reserved bit)")
            return _page(result, entry, shift)
        table = entry & ADDRESS
    return result


def _walk_pae(memory: Memory, linear: int, cr3: int, nxe: bool) -> Walk:
    result = Walk(linear, "PAE paging")
    # The processor walks the PDPTEs that it loaded with CR3; memory may say something newer.
    entry = _step(memory, result, "PDPT", (cr3 & 0xFFFFFFE0) + 8 * (linear >> 30))
    if entry & 0x1E6:
        raise _Broken(result, "the PDPT entry has reserved bits set")
    for level, shift in ((2, 21), (1, 12)):
        name = _LEVEL_NAMES[level]
        entry = _step(memory, result, name, (entry & ADDRESS) + 8 * (linear >> shift & 511))
        _no_nx(result, entry, name, nxe)
        _rights(result, entry)
        if level == 1 or entry & x86.PTE_PS:
            return _page(result, entry, shift)
    return result


def _walk_32(memory: Memory, linear: int, cr3: int, pse: bool) -> Walk:
    result = Walk(linear, "32-bit paging")
    entry = _step(memory, result, "PD", (cr3 & 0xFFFFF000) + 4 * (linear >> 22), 4)
    _rights(result, entry)
    if entry & x86.PTE_PS and pse:
        # PSE-36: bits 20:13 of the entry are bits 39:32 of the address.
        if entry & 1 << 21:
            raise _Broken(result, "the 4 MiB page's entry has bit 21 set (reserved bit)")
        result.gpa = (entry >> 13 & 0xFF) << 32 | entry & 0xFFC00000 | linear & 0x3FFFFF
        result.page_size = 4 << 20
        return result
    entry = _step(memory, result, "PT", (entry & 0xFFFFF000) + 4 * (linear >> 12 & 1023), 4)
    _rights(result, entry)
    return _page(result, entry, 12)
