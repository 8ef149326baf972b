"""PCI as firmware and kernels use it: configuration accesses, BARs that move, capabilities, INTx, MSI and MSI-X."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.bus import MmioBus, PortBus, place
from kvmpy.devices.base import Device
from kvmpy.devices.pci.bridges import HostBridge, IsaBridge
from kvmpy.devices.pci.device import PciDevice
from kvmpy.devices.pci.host import ECAM_BASE, PciHost
from kvmpy.devices.reset_port import ResetPort
from kvmpy.errors import ConfigError
from kvmpy.memory import GuestMemory
from kvmpy.verdicts import Reset
from tests.devices.conftest import FakePlatform

MSI_TO = 0xFEE01000


class Card(PciDevice):
    """A function with one BAR of each kind, MSI, and MSI-X."""

    name = "card"
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0x020000

    def __init__(self, slot=None, function=0, vectors=4):
        super().__init__(slot, function)
        self.add_bar(0, 0x20, self.read_bar, self.write_bar, io=True)
        self.add_bar(1, 0x1000, self.read_bar, self.write_bar)
        self.add_bar(2, 1 << 20, self.read_bar, self.write_bar, wide=True, prefetchable=True)
        self.add_msi(4)
        self.add_msix(vectors, 4)
        self.seen = []

    def read_bar(self, offset, size):
        self.seen.append(("read", offset, size))
        return 0x11223344 >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def write_bar(self, offset, size, value):
        self.seen.append(("write", offset, size, value))


class Bench:
    def __init__(self, *devices):
        self.platform = FakePlatform()
        self.memory = self.platform.memory = GuestMemory("1M")
        self.ports, self.mmio = PortBus(), MmioBus()
        self.reset_port = ResetPort()
        self.reset_port.ports = []
        self.host = PciHost((self.ports, self.mmio), self.reset_port)
        for device in (self.reset_port, self.host, HostBridge(), IsaBridge(), *devices):
            if isinstance(device, PciDevice):
                self.host.plug(device)
            place(device, self.ports, self.mmio)
            device.connect(self.platform)

    def close(self):
        self.memory.close()

    def select(self, slot, register, function=0):
        self.ports.write(0xCF8, 4, 1 << 31 | slot << 11 | function << 8 | register & 0xFC)

    def cfg(self, slot, register, size, function=0):
        self.select(slot, register, function)
        return self.ports.read(0xCFC + (register & 3), size)

    def set_cfg(self, slot, register, size, value, function=0):
        self.select(slot, register, function)
        self.ports.write(0xCFC + (register & 3), size, value)

    def capability(self, slot, identity):
        at = self.cfg(slot, 0x34, 1)
        while at and self.cfg(slot, at, 1) != identity:
            at = self.cfg(slot, at + 1, 1)
        return at


@pytest.fixture
def card():
    return Card()


@pytest.fixture
def bench(card):
    bench = Bench(card)
    yield bench
    bench.close()


def test_configuration_mechanism_1(bench) -> None:
    assert bench.cfg(2, 0, 4) == 0x56781234
    assert (bench.cfg(2, 0, 2), bench.cfg(2, 2, 2), bench.cfg(2, 1, 1), bench.cfg(2, 3, 1)) == (0x1234, 0x5678, 0x12, 0x56)
    assert bench.cfg(3, 0, 4) == 0xFFFFFFFF and bench.cfg(2, 0, 4, function=1) == 0xFFFFFFFF
    bench.set_cfg(3, 4, 4, 7)
    bench.ports.write(0xCF8, 4, 2 << 11)  # not enabled
    assert bench.ports.read(0xCFC, 4) == 0xFFFFFFFF
    bench.ports.write(0xCF8, 4, 1 << 31 | 1 << 16 | 2 << 11)  # bus 1
    assert bench.ports.read(0xCFC, 4) == 0xFFFFFFFF
    bench.ports.write(0xCF8, 4, 0xFFFFFFFF)
    assert bench.ports.read(0xCF8, 4) == 0x80FFFFFC
    bench.ports.write(0xCF8, 1, 0)  # a byte is not for CONFIG_ADDRESS
    assert bench.ports.read(0xCF8, 4) == 0x80FFFFFC


def test_the_reset_register_between(bench) -> None:
    bench.ports.write(0xCF8, 4, 0x80000600)  # bits 2:1 of byte 1 would reset
    assert not bench.platform.verdicts
    bench.ports.write(0xCF9, 1, 0x02)
    assert bench.ports.read(0xCF9, 1) == 0x02 and bench.ports.read(0xCF8, 4) == 0x80000600
    bench.ports.write(0xCF9, 1, 0x06)
    assert isinstance(bench.platform.verdicts[0], Reset)


def test_ecam(bench) -> None:
    at = ECAM_BASE + (2 << 15)
    assert bench.mmio.read(at, 4) == 0x56781234 and bench.mmio.read(at + 2, 2) == 0x5678
    assert bench.mmio.read(at, 8) & 0xFFFFFFFF == 0x56781234
    assert bench.mmio.read(at + 0x100, 4) == 0xFFFFFFFF and bench.mmio.read(ECAM_BASE + (5 << 15), 4) == 0xFFFFFFFF
    bench.mmio.write(at + 0x3C, 1, 0x55)
    assert bench.cfg(2, 0x3C, 1) == 0x55


def test_an_access_across_registers_moves_a_bar_too(bench, card) -> None:
    at = ECAM_BASE + (2 << 15)
    bench.mmio.write(at + 4, 2, 3)
    bench.mmio.write(at + 0xF, 4, 0xC00100)  # the lowest three bytes of BAR 0, from the byte before it
    assert bench.mmio.read(at + 0x10, 4) == 0xC001 and card.bars[0].mapped == 0xC000
    assert bench.mmio.read(at + 0xE, 4) == bench.mmio.read(at + 0xE, 2) | bench.mmio.read(at + 0x10, 2) << 16


def test_identity_cannot_be_written(bench) -> None:
    for register in (0x00, 0x08, 0x0E, 0x2C, 0x34, 0x3D):
        before = bench.cfg(2, register, 4) if register % 4 == 0 else bench.cfg(2, register, 1)
        size = 4 if register % 4 == 0 else 1
        bench.set_cfg(2, register, size, 0)
        bench.set_cfg(2, register, size, 0xFFFFFFFF >> 8 * (4 - size))
        assert bench.cfg(2, register, size) == before


def test_sizing(bench) -> None:
    for register, expected in ((0x10, 0xFFFFFFE1), (0x14, 0xFFFFF000), (0x18, 0xFFF0000C), (0x1C, 0xFFFFFFFF), (0x24, 0), (0x30, 0)):
        bench.set_cfg(2, register, 4, 0xFFFFFFFF)
        assert bench.cfg(2, register, 4) == expected


def test_bars_appear_move_and_go(bench, card) -> None:
    bench.set_cfg(2, 0x10, 4, 0xC100)
    bench.set_cfg(2, 0x14, 4, 0xD0000000)
    assert bench.ports.read(0xC100, 1) == 0xFF and bench.mmio.read(0xD0000000, 4) == 0xFFFFFFFF and not card.seen
    bench.set_cfg(2, 4, 2, 3)
    assert bench.ports.read(0xC101, 1) == 0x33 and bench.mmio.read(0xD0000FFC, 4) == 0x11223344
    assert card.seen == [("read", 1, 1), ("read", 0xFFC, 4)]
    bench.set_cfg(2, 0x10, 4, 0xC200)
    assert bench.ports.read(0xC100, 1) == 0xFF and bench.ports.read(0xC200, 1) == 0x44
    bench.set_cfg(2, 0x14, 4, 0xD0001000)
    bench.mmio.write(0xD0001004, 4, 7)
    assert card.seen[-1] == ("write", 4, 4, 7) and bench.mmio.read(0xD0000000, 4) == 0xFFFFFFFF
    bench.set_cfg(2, 4, 2, 0)
    assert bench.ports.read(0xC200, 1) == 0xFF and bench.mmio.read(0xD0001000, 4) == 0xFFFFFFFF


def test_a_64_bit_bar_moves_half_by_half(bench) -> None:
    bench.set_cfg(2, 4, 2, 2)
    bench.set_cfg(2, 0x18, 4, 0x40000000)
    assert bench.mmio.read(0x40000000, 4) == 0x11223344
    bench.set_cfg(2, 0x1C, 4, 0x20)
    assert bench.mmio.read(0x2040000000, 4) == 0x11223344 and bench.mmio.read(0x40000000, 4) == 0xFFFFFFFF


def test_a_bar_over_another_device_stays_hidden_until_it_moves(bench) -> None:
    class Fixed(Device):
        name = "fixed"
        mmio = 0xD0000000, 0x10

        def read(self, offset, size):
            return 0x99

    place(Fixed(), bench.ports, bench.mmio)
    bench.set_cfg(2, 4, 2, 2)
    bench.set_cfg(2, 0x14, 4, 0xD0000000)
    assert bench.mmio.read(0xD0000000, 1) == 0x99 and bench.mmio.read(0xD0000020, 4) == 0xFFFFFFFF
    assert bench.platform.events[-1][0] == "BAR hidden"
    bench.set_cfg(2, 0x14, 4, 0xD1000000)
    assert bench.mmio.read(0xD1000000, 4) == 0x11223344


def test_two_bars_change_places() -> None:
    one, two = Card(), Card()
    bench = Bench(one, two)
    try:
        bench.host.leave_as_firmware_does()
        first, second = bench.cfg(2, 0x14, 4), bench.cfg(3, 0x14, 4)
        bench.set_cfg(2, 0x14, 4, second)
        bench.set_cfg(3, 0x14, 4, first)
        one.seen.clear(), two.seen.clear()
        bench.mmio.read(second, 4), bench.mmio.read(first, 4)
        assert len(one.seen) == len(two.seen) == 1
    finally:
        bench.close()


def test_firmware_places_every_bar_the_same_at_each_start(bench, card) -> None:
    bench.host.leave_as_firmware_does()
    places = [bar.mapped for bar in card.bars]
    assert all(place is not None and place % bar.size == 0 for place, bar in zip(places, card.bars, strict=True))
    assert bench.cfg(2, 4, 2) == 3 and bench.cfg(2, 0x3C, 1) in (10, 11)
    card.reset()
    assert [bar.mapped for bar in card.bars] == [None] * 4 and bench.cfg(2, 4, 2) == 0
    bench.host.leave_as_firmware_does()
    assert [bar.mapped for bar in card.bars] == places


def test_several_functions_in_a_slot() -> None:
    bench = Bench(Card(slot=5), Card(slot=5, function=3), Card())
    try:
        assert bench.cfg(5, 0x0E, 1) == 0x80 and bench.cfg(5, 0x0C, 4) >> 16 & 0x80 and bench.cfg(5, 0, 2, function=3) == 0x1234
        assert bench.cfg(2, 0x0E, 1) == 0
        with pytest.raises(ConfigError, match="slot 5, function 3 is taken by card"):
            bench.host.plug(Card(slot=5, function=3))
        with pytest.raises(ConfigError, match="does not exist"):
            bench.host.plug(Card(slot=32))
        for _ in range(28):
            bench.host.plug(Card())
        with pytest.raises(ConfigError, match="all 32"):
            bench.host.plug(Card())
    finally:
        bench.close()


def test_intx_is_shared_routed_and_silenced() -> None:
    one, two = Card(slot=2), Card(slot=10)
    bench = Bench(one, two)
    try:
        bench.host.leave_as_firmware_does()
        line, irq = bench.host.gsi_lines[2], bench.host.isa_lines[bench.cfg(2, 0x3C, 1)]
        one.set_interrupt(1)
        two.set_interrupt(1)
        assert line.gsi == 18 and line.level == 1 and irq.level == 1 and bench.cfg(2, 6, 2) & 8
        one.set_interrupt(0)
        assert line.level == 1 and not bench.cfg(2, 6, 2) & 8
        bench.set_cfg(10, 4, 2, 0x400)
        assert line.level == 0 and irq.level == 0 and bench.cfg(10, 6, 2) & 8
        bench.set_cfg(10, 4, 2, 0)
        assert line.level == 1
        bench.set_cfg(1, 0x62, 1, 0x05)  # PIRQC# to IRQ 5
        assert irq.level == 0 and bench.host.isa_lines[5].level == 1 and line.level == 1
        bench.set_cfg(1, 0x62, 1, 0x80)
        assert bench.host.isa_lines[5].level == 0 and line.level == 1
    finally:
        bench.close()


def test_msi(bench, card) -> None:
    at = bench.capability(2, 5)
    control = bench.cfg(2, at + 2, 2)
    assert control >> 1 & 7 == 2 and control & 0x180 == 0x180
    bench.set_cfg(2, at + 4, 4, MSI_TO | 3)
    bench.set_cfg(2, at + 12, 2, 0x44)
    bench.set_cfg(2, at + 2, 2, 1 | 2 << 4)
    card.set_interrupt(1)
    assert not bench.platform.messages, "no bus mastering"
    card.set_interrupt(0)
    bench.set_cfg(2, 4, 2, 4)
    card.set_interrupt(1)
    card.signal(3)
    assert bench.platform.messages == [(MSI_TO, 0x44), (MSI_TO, 0x47)] and not bench.host.gsi_lines[2].level
    bench.set_cfg(2, at + 16, 4, 2)
    card.signal(1)
    assert bench.cfg(2, at + 20, 4) == 2 and len(bench.platform.messages) == 2
    bench.set_cfg(2, at + 16, 4, 0)
    assert bench.platform.messages[2:] == [(MSI_TO, 0x45)] and bench.cfg(2, at + 20, 4) == 0


@pytest.fixture
def msix(bench, card):
    bench.host.leave_as_firmware_does()
    bench.set_cfg(2, 4, 2, 6)
    at = bench.capability(2, 0x11)
    table = (bench.cfg(2, 0x20, 4) & ~0xF) + (bench.cfg(2, at + 4, 4) & ~7)
    for vector in range(4):
        bench.mmio.write(table + 16 * vector, 8, MSI_TO)
        bench.mmio.write(table + 16 * vector + 8, 4, 0x60 + vector)
    bench.set_cfg(2, at + 2, 2, 0x8000)
    return at, table, (bench.cfg(2, 0x20, 4) & ~0xF) + (bench.cfg(2, at + 8, 4) & ~7)


def test_msix_masks_and_pending_bits(bench, card, msix) -> None:
    at, table, pending = msix
    assert bench.cfg(2, at + 2, 2) == 0x8003
    card.signal(1)
    assert not bench.platform.messages and bench.mmio.read(pending, 8) == 2, "vectors are masked at first"
    bench.mmio.write(table + 16 + 12, 4, 0)
    assert bench.platform.messages == [(MSI_TO, 0x61)] and bench.mmio.read(pending, 4) == 0
    bench.set_cfg(2, at + 2, 2, 0xC000)
    card.signal(1)
    card.signal(1)
    assert bench.mmio.read(pending, 4) == 2
    bench.set_cfg(2, at + 2, 2, 0x8000)
    assert bench.platform.messages[1:] == [(MSI_TO, 0x61)]
    card.signal(4)
    card.signal(0xFFFF)
    assert len(bench.platform.messages) == 2


def test_msix_table_takes_aligned_words_only(bench, msix) -> None:
    _, table, pending = msix
    bench.mmio.write(table, 2, 0x1234)
    bench.mmio.write(table + 1, 1, 0x12)
    bench.mmio.write(pending, 4, 0xFFFFFFFF)
    assert bench.mmio.read(table, 8) == MSI_TO and bench.mmio.read(pending, 4) == 0


def test_a_message_to_memory_is_a_write(bench, card, msix) -> None:
    _, table, _ = msix
    bench.mmio.write(table, 8, 0x8000)
    bench.mmio.write(table + 12, 4, 0)
    card.signal(0)
    assert bench.memory.read_u32(0x8000) == 0x60 and not bench.platform.messages
    bench.mmio.write(table, 8, 1 << 50)
    card.signal(0)
    assert bench.platform.events[-1][0] == "message to nowhere"


def test_many_vectors() -> None:
    card = Card(vectors=2048)
    bench = Bench(card)
    try:
        bench.host.leave_as_firmware_does()
        at = bench.capability(2, 0x11)
        assert bench.cfg(2, at + 2, 2) == 2047 and bench.cfg(2, at + 8, 4) == 0x8004
        bench.set_cfg(2, at + 2, 2, 0x8000)
        card.signal(2047)
        assert bench.mmio.read((bench.cfg(2, 0x20, 4) & ~0xF) + 0x8000 + 252, 4) == 1 << 31
    finally:
        bench.close()


def test_state(bench, card, msix) -> None:
    bench.set_cfg(2, 0x14, 4, 0xD5000000)
    card.signal(2)
    bench.set_cfg(2, 4, 2, 0x406)
    card.set_interrupt(1)
    states = {device: device.state() for device in (bench.host, *bench.host.functions.values())}
    other_card = Card()
    other = Bench(other_card)
    try:
        for mine, theirs in zip((other.host, *other.host.functions.values()), states.values(), strict=True):
            mine.restore(theirs)
        assert [device.state() for device in (other.host, *other.host.functions.values())] == list(states.values())
        assert other.mmio.read(0xD5000000, 4) == 0x11223344 and other.host.routing == bench.host.routing
        assert [bar.mapped for bar in other_card.bars] == [bar.mapped for bar in card.bars]
        other.mmio.write(msix[1] + 32 + 12, 4, 0)
        assert other.platform.messages == [(MSI_TO, 0x62)]
    finally:
        other.close()


def test_what_is_no_bar(bench) -> None:
    for index, size, options in ((0, 16, {}), (5, 24, {}), (5, 8, {}), (5, 16, {"wide": True}), (5, 512, {"io": True}), (6, 16, {}),
                                 (2, 16, {}), (3, 16, {})):  # fmt: skip
        with pytest.raises(ConfigError):
            Card().add_bar(index, size, None, None, **options)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 255), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1)),
                max_size=60))  # fmt: skip
def test_random_configuration_accesses(accesses) -> None:
    """Whatever is written, nothing raises, and the buses hold exactly the BARs that say they are mapped."""
    bench = Bench(Card(), Card(), Card(function=0, slot=4))
    try:
        for mechanism, slot, register, size, value in accesses:
            register -= register % size
            if mechanism:
                bench.set_cfg(slot, register, size, value & (1 << 8 * size) - 1)
                bench.cfg(slot, register, size)
            else:
                bench.mmio.write(ECAM_BASE + (slot << 15) + register, size, value & (1 << 8 * size) - 1)
                bench.mmio.read(ECAM_BASE + (slot << 15) + register, size)
            for card in bench.host.functions.values():
                for bar in card.bars:
                    bus = bench.ports if bar.io else bench.mmio
                    on_bus = [entry.first for entry in bus.entries if entry.device is bar]
                    assert on_bus == ([] if bar.mapped is None else [bar.mapped]) and bar.mapped in (None, bar.wanted())
    finally:
        bench.close()
