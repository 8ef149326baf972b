"""Buses: overlaps, dispatch, splitting, unclaimed accesses."""

import pytest

from kvmpy.bus import MmioBus, PortBus, place, ranges_of
from kvmpy.devices.base import Device
from kvmpy.errors import ConfigError


class Recorder(Device):
    def __init__(self, name, ports=(), mmio=()):
        self.name, self.ports, self.mmio = name, ports, mmio
        self.log = []

    def read(self, offset, size):
        self.log.append(("r", offset, size))
        return int.from_bytes(bytes((0x10 + offset + i) & 0xFF for i in range(size)), "little")

    def write(self, offset, size, value):
        self.log.append(("w", offset, size, value))


def test_a_device_sees_offsets():
    bus = PortBus()
    uart = Recorder("Serial COM1", (0x3F8, 8))
    place(uart, bus, MmioBus())
    assert bus.read(0x3F9, 1) == 0x11
    bus.write(0x3FF, 1, 0xAB)
    assert uart.log == [("r", 1, 1), ("w", 7, 1, 0xAB)]


def test_offsets_count_through_the_ranges_ports_first():
    ports, mmio = PortBus(), MmioBus()
    device = Recorder("Both", [(0x60, 1), (0x64, 1)], (0xFED00000, 0x400))
    place(device, ports, mmio)
    ports.read(0x64, 1)
    mmio.read(0xFED00010, 4)
    assert device.log == [("r", 1, 1), ("r", 0x12, 4)]


def test_overlaps_name_both_ranges_and_both_devices():
    ports, mmio = PortBus(), MmioBus()
    place(Recorder("Serial COM1", (0x3F8, 8)), ports, mmio)
    dice = Recorder("Dice", [(0x99, 1), (0x3FE, 4)])
    with pytest.raises(ConfigError) as caught:
        place(dice, ports, mmio)
    assert str(caught.value) == "port 0x3fe-0x401 (Dice) overlaps 0x3f8-0x3ff (Serial COM1)"
    assert ports.find(0x99) is None, "half of a device was placed"
    for first, size in ((0x3F0, 9), (0x3F8, 1), (0x3F0, 0x100)):
        with pytest.raises(ConfigError, match="overlaps"):
            ports.insert(first, size, dice)
    ports.insert(0x3F0, 8, dice)
    ports.insert(0x400, 8, dice)


@pytest.mark.parametrize(("first", "size"), [(0xFFFF, 2), (-1, 1), (0x10, 0), (0x10, -3)])
def test_impossible_ranges(first, size):
    with pytest.raises(ConfigError):
        PortBus().insert(first, size, Recorder("x"))


def test_ranges_must_be_pairs():
    assert ranges_of(()) == []
    assert ranges_of((1, 2)) == ranges_of([(1, 2)]) == [(1, 2)]
    for bad in ((1,), (1, 2, 3), [(1,)], ["ab"], (1, "x")):
        with pytest.raises(ConfigError):
            ranges_of(bad)


def test_unclaimed_reads_give_all_ones_and_are_counted():
    for bus in (PortBus(), MmioBus()):
        assert [bus.read(0x1234, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
        bus.write(0x1234, 4, 0)
        assert bus.unclaimed == {0x1234: 4}


@pytest.mark.parametrize("bus_class", [PortBus, MmioBus])
def test_straddling_accesses_are_split(bus_class):
    bus = bus_class()
    left, right = Recorder("left"), Recorder("right")
    bus.insert(0x100, 1, left)
    bus.insert(0x102, 2, right)
    assert bus.read(0x100, 4) == 0x1110FF10
    assert left.log == [("r", 0, 1)] and right.log == [("r", 0, 2)]
    bus.write(0x100, 4, 0xAABBCCDD)
    assert left.log[-1] == ("w", 0, 1, 0xDD) and right.log[-1] == ("w", 0, 2, 0xAABB)
    assert bus.unclaimed == {0x101: 2}
    assert bus.read(0x103, 2) == 0xFF11
    assert bus.read(0xFF, 2) == 0x10FF


def test_a_port_access_wraps_at_the_last_port():
    bus = PortBus()
    zero = Recorder("zero")
    bus.insert(0, 1, zero)
    bus.insert(0xFFFF, 1, Recorder("last"))
    assert bus.read(0xFFFF, 2) == 0x1010


def test_three_byte_parts_of_a_page_crossing():
    bus = MmioBus()
    device = Recorder("d")
    bus.insert(0x1000, 2, device)
    assert bus.read(0x1000, 3) == 0xFF1110
    assert bus.read(0xFFE, 3) == 0x10FFFF


def test_too_wide_answers_are_cut():
    class Wide(Device):
        ports = 0x99, 1

        def read(self, offset, size):
            return -1

    bus = PortBus()
    place(Wide(), bus, MmioBus())
    assert bus.read(0x99, 1) == 0xFF
