"""Frames of a Linux kernel by its ORC tables (tools/objtool, arch/x86/include/asm/orc_types.h): x86-64 kernels have no other."""

from __future__ import annotations

import struct
from collections import Counter

from kvmpy.debug.unwind.cfi import End
from kvmpy.debug.unwind.cursor import Cursor, Stack

_ENTRY = struct.Struct("<hhH")
_UNDEFINED, _PREV_SP, _DX, _DI, _BP, _SP, _R10, _R13, _BP_INDIRECT, _SP_INDIRECT = range(10)
_BASES = {_SP: "rsp", _BP: "rbp", _DX: "rdx", _DI: "rdi", _R10: "r10", _R13: "r13", _BP_INDIRECT: "rbp", _SP_INDIRECT: "rsp"}
# struct pt_regs, from its start.
_PT_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "", "rip", "cs", "", "rsp", "",
)  # fmt: skip
_OLD_KINDS = {0: "call", 1: "regs", 2: "partial", 3: "end"}
_NEW_KINDS = {0: "undefined", 1: "end", 2: "call", 3: "regs", 4: "partial"}
_MOST = 64 << 20
_SAMPLE = 4096
_REACH = 1 << 20
_MODULES = 0xFFFFFFFFA0000000
"""Modules lie above this address; where exactly is the kernel's choice."""


class Orc:
    """Both tables of a kernel. `kinds` maps the type field to "call", "regs", "partial", "end" or "undefined": Linux 6.4 numbered anew."""

    def __init__(self, base: int, addresses: bytes, entries: bytes, new: bool | None = None) -> None:
        """`base` is the address of the first table, whose entries are relative to themselves; `new` tells the numbering, else the
        entries do."""
        self.base = base
        count = min(len(addresses) // 4, len(entries) // _ENTRY.size)
        self._addresses = struct.unpack_from(f"<{count}i", addresses)
        self._entries = entries
        # Nearly every entry is an ordinary call frame: its number tells which numbering it is.
        sample = [_ENTRY.unpack_from(entries, _ENTRY.size * (index * count // _SAMPLE)) for index in range(min(_SAMPLE, count))]
        common = Counter(word >> 8 & 3 for _, _, word in sample if word & 15 == _SP).most_common(1)
        self.new = new if new is not None else bool(common) and common[0][0] == 2
        self.kinds = _NEW_KINDS if self.new else _OLD_KINDS

    def _address(self, index: int) -> int:
        return self.base + 4 * index + self._addresses[index]

    def covers(self, address: int) -> bool:
        """True where the table tells of an address."""
        return self.entry(address) is not None

    def entry(self, address: int) -> tuple[int, int, int] | None:
        """(stack offset, frame pointer offset, bits) for an address; None outside the table."""
        low, high = 0, len(self._addresses)
        if not high or address < self._address(0):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._address(middle) <= address:
                low = middle
            else:
                high = middle
        if high == len(self._addresses) and address - self._address(low) > _REACH:
            return None  # the last entry ends the table
        found: tuple[int, int, int] = _ENTRY.unpack_from(self._entries, _ENTRY.size * low)
        return found


def _tables(stack: Stack) -> Orc | None:
    """Out of the kernel's memory; out of vmlinux where that is not mapped."""
    symbols = stack.symbols
    names = ("__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "__stop_orc_unwind")
    ip_start, ip_end, start, end = (symbols.address(name) for name in names)
    if ip_start is not None and ip_end is not None and start is not None and end is not None:
        key = ("orc", ip_start)
        if key not in symbols.memo:
            orc = None
            if 0 < ip_end - ip_start < _MOST and 0 < end - start < _MOST:
                addresses, entries = stack.read(ip_start, ip_end - ip_start), stack.read(start, end - start)
                if addresses and entries:
                    orc = Orc(ip_start, addresses, entries)
            if orc is None:
                return None  # perhaps mapped later
            symbols.memo[key] = orc
        found: Orc = symbols.memo[key]
        return found
    for file in symbols.files:
        section = file.elf.get_section_by_name(".orc_unwind_ip") if file.elf is not None else None
        if section is not None:
            key = ("orc", file.moved(section["sh_addr"]))
            if key not in symbols.memo:
                symbols.memo[key] = Orc(key[1], section.data(), file.section(".orc_unwind"))
            found = symbols.memo[key]
            return found
    return None


def _module_table(stack: Stack, address: int, new: bool) -> Orc | None:
    """The table of the module that an address lies in (struct mod_arch_specific)."""
    from kvmpy.debug.linux.kernel import Linux

    for one in Linux(stack.machine).modules():
        kind = one.module.member("arch")
        base, count = int(kind.member("orc_unwind_ip")), int(kind.member("num_orcs"))
        if not 0 < count < _MOST // 8:
            continue
        first = stack.word(base, 4)
        last = stack.word(base + 4 * (count - 1), 4)
        if first is None or last is None:
            continue
        low, high = (place + _signed(offset) for place, offset in ((base, first), (base + 4 * (count - 1), last)))
        if low <= address <= high + _REACH and one.address - _REACH <= address:
            found = Orc(base, stack.read(base, 4 * count), stack.read(int(kind.member("orc_unwind")), _ENTRY.size * count), new)
            if found.covers(address):
                return found
    return None


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


def by_orc(stack: Stack, at: Cursor) -> Cursor | None:
    """The caller; None where the kernel's tables do not tell. Raises End where they say that there is none."""
    if at.width != 64 or not at.linear >> 63:
        return None
    orc = _tables(stack)
    found = orc.entry(at.lookup) if orc is not None else None
    if orc is not None and found is None and at.linear >= _MODULES:
        orc = _module_table(stack, at.lookup, orc.new)
        found = orc.entry(at.lookup) if orc is not None else None
    if orc is None or found is None:
        return None
    sp_offset, bp_offset, bits = found
    base, frame_rule, kind = bits & 15, bits >> 4 & 15, orc.kinds.get(bits >> 8 & (7 if orc.new else 3), "undefined")
    if kind == "end" or (base == _UNDEFINED and not orc.new and bits >> 10 & 1):
        raise End
    known = {**at.regs, "rsp": at.sp}
    if base not in _BASES or _BASES[base] not in known:
        return None
    place = known[_BASES[base]]
    sp: int | None
    if base == _SP_INDIRECT:
        sp = stack.word(place)
        sp = None if sp is None else sp + sp_offset
    elif base == _BP_INDIRECT:
        sp = stack.word(place + sp_offset)
    else:
        sp = place + sp_offset
    if sp is None:
        return None
    sp &= at.mask
    if kind == "call":
        back = stack.word(sp - 8)
        after = at.moved(back, sp) if back is not None else None
    elif kind == "regs":
        return _registers(stack, at, sp)
    elif kind == "partial":
        after = _interrupted(stack, at, sp)
    else:
        return None
    if after is None:
        return None
    regs = dict(at.regs) if kind == "call" else {name: value for name, value in at.regs.items() if name == "rbp"}
    # Callees save what ORC does not tell of; what they may have changed is not known any more.
    regs = {name: value for name, value in regs.items() if name in ("rbp", "rbx", "r12", "r13", "r14", "r15")}
    if frame_rule == _PREV_SP:
        frame = stack.word(sp + bp_offset)
    elif frame_rule == _BP and "rbp" in at.regs:
        frame = stack.word(at.regs["rbp"] + bp_offset)
    else:
        frame = at.regs.get("rbp")
    if frame is None:
        regs.pop("rbp", None)
    else:
        regs["rbp"] = frame
    return after.moved(after.pc, after.sp, regs=regs, exact=after.exact)


def _registers(stack: Stack, at: Cursor, sp: int) -> Cursor | None:
    data = stack.read(sp, 8 * len(_PT_REGS))
    if len(data) < 8 * len(_PT_REGS):
        return None
    regs = {name: int.from_bytes(data[8 * index : 8 * index + 8], "little") for index, name in enumerate(_PT_REGS) if name}
    return _struck(stack, at, regs.pop("rip"), regs.pop("rsp"), regs.pop("cs"), regs)


def _interrupted(stack: Stack, at: Cursor, sp: int) -> Cursor | None:
    pc, cs, new_sp = stack.word(sp), stack.word(sp + 8), stack.word(sp + 24)
    return None if pc is None or cs is None or new_sp is None else _struck(stack, at, pc, new_sp, cs, {})


def _struck(stack: Stack, at: Cursor, pc: int, sp: int, cs: int, regs: dict[str, int]) -> Cursor | None:
    segment = stack.code_segment(cs & 0xFFFF)
    if segment is None:
        return None
    return at.moved(pc, sp, cs=cs & 0xFFFF, width=segment[0], code_base=segment[1], regs=regs, exact=True)
