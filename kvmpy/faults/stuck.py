"""Devices that hang."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpy.errors import ConfigError
from kvmpy.faults.moments import Moments
from kvmpy.faults.rules import Journal
from kvmpy.irq import lines_of
from kvmpy.record import Record

if TYPE_CHECKING:
    from kvmpy.machine import Machine


MOST_REGISTERS = 4096
"""Whose last value is kept; any further one reads as all ones."""


class StuckDevice(Record, frozen=True):
    """A device that hangs; `value` is what it reads as, None: what it showed last."""

    device: str
    value: int | None = None
    at: int | None = None
    instructions: int | None = None


def find_device(machine: Machine, name: str) -> Any:
    """The device of a name, or the only one whose name holds it. ConfigError where there is none, or several."""
    named = [(device.name or type(device).__name__, device) for device in machine.devices]
    found = [device for one, device in named if one == name] or [device for one, device in named if name in one]
    if len(found) == 1:
        return found[0]
    raise ConfigError(f"faults: {len(found) or 'no'} devices {name!r}: the machine has {', '.join(one for one, _ in named)}")


class DeviceFaults:
    """One device."""

    def __init__(self, machine: Machine, device: Any, journal: Journal) -> None:
        self._machine = machine
        self._device = device
        self._journal = journal
        self._moments = Moments(machine)
        # A PCI function stands on the buses by its BARs.
        self._parts = [device, *getattr(device, "bars", ())]
        self._ways = [(part, part.read, part.write) for part in self._parts]
        self._name = device.name or type(device).__name__
        self._carried: Any = getattr(device, "device", None)  # a virtio device behind its transport, whose doorbells pass the buses by
        self._stuck = False

    def stick(self, value: int | None = None, *, at: int | None = None, instructions: int | None = None) -> StuckDevice:
        """From then on writes go nowhere, reads give `value`, or what each register shows when it is first read after that, and the
        interrupt lines stay as they are. What the device does by itself (frames that come in, messages) goes on."""
        rule = StuckDevice(self._name, value, at, instructions)
        self._moments.at(at, instructions, lambda: self._stick(value))
        self._journal.rules.append(rule)
        return rule

    def free(self) -> None:
        """It works again, as if it had not been spoken to."""
        self._moments.clear()
        self._machine.call(self._free)

    clear = free

    def _stick(self, value: int | None) -> None:
        if self._stuck:
            return
        self._stuck = True
        self._journal.tell(f"{self._name} is stuck")
        for part, read, _ in self._ways:
            seen: dict[tuple[int, int], int] = {}

            def frozen(offset: int, size: int, read: Any = read, seen: dict[tuple[int, int], int] = seen) -> int:
                if value is not None:
                    return value & (1 << 8 * size) - 1
                if (offset, size) not in seen:
                    if len(seen) >= MOST_REGISTERS:
                        return (1 << 8 * size) - 1
                    seen[offset, size] = read(offset, size)
                return seen[offset, size]

            self._redirect(part, frozen, lambda offset, size, value: None)
        if hasattr(self._carried, "notify"):
            self._carried.notify = lambda index: None
        for line in lines_of(self._device):
            line.stuck = True

    def _free(self) -> None:
        if not self._stuck:
            return
        self._stuck = False
        for part, read, write in self._ways:
            self._redirect(part, read, write)
        if hasattr(self._carried, "notify"):
            del self._carried.notify
        for line in lines_of(self._device):
            line.stuck = False

    def _redirect(self, part: Any, read: Any, write: Any) -> None:
        part.read, part.write = read, write  # for ranges that are placed from now on
        for bus in (self._machine.ports, self._machine.mmio):
            bus.redirect(part, read, write)
