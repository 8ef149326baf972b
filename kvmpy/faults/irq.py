"""Interrupts that no device sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpy.errors import ConfigError
from kvmpy.faults.moments import Moments
from kvmpy.faults.rules import Journal
from kvmpy.native import ffi
from kvmpy.record import Record

if TYPE_CHECKING:
    from kvmpy.machine import Machine

MSI_BASE = 0xFEE00000
NMI = 0x400  # delivery mode 100b (SDM 3A 11.11.2)
FIRST_VECTOR = 16
APIC_ENABLE = 1 << 11  # of IA32_APIC_BASE (SDM 3A 11.4.3)
SPURIOUS, SOFTWARE_ENABLE = 0xF0, 1 << 8  # the spurious-interrupt vector register (SDM 3A 11.9)


class IrqFault(Record, frozen=True):
    """An interrupt: `kind` is line, vector or nmi, `number` the GSI or vector, `at` in ns, `instructions` a count."""

    kind: str
    number: int
    cpu: int | None = None
    at: int | None = None
    instructions: int | None = None


class IrqFaults:
    """Each comes at once, at a moment of the machine's clock, or at a count of instructions of all vCPUs (on virtual time)."""

    def __init__(self, machine: Machine, journal: Journal) -> None:
        self._machine = machine
        self._journal = journal
        self._moments = Moments(machine)

    def line(self, gsi: int, *, at: int | None = None, instructions: int | None = None) -> IrqFault:
        """An edge on an interrupt line, as noise gives it. Nothing happens where a device holds the line."""
        if not 0 <= gsi < 24:
            raise ConfigError(f"faults: line {gsi}: 0 to 23")
        return self._add(IrqFault("line", gsi, None, at, instructions))

    def vector(self, vector: int, cpu: int = 0, *, at: int | None = None, instructions: int | None = None) -> IrqFault:
        """A message to a local APIC: an interrupt with this vector. One that is switched off takes none: ConfigError where that can
        be seen now, with the machine at rest and nothing to wait for."""
        if not FIRST_VECTOR <= vector <= 255:
            raise ConfigError(f"faults: vector {vector}: {FIRST_VECTOR} to 255")
        rule = IrqFault("vector", vector, self._cpu(cpu), at, instructions)
        if at is None and instructions is None and not self._machine.running and not self._apic_on(cpu):
            raise ConfigError(f"faults: vector {vector:#x}: vCPU {cpu}'s local APIC is off and takes none; irq.line goes by the 8259s")
        return self._add(rule)

    def _apic_on(self, cpu: int) -> bool:
        vcpu = self._machine.cpu[cpu].vcpu
        spurious = bytes(ffi.buffer(vcpu.get_lapic().regs))[SPURIOUS : SPURIOUS + 2]
        return bool(vcpu.get_sregs().apic_base & APIC_ENABLE and int.from_bytes(spurious, "little") & SOFTWARE_ENABLE)

    def nmi(self, cpu: int = 0, *, at: int | None = None, instructions: int | None = None) -> IrqFault:
        """A non-maskable interrupt."""
        return self._add(IrqFault("nmi", 2, self._cpu(cpu), at, instructions))

    def clear(self) -> None:
        """Those that wait do not come."""
        self._moments.clear()

    def _cpu(self, cpu: int) -> int:
        if not 0 <= cpu < len(self._machine.cpu):
            raise ConfigError(f"faults: no vCPU {cpu}: the machine has {len(self._machine.cpu)}")
        return cpu

    def _add(self, rule: IrqFault) -> IrqFault:
        self._moments.at(rule.at, rule.instructions, lambda: self._strike(rule))
        self._journal.rules.append(rule)
        return rule

    def _strike(self, rule: IrqFault) -> None:
        vm = self._machine.vm
        if rule.kind == "line":
            if not self._machine.lines_high(rule.number):
                vm.irq_line(rule.number, 1)
                vm.irq_line(rule.number, 0)
            self._journal.tell(f"edge on line {rule.number}")
            return
        self._machine.signal_msi(MSI_BASE | (rule.cpu or 0) << 12, NMI if rule.kind == "nmi" else rule.number)
        self._journal.tell(f"{'NMI' if rule.kind == 'nmi' else f'vector {rule.number:#x}'} to vCPU {rule.cpu}")
