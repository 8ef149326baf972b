"""Virtqueues: notifications, wrap-around, and rings that a hostile guest has written."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.virtio.device import RING_EVENT_IDX, RING_INDIRECT_DESC
from kvmpy.devices.virtio.rng import VirtioRng
from tests.devices.conftest import FakePlatform
from tests.devices.virtio.driver import INDIRECT, MEMORY, NEEDS_RESET, NEXT, WRITE, Bench

BUFFER = 0x200000


@pytest.fixture
def bench(make_bench, transport):
    return make_bench(VirtioRng(lambda count: b"r" * count), transport).start()


def broken(bench) -> bool:
    """The device needs a reset and has told so; it touches nothing more."""
    assert bench.bus.status & NEEDS_RESET
    assert bench.bus.interrupts() == 2
    used = bench.memory.read(bench.rings[0].used, 6 + 8 * 16)
    bench.rings[0].notify()
    assert bench.memory.read(bench.rings[0].used, 6 + 8 * 16) == used
    return True


def test_interrupts_only_where_wanted(make_bench, transport) -> None:
    bench = make_bench(VirtioRng(lambda count: b"r" * count), transport).start(without=RING_EVENT_IDX)
    ring = bench.rings[0]
    ring.request([], [16])
    assert bench.bus.interrupts() == 1
    ring.want_interrupt(False)
    ring.add([], [16])
    ring.notify()
    assert ring.take() is not None and bench.bus.interrupts() == 0


def test_event_index_for_interrupts(bench) -> None:
    ring = bench.rings[0]
    bench.memory.write_u16(ring.available + 4 + 2 * ring.size, 2)  # after the third
    for _ in range(2):
        ring.add([], [16])
        ring.notify()
        assert bench.bus.interrupts() == 0
    ring.add([], [16])
    ring.notify()
    assert bench.bus.interrupts() == 1
    ring.add([], [16])
    ring.notify()
    assert bench.bus.interrupts() == 0


@pytest.mark.parametrize("without", [0, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_EVENT_IDX | RING_INDIRECT_DESC])
def test_the_device_asks_to_be_notified_when_it_has_seen_all(make_bench, transport, without) -> None:
    bench = make_bench(VirtioRng(lambda count: b"r" * count), transport).start(without=without)
    for _ in range(50):
        bench.rings[0].add([], [16])
        assert bench.rings[0].wants_notification()
        bench.rings[0].notify()
        assert bench.rings[0].take()[2] == b"r" * 16


def test_indices_wrap_at_65536(make_bench) -> None:
    bench = make_bench(VirtioRng(lambda count: b"r")).start(size=2)
    ring = bench.rings[0]
    for _ in range(66000):
        ring.offer(0)
        if ring.next_available == 1:
            ring.describe(0, BUFFER, 1, WRITE)
        ring.notify()
    assert bench.memory.read_u16(ring.used + 2) == 66000 & 0xFFFF and not bench.bus.status & NEEDS_RESET


def test_a_notification_for_no_queue_is_ignored(bench) -> None:
    bench.bus.notify(1)
    bench.bus.notify(500)
    assert not bench.bus.status & NEEDS_RESET


def test_the_largest_size_and_impossible_ones(make_bench) -> None:
    bench = make_bench(VirtioRng())
    bench.negotiate()
    assert bench.bus.queue_most(0) == 64 and bench.bus.queue_most(1) == 0
    for size in (0, 3, 128, 0x10000):
        bench.negotiate()
        assert not bench.bus.queue(0, size, 0x10000, 0x14000, 0x16000) and bench.bus.status & NEEDS_RESET


@pytest.mark.parametrize("rings", [(MEMORY, 0x14000, 0x16000), (0x10000, MEMORY - 4, 0x16000), (0x10000, 0x14000, MEMORY - 100),
                                   (0x10008, 0x14000, 0x16000), (0x10000, 0x14001, 0x16000), (0x10000, 0x14000, 0x16002),
                                   (1 << 63, 0x14000, 0x16000), ((1 << 64) - 16, 0x14000, 0x16000)])  # fmt: skip
def test_rings_outside_memory_or_misaligned(make_bench, transport, rings) -> None:
    bench = make_bench(VirtioRng(), transport)
    bench.negotiate()
    assert not bench.bus.queue(0, 16, *rings) and bench.bus.status & NEEDS_RESET
    bench.start()
    assert bench.rings[0].request([], [8])[0] == 8


def test_a_loop(bench) -> None:
    ring = bench.rings[0]
    for slot in range(16):
        ring.describe(slot, BUFFER, 1, WRITE | NEXT, (slot + 1) % 16)
    ring.offer(0)
    ring.notify()
    assert broken(bench)


@pytest.mark.parametrize("descriptor", [
    (MEMORY, 16, WRITE), (MEMORY - 8, 16, WRITE), (1 << 63, 16, WRITE), ((1 << 64) - 8, 16, WRITE), (BUFFER, 0xFFFFFFFF, WRITE),
    (BUFFER, 16, WRITE | NEXT, 16), (BUFFER, 16, WRITE | NEXT, 0xFFFF), (BUFFER, 16, INDIRECT | NEXT), (BUFFER, 15, INDIRECT),
    (BUFFER, 0, INDIRECT), (MEMORY, 16, INDIRECT), (MEMORY - 16, 32, INDIRECT), (BUFFER, 0xFFFFFFF0, INDIRECT),
])  # fmt: skip
def test_bad_descriptors(bench, descriptor) -> None:
    bench.rings[0].describe(0, *descriptor)
    bench.rings[0].offer(0)
    bench.rings[0].notify()
    assert broken(bench)


def test_an_indirect_table_in_an_indirect_table(bench) -> None:
    bench.memory.write(BUFFER, struct.pack("<QIHH", BUFFER, 16, INDIRECT, 0))
    bench.rings[0].describe(0, BUFFER, 16, INDIRECT)
    bench.rings[0].offer(0)
    bench.rings[0].notify()
    assert broken(bench)


def test_indirect_without_the_feature(make_bench, transport) -> None:
    bench = make_bench(VirtioRng(), transport).start(without=RING_INDIRECT_DESC)
    bench.memory.write(BUFFER, struct.pack("<QIHH", BUFFER + 0x1000, 16, WRITE, 0))
    bench.rings[0].describe(0, BUFFER, 16, INDIRECT)
    bench.rings[0].offer(0)
    bench.rings[0].notify()
    assert broken(bench)


def test_a_readable_descriptor_after_a_writable_one(bench) -> None:
    bench.rings[0].describe(0, BUFFER, 16, WRITE | NEXT, 1)
    bench.rings[0].describe(1, BUFFER, 16)
    bench.rings[0].offer(0)
    bench.rings[0].notify()
    assert broken(bench)


@pytest.mark.parametrize("head", [16, 0xFFFF])
def test_a_head_outside_the_table(bench, head) -> None:
    bench.rings[0].offer(head)
    bench.rings[0].notify()
    assert broken(bench)


def test_an_available_index_that_jumps(bench) -> None:
    bench.memory.write_u16(bench.rings[0].available + 2, 17)
    bench.rings[0].notify()
    assert broken(bench)


def test_a_broken_device_works_after_a_reset(bench) -> None:
    test_an_available_index_that_jumps(bench)
    bench.start()
    assert bench.rings[0].request([], [32]) == (32, b"r" * 32)


def test_empty_descriptors_are_skipped(bench) -> None:
    ring = bench.rings[0]
    ring.describe(0, 0xFFFFFFFFFFFFFFFF, 0, WRITE | NEXT, 1)
    ring.describe(1, BUFFER, 4, WRITE)
    ring.offer(0)
    ring.notify()
    assert bench.memory.read(BUFFER, 5) == b"rrrr\0" and not bench.bus.status & NEEDS_RESET


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 32), indirect=st.booleans(), event=st.booleans())
def test_hostile_rings(seed: int, indirect: bool, event: bool) -> None:
    """Random descriptors, indices and tables: no exception, nothing written but where a writable descriptor or the used ring lies."""
    chance = random.Random(seed)
    without = (0 if indirect else RING_INDIRECT_DESC) | (0 if event else RING_EVENT_IDX)
    bench = Bench(FakePlatform(), VirtioRng(lambda count: b"\xaa" * count), chance.choice(["mmio", "pci", "intx"]))
    try:
        bench.start(without=without)
        ring = bench.rings[0]
        addresses = [BUFFER, BUFFER + 64, ring.descriptors, ring.available, ring.used, MEMORY - 16, MEMORY, (1 << 64) - 1, 0]
        for _ in range(6):
            for slot in range(16):
                flags = chance.choice([0, 1, 2, 3, 3, 3, 4, 4, chance.randrange(1 << 16)])
                length = chance.choice([0, 1, 16, 48, 4096, 0x10000, 0xFFFFFFFF])
                ring.describe(slot, chance.choice(addresses), length, flags, chance.choice([0, slot + 1, chance.randrange(1 << 16)]))
            bench.memory.write(BUFFER, chance.randbytes(256))
            for _ in range(chance.randrange(5)):
                ring.offer(chance.choice([chance.randrange(16), chance.randrange(1 << 16)]))
            if chance.random() < 0.2:
                bench.memory.write_u16(ring.available + 2, chance.randrange(1 << 16))
            bench.bus.notify(chance.choice([0, 0, 0, 1, 0xFFFF]))
            bench.bus.interrupts()
            if bench.bus.status & NEEDS_RESET and chance.random() < 0.5:
                bench.start(without=without)
                ring = bench.rings[0]
        state = bench.carrier.state()
        bench.carrier.restore(state)
    finally:
        bench.close()
