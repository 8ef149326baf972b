"""What the transports themselves do: negotiation, status, configuration generation, vectors, the window in configuration space."""

from __future__ import annotations

import pytest

from kvmpy.devices.virtio.console import VirtioConsole
from kvmpy.devices.virtio.device import VERSION_1
from kvmpy.devices.virtio.rng import VirtioRng
from tests.devices.virtio.driver import ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET


class End:
    def __init__(self):
        self.written = b""
        self.receive = None

    def write(self, data):
        self.written += data

    def attach(self, receive):
        self.receive = receive

    def close(self):
        pass


@pytest.fixture
def console(make_bench, transport):
    return make_bench(VirtioConsole(End()), transport)


def test_features_without_version_1_are_refused(make_bench, transport) -> None:
    bench = make_bench(VirtioRng(), transport)
    bench.bus.status = ACKNOWLEDGE | DRIVER
    bench.bus.accept(bench.bus.offered() & ~VERSION_1)
    bench.bus.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
    assert bench.bus.status == ACKNOWLEDGE | DRIVER
    bench.bus.status = ACKNOWLEDGE | DRIVER | DRIVER_OK
    assert not bench.bus.status & DRIVER_OK


def test_features_that_nobody_offered_are_refused(make_bench, transport) -> None:
    bench = make_bench(VirtioRng(), transport)
    bench.bus.status = ACKNOWLEDGE | DRIVER
    bench.bus.accept(bench.bus.offered() | 1 << 50)
    bench.bus.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
    assert not bench.bus.status & FEATURES_OK


def test_features_are_fixed_after_features_ok(make_bench, transport) -> None:
    bench = make_bench(VirtioRng(), transport)
    bench.negotiate()
    bench.bus.accept(0)
    assert bench.device.driver_features == bench.features


def test_nothing_happens_before_driver_ok(make_bench, transport) -> None:
    bench = make_bench(VirtioRng(), transport)
    bench.start()
    bench.bus.status = 0
    bench.negotiate()
    bench.rings[0].__init__(bench, 0, 16)
    bench.rings[0].add([], [8])
    bench.rings[0].notify()
    assert bench.rings[0].take() is None


def test_status_bits_are_only_added(make_bench, transport) -> None:
    bench = make_bench(VirtioRng(), transport).start()
    bench.bus.status = ACKNOWLEDGE
    assert bench.bus.status == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    bench.bus.status = NEEDS_RESET  # not the driver's to set
    assert not bench.bus.status & NEEDS_RESET


def test_a_change_of_configuration(console) -> None:
    console.start()
    before = console.bus.generation()
    console.device.resize(132, 43)
    assert console.bus.interrupts() == 2
    assert (console.bus.config(0, 2), console.bus.config(2, 2), console.bus.config(0, 4)) == (132, 43, 132 | 43 << 16)
    assert console.bus.generation() != before
    assert console.bus.config(0x80, 4) == 0


def test_console_output_and_input(console) -> None:
    end = console.device.end
    console.start()
    assert console.rings[1].request([b"hello ", b"world\n"]) == (0, b"")
    assert end.written == b"hello world\n"
    end.receive(b"typed before a buffer was there")
    console.rings[0].add([], [10])
    console.rings[0].add([], [100])
    console.rings[0].notify()
    assert console.rings[0].take()[2] == b"typed befo"
    _head, written, content = console.rings[0].take()
    assert content[:written] == b"re a buffer was there"
    console.bus.interrupts()
    console.rings[0].want_interrupt()
    console.rings[0].add([], [8])
    console.rings[0].notify()
    end.receive(b"now")
    assert console.bus.interrupts() == 1 and console.rings[0].take()[1] == 3


def test_console_input_is_bounded(console) -> None:
    console.start()
    console.device.end.receive(b"x" * 100000)
    assert ("input dropped", {"bytes": 100000 - 65536}) in console.platform.events


def test_console_emergency_write(console) -> None:
    console.bus.set_config(8, 4, ord("!"))
    assert console.device.end.written == b"!"


def test_console_state_with_input_waiting(make_bench, transport) -> None:
    first = make_bench(VirtioConsole(End()), transport).start()
    first.device.end.receive(b"waiting")
    second = make_bench(VirtioConsole(End()), transport)
    second.memory.write(0, first.memory.read(0, 4 << 20))
    if transport != "mmio":
        second.bus.host.restore(first.bus.host.state())
    second.carrier.restore(first.carrier.state())
    ring = first.rings[0]
    ring.bench, ring.memory = second, second.memory
    ring.add([], [16])
    ring.notify()
    assert ring.take()[2][:7] == b"waiting"


def test_live_queues_do_not_move(make_bench, transport) -> None:
    bench = make_bench(VirtioRng(), transport).start()
    if transport == "mmio":
        bench.bus.write(0x38, 4)
        bench.bus.write(0x80, 0x12340)
    else:
        bench.bus.common(0x18, 2, 4)
        bench.bus.common(0x20, 4, 0x12340)
    assert bench.rings[0].request([], [4])[0] == 4


def test_mmio_registers_are_32_bits_wide(make_bench) -> None:
    bench = make_bench(VirtioRng())
    assert bench.bus.read(0, 1) == 0 and bench.bus.read(0, 2) == 0 and bench.bus.read(2, 4) == 0
    bench.bus.write(0x70, 1, 1)
    assert bench.bus.status == 0
    assert bench.bus.read(0xB0) == 0xFFFFFFFF  # no shared memory


def test_pci_vectors_that_do_not_exist(make_bench) -> None:
    bench = make_bench(VirtioRng(), "pci").start()
    bench.bus.common(0x10, 2, 2)
    assert bench.bus.common(0x10, 2) == 0xFFFF
    bench.bus.common(0x16, 2, 0)
    bench.bus.common(0x1A, 2, 7)
    assert bench.bus.common(0x1A, 2) == 0xFFFF
    bench.rings[0].request([], [4])
    assert not bench.platform.messages


def test_pci_fields_are_written_whole_and_read_as_the_driver_likes(make_bench) -> None:
    bench = make_bench(VirtioRng(), "pci")
    common = bench.bus.common
    assert common(0x12, 1) == 1 and common(0x13, 1) == 0 and common(0x12, 2) == 1
    common(0x14, 1, 1)
    assert common(0x12, 4) == 1 | 1 << 16
    common(0x20, 8, 0x123456789ABCDEF0)
    common(0x20, 2, 0)
    assert common(0x20, 8) == 0x123456789ABCDEF0 and common(0x24, 4) == 0x12345678
    assert [common(0x20 + at, 2) for at in (0, 2, 4, 6)] == [0xDEF0, 0x9ABC, 0x5678, 0x1234]
    assert common(0x36, 4) == 0


def test_pci_window_in_configuration_space(make_bench) -> None:
    """Software without MMIO reaches the structures through the last capability (virtio 1.2 §4.1.4.9)."""
    bench = make_bench(VirtioRng(), "intx")
    bus = bench.bus
    at = bus.cfg(0x34, 1)
    while bus.cfg(at + 1, 1):
        at = bus.cfg(at + 1, 1)
    assert bus.cfg(at, 1) == 9 and bus.cfg(at + 3, 1) == 5
    bus.set_cfg(at + 8, 4, 0x14)
    bus.set_cfg(at + 12, 4, 1)
    bus.set_cfg(at + 16, 4, ACKNOWLEDGE)
    assert bench.device.status == ACKNOWLEDGE and bus.cfg(at + 16, 4) == ACKNOWLEDGE
    for offset, size in ((0x4000, 4), (0xFFFFFFFC, 4), (0, 3), (1, 4)):
        bus.set_cfg(at + 8, 4, offset)
        bus.set_cfg(at + 12, 4, size)
        bus.set_cfg(at + 16, 4, 0)
        bus.cfg(at + 16, 4)
    assert bench.device.status == ACKNOWLEDGE


def test_pci_without_bus_mastering_reaches_no_memory(make_bench) -> None:
    bench = make_bench(VirtioRng(), "pci").start()
    bench.bus.set_cfg(4, 2, 2)
    bench.rings[0].add([], [4])
    bench.rings[0].notify()
    assert bench.rings[0].take() is None
    bench.bus.set_cfg(4, 2, 6)
    bench.rings[0].notify()
    assert bench.rings[0].take() is not None


def test_pci_reset_of_the_machine(make_bench) -> None:
    bench = make_bench(VirtioRng(), "pci").start()
    bench.carrier.reset()
    bench.bus.host.reset()
    assert bench.bus.cfg(4, 2) == 0 and bench.bus.cfg(0x10, 4) == 0
    bench.bus.start()
    bench.start()
    assert bench.rings[0].request([], [4])[0] == 4
