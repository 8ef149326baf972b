"""What a failing test shows of a machine, as one text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpy.regs import dump
from kvmpy.verdicts import Crashed, GuestExit, PowerOff

if TYPE_CHECKING:
    from kvmpy.testing.machine import GuestMachine

MOST = 12
"""Lines of counters that are shown."""


def describe(machine: GuestMachine) -> str:
    """How it ended, where every vCPU stands with its registers (after a crash: the report), the guest's failed assertions, faults
    that were injected, and what the counters say. The machine must be at rest."""
    lines = [f"backend {machine.vm.name}, ran {machine.used:.2f} s of {machine.timeout:g} s: {machine.last or 'the guest has not run'}"]
    lines += [f"guest assertion failed: {one}" for one in machine.asserts if not one.passed]
    if isinstance(machine.last, Crashed):
        from kvmpy.debug.report import crash_lines

        lines += crash_lines(machine, machine.last)
    else:
        for cpu in machine.cpu:
            lines.append(f"vCPU {cpu.index} at {machine.where(cpu.index)}")
            if not isinstance(machine.last, (GuestExit, PowerOff)):  # those ends were the guest's own wish
                lines += dump(cpu.vcpu.get_regs(), cpu.vcpu.get_sregs()).split("\n")
                lines += str(machine.backtrace(cpu.index)).split("\n")
    lines += machine.faults.lines()
    lines += _counters(machine)
    return "\n".join(lines)


def _counters(machine: GuestMachine) -> list[str]:
    found = machine.statistics
    lines = []
    for title, key in (
        ("exits", "exits"), ("ports that nobody answers", "unclaimed_ports"), ("addresses that nobody answers", "unclaimed_mmio"),
        ("unknown MSRs", "unknown_msrs"), ("devices", "device_events"),
    ):
        counts = sorted(found[key].items(), key=lambda item: -item[1])
        if counts:
            shown = ", ".join(f"{name} {count}" for name, count in counts[:MOST])
            lines.append(f"{title}: {shown}" + (f" and {len(counts) - MOST} more" if len(counts) > MOST else ""))
    return lines
