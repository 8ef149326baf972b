"""What a person wants to know of a guest that crashed: registers, the instruction, its callers, and how its address is mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpy import x86
from kvmpy.debug.code import LONGEST, disassemble, instruction_line, read_linear
from kvmpy.debug.pagewalk import Walk, walk
from kvmpy.errors import ImageError
from kvmpy.regs import code_width, dump, linear_rip

if TYPE_CHECKING:
    from kvmpy.machine import Machine
    from kvmpy.verdicts import Crashed

_FRAMES = 16


def _walks(machine: Machine, regs: Any, sregs: Any) -> list[Walk]:
    """Of the instruction, of CR2 after a page fault, of the stack, of the IDT: what a triple fault can come from."""
    control = {"cr0": sregs.cr0, "cr3": sregs.cr3, "cr4": sregs.cr4, "efer": sregs.efer}
    wide = code_width(sregs) == 64
    stack = int(regs.rsp) if wide else int(sregs.ss.base + regs.rsp) & 0xFFFFFFFF
    addresses = [linear_rip(regs, sregs), int(sregs.cr2), stack, int(sregs.idt.base)]
    seen: dict[int, Walk] = {}
    for address in addresses:
        page = address >> 12
        if page not in seen and (address or address == addresses[0]):
            seen[page] = walk(machine.memory, address, **control)
    return list(seen.values())


def crash_lines(machine: Machine, verdict: Crashed) -> list[str]:
    """The report as lines of text. The machine must be at rest."""
    cpu = machine.cpu[verdict.vcpu].vcpu
    regs, sregs = cpu.get_regs(), cpu.get_sregs()
    lines = dump(regs, sregs).split("\n")
    code = read_linear(machine.memory, sregs, linear_rip(regs, sregs), LONGEST)
    lines.append(instruction_line(code, code_width(sregs), int(regs.rip), _symbol(machine, regs, sregs)))
    lines += _stack(machine, verdict.vcpu)
    if verdict.why == "triple fault":
        lines.append(_idt_line(sregs))
        if sregs.cr0 & x86.CR0_PG:
            for one in _walks(machine, regs, sregs):
                lines += one.lines()
    return lines


def _symbol(machine: Machine, regs: Any, sregs: Any) -> str | None:
    """The function at RIP as far as the machine's symbols know it."""
    try:
        return machine.symbols.text(linear_rip(regs, sregs)) or None
    except ImageError:  # the guest ran; its debugging information may still be damaged
        return None


def _stack(machine: Machine, vcpu: int) -> list[str]:
    """The callers of the function at RIP, where anything tells of them."""
    try:
        frames = machine.backtrace(vcpu, _FRAMES)
    except ImageError:
        return []
    return ["called from", *(f"  {frame}" for frame in frames[1:])] if len(frames) > 1 else []


def _idt_line(sregs: Any) -> str:
    size = 16 if sregs.efer & x86.EFER_LMA else 8 if sregs.cr0 & x86.CR0_PE else 4
    gates = (int(sregs.idt.limit) + 1) // size
    return f"IDT at {int(sregs.idt.base):#x}: room for {gates} {'vectors' if size == 4 else 'gates'}" + (
        ", too few for the exceptions" if gates < 20 else ""
    )


def crash_data(machine: Machine, verdict: Crashed) -> dict[str, Any]:
    """The same as plain data."""
    vcpu = machine.cpu[verdict.vcpu]
    regs, sregs = vcpu.vcpu.get_regs(), vcpu.vcpu.get_sregs()
    code = read_linear(machine.memory, sregs, linear_rip(regs, sregs), LONGEST)
    found = disassemble(code, code_width(sregs), int(regs.rip))
    data: dict[str, Any] = {
        "vcpu": verdict.vcpu,
        "details": verdict.details,
        "registers": vcpu.registers.as_dict(),
        "instruction": {"bytes": code[: found[1] if found else LONGEST].hex(" "), "text": found[0] if found else None},
        "symbol": _symbol(machine, regs, sregs),
        "called_from": _stack(machine, verdict.vcpu)[1:],
    }
    if verdict.why == "triple fault" and sregs.cr0 & x86.CR0_PG:
        data["page_walks"] = [
            {
                "linear": one.linear, "mode": one.mode, "gpa": one.gpa, "problem": one.problem,
                "steps": [{"table": step.table, "address": step.address, "entry": step.entry} for step in one.steps],
            }
            for one in _walks(machine, regs, sregs)
        ]
    return data
