"""What transports register with the machine: while the queues work, and where the registers stand."""

from __future__ import annotations

import pytest

from kvmpy.bus import place
from kvmpy.devices.virtio.pci import VirtioPci
from kvmpy.devices.virtio.rng import VirtioRng
from tests.devices.virtio.driver import NEEDS_RESET, Bench


class Doorbell:
    def __init__(self, table, key, call):
        self.table, self.key, self.call = table, key, call
        assert key not in table
        table[key] = self

    def remove(self):
        del self.table[self.key]


@pytest.fixture
def doorbells():
    return {}


@pytest.fixture
def make(make_platform, doorbells):
    benches = []

    def make(transport, device=None):
        platform = make_platform()
        platform.doorbell = lambda address, size, value, call: Doorbell(doorbells, (address, size, value), call)
        bench = Bench(platform, device or VirtioRng(lambda count: b"r" * count), transport)
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.close()


def where(bench):
    """The doorbell of queue 0."""
    if hasattr(bench.bus, "line"):
        return bench.carrier.doorbell, 4, 0
    return bench.carrier.doorbell(0), 2, None


def test_from_driver_ok_to_reset(make, doorbells, transport) -> None:
    bench = make(transport)
    bench.negotiate()
    assert not doorbells
    bench.start()
    assert set(doorbells) == {where(bench)}
    bench.rings[0].add([], [16])
    doorbells[where(bench)].call()
    assert bench.rings[0].take()[2] == b"r" * 16 and bench.bus.interrupts() == 1
    late = doorbells[where(bench)]
    bench.bus.status = 0
    assert not doorbells
    late.call()  # it rang before the reset
    bench.start()
    bench.carrier.reset()
    assert not doorbells


def test_a_broken_device_keeps_silent(make, doorbells, transport) -> None:
    bench = make(transport).start()
    bench.rings[0].offer(999)
    doorbells[where(bench)].call()
    assert bench.bus.status & NEEDS_RESET
    doorbells[where(bench)].call()
    bench.bus.status = 0
    assert not doorbells


def test_bars_move(make, doorbells) -> None:
    bench = make("pci").start()
    before = where(bench)
    bench.bus.set_cfg(0x10, 4, 0xC8000000)
    after = where(bench)
    assert after != before and after[0] & ~0x3FFF == 0xC8000000 and set(doorbells) == {after}
    bench.rings[0].add([], [16])
    doorbells[after].call()
    assert bench.rings[0].take()[2] == b"r" * 16


def test_decoding_and_bus_mastering(make, doorbells) -> None:
    bench = make("pci").start()
    command = bench.bus.cfg(4, 2)
    for bit in (2, 4):
        late = doorbells[where(bench)]
        bench.bus.set_cfg(4, 2, command & ~bit)
        assert not doorbells
        bench.rings[0].add([], [16])
        late.call()
        assert bench.rings[0].take() is None
        bench.bus.set_cfg(4, 2, command)
        assert set(doorbells) == {where(bench)}
        doorbells[where(bench)].call()
        assert bench.rings[0].take() is not None
        bench.rings[0].want_interrupt()


def test_a_hidden_bar_has_none(make, doorbells) -> None:
    """A BAR that another one hides has its doorbells when that one goes away."""
    bench = make("pci").start()
    other = VirtioRng()
    carrier = VirtioPci(other)
    bench.bus.host.plug(carrier)
    place(carrier, bench.ports, bench.mmio)
    carrier.connect(bench.platform)
    carrier.config_write(0x10, 4, 0xC8000000)
    carrier.config_write(4, 2, 2)
    bench.bus.set_cfg(0x10, 4, 0xC8000000)
    assert not doorbells
    carrier.config_write(0x10, 4, 0xC9000000)
    assert set(doorbells) == {where(bench)} and where(bench)[0] & ~0x3FFF == 0xC8000000


def test_restored(make, doorbells, transport) -> None:
    first = make(transport).start()
    state, memory = first.carrier.state(), first.memory.read(0, first.memory.size)
    kept = dict(doorbells)
    first.carrier.reset()
    assert not doorbells
    first.memory.write(0, memory)
    first.carrier.restore(state)
    assert set(doorbells) == set(kept)


def test_a_queue_turned_off(make, doorbells) -> None:
    bench = make("mmio").start()
    bench.bus.write(0x30, 0)
    bench.bus.write(0x44, 0)
    assert not doorbells
