"""The instruction table as Python values, and bytes made from its lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from kvmpy.native import ffi, lib

# The same bits as in kvmpy/soft/core/insn.h.
MAPS = {0: b"", 1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}
PREFIXES = {0: b"", 1: b"", 2: b"\x66", 3: b"\xf3", 4: b"\xf2"}
VEX_PP = {0: 0, 1: 0, 2: 1, 3: 2, 4: 3}
A_LOCK, A_PROT, A_VSIB = 0x1, 0x20, 0x4000


@dataclass(frozen=True)
class Line:
    """One line of the table; `key` and the letters of `operands` as described in insn.h."""

    index: int
    id: str
    mnemonic: str
    operands: tuple[str, ...]
    key: int
    feature: int
    attributes: int
    flags: tuple[int, int, int]

    def _field(self, shift: int, width: int) -> int:
        return self.key >> shift & ((1 << width) - 1)

    @property
    def opcode(self) -> int:
        return self.key & 0xFF

    @property
    def map(self) -> int:
        return self._field(8, 2)

    @property
    def row(self) -> bool:
        return bool(self._field(10, 1))

    @property
    def prefix(self) -> int:
        """0 any, 1 none, 2 66, 3 F3, 4 F2."""
        return self._field(12, 3) or int(self.vex)

    @property
    def reg(self) -> int | None:
        return self._field(16, 3) if self._field(19, 1) else None

    @property
    def rm(self) -> int | None:
        return self._field(20, 3) if self._field(23, 1) else None

    @property
    def vex(self) -> bool:
        return bool(self._field(28, 1))

    @property
    def w(self) -> int | None:
        return {0: None, 1: 0, 2: 1}[self._field(30, 2)]

    @property
    def l(self) -> int | None:  # noqa: E743  (the bit's name in the manual)
        return {0: None, 1: 0, 2: 1}[self._field(32, 2)]

    @property
    def only64(self) -> bool | None:
        return {0: None, 1: True, 2: False}[self._field(34, 2)]

    def has(self, letters: str) -> bool:
        return any(o[0] in letters and (len(o) == 1 or o[1].islower()) for o in self.operands)

    @property
    def either(self) -> bool:
        return any("/" in o for o in self.operands)

    @cached_property
    def memory(self) -> bool | None:
        """True: the ModRM operand must be memory; False: a register; None: either, or there is none."""
        if self._field(24, 2) or self.rm is not None:
            return self._field(24, 2) == 2
        if self.has("M"):
            return True
        if self.has("RUN") and not self.either and not self.has("CD"):
            return False
        return None

    @property
    def modrm(self) -> bool:
        return bool(self._field(26, 1)) or self.reg is not None or self.memory is not None or self.has("EMGVWPQUNRCDS")

    @property
    def opcodes(self) -> range:
        return range(self.opcode, self.opcode + 8) if self.row else range(self.opcode, self.opcode + 1)

    def modes(self) -> tuple[int, ...]:
        return {True: (64,), False: (16, 32), None: (16, 32, 64)}[self.only64]

    def encode(self, mode: int, memory: bool) -> bytes:
        """Bytes of the line, operands as plain as can be, with room for any immediate."""
        memory = memory if self.memory is None else self.memory
        tail = b""
        if self.modrm:
            rm = self.rm if self.rm is not None else 4 if memory and mode != 16 else 3
            tail = bytes([(0 if memory else 0xC0) | (self.reg if self.reg is not None else 1) << 3 | rm])
            if memory and mode != 16:
                tail += b"\x0b"  # [rbx + rcx]
        tail += bytes(16)
        if self.vex:
            vvvv = 0 if self.has("HB") else 15
            if not self.has("HB") or mode == 64:
                vvvv = 15
            third = (self.w or 0) << 7 | vvvv << 3 | (self.l or 0) << 2 | VEX_PP[self.prefix]
            return bytes([0xC4, 0xE0 | self.map, third, self.opcode]) + tail
        rex = b"\x48" if self.w and mode == 64 else b""
        return PREFIXES[self.prefix] + rex + MAPS[self.map] + bytes([self.opcodes[-1]]) + tail

    def claims(self) -> dict[str, int | bool]:
        """What the line asks of an instruction with its opcode; fields that are absent may be anything."""
        asked = {
            "prefix": self.prefix or None, "reg": self.reg, "rm": self.rm, "memory": self.memory, "w": self.w, "l": self.l,
            "only64": self.only64,
        }
        return {name: value for name, value in asked.items() if value is not None}


@cache
def table() -> tuple[Line, ...]:
    lines: list[Line] = []
    info = ffi.new("struct kp_insn_info *")
    while lib.kp_insn_info(len(lines), info) == 0:
        operands = ffi.string(info.operands).decode()
        lines.append(Line(
            len(lines), ffi.string(info.id).decode(), ffi.string(info.mnemonic).decode(), tuple(operands.split(",")) if operands else (),
            info.key, info.feature, info.attributes, (info.flags_read, info.flags_written, info.flags_undefined),
        ))
    return tuple(lines)


def decode(code: bytes, mode: int = 64) -> tuple[str, int] | None:
    """(id of the line, length), or None where the bytes are no instruction."""
    length = ffi.new("uint32_t *")
    index = lib.kp_decode(code, len(code), mode, length)
    return None if index < 0 else (table()[index].id, length[0])


def disassemble(code: bytes, mode: int = 64, rip: int = 0) -> tuple[int, str]:
    """(length, text); a negative length where the bytes are no instruction."""
    text = ffi.new("char[160]")
    length = lib.kp_disassemble(code, len(code), mode, rip, text, 160)
    return length, ffi.string(text).decode()
