"""What a failing test shows of a machine, as one text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpy.verdicts import GuestExit, PowerOff

if TYPE_CHECKING:
    from kvmpy.testing.machine import GuestMachine


def describe(machine: GuestMachine) -> str:
    """How it ended, the guest's failed assertions, the autopsy (where the guest ended by its own wish: where every vCPU stands, and what
    the counters say), and faults that were injected. The machine must be at rest."""
    lines = [f"backend {machine.vm.name}, ran {machine.used:.2f} s of {machine.timeout:g} s: {machine.last or 'the guest has not run'}"]
    lines += [f"guest assertion failed: {one}" for one in machine.asserts if not one.passed]
    if machine.last is None:  # registers and tables would say nothing
        return "\n".join(lines + machine.faults.lines())
    if isinstance(machine.last, (GuestExit, PowerOff)):
        from kvmpy.debug.autopsy.page import counters, touched

        lines += [f"vCPU {cpu.index} at {machine.where(cpu.index)}" for cpu in machine.cpu]
        lines += counters(touched(machine))
    else:
        lines += machine.autopsy(machine.last).lines()
    lines += machine.faults.lines()
    return "\n".join(lines)
