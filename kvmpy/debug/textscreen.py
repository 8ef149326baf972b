"""Text memory at B8000h as text: 80x25 characters of code page 437, its first page, whatever mode a guest programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpy.errors import MemoryAccessError

if TYPE_CHECKING:
    from kvmpy.memory import GuestMemory

ADDRESS, COLUMNS, ROWS = 0xB8000, 80, 25
_CONTROLS = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"  # what 0 to 31 show
_TABLE = [*_CONTROLS, *map(chr, range(32, 127)), "⌂", *bytes(range(128, 255)).decode("cp437"), " "]
_ODD = set(_CONTROLS[1:])


def rows(memory: GuestMemory) -> list[str]:
    """The 25 rows, without the spaces at their ends; empty ones where the machine has no memory there."""
    try:
        cells = bytes(memory.read(ADDRESS, 2 * COLUMNS * ROWS))
    except MemoryAccessError:
        return [""] * ROWS
    text = [_TABLE[code] for code in cells[::2]]
    return ["".join(text[at : at + COLUMNS]).rstrip() for at in range(0, COLUMNS * ROWS, COLUMNS)]


def readable(memory: GuestMemory) -> str:
    """The rows as lines; empty where the guest seems to keep something else there than text."""
    text = "\n".join(rows(memory)).rstrip("\n")
    return text if sum(char in _ODD for char in text) * 10 <= len(text) else ""
