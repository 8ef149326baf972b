"""What translated code did otherwise than the interpreter, as a person wants to see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpy.debug.translation import Translations

if TYPE_CHECKING:
    from kvmpy.errors import TranslatorError
    from kvmpy.machine import Machine


def report_of(machine: Machine, error: TranslatorError) -> list[str]:
    """What differs, a line each, and the blocks at `rip` with their host code."""
    interpreted, translated = error.retired
    if error.again:
        lines = [f"the run from {error.start:#x} on is the same until the block at {error.rip:#x}, and differs behind it"]
    else:
        lines = [f"the run from {error.start:#x} on differs as a whole, or only once; its last block is at {error.rip:#x}"]
    lines.append(f"instructions: interpreted {interpreted}, translated {translated}")
    for name, gpa, left, right in error.differences:
        where = name if gpa is None else f"{name} {gpa:#x}"
        if name == "stored":
            lines.append(f"{where}: only translated code has stored into this page")
        elif gpa is None:
            lines.append(f"{where}: interpreted {_number(left)}, translated {_number(right)}")
        else:
            lines.append(f"{where}: interpreted {left.hex(' ')}, translated {right.hex(' ')}")
    found = Translations(machine)
    for rip in (error.rip, error.behind):
        if rip is not None:
            lines += [line for block in found.at(rip) if block.rip == rip for line in block.lines()]
    return lines


def _number(value: bytes) -> str:
    return f"{int.from_bytes(value, 'little'):#x}"
