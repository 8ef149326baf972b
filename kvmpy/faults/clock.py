"""Time that jumps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpy.errors import ConfigError
from kvmpy.faults.moments import Moments
from kvmpy.faults.rules import Journal
from kvmpy.record import Record
from kvmpy.x86 import MSR_TSC

if TYPE_CHECKING:
    from kvmpy.machine import Machine


class ClockFault(Record, frozen=True):
    """A jump by so many nanoseconds."""

    ns: int
    at: int | None = None
    instructions: int | None = None


class ClockFaults:
    """Jumps of the guest's time, as after a host that was suspended."""

    def __init__(self, machine: Machine, journal: Journal) -> None:
        self._machine = machine
        self._journal = journal
        self._moments = Moments(machine)

    def jump(self, ns: int, *, at: int | None = None, instructions: int | None = None) -> ClockFault:
        """All clocks of the guest go forward: kvmclock, the devices' (RTC, HPET, PM timer), and the TSC (on KVM only for a jump
        made while the machine is at rest, and of more than a second: a smaller step of the TSC is taken for noise by KVM).
        Timers of devices that this makes due run late; those of PIT and local APIC keep what they had left.
        """
        if ns < 0:
            raise ConfigError(f"faults: a jump of {ns} ns: the machine's time never goes back")
        rule = ClockFault(ns, at, instructions)
        if self._machine.vm.threaded and at is None:
            self._move_tsc(ns)
        self._moments.at(at, instructions, lambda: self._strike(rule))
        self._journal.rules.append(rule)
        return rule

    def clear(self) -> None:
        """Those that wait do not come."""
        self._moments.clear()

    def _strike(self, rule: ClockFault) -> None:
        self._journal.tell(f"the clock jumps by {rule.ns} ns")
        vm, clock = self._machine.vm, self._machine.clock
        data = vm.get_clock()
        data.clock += rule.ns
        data.flags = 0
        vm.set_clock(data)  # on virtual time this is the machine's clock too
        jump: Any = getattr(clock, "jump", None)
        if jump is not None:
            jump(rule.ns)

    def _move_tsc(self, ns: int) -> None:
        for cpu in self._machine.cpu:
            wanted = cpu.vcpu.get_msrs([MSR_TSC])[MSR_TSC] + ns * cpu.vcpu.get_tsc_khz() // 1_000_000
            cpu.vcpu.set_msrs({MSR_TSC: wanted & (1 << 64) - 1})
            if cpu.vcpu.get_msrs([MSR_TSC])[MSR_TSC] < wanted:
                self._journal.tell(f"the TSC of vCPU {cpu.index} stays: this host's KVM does not move it so")
