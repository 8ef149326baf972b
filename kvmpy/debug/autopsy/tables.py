"""Whether descriptor tables hold what exceptions need: the GDT, the IDT's gates, the TSS and its stacks (SDM 3A 3.5, 6.10, 6.14, 7.7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmpy import x86
from kvmpy.debug.code import read_linear
from kvmpy.debug.pagewalk import walk
from kvmpy.regs import code_width
from kvmpy.x86 import EXCEPTIONS

CHECKED = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19)
"""Vectors of exceptions that every system can meet."""
_MOST_PROBLEMS = 8
_EMPTY = "gate {} is empty"
_GATES = {0x5: "task gate", 0x6: "16-bit interrupt gate", 0x7: "16-bit trap gate", 0xE: "interrupt gate", 0xF: "trap gate"}
_ALL = (1 << 64) - 1


class Tables:
    """The tables of one vCPU at rest."""

    def __init__(self, memory: Any, regs: Any, sregs: Any, name: Callable[[int], str]) -> None:
        self._memory, self._regs, self.sregs = memory, regs, sregs
        self._name = name
        self.long = bool(sregs.efer & x86.EFER_LMA)
        self.protected = bool(sregs.cr0 & x86.CR0_PE)
        self.gate_size = 16 if self.long else 8 if self.protected else 4
        self.gates = (int(sregs.idt.limit) + 1) // self.gate_size

    def read(self, linear: int, size: int) -> bytes | None:
        """None where a part of it is not mapped, or no memory."""
        data = read_linear(self._memory, self.sregs, linear & _ALL, size)
        return data if len(data) == size else None

    def mapped(self, linear: int) -> Any:
        """The page walk of a linear address."""
        s = self.sregs
        return walk(self._memory, linear, cr0=s.cr0, cr3=s.cr3, cr4=s.cr4, efer=s.efer)

    def missing(self, linear: int) -> str:
        """Why a linear address is no memory; empty where it is."""
        if self.read(linear, 1) is not None:
            return ""
        return self.mapped(linear).problem or "no memory there"

    def descriptor(self, selector: int) -> tuple[int | None, str]:
        """A descriptor of the GDT, and what is wrong with it."""
        if not selector & ~3:
            return None, "a null selector"
        if selector & 4:
            return None, f"selector {selector:#x} is of the LDT"
        at = selector & ~7
        if at + 7 > self.sregs.gdt.limit:
            return None, f"selector {selector:#x} is beyond the GDT (limit {int(self.sregs.gdt.limit):#x})"
        data = self.read(int(self.sregs.gdt.base) + at, 8)
        if data is None:
            return None, f"the GDT at {int(self.sregs.gdt.base) + at:#x} is not mapped"
        return int.from_bytes(data, "little"), ""

    def ist(self, number: int) -> int | None:
        """A stack pointer of the 64-bit TSS: 0 to 2 are RSP0 to RSP2, 4 to 10 IST1 to IST7. None where the TSS is too small or unmapped."""
        at = 4 + 8 * number
        if at + 7 > self.sregs.tr.limit:
            return None
        data = self.read(int(self.sregs.tr.base) + at, 8)
        return None if data is None else int.from_bytes(data, "little")

    def gate_problem(self, vector: int) -> str:
        """Why an exception of this vector cannot be delivered; empty where nothing is seen that hinders it."""
        idt = self.sregs.idt
        if vector >= self.gates:
            what = "no IDT" if not self.gates else f"no gate {vector} in the IDT"
            return f"{what} (limit {int(idt.limit):#x})"
        data = self.read(int(idt.base) + vector * self.gate_size, self.gate_size)
        if data is None:
            return f"the IDT at {int(idt.base):#x} is not mapped"
        if not self.protected:
            return ""
        gate = int.from_bytes(data, "little")
        kind, selector = gate >> 40 & 0x1F, gate >> 16 & 0xFFFF
        if kind not in _GATES or (self.long and kind not in (0xE, 0xF)):
            return f"gate {vector} is no gate (type {kind:#x})" if gate else _EMPTY.format(vector)
        if not gate >> 47 & 1:
            return f"gate {vector} is not present"
        return "" if kind == 5 else self._target_problem(vector, gate, selector)

    def _target_problem(self, vector: int, gate: int, selector: int) -> str:
        target = gate & 0xFFFF | gate >> 32 & 0xFFFF0000 | (gate >> 64 & 0xFFFFFFFF) << 32
        code, wrong = self.descriptor(selector)
        if code is None:
            return f"gate {vector}: {wrong}"
        if code >> 43 & 3 != 3:
            return f"gate {vector}: selector {selector:#x} is not code"
        if not code >> 47 & 1:
            return f"gate {vector}: its code segment {selector:#x} is not present"
        if self.long and not code >> 53 & 1:
            return f"gate {vector}: its code segment {selector:#x} is not 64-bit"
        base = 0 if self.long else (code >> 16 & 0xFFFFFF) | code >> 32 & 0xFF000000
        place = self.mapped(base + target)
        if self.missing(base + target):
            return f"gate {vector}: its handler at {base + target:#x} is not mapped"
        if not place.executable:
            return f"gate {vector}: its handler at {base + target:#x} is in a no-execute page"
        ist = gate >> 32 & 7 if self.long else 0
        return self.stack_problem(vector, ist) if ist else ""

    def stack_problem(self, vector: int, ist: int) -> str:
        """Of a gate that switches to an IST stack."""
        stack = self.ist(ist + 3)
        if stack is None:
            return f"gate {vector}: the TSS at {int(self.sregs.tr.base):#x} has no IST{ist} that can be read"
        why = self.missing(stack - 8)
        return f"gate {vector}: its stack IST{ist} at {stack:#x} is not mapped" if why else ""

    def lines(self) -> list[str]:
        """What is wrong, or that nothing is."""
        s = self.sregs
        lines = [f"GDT at {int(s.gdt.base):#x}, limit {int(s.gdt.limit):#x}"]
        if self.protected:
            for name in ("cs", "ss", "tr"):
                selector = int(getattr(s, name).selector)
                if selector & ~3:
                    found, wrong = self.descriptor(selector)
                    if found is not None and not found >> 47 & 1:
                        wrong = f"the descriptor of {selector:#x} is not present"
                    if wrong:
                        lines.append(f"  {name}: {wrong}")
        problems = [problem for vector in CHECKED if (problem := self.gate_problem(vector))]
        lines.append(
            f"IDT at {int(s.idt.base):#x}, limit {int(s.idt.limit):#x}: room for {self.gates} {'gates' if self.protected else 'vectors'}, "
            f"{len(CHECKED) - len(problems)} of {len(CHECKED)} exceptions have a usable one"
        )
        empty = [vector for vector in CHECKED if self.gate_problem(vector) == _EMPTY.format(vector)]
        different = [f"no gate for {' '.join(EXCEPTIONS[vector] for vector in empty)}: empty"] if len(empty) > 1 else []
        different += [problem for problem in dict.fromkeys(problems) if not (different and problem.endswith("is empty"))]
        lines += [f"  {problem}" for problem in different[:_MOST_PROBLEMS]]
        if len(different) > _MOST_PROBLEMS:
            lines.append(f"  and {len(different) - _MOST_PROBLEMS} more")
        if self.long:
            stack = self.ist(0)
            if stack is None:
                lines.append(f"TSS at {int(s.tr.base):#x}, limit {int(s.tr.limit):#x}: RSP0 cannot be read")
            else:
                why = self.missing(stack - 8) if stack else "0"
                lines.append(f"TSS at {int(s.tr.base):#x}: RSP0 {stack:#x}" + (f" (not mapped: {why})" if why and stack else ""))
        why = self.missing(self.stack_pointer())
        if why:
            lines.append(f"the stack at {self.stack_pointer():#x} is not mapped: {why}")
        return lines

    def stack_pointer(self) -> int:
        """Linear address in SS:RSP."""
        if code_width(self.sregs) == 64:
            return int(self._regs.rsp)
        return int(self.sregs.ss.base + self._regs.rsp) & 0xFFFFFFFF

    def place(self, linear: int) -> str:
        """An address with its symbol."""
        name = self._name(linear)
        return f"{linear:#x} <{name}>" if name else f"{linear:#x}"
