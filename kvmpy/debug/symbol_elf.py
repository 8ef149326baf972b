"""An ELF file that holds symbols and no code: what a debugger needs where the kernel's own file has none."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

_EHDR, _SHDR, _SYM = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_NOTYPE, _OBJECT, _FUNC = 0, 1, 2
_GLOBAL = 1 << 4
_NAMES = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"


class Named(Protocol):
    """What is written of a symbol."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def function(self) -> bool: ...


def symbol_elf(symbols: Sequence[Named]) -> bytes:
    """ELF64 for x86-64; one section without contents spans all addresses. `symbols` are in the order of addresses."""
    first = symbols[0].address if symbols else 0
    last = symbols[-1].address if symbols else 0
    strings = bytearray(b"\0")
    table = bytearray(_SYM.size)
    for symbol in symbols:
        kind = _FUNC if symbol.function else _OBJECT
        table += _SYM.pack(len(strings), _GLOBAL | kind, 0, 1, symbol.address, symbol.size)
        strings += symbol.name.encode() + b"\0"
    table_at = _EHDR.size
    strings_at = table_at + len(table)
    names_at = strings_at + len(strings)
    sections_at = names_at + len(_NAMES)
    span = min(last - first + 0x1000, (1 << 64) - 1 - first)
    sections = [
        bytes(_SHDR.size),
        _SHDR.pack(_NAMES.index(b".text"), 8, 6, first, table_at, span, 0, 0, 16, 0),
        _SHDR.pack(_NAMES.index(b".symtab"), 2, 0, 0, table_at, len(table), 3, 1, 8, _SYM.size),
        _SHDR.pack(_NAMES.index(b".strtab"), 3, 0, 0, strings_at, len(strings), 0, 0, 1, 0),
        _SHDR.pack(_NAMES.index(b".shstrtab"), 3, 0, 0, names_at, len(_NAMES), 0, 0, 1, 0),
    ]
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = _EHDR.pack(ident, 2, 62, 1, first, 0, sections_at, 0, _EHDR.size, 0, 0, _SHDR.size, len(sections), 4)
    return head + bytes(table) + bytes(strings) + _NAMES + b"".join(sections)
