"""Faults on purpose: disks that fail, frames that get lost, interrupts that nobody sent, clocks that jump, devices that hang.

Each is put in force at a seam: the image, the network end, the interrupt chips, the clock, the bus. Devices and guest cannot tell
them from the real thing. On virtual time a run with faults repeats exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpy.errors import ConfigError
from kvmpy.faults.rules import Happened, Journal

if TYPE_CHECKING:
    from kvmpy.faults.clock import ClockFaults
    from kvmpy.faults.disk import DiskFaults
    from kvmpy.faults.irq import IrqFaults
    from kvmpy.faults.net import NetFaults
    from kvmpy.faults.stuck import DeviceFaults
    from kvmpy.machine import Machine

__all__ = ["Faults"]


class Faults:
    """The faults of one machine. Its `repr` lists what was asked for and what has happened."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._journal = Journal(machine.clock.now)
        self._parts: dict[tuple[str, Any], Any] = {}

    @property
    def log(self) -> list[Happened]:
        """What has happened, in order."""
        return self._journal.happened

    @property
    def rules(self) -> list[Any]:
        """What was asked for, in order, as plain records."""
        return self._journal.rules

    def disk(self, number: int = 0) -> DiskFaults:
        """Of a disk: the machine's `disks` in order, then one that was booted by its file's name."""
        from kvmpy.faults.disk import DiskFaults

        images = self._machine.disks.images
        if not 0 <= number < len(images):
            raise ConfigError(f"faults: no disk {number}: the machine has {len(images)}")
        return self._part("disk", number, lambda: DiskFaults(number, images[number], self._journal))  # type: ignore[no-any-return]

    def net(self, number: int = 0) -> NetFaults:
        """Of a NIC: the machine's `net` in order."""
        from kvmpy.faults.net import NetFaults

        nics: list[Any] = self._machine.nics
        if not 0 <= number < len(nics):
            raise ConfigError(f"faults: no NIC {number}: the machine has {len(nics)}")
        return self._part("net", number, lambda: NetFaults(number, nics[number].end, self._journal))  # type: ignore[no-any-return]

    @property
    def irq(self) -> IrqFaults:
        """Interrupts."""
        from kvmpy.faults.irq import IrqFaults

        return self._part("irq", 0, lambda: IrqFaults(self._machine, self._journal))  # type: ignore[no-any-return]

    @property
    def clock(self) -> ClockFaults:
        """Time."""
        from kvmpy.faults.clock import ClockFaults

        return self._part("clock", 0, lambda: ClockFaults(self._machine, self._journal))  # type: ignore[no-any-return]

    def device(self, name: str) -> DeviceFaults:
        """Of a device, by its name ("Serial COM1", "virtio-blk 1") or a part of it that fits one device alone."""
        from kvmpy.faults.stuck import DeviceFaults, find_device

        device = find_device(self._machine, name)
        return self._part("device", device.name, lambda: DeviceFaults(self._machine, device, self._journal))  # type: ignore[no-any-return]

    def _part(self, kind: str, key: Any, make: Any) -> Any:
        if (kind, key) not in self._parts:
            self._parts[kind, key] = make()
        return self._parts[kind, key]

    def clear(self) -> None:
        """No fault is left; what has happened stays in the log. Those that wait for a moment do not come."""
        for part in self._parts.values():
            part.clear()
        self._journal.rules.clear()

    def lines(self) -> list[str]:
        """Rules and what they did, as text."""
        return [f"fault: {rule!r}" for rule in self.rules] + [f"at {one.time} ns: {one.what}" for one in self.log]

    def __repr__(self) -> str:
        return "\n".join(["Faults:", *(f"  {line}" for line in self.lines())])
