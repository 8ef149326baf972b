"""Frames by DWARF's call frame information (.eh_frame, .debug_frame; DWARF 5, 6.4)."""

from __future__ import annotations

from bisect import bisect_right
from io import BytesIO
from typing import Any

from kvmpy.debug.damage import DAMAGE
from kvmpy.debug.symbol_file import SymbolFile
from kvmpy.debug.unwind.cursor import Cursor, Stack

_NAMES_64 = (
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip
_NAMES_32 = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "rip")
_MOST_STEPS = 256
_COMMON, _LONG = 0xFFFFFFFF, 0xFFFFFFF0
_MOST_COMMON = 4096
"""In .debug_frame: the mark of a common entry; from where on a length says something else (DWARF 5, 7.2.2); the longest common entry."""
_ALL = (1 << 64) - 1


class End(Exception):
    """The information says that there is no caller."""


class CallFrames:
    """The frame descriptions of one file, by address; those of .debug_frame are decoded when they are asked for."""

    def __init__(self, file: SymbolFile) -> None:
        from elftools.dwarf.callframe import FDE

        self.names = _NAMES_64 if file.elf is not None and file.elf.elfclass == 64 else _NAMES_32
        self._dwarf = file.dwarf
        found: list[tuple[int, int, Any]] = []
        try:
            if self._dwarf is not None and self._dwarf.has_CFI():
                found += _plain_entries(self._dwarf.debug_frame_sec, self._dwarf.config.default_address_size)
        except DAMAGE:
            pass  # the other section may be sound
        try:
            for one in self._dwarf.EH_CFI_entries() if self._dwarf is not None and self._dwarf.has_EH_CFI() else ():
                if isinstance(one, FDE) and one["address_range"]:
                    found.append((one["initial_location"], one["initial_location"] + one["address_range"], one))
        except DAMAGE:
            pass
        found.sort(key=lambda one: one[:2])
        self._starts = [start for start, _, _ in found]
        self._entries = found

    def rules(self, address: int) -> tuple[Any, dict[Any, Any]] | None:
        """The description of an address, and the line of its table that holds there."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._entries[at][1]:
            return None
        start, end, entry = self._entries[at]
        try:
            if isinstance(entry, bytes):
                entry = self._decode(entry)
                self._entries[at] = start, end, entry
            lines = [line for line in entry.get_decoded().table if line["pc"] <= address]
        except DAMAGE:
            return None
        return (entry, lines[-1]) if lines else None

    def _decode(self, section: bytes) -> Any:
        from elftools.dwarf.callframe import CallFrameInfo

        return CallFrameInfo(BytesIO(section), len(section), 0, self._dwarf.structs).get_entries()[-1]


def _plain_entries(section: Any, size: int) -> list[tuple[int, int, bytes]]:
    """Beginning, end, and bytes (a section of two entries: the common one and its own) of each entry of .debug_frame, in the 32-bit
    format (DWARF 5, 6.4.1). pyelftools makes objects of them all: six seconds for a Linux kernel."""
    found: list[tuple[int, int, bytes]] = []
    with section.stream.getbuffer() as data:
        at = 0
        while at + 8 + 2 * size <= len(data):
            length, common = int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 4 : at + 8], "little")
            end = at + 4 + length
            if length >= _LONG or end > len(data):
                break
            if common != _COMMON and common + 4 <= len(data):
                start = int.from_bytes(data[at + 8 : at + 8 + size], "little")
                extent = int.from_bytes(data[at + 8 + size : at + 8 + 2 * size], "little")
                size_of_common = 4 + int.from_bytes(data[common : common + 4], "little")
                if extent and size_of_common <= _MOST_COMMON:
                    its = bytes(data[common : common + size_of_common])
                    found.append((start, start + extent, its + bytes(data[at : at + 4]) + bytes(4) + bytes(data[at + 8 : end])))
            at = end
    return found


def by_cfi(stack: Stack, at: Cursor) -> Cursor | None:
    """The caller; None where no file describes the frame. Raises End where it says that there is none."""
    if at.width == 16 or at.code_base or at.stack_base:
        return None
    for file in stack.symbols.files:
        if file.elf is None or file.elf.elfclass != at.width:
            continue
        frames = stack.symbols.memo.get(("cfi", file.path))
        if frames is None:
            frames = stack.symbols.memo[("cfi", file.path)] = CallFrames(file)
        found = frames.rules(file.unmoved(at.lookup))
        if found is not None:
            return _apply(stack, at, frames, *found)
    return None


def _apply(stack: Stack, at: Cursor, frames: CallFrames, entry: Any, line: dict[Any, Any]) -> Cursor | None:
    names = frames.names
    known = {**at.regs, "rsp": at.sp, "rip": at.pc}
    rule = line["cfa"]
    if rule.expr is not None:
        cfa = _expression(stack, at, entry, rule.expr, known, names)
    elif names[rule.reg] in known:
        cfa = known[names[rule.reg]] + rule.offset & at.mask
    else:
        return None
    if cfa is None:
        return None
    regs = dict(known)
    for number, how in line.items():
        if not isinstance(number, int) or number >= len(names):
            continue
        name = names[number]
        value: int | None
        if how.type == "UNDEFINED":
            value = None
        elif how.type == "SAME_VALUE":
            continue
        elif how.type == "OFFSET":
            value = stack.slot(at, cfa + how.arg)
        elif how.type == "VAL_OFFSET":
            value = cfa + how.arg & at.mask
        elif how.type == "REGISTER":
            value = known.get(names[how.arg]) if how.arg < len(names) else None
        else:
            place = _expression(stack, at, entry, how.arg, known, names, cfa)
            value = place if how.type == "VAL_EXPRESSION" or place is None else stack.slot(at, place)
        if value is None:
            if name == "rip":
                raise End
            regs.pop(name, None)
        else:
            regs[name] = value
    if names.index("rip") not in line:
        return None
    back, sp = regs.pop("rip"), regs.pop("rsp", cfa)
    if names.index("rsp") not in line:
        sp = cfa  # what the CFA is, unless a rule says otherwise
    signal = b"S" in bytes(entry.cie.header.get("augmentation", b""))
    return at.moved(back, sp, regs=regs, exact=signal)


def _expression(
    stack: Stack, at: Cursor, entry: Any, data: Any, known: dict[str, int], names: tuple[str, ...], first: int | None = None
) -> int | None:
    """The value of a DWARF expression (DWARF 5, 2.5); None where it asks for what is not known here."""
    from elftools.dwarf.dwarf_expr import DWARFExprParser

    values = [first] if first is not None else []
    for count, operation in enumerate(DWARFExprParser(entry.structs).parse_expr(data)):
        if count > _MOST_STEPS:
            return None
        name, arguments = operation.op_name.removeprefix("DW_OP_"), operation.args
        if name.startswith("breg"):
            register = names[int(name[4:])]
            if register not in known:
                return None
            values.append(known[register] + arguments[0] & _ALL)
        elif name.startswith("lit"):
            values.append(int(name[3:]))
        elif name.startswith("const"):
            values.append(arguments[0] & _ALL)
        elif name == "plus_uconst":
            values.append(values.pop() + arguments[0] & _ALL)
        elif name == "deref":
            value = stack.slot(at, values.pop())
            if value is None:
                return None
            values.append(value)
        elif name in _BINARY:
            right, left = values.pop(), values.pop()
            values.append(_BINARY[name](left, right) & _ALL)
        else:
            return None
    return values[-1] if values else None


_BINARY = {
    "plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "and": lambda a, b: a & b, "or": lambda a, b: a | b,
    "shl": lambda a, b: a << min(b, 64), "shr": lambda a, b: a >> min(b, 64), "mul": lambda a, b: a * b, "ge": lambda a, b: int(a >= b),
    "gt": lambda a, b: int(a > b), "lt": lambda a, b: int(a < b), "le": lambda a, b: int(a <= b), "eq": lambda a, b: int(a == b),
    "ne": lambda a, b: int(a != b), "xor": lambda a, b: a ^ b,
}  # fmt: skip
