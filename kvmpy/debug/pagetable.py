"""Everything that a set of page tables maps, in every paging mode (SDM 3A 4.3 to 4.5), as pages or as ranges."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

from kvmpy import x86
from kvmpy.debug.table import Table
from kvmpy.errors import MemoryAccessError
from kvmpy.units import PAGE

MOST_LEAVES = 1 << 18
"""Tables that point to themselves can map without end; a listing stops here."""

_ADDRESS = 0x000FFFFFFFFFF000
_NX = x86.PTE_NX


class Memory(Protocol):
    """What a listing needs of GuestMemory."""

    def read(self, gpa: int, size: int) -> bytes: ...


@dataclass(frozen=True)
class Mapping:
    """`size` bytes at `linear` mapped to `gpa` in pages of `page` bytes. Rights are what all levels allow together;
    the other flags are the last entry's."""

    linear: int
    gpa: int
    size: int
    page: int
    writable: bool
    user: bool
    executable: bool
    accessed: bool = False
    dirty: bool = False
    is_global: bool = False
    write_through: bool = False
    no_cache: bool = False

    @property
    def rights(self) -> str:
        """ "u" or "s", then "rwx" with "-" for what is missing."""
        return ("u" if self.user else "s") + "r" + ("w" if self.writable else "-") + ("x" if self.executable else "-")

    @property
    def flags(self) -> str:
        """One letter each: Global, Dirty, Accessed, Cache-disable, write-Through."""
        bits = (("G", self.is_global), ("D", self.dirty), ("A", self.accessed), ("C", self.no_cache), ("T", self.write_through))
        return "".join(letter if bit else "-" for letter, bit in bits)

    def __str__(self) -> str:
        where = f"{self.linear:016x}-{self.linear + self.size - 1:016x} -> {self.gpa:012x}"
        return f"{where}  {self.rights} {self.flags} {size_text(self.page)} pages, {size_text(self.size)}"


_COLUMNS = (
    ("LINEAR", lambda one: f"{one.linear:016x}-{one.linear + one.size - 1:016x}"), ("PHYSICAL", lambda one: f"{one.gpa:012x}"),
    ("RIGHTS", lambda one: one.rights), ("FLAGS", lambda one: one.flags), (">PAGES", lambda one: size_text(one.page)),
    (">SIZE", lambda one: size_text(one.size)),
)  # fmt: skip


def size_text(size: int) -> str:
    """Bytes in the largest binary unit that divides them."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >> shift and not size & (1 << shift) - 1:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def pages(memory: Memory, sregs: Any) -> Iterator[Mapping]:
    """Every mapped page in the order of linear addresses, at most MOST_LEAVES. Without paging there is none."""
    return islice(_pages(memory, sregs), MOST_LEAVES)


def _pages(memory: Memory, sregs: Any) -> Iterator[Mapping]:
    cr3, cr4, efer = int(sregs.cr3), int(sregs.cr4), int(sregs.efer)
    if not sregs.cr0 & x86.CR0_PG:
        return
    nx = bool(efer & x86.EFER_NXE)
    if efer & x86.EFER_LMA:
        levels = 5 if cr4 & x86.CR4_LA57 else 4
        width = 12 + 9 * levels
        for mapping in _table(memory, cr3 & _ADDRESS, levels, 0, (True, True, True), nx):
            yield replace(mapping, linear=mapping.linear | (1 << 64) - (1 << width)) if mapping.linear >> width - 1 else mapping
    elif cr4 & x86.CR4_PAE:
        for index, entry in enumerate(_entries(memory, cr3 & 0xFFFFFFE0, 4, 8)):
            if entry & x86.PTE_P:
                yield from _table(memory, entry & _ADDRESS, 2, index << 30, (True, True, True), nx)
    else:
        yield from _legacy(memory, cr3 & 0xFFFFF000, bool(cr4 & x86.CR4_PSE))


def _entries(memory: Memory, address: int, count: int, size: int) -> tuple[int, ...]:
    try:
        return struct.unpack(f"<{count}{'Q' if size == 8 else 'I'}", memory.read(address, count * size))
    except MemoryAccessError:
        return ()


def _leaf(linear: int, gpa: int, size: int, entry: int, rights: tuple[bool, bool, bool]) -> Mapping:
    return Mapping(
        linear, gpa, size, size, *rights, bool(entry & x86.PTE_A), bool(entry & x86.PTE_D), bool(entry & x86.PTE_G),
        bool(entry & x86.PTE_PWT), bool(entry & x86.PTE_PCD),
    )


def _table(
    memory: Memory, address: int, level: int, linear: int, rights: tuple[bool, bool, bool], nx: bool
) -> Iterator[Mapping]:
    shift = 12 + 9 * (level - 1)
    for index, entry in enumerate(_entries(memory, address, 512, 8)):
        if not entry & x86.PTE_P or (entry & _NX and not nx):
            continue
        here = (
            rights[0] and bool(entry & x86.PTE_RW), rights[1] and bool(entry & x86.PTE_US), rights[2] and not entry & _NX,
        )
        at = linear | index << shift
        if level == 1 or (entry & x86.PTE_PS and level <= 3):
            yield _leaf(at, entry & _ADDRESS & ~((1 << shift) - 1), 1 << shift, entry, here)
        elif not entry & x86.PTE_PS:
            yield from _table(memory, entry & _ADDRESS, level - 1, at, here, nx)


def _legacy(memory: Memory, directory: int, pse: bool) -> Iterator[Mapping]:
    for index, entry in enumerate(_entries(memory, directory, 1024, 4)):
        if not entry & x86.PTE_P:
            continue
        rights = (bool(entry & x86.PTE_RW), bool(entry & x86.PTE_US), True)
        if entry & x86.PTE_PS and pse:
            yield _leaf(index << 22, (entry >> 13 & 0xFF) << 32 | entry & 0xFFC00000, 4 << 20, entry, rights)
            continue
        for number, page in enumerate(_entries(memory, entry & 0xFFFFF000, 1024, 4)):
            if page & x86.PTE_P:
                both = (rights[0] and bool(page & x86.PTE_RW), rights[1] and bool(page & x86.PTE_US), True)
                yield _leaf(index << 22 | number << 12, page & 0xFFFFF000, PAGE, page, both)


def ranges(mappings: Iterable[Mapping], *, physical: bool = True, flags: bool = True) -> list[Mapping]:
    """Neighbours joined that have the same rights and page size; with `physical` only where their memory adjoins too,
    with `flags` only where all flags agree."""
    out: list[Mapping] = []
    for one in mappings:
        if out and _joins(out[-1], one, physical, flags):
            out[-1] = replace(out[-1], size=out[-1].size + one.size)
        else:
            out.append(one)
    return out


def page_table(memory: Memory, sregs: Any, *, each: bool = False) -> Table[Mapping]:
    """All that is mapped, neighbours joined (or `each` page by itself), as a table."""
    found = pages(memory, sregs)
    empty = "nothing is mapped" if sregs.cr0 & x86.CR0_PG else "paging is off: linear addresses are physical"
    return Table(found if each else ranges(found), _COLUMNS, empty)


def _joins(a: Mapping, b: Mapping, physical: bool, flags: bool) -> bool:
    if a.linear + a.size != b.linear or a.rights != b.rights:
        return False
    if physical and (a.gpa + a.size != b.gpa or a.page != b.page):
        return False
    return not flags or a.flags == b.flags
