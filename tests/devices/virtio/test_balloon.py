"""virtio-balloon: pages given up, reported as free, and the guest's statistics."""

from __future__ import annotations

import struct

import pytest

from kvmpy.devices.virtio import balloon
from kvmpy.devices.virtio.balloon import VirtioBalloon
from tests.devices.virtio.driver import NEXT, WRITE

PAGE = 4096


@pytest.fixture
def bench(make_bench, transport):
    bench = make_bench(VirtioBalloon(target=3), transport).start()
    bench.memory.fill(0x300000, 0x40000, 0x55)
    return bench


def pages(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


def test_inflate_and_deflate(bench) -> None:
    assert bench.bus.config(0, 4) == 3
    bench.rings[0].request([pages(0x300, 0x301, 0x305)])
    for page, content in ((0x300, 0), (0x301, 0), (0x302, 0x55), (0x304, 0x55), (0x305, 0), (0x306, 0x55)):
        assert bench.memory.read(page * PAGE, PAGE) == bytes([content]) * PAGE
    bench.bus.set_config(4, 4, 3)
    assert bench.device.given == 3
    bench.rings[1].request([pages(0x300)])
    bench.device.set_target(1000)
    assert bench.bus.interrupts() & 2 and bench.bus.config(0, 4) == 1000


def test_page_numbers_outside_memory(bench) -> None:
    bench.rings[0].request([pages(0xFFFFFFFF, 0x400, 0x30F, 0x7FF)])
    assert bench.memory.read(0x30F000, 1) == b"\0"
    assert [what for what, _ in bench.platform.events] == ["pages that are no RAM"] * 3
    bench.rings[0].request([b"\1\2\3"])


def test_free_page_reporting(bench) -> None:
    ring = bench.rings[3]
    ring.describe(0, 0x310000, 2 * PAGE, WRITE | NEXT, 1)
    ring.describe(1, 0x320000 + 8, 2 * PAGE, WRITE)
    ring.offer(0)
    ring.notify()
    assert bench.memory.read_u16(ring.used + 2) == 1 and bench.memory.read_u32(ring.used + 8) == 0
    assert not any(bench.memory.read(0x310000, 2 * PAGE)) and bench.memory.read(0x312000, 1) == b"\x55"
    assert bench.memory.read(0x320FFF, 2) == b"\x55\0", "only whole pages"
    assert bench.device.reported == 3 * PAGE


def test_queues_of_features_not_taken_do_not_exist(make_bench) -> None:
    bench = make_bench(VirtioBalloon()).start(without=balloon.STATS_VQ)
    ring = bench.rings[2]
    ring.describe(0, 0x310000, PAGE, WRITE)
    ring.offer(0)
    ring.notify()
    assert bench.device.reported == PAGE


def test_statistics(bench) -> None:
    ring = bench.rings[2]
    bench.device.ask_statistics()
    ring.add([struct.pack("<HQHQ", 4, 1000, 5, 2000)])
    ring.notify()
    assert bench.device.statistics == {"free_memory": 1000, "total_memory": 2000} and ring.take() is None
    state = bench.carrier.state()
    bench.carrier.restore(state)
    bench.device.ask_statistics()
    assert bench.bus.interrupts() & 1 and ring.take() is not None
    ring.add([struct.pack("<HQ", 99, 7)])
    ring.notify()
    assert bench.device.statistics == {"tag_99": 7}
