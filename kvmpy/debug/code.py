"""Instructions in guest memory: the bytes at a linear address, and their text by the software CPU's disassembler."""

from __future__ import annotations

import importlib
from typing import Any

from kvmpy.debug.pagewalk import walk
from kvmpy.errors import MemoryAccessError
from kvmpy.native import ffi, lib
from kvmpy.units import PAGE

LONGEST = 15


def read_linear(memory: Any, sregs: Any, linear: int, size: int) -> bytes:
    """Up to `size` bytes at a linear address under the page tables of `sregs`; fewer where a page is not mapped or not memory."""
    out = b""
    while len(out) < size:
        at = linear + len(out)
        gpa = walk(memory, at, cr0=sregs.cr0, cr3=sregs.cr3, cr4=sregs.cr4, efer=sregs.efer).gpa
        if gpa is None:
            break
        part = min(size - len(out), PAGE - at % PAGE)
        try:
            out += memory.read(gpa, part)
        except MemoryAccessError:
            break
    return out


def can_disassemble() -> bool:
    """True when this installation holds the software CPU, whose decoder it is."""
    return hasattr(importlib.import_module("kvmpy.soft"), "SoftBackend")


def disassemble(code: bytes, width: int, rip: int) -> tuple[str, int] | None:
    """Text of the first instruction in `code` (width 16, 32 or 64) and its length; None when it is none, or nothing can tell."""
    if not code or not can_disassemble():
        return None
    text = ffi.new("char[]", 128)
    length = lib.kp_disassemble(code, len(code), width, rip, text, 128)
    if length <= 0:
        return None
    return ffi.string(text).decode("ascii", "replace"), int(length)


def instruction_line(code: bytes, width: int, rip: int, symbol: str | None = None) -> str:
    """One line for a report: address, the function it lies in, bytes, text."""
    where = f"=> {rip:x} <{symbol}>" if symbol else f"=> {rip:x}"
    if not code:
        return f"{where}: no memory there"
    found = disassemble(code, width, rip)
    if found is None:
        return f"{where}: {code.hex(' ')}"
    text, length = found
    return f"{where}: {code[:length].hex(' ')}  {text}"
