"""A few devices, buses, memory and a clock under the hands of a fuzzer's input.

An input is a program: accesses, time, memory, what the outside does. Somewhere in it the world may be saved and restored into a
second one; from there on both get the same and must answer the same. Devices raise nothing, whatever they get.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmpy.bus import MmioBus, PortBus, place
from kvmpy.devices.base import Device
from kvmpy.devices.pci.host import PciHost
from kvmpy.irq import Line
from kvmpy.memory import GuestMemory
from tests.devices.conftest import FakePlatform
from tests.fuzz.ops import Input

SIZES = (1, 2, 4, 8)
MOST_STEPS = 400
SECTOR = 512


class Disk:
    """A disk image in memory, as large as it says."""

    def __init__(self, sectors: int, readonly: bool = False) -> None:
        self.size = sectors * SECTOR
        self.data = bytearray(self.size)
        self.readonly = readonly
        self.serial = "fuzz"
        self.fails = False

    def _range(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self.size and not (offset | length) % SECTOR, (offset, length)
        if self.fails:
            raise OSError(5, "Input/output error")

    def read_into(self, offset: int, buffers: Any) -> None:
        self._range(offset, sum(map(len, buffers)))
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def write_from(self, offset: int, buffers: Any) -> None:
        self._range(offset, sum(map(len, buffers)))
        assert not self.readonly
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def flush(self) -> None:
        self._range(0, 0)

    def discard(self, offset: int, length: int) -> None:
        self._range(offset, length)

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool) -> None:
        self._range(offset, length)
        self.data[offset : offset + length] = bytes(length)

    def close(self) -> None:
        pass


class World:
    """One machine. Subclasses place devices in `build`, and may add steps of their own in `special`."""

    memory_size = 256 << 10

    def __init__(self) -> None:
        self.platform = FakePlatform()
        self.memory = self.platform.memory = GuestMemory(self.memory_size)
        self.ports, self.mmio = PortBus(), MmioBus()
        self.devices: list[Any] = []
        self.lines: list[Line] = []
        self.outside: list[Any] = []
        """What the world saw of the guest: output, frames."""
        self.disks: list[Disk] = []
        self.build()

    def build(self) -> None:
        raise AssertionError

    def place(self, *devices: Device) -> None:
        for device in devices:
            place(device, self.ports, self.mmio)
            device.connect(self.platform)
            self.devices.append(device)

    def plug(self, *functions: Any) -> PciHost:
        """A PCI bus with these functions, set up as firmware does, bus mastering on."""
        self.host = PciHost((self.ports, self.mmio))
        for function in functions:
            self.host.plug(function)
        self.place(self.host, *functions)
        self.host.leave_as_firmware_does()
        for function in functions:
            function.config_write(4, 2, function.config_read(4, 2) | 4)
        self.lines += [*self.host.gsi_lines, *self.host.isa_lines]
        return self.host

    def ranges(self) -> list[tuple[Any, int, int]]:
        """(bus, first, size) of what there is now; the guest moves BARs."""
        return [(bus, entry.first, entry.end - entry.first) for bus in (self.ports, self.mmio) for entry in bus.entries]

    # Steps. Each is the name of a method and its arguments, so that two worlds can take the same.

    def decode(self, source: Input) -> tuple[Any, ...]:
        what = source.byte()
        kind = what & 15
        if kind < 8:
            ranges = self.ranges()
            which = ranges[(what >> 4) % len(ranges)] if kind & 1 else ranges[source.byte() % len(ranges)]
            bus, first, size = which
            width = SIZES[source.byte() & 3] if kind & 2 else 1 if size <= 256 else 4
            offset = source.number(1 if size <= 256 else 2 if size <= 1 << 16 else 3) % size
            is_port = bus is self.ports
            if kind < 4:
                return "write", is_port, first + offset, width, source.value(width)
            if kind < 6:
                return "read", is_port, first + offset, width
            if kind == 6:
                return "burst", is_port, first + offset, width, source.bytes(255)
            return "reads", is_port, first + offset, width, source.byte()
        if kind == 8:
            return "wait", source.number(3) << (what >> 4) % 8
        if kind == 9:
            return "poke", source.number(3) % self.memory_size, source.bytes(64)
        if kind == 10:
            return self.decode_input(source)
        if kind == 11 and what >> 4 == 15:
            return ("reset",)
        return self.special(source)

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        """Something from outside."""
        return "wait", 1

    def special(self, source: Input) -> tuple[Any, ...]:
        """A step of this kind of world."""
        return "wait", 1000

    def read(self, is_port: bool, address: int, size: int) -> int:
        bus = self.ports if is_port else self.mmio
        value = bus.read(address, size)
        assert type(value) is int and 0 <= value < 1 << 8 * size, (hex(address), size, value)
        return value

    def write(self, is_port: bool, address: int, size: int, value: int) -> None:
        (self.ports if is_port else self.mmio).write(address, size, value)

    def burst(self, is_port: bool, address: int, size: int, data: bytes) -> None:
        for at in range(0, len(data), size):
            self.write(is_port, address, size, int.from_bytes(data[at : at + size], "little"))

    def reads(self, is_port: bool, address: int, size: int, count: int) -> list[int]:
        return [self.read(is_port, address, size) for _ in range(count)]

    def wait(self, ns: int) -> None:
        self.platform.clock.advance(ns)

    def poke(self, address: int, data: bytes) -> None:
        self.memory.write(address, data[: self.memory_size - address])

    def reset(self) -> None:
        for device in self.devices:
            device.reset()

    def fail(self, number: int) -> None:
        """The host's disks fail, or no longer."""
        for disk in self.disks:
            disk.fails = bool(number & 1)

    # What can be seen, and a second one.

    def seen(self) -> Any:
        """Everything that a step may have changed outside the devices: told once."""
        platform = self.platform
        seen = [line.level for line in self.lines], platform.messages[:], [str(verdict) for verdict in platform.verdicts], self.outside[:]
        platform.messages.clear()
        platform.verdicts.clear()
        platform.events.clear()
        platform.warnings.clear()
        self.outside.clear()
        return seen

    def state(self) -> list[dict[str, Any]]:
        return [device.state() for device in self.devices]

    def twin(self) -> World:
        """A second one from the saved state."""
        other = type(self)()
        other.platform.clock.time = self.platform.clock.time
        other.memory.write(0, self.memory.read(0, self.memory_size))
        for mine, its in zip(self.disks, other.disks, strict=True):
            its.data[:] = mine.data
            its.fails = mine.fails
        self.hand_over(other)
        for device, saved in zip(other.devices, self.state(), strict=True):
            assert is_plain(saved), saved
            device.restore(saved)
        other.seen()
        return other

    def hand_over(self, other: World) -> None:
        """What the outside holds for this world goes to the other one too."""

    def close(self) -> None:
        for device in self.devices:
            device.close()
        self.memory.close()


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return type(value) in (int, str, bytes, bool, float, type(None))


def drive(make: Callable[[], World], data: bytes) -> None:
    """One input on a new world."""
    source = Input(data)
    worlds = [make()]
    split = source.byte()  # the step before which it is saved and restored; 0: never
    try:
        for number in range(1, MOST_STEPS):
            if not source:
                break
            if number == split:
                worlds.append(worlds[0].twin())
                assert worlds[1].state() == worlds[0].state(), "the restored state is another one"
                assert [line.level for line in worlds[1].lines] == [line.level for line in worlds[0].lines], "lines of the restored one"
            name, *arguments = worlds[0].decode(source)
            answers = [(getattr(world, name)(*arguments), world.seen()) for world in worlds]
            assert answers[-1] == answers[0], (name, arguments, *answers)
        if len(worlds) > 1:
            first, second = worlds
            assert first.state() == second.state(), "the restored one went another way"
            assert first.memory.read(0, first.memory_size) == second.memory.read(0, second.memory_size), "its memory differs"
            assert [disk.data for disk in first.disks] == [disk.data for disk in second.disks], "its disks differ"
    finally:
        for world in worlds:
            world.close()
