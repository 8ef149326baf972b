"""Conditional jumps in the code of a file, found by decoding it: those that were never executed are told too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from kvmpy.native import ffi, lib

_JUMP = 0x1000  # A_JUMP of the instruction table


@cache
def _conditional() -> frozenset[int]:
    """Numbers of the table's conditional jumps."""
    found, info, number = set(), ffi.new("struct kp_insn_info *"), 0
    while lib.kp_insn_info(number, info) == 0:
        if info.attributes & _JUMP and ffi.string(info.mnemonic) != b"jmp":
            found.add(number)
        number += 1
    return frozenset(found)


class Code:
    """The code of an ELF file by its addresses."""

    def __init__(self, elf: Any) -> None:
        self._pieces = []
        for segment in elf.iter_segments("PT_LOAD"):
            data = segment.data()
            if data:
                self._pieces.append((segment["p_vaddr"], len(data), ffi.from_buffer("uint8_t[]", data)))
        # 32-bit entry code in a 64-bit file, and 16-bit code in either, are told by where their instructions end.
        self._modes = (64, 32, 16) if elf.elfclass == 64 else (32, 16)

    def jumps(self, start: int, end: int) -> list[int]:
        """Addresses of the conditional jumps between two borders of instructions; none where that is no code."""
        for base, size, data in self._pieces:
            if base <= start and end <= base + size:
                for mode in self._modes:
                    found = list(_decode(data + (start - base), end - start, mode))
                    if found and found[-1][0] == end - start:
                        return [start + at for at, index in found[:-1] if index in _conditional()]
        return []


def _decode(data: Any, size: int, mode: int) -> Iterator[tuple[int, int]]:
    """Offset and table index of each instruction; at last the offset behind them."""
    at, length = 0, ffi.new("uint32_t *")
    while at < size:
        index = lib.kp_decode(data + at, min(size - at, 15), mode, length)
        if index < 0:
            break
        yield at, index
        at += length[0]
    yield at, -1
