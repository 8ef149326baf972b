"""Registers for people, and the flat states that boot protocols and tests start from."""

from __future__ import annotations

from kvmpy import x86
from kvmpy.native import CData, ffi

GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
"""General registers by their members in struct kvm_regs, in the order of a dump."""
BY_NUMBER = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
"""General registers by their number in an instruction's encoding (SDM 2A 3.1.1.1)."""
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr")
SEGMENTS_BY_NUMBER = ("es", "cs", "ss", "ds", "fs", "gs")
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")

_SYSTEM_TYPES = {
    x86.SEG_TSS16: "TSS16", x86.SEG_LDT: "LDT", x86.SEG_TSS16_BUSY: "TSS16 busy", x86.SEG_TSS: "TSS", x86.SEG_TSS_BUSY: "TSS busy",
}  # fmt: skip


# Reading.


def flags_text(rflags: int) -> str:
    """Names of the set flags and the IOPL: "ZF IF IOPL=3"."""
    iopl = rflags >> 12 & 3
    names = x86.bit_names(rflags, x86.RFLAGS_NAMES)
    return " ".join(filter(None, (names, f"IOPL={iopl}" if iopl else ""))) or "-"


def mode_name(sregs: CData, rflags: int = 0) -> str:
    """Operating mode by the manual's name: "real", "virtual-8086", "protected 32-bit", "compatibility 16-bit", "64-bit"."""
    if not sregs.cr0 & x86.CR0_PE:
        return "real"
    if sregs.efer & x86.EFER_LMA:
        if sregs.cs.l:
            return "64-bit"
        return f"compatibility {32 if sregs.cs.db else 16}-bit"
    if rflags & x86.RFLAGS_VM:
        return "virtual-8086"
    return f"protected {32 if sregs.cs.db else 16}-bit"


def paging_name(sregs: CData) -> str:
    """Paging mode by the manual's name (SDM 3A 4.1.1): "none", "32-bit", "PAE", "4-level", "5-level"."""
    if not sregs.cr0 & x86.CR0_PG:
        return "none"
    if not sregs.cr4 & x86.CR4_PAE:
        return "32-bit"
    if not sregs.efer & x86.EFER_LMA:
        return "PAE"
    return "5-level" if sregs.cr4 & x86.CR4_LA57 else "4-level"


def code_width(sregs: CData) -> int:
    """16, 32 or 64: how instructions at CS:RIP are decoded."""
    if sregs.cr0 & x86.CR0_PE and sregs.efer & x86.EFER_LMA and sregs.cs.l:
        return 64
    return 32 if sregs.cs.db else 16


def cpl(sregs: CData, rflags: int = 0) -> int:
    """Current privilege level: 0 in real mode, 3 in virtual-8086 mode, else the DPL of SS."""
    if not sregs.cr0 & x86.CR0_PE:
        return 0
    return 3 if rflags & x86.RFLAGS_VM else int(sregs.ss.dpl)


def linear_rip(regs: CData, sregs: CData) -> int:
    """Linear address of the next instruction."""
    if code_width(sregs) == 64:
        return int(regs.rip)
    return int(sregs.cs.base + regs.rip) & 0xFFFFFFFF


def segment_text(segment: CData) -> str:
    """One segment: selector, base, limit, and what its descriptor says."""
    head = f"{segment.selector:04x} base {segment.base:016x} limit {segment.limit:08x}"
    if segment.unusable or not segment.present:
        return f"{head} unusable"
    kind = int(segment.type)
    if not segment.s:
        what = _SYSTEM_TYPES.get(kind, f"system {kind}")
    elif kind & x86.SEG_CODE:
        size = "64" if segment.l else "32" if segment.db else "16"
        readable, conforming = kind & x86.SEG_READABLE, kind & x86.SEG_CONFORMING
        what = f"code{size}{' readable' if readable else ''}{' conforming' if conforming else ''}"
    else:
        writable, down = kind & x86.SEG_WRITABLE, kind & x86.SEG_EXPAND_DOWN
        what = f"data{'32' if segment.db else '16'}{' writable' if writable else ''}{' expand-down' if down else ''}"
    return f"{head} dpl {segment.dpl} {what}"


def dump(regs: CData, sregs: CData | None = None) -> str:
    """All registers as lines of text, with flags and modes decoded; no newline at the end."""
    lines = [f"rip {regs.rip:016x}  rflags {regs.rflags:08x} [{flags_text(regs.rflags)}]"]
    if sregs is not None:
        mode = mode_name(sregs, regs.rflags)
        lines[0] += f"  {mode}, CPL {cpl(sregs, regs.rflags)}, paging {paging_name(sregs)}"
    for start in range(0, 16, 4):
        lines.append("  ".join(f"{name:3} {getattr(regs, name):016x}" for name in GENERAL[start : start + 4]))
    if sregs is None:
        return "\n".join(lines)
    lines += [f"{name:4} {segment_text(getattr(sregs, name))}" for name in SEGMENTS]
    lines += [f"{name:4}      base {table.base:016x} limit {table.limit:08x}" for name, table in (("gdt", sregs.gdt), ("idt", sregs.idt))]
    lines.append(f"cr0 {sregs.cr0:08x} [{x86.bit_names(sregs.cr0, x86.CR0_NAMES)}]  cr2 {sregs.cr2:016x}  cr3 {sregs.cr3:016x}")
    lines.append(f"cr4 {sregs.cr4:08x} [{x86.bit_names(sregs.cr4, x86.CR4_NAMES)}]  cr8 {sregs.cr8:x}")
    lines.append(f"efer {sregs.efer:08x} [{x86.bit_names(sregs.efer, x86.EFER_NAMES)}]  apic_base {sregs.apic_base:x}")
    return "\n".join(lines)


def as_dict(struct: CData) -> dict[str, object]:
    """A register struct as plain data, for JSON and comparison: inner structs are dicts, arrays are lists."""
    return {name: _plain(getattr(struct, name)) for name, _ in _fields(struct) if "pad" not in name and name != "reserved"}


def _fields(struct: CData) -> list[tuple[str, object]]:
    kind = ffi.typeof(struct)
    if kind.kind == "pointer":
        kind = kind.item
    return [(name, field) for name, field in kind.fields if name]


def _plain(value: CData) -> object:
    if isinstance(value, int):
        return value
    if isinstance(value, bytes):
        return value[0]
    if ffi.typeof(value).kind == "array":
        return [_plain(item) for item in value]
    return as_dict(value)


# Making.


def set_segment(segment: CData, selector: int, base: int = 0, limit: int = 0xFFFFFFFF, type: int = x86.SEG_DATA_RW, **bits: int) -> None:
    """Fills a segment: present, code or data, DPL 0, 16-bit unless `db`, `l`, `dpl`, `s`, `present` or `unusable` say otherwise.

    The granularity bit follows from the limit, as it does for a descriptor that could hold it.
    """
    segment.selector, segment.base, segment.limit, segment.type = selector, base, limit, type
    segment.present = bits.get("present", 1)
    segment.s = bits.get("s", 1)
    segment.dpl = bits.get("dpl", 0)
    segment.db = bits.get("db", 0)
    segment.l = bits.get("l", 0)
    segment.avl = bits.get("avl", 0)
    segment.g = 1 if limit > 0xFFFFF else 0
    segment.unusable = bits.get("unusable", 0)


def set_real_mode(sregs: CData, cs: int = 0, ds: int = 0) -> None:
    """Real mode with 64 KiB segments (SDM 3A 9.1.4); `cs` and `ds` (for all data segments) are segment values."""
    set_segment(sregs.cs, cs, cs << 4, 0xFFFF, x86.SEG_CODE_RX)
    for name in ("ds", "es", "fs", "gs", "ss"):
        set_segment(getattr(sregs, name), ds, ds << 4, 0xFFFF)
    sregs.cr0 = sregs.cr0 & ~(x86.CR0_PE | x86.CR0_PG) & 0xFFFFFFFF | x86.CR0_ET
    sregs.cr4 = 0
    sregs.efer = 0
    sregs.gdt.base, sregs.gdt.limit = 0, 0xFFFF
    sregs.idt.base, sregs.idt.limit = 0, 0x3FF
    _set_task(sregs, x86.SEG_TSS16_BUSY)


def set_protected_mode(sregs: CData, *, cs: int = 0x08, ds: int = 0x10, width: int = 32, cpl: int = 0) -> None:
    """Flat protected mode without paging: 4 GiB segments at 0, `width` 16 or 32, selectors with RPL `cpl`."""
    db = int(width == 32)
    set_segment(sregs.cs, cs | cpl, type=x86.SEG_CODE_RX, db=db, dpl=cpl)
    for name in ("ds", "es", "fs", "gs", "ss"):
        set_segment(getattr(sregs, name), ds | cpl, db=db, dpl=cpl)
    sregs.cr0 = sregs.cr0 & ~x86.CR0_PG & 0xFFFFFFFF | x86.CR0_PE | x86.CR0_ET
    sregs.efer = 0
    _set_task(sregs, x86.SEG_TSS_BUSY)


def set_paging32(sregs: CData, cr3: int, *, pae: bool = False) -> None:
    """Adds 32-bit or PAE paging to flat protected mode; `cr3` is the page directory's or the pointer table's address."""
    sregs.cr3 = cr3
    sregs.cr4 |= x86.CR4_PAE if pae else x86.CR4_PSE
    sregs.cr0 |= x86.CR0_PG


def set_long_mode(sregs: CData, cr3: int, *, cs: int = 0x08, ds: int = 0x10, cpl: int = 0, compatibility: bool = False) -> None:
    """64-bit mode (or 32-bit compatibility mode) with 4-level paging from `cr3`; selectors with RPL `cpl`."""
    set_segment(sregs.cs, cs | cpl, type=x86.SEG_CODE_RX, l=int(not compatibility), db=int(compatibility), dpl=cpl)
    for name in ("ds", "es", "fs", "gs", "ss"):
        set_segment(getattr(sregs, name), ds | cpl, db=1, dpl=cpl)
    sregs.cr3 = cr3
    sregs.cr4 |= x86.CR4_PAE
    sregs.efer |= x86.EFER_LME | x86.EFER_LMA
    sregs.cr0 |= x86.CR0_PE | x86.CR0_PG | x86.CR0_ET
    _set_task(sregs, x86.SEG_TSS_BUSY)


def _set_task(sregs: CData, type: int) -> None:
    """A busy TSS, as VM entry wants one (SDM 3C 26.3.1.2), and no LDT."""
    set_segment(sregs.tr, 0, 0, 0xFFFF if type == x86.SEG_TSS16_BUSY else 0x67, type, s=0)
    set_segment(sregs.ldt, 0, 0, 0xFFFF, x86.SEG_LDT, s=0, unusable=0)


def identity_map(base: int, gib: int = 1, *, user: bool = False) -> bytes:
    """4-level tables that map the first `gib` GiB (up to 512) to themselves with 2 MiB pages; the image goes to `base`, which is CR3.

    One page each for the PML4 and the pointer table, then one page directory per GiB.
    """
    rights = x86.PTE_P | x86.PTE_RW | (x86.PTE_US if user else 0)
    words = [base + 0x1000 | rights] + [0] * 511
    words += [base + 0x2000 + 0x1000 * n | rights for n in range(gib)] + [0] * (512 - gib)
    words += [n << 21 | rights | x86.PTE_PS for n in range(512 * gib)]
    return b"".join(word.to_bytes(8, "little") for word in words)
