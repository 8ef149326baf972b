"""virtio-net as a driver sees it, over every transport."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.net import virtio_net as v
from kvmpy.devices.net.virtio_net import VirtioNet
from kvmpy.frames import Offload
from tests.devices.conftest import FakePlatform
from tests.devices.net.fake_end import MAC, OTHER, FakeEnd
from tests.devices.virtio.driver import NEEDS_RESET, NEXT, WRITE, Bench

HEADER = 12
PLAIN = bytes(HEADER)
FRAME = MAC + OTHER + b"\x88\xb5" + bytes(range(100))


@pytest.fixture(params=["mmio", "pci", "intx"])
def transport(request):
    return request.param


@pytest.fixture
def make(make_platform):
    benches = []

    def make_one(transport="mmio", offloads=False, without=0, mtu=0, start=True):
        bench = Bench(make_platform(), VirtioNet(FakeEnd(offloads), MAC, mtu=mtu), transport)
        bench.end = bench.device.end
        benches.append(bench)
        return bench.start(without=without) if start else bench

    yield make_one
    for bench in benches:
        bench.close()


def room(bench, count=4, size=2048):
    for _ in range(count):
        bench.rings[0].add(into=[size])
    bench.rings[0].notify()
    bench.end.flush()


def control(bench, kind, command, data):
    return bench.rings[2].request([bytes([kind, command]), data] if data else [bytes([kind, command])], [1])[1]


def test_what_the_driver_is_told(make, transport) -> None:
    bench = make(transport, mtu=9000)
    assert bench.bus.identify() == 1
    config = bytes(bench.bus.config(at, 1) for at in range(12))
    assert config == MAC + struct.pack("<HHH", 1, 1, 9000)
    assert bench.features & v.MTU and bench.features & v.MRG_RXBUF and not bench.features & (v.CSUM | v.GUEST_TSO4)
    assert make(transport, offloads=True).features & v.WITH_OFFLOADS == v.WITH_OFFLOADS


@pytest.mark.parametrize("cut", [0, 5, 12, 40])
def test_frames_out(make, transport, cut) -> None:
    bench = make(transport)
    data = PLAIN + FRAME
    bench.rings[1].request([data[:cut], data[cut:]] if cut else [data])
    assert bench.end.sent == [(FRAME, None)] and bench.bus.interrupts() == 1
    bench.rings[1].request([PLAIN + b"short"])
    assert len(bench.end.sent) == 1 and not bench.bus.status & NEEDS_RESET


def test_offloads_pass_both_ways(make) -> None:
    bench = make(offloads=True)
    assert bench.end.takes.checksum and bench.end.takes.tso4 and bench.end.takes.tso6
    bench.rings[1].request([struct.pack("<BBHHHHH", 1, 1, 54, 1460, 34, 16, 0), FRAME])
    assert bench.end.sent == [(FRAME, Offload(1, 1, 54, 1460, 34, 16))]
    room(bench)
    bench.end.give(FRAME, Offload(1, 4, 74, 1440, 54, 16))
    _, written, data = bench.rings[0].take()
    assert data[:written] == struct.pack("<BBHHHHH", 1, 4, 74, 1440, 54, 16, 1) + FRAME
    assert control(bench, 5, 0, struct.pack("<Q", v.GUEST_CSUM)) == b"\0" and not bench.end.takes.tso4
    assert control(bench, 5, 0, struct.pack("<Q", v.CSUM)) == b"\1"
    bench.bus.status = 0
    assert not bench.end.takes.checksum


def test_frames_in(make, transport) -> None:
    bench = make(transport)
    room(bench)
    bench.end.give(FRAME)
    _, written, data = bench.rings[0].take()
    assert data[:written] == PLAIN[:10] + b"\1\0" + FRAME and bench.bus.interrupts() == 1


def test_a_frame_over_several_buffers_comes_at_once(make) -> None:
    bench = make()
    room(bench, 5, 50)
    big = FRAME + os.urandom(60)
    bench.end.give(big)
    parts = [bench.rings[0].take() for _ in range(4)]
    assert b"".join(data[:written] for _, written, data in parts) == PLAIN[:10] + b"\4\0" + big
    assert bench.rings[0].take() is None
    bench.end.give(big)  # one buffer left: it waits
    assert bench.rings[0].take() is None and not bench.end.ready
    room(bench, 3, 50)
    assert [bench.rings[0].take() is not None for _ in range(5)] == [True] * 4 + [False] and bench.end.ready


def test_without_mergeable_buffers(make) -> None:
    bench = make(without=v.MRG_RXBUF)
    room(bench, 1, 60)
    bench.end.give(FRAME)
    assert bench.rings[0].take() is None and bench.device.dropped == 1
    bench.end.give(FRAME[:40])
    assert bench.rings[0].take()[1] == 52


def test_the_end_is_held_back_and_state_keeps_the_frame(make, transport) -> None:
    bench = make(transport)
    for number in range(3):
        bench.end.give(FRAME + bytes([number]))
    assert not bench.end.ready and len(bench.end.waiting) == 2
    saved = bench.carrier.state()
    bench.carrier.reset()
    bench.carrier.restore(saved)
    assert not bench.end.ready
    room(bench)
    found = [bench.rings[0].take() for _ in range(3)]
    assert [data[written - 1] for _, written, data in found] == [0, 1, 2]


def test_filters(make) -> None:
    bench = make()
    group, group2 = bytes.fromhex("01005e000001"), bytes.fromhex("333300000001")

    def passing():
        room(bench, 6)
        for target in (MAC, OTHER, group, group2, b"\xff" * 6):
            bench.end.give(target + FRAME[6:])
        out = []
        while (found := bench.rings[0].take()) is not None:
            out.append(found[2][12:18])
        return out

    assert len(passing()) == 5
    assert control(bench, 0, 0, b"\0") == b"\0"
    bench = bench.start()
    assert control(bench, 0, 0, b"\0") == b"\0" and passing() == [MAC, b"\xff" * 6]
    tables = struct.pack("<I", 1) + OTHER + struct.pack("<I", 1) + group
    bench = bench.start()
    assert control(bench, 0, 0, b"\0") == control(bench, 1, 0, tables) == b"\0" and passing() == [MAC, OTHER, group, b"\xff" * 6]
    bench = bench.start()
    assert control(bench, 0, 0, b"\0") == control(bench, 0, 1, b"\1") == control(bench, 0, 5, b"\1") == b"\0"
    assert passing() == [MAC, group, group2]
    bench = bench.start()
    assert control(bench, 0, 0, b"\0") == control(bench, 1, 1, OTHER) == b"\0"
    assert passing() == [OTHER, b"\xff" * 6] and bytes(bench.bus.config(at, 1) for at in range(6)) == OTHER
    for kind, command, data in ((9, 0, b""), (0, 9, b"\0"), (0, 0, b""), (1, 1, b"12345"), (1, 0, b"\xff\xff\xff\xff"), (2, 0, b"\0\x10")):
        assert control(bench, kind, command, data) == b"\1"


def test_vlans(make) -> None:
    bench = make()
    tagged = FRAME[:12] + b"\x81\0\x20\x07" + FRAME[12:]
    room(bench)
    bench.end.give(tagged)
    assert bench.rings[0].take() is None
    assert control(bench, 2, 0, b"\7\0") == b"\0"
    bench.end.give(tagged)
    assert bench.rings[0].take()[1] == 12 + len(tagged)
    assert control(bench, 2, 1, b"\7\0") == b"\0"
    bench.end.give(tagged)
    assert bench.rings[0].take() is None


def test_the_link(make, transport) -> None:
    bench = make(transport)
    bench.device.set_link(False)
    assert bench.bus.interrupts() == 2 and bench.bus.config(6, 2) == 0
    bench.rings[1].request([PLAIN + FRAME])
    assert not bench.end.sent
    bench.device.set_link(True)
    assert bench.bus.config(6, 2) == 3 and control(bench, 3, 0, b"") == b"\0" and bench.bus.config(6, 2) == 1


def test_frames_for_nobody_are_lost(make) -> None:
    bench = make(start=False)
    for _ in range(3):
        bench.end.give(FRAME)
    assert bench.end.ready and bench.device.dropped == 3
    bench.carrier.close()
    assert bench.end.closed


@pytest.mark.parametrize("queue", [0, 1, 2])
@pytest.mark.parametrize("what", ["loop", "outside", "jump", "wrong head"])
def test_broken_rings_need_a_reset(make, queue, what) -> None:
    bench = make()
    ring = bench.rings[queue]
    flags = WRITE if queue == 0 else 0
    if what == "loop":
        ring.describe(0, 0x100000, 8, flags | NEXT, 0)
        ring.offer(0)
    elif what == "outside":
        ring.describe(0, 1 << 50, 4096, flags)
        ring.offer(0)
    elif what == "jump":
        ring.memory.write_u16(ring.available + 2, 5000)
    else:
        ring.offer(999)
    ring.notify()
    bench.end.give(FRAME)
    assert bench.bus.status & NEEDS_RESET and not bench.end.sent
    bench.rings[1].notify()
    bench.end.flush()
    bench.start()
    bench.rings[1].request([PLAIN + FRAME])
    assert bench.end.sent == [(FRAME, None)]


DESCRIPTORS = st.lists(
    st.tuples(
        st.one_of(st.integers(0x100000, 0x101000), st.sampled_from([0, 0x10000, (4 << 20) - 8, 1 << 63])),
        st.one_of(st.integers(0, 3000), st.sampled_from([0xFFFFFFFF, 4 << 20])), st.integers(0, 7), st.integers(0, 17),
    ),
    min_size=1, max_size=16,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2), DESCRIPTORS, st.lists(st.integers(0, 20), max_size=8), st.integers(0, 0xFFFF), st.binary(min_size=14, max_size=3000)
)
def test_no_guest_can_make_it_raise(queue, descriptors, heads, jump, frame) -> None:
    bench = Bench(FakePlatform(), VirtioNet(FakeEnd(offloads=bool(jump & 1)), MAC)).start()
    ring = bench.rings[queue]
    for slot, descriptor in enumerate(descriptors):
        ring.describe(slot, *descriptor)
    for head in heads:
        ring.offer(head)
    if jump & 2:
        ring.memory.write_u16(ring.available + 2, jump)
    for _ in range(3):
        ring.notify()
        bench.device.end.give(frame)
    bench.carrier.restore(bench.carrier.state())
    bench.bus.status = 0
    assert bench.start().bus.status & 4
    bench.close()
