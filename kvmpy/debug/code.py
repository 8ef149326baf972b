"""Instructions in guest memory: the bytes at a linear address, and their text by the software CPU's disassembler."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvmpy.debug.pagewalk import walk
from kvmpy.errors import MemoryAccessError
from kvmpy.native import ffi, lib
from kvmpy.regs import code_width, linear_rip
from kvmpy.units import PAGE

if TYPE_CHECKING:
    from kvmpy.machine import Machine

LONGEST = 15
MOST_INSTRUCTIONS = 1000
_FUNCTION = 1 << 16
_ALL = (1 << 64) - 1


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


_AIM = re.compile(r"(?:^(?:call|j\w+|loop\w*) +|# )(0x[0-9a-f]+)$")
"""An address that an instruction's text ends with: a jump's, or of data relative to RIP."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its linear address, its symbol, bytes and text; `text` is empty where the bytes are none, `here` marks RIP's.
    `target` is the symbol of what it jumps to or addresses by RIP."""

    address: int
    symbol: str
    code: bytes
    text: str
    here: bool = False
    target: str = ""

    def __str__(self) -> str:
        name = f" <{self.symbol}>" if self.symbol else ""
        mark = "=> " if self.here else "   "
        if not self.code:
            return f"{mark}{self.address:#x}{name}: no memory there"
        target = f" <{self.target}>" if self.target else ""
        return f"{mark}{self.address:#x}{name}: {self.code.hex():20} {self.text or '(not an instruction)'}{target}"


class Listing(list[Instruction]):
    """Instructions one after the other; as text a line each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    __repr__ = __str__


def listing(
    machine: Machine, address: int | None = None, count: int = 10, before: int = 0, cpu: int = 0,
    read: Callable[[int, int], bytes] | None = None,
) -> Listing:
    """As Machine.disassemble; `read` gives memory by linear address where breakpoints are to be hidden."""
    vcpu = machine.cpu[cpu].vcpu
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    width, here = code_width(sregs), linear_rip(regs, sregs)
    base = 0 if width == 64 else int(sregs.cs.base)
    fetch = read or (lambda at, size: read_linear(machine.memory, sregs, at, size))

    def one(at: int) -> Instruction:
        code = fetch(at, LONGEST)
        found = disassemble(code, width, at - base & _ALL)
        text, length = found if found else ("", 1)
        aim = _AIM.search(text)
        target = machine.symbols.text(int(aim[1], 16) + base & _ALL) if aim else ""
        return Instruction(at, machine.symbols.text(at), code[:length], text, at == here, target)

    start = here if address is None else address
    out = Listing()
    found = machine.symbols.find(start) if before else None
    if found is not None and 0 < found[1] < _FUNCTION:
        at = start - found[1]
        while at < start:
            instruction = one(at)
            if not instruction.text:
                break
            out.append(instruction)
            at += len(instruction.code)
        if at != start:  # the function's start is not where instructions fall into step
            out.clear()
        del out[:-before]
    for _ in range(min(count, MOST_INSTRUCTIONS)):
        out.append(one(start))
        if not out[-1].text:
            break
        start = start + len(out[-1].code) & _ALL
    return out
