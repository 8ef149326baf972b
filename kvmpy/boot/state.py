"""What a boot protocol hands to the machine: the state of the first vCPU and what else must be in place."""

from __future__ import annotations

from kvmpy import x86
from kvmpy.record import Record, field

GDT_CODE = 0x10
GDT_DATA = 0x18
GDT_TSS = 0x20


class Segment(Record, frozen=True):
    """A segment register with its descriptor cache; fields as in `struct kvm_segment` (limit in bytes)."""

    selector: int = 0
    base: int = 0
    limit: int = 0
    type: int = 0
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741
    g: int = 0
    avl: int = 0


class Table(Record, frozen=True):
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0


class BootState(Record):
    """State of the boot processor at the first instruction of the guest, and what the machine must add to start it.

    `gprs` holds only the general registers that are not zero (names "rax" ... "r15").
    """

    protocol: str
    mode: str
    """"real", "protected" or "long"."""
    rip: int
    segments: dict[str, Segment]
    """"cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"."""
    gprs: dict[str, int] = field(default_factory=dict)
    rflags: int = x86.RFLAGS_FIXED
    cr0: int = x86.CR0_ET
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    gdt: Table = Table()
    idt: Table = Table(0, 0xFFFF)
    firmware: bool = False
    """True: the vCPU starts at the reset vector of the BIOS, which `load` has put into memory."""
    disk: str = ""
    """Path of an image that must be the first BIOS disk; empty when the boot needs none of its own."""
    summary: str = ""
    """One line for the log: what was loaded where."""


def real_segment(selector: int, base: int | None = None, code: bool = False) -> Segment:
    """A real-mode segment: 64 KiB at 16 times the selector, unless a base is given (the reset vector's CS)."""
    kind = x86.SEG_CODE_RX if code else x86.SEG_DATA_RW
    return Segment(selector, selector << 4 if base is None else base, 0xFFFF, kind)


_NO_LDT = Segment(limit=0xFFFF, type=x86.SEG_LDT, s=0, present=0)


def _task(limit: int) -> Segment:
    return Segment(GDT_TSS, 0, limit, x86.SEG_TSS_BUSY, s=0)


def real_mode(protocol: str, cs: int, ip: int, *, data: int = 0, cs_base: int | None = None, **more: object) -> BootState:
    """Real mode at cs:ip, all data segments equal to `data`, the interrupt vector table at 0."""
    segments = {name: real_segment(data) for name in ("ds", "es", "fs", "gs", "ss")}
    segments["cs"] = real_segment(cs, cs_base, code=True)
    segments["tr"] = Segment(0, 0, 0xFFFF, x86.SEG_TSS_BUSY, s=0)
    segments["ldt"] = Segment(limit=0xFFFF, type=x86.SEG_LDT, s=0)
    state = BootState(protocol, "real", ip, segments)
    return _with(state, more)


def _flat(code: Segment, data: Segment) -> dict[str, Segment]:
    return {"cs": code, **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data), "tr": _task(0x67), "ldt": _NO_LDT}


def protected_mode(protocol: str, entry: int, **more: object) -> BootState:
    """32-bit protected mode without paging: flat 4 GiB segments with selectors 0x10 (code) and 0x18 (data)."""
    code = Segment(GDT_CODE, 0, 0xFFFFFFFF, x86.SEG_CODE_RX, db=1, g=1)
    data = Segment(GDT_DATA, 0, 0xFFFFFFFF, x86.SEG_DATA_RW, db=1, g=1)
    state = BootState(protocol, "protected", entry, _flat(code, data), cr0=x86.CR0_PE | x86.CR0_ET, idt=Table(0, 0))
    return _with(state, more)


def long_mode(protocol: str, entry: int, cr3: int, **more: object) -> BootState:
    """64-bit mode with the page tables at cr3: selectors 0x10 (code) and 0x18 (data)."""
    code = Segment(GDT_CODE, 0, 0xFFFFFFFF, x86.SEG_CODE_RX, l=1, g=1)
    data = Segment(GDT_DATA, 0, 0xFFFFFFFF, x86.SEG_DATA_RW, db=1, g=1)
    state = BootState(
        protocol, "long", entry, _flat(code, data), cr0=x86.CR0_PE | x86.CR0_ET | x86.CR0_PG, cr3=cr3, cr4=x86.CR4_PAE,
        efer=x86.EFER_LME | x86.EFER_LMA, idt=Table(0, 0),
    )
    return _with(state, more)


def _with(state: BootState, more: dict[str, object]) -> BootState:
    for name, value in more.items():
        assert hasattr(state, name), name
        setattr(state, name, value)
    return state


def pack_descriptor(segment: Segment) -> int:
    """The 8 bytes of a GDT entry for a segment (SDM 3A 3.4.5); the upper half of a 64-bit TSS is not made."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    base = segment.base
    return (
        limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40 | (limit >> 16 & 0xF) << 48 | flags << 52 | (base >> 24 & 0xFF) << 56
    )


def pack_gdt(state: BootState) -> bytes:
    """A GDT that holds the segments of `state` where its selectors point: 0x10 code, 0x18 data, 0x20 TSS (two slots)."""
    entries = [0] * 6
    for name in ("cs", "ds", "tr"):
        segment = state.segments[name]
        # A busy TSS in the table would make an LTR by the guest fail.
        free = Segment(segment.selector, segment.base, segment.limit, x86.SEG_TSS, s=0) if name == "tr" else segment
        entries[segment.selector >> 3] = pack_descriptor(free)
    return b"".join(entry.to_bytes(8, "little") for entry in entries)
