"""virtio-blk as a driver sees it, over both transports."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from kvmpy.devices.virtio import blk
from kvmpy.devices.virtio.blk import VirtioBlk
from tests.devices.virtio.driver import NEEDS_RESET

OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"


def header(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


@pytest.fixture
def image(make_image):
    return make_image()


@pytest.fixture
def bench(make_bench, image, transport):
    return make_bench(VirtioBlk(image), transport).start()


def test_what_the_driver_is_told(bench, image) -> None:
    assert bench.bus.identify() == 2
    assert bench.bus.config(0, 8) == 2048
    assert bench.bus.config(12, 4) == 254 and bench.bus.config(20, 4) == 512
    assert bench.bus.config(32, 1) == 1 and bench.bus.config(34, 2) == 1
    assert bench.bus.config(40, 4) == 16 and bench.bus.config(56, 1) == 1
    assert bench.features & (blk.FLUSH | blk.DISCARD | blk.WRITE_ZEROES) and not bench.features & (blk.RO | blk.MQ)


@pytest.mark.parametrize("indirect", [False, True])
def test_write_and_read_back(bench, image, indirect) -> None:
    data = os.urandom(3 * 512)
    written, answer = bench.rings[0].request([header(1, 5), data[:700], data[700:]], [1], indirect=indirect)
    assert (written, answer) == (1, OK) and image.data[5 * 512 : 8 * 512] == data
    assert bench.bus.interrupts() == 1
    written, answer = bench.rings[0].request([header(0, 5)], [512, 1000, 24, 1], indirect=indirect)
    assert (written, answer) == (3 * 512 + 1, data + OK)
    assert bench.bus.interrupts() == 1
    assert ("flush",) not in image.calls


def test_header_and_status_may_be_cut_anywhere(bench, image) -> None:
    """The framing of a request is the driver's choice (virtio 1.2 §2.7.4)."""
    data = os.urandom(512)
    assert bench.rings[0].request([header(1, 1)[:3], header(1, 1)[3:] + data[:100], data[100:]], [1]) == (1, OK)
    assert image.data[512:1024] == data
    assert bench.rings[0].request([header(0, 1)], [100, 413]) == (513, data + OK)


def test_flush_and_id(bench, image) -> None:
    assert bench.rings[0].request([header(4)], [1]) == (1, OK)
    assert image.calls == [("flush",)]
    assert bench.rings[0].request([header(8)], [20, 1]) == (21, b"disk-1".ljust(20, b"\0") + OK)


def test_writethrough_where_the_driver_asks_for_it(bench, image) -> None:
    bench.bus.set_config(32, 1, 0)
    bench.rings[0].request([header(1), bytes(512)], [1])
    assert image.calls[-1] == ("flush",)


def test_writethrough_without_flush(make_bench, image) -> None:
    bench = make_bench(VirtioBlk(image)).start(without=blk.FLUSH | blk.CONFIG_WCE)
    bench.rings[0].request([header(1), bytes(512)], [1])
    assert image.calls == [("write", 0, 512), ("flush",)]


def test_discard_and_write_zeroes(bench, image) -> None:
    image.data[:] = b"x" * len(image.data)
    ranges = struct.pack("<QIIQII", 8, 8, 0, 32, 4, 0)
    assert bench.rings[0].request([header(11), ranges], [1]) == (1, OK)
    assert image.calls == [("discard", 4096, 4096), ("discard", 16384, 2048)]
    assert bench.rings[0].request([header(13), struct.pack("<QII", 8, 8, 1)], [1]) == (1, OK)
    assert image.calls[-1] == ("zeroes", 4096, 4096, True) and not any(image.data[4096:8192])


@pytest.mark.parametrize("request_", [
    ([header(0, 2048)], [512, 1]), ([header(0, 2047)], [1024, 1]), ([header(1, 1 << 63), bytes(512)], [1]), ([header(1), bytes(511)], [1]),
    ([header(0)], [511, 1]), ([header(11), struct.pack("<QII", 2047, 2, 0)], [1]), ([header(13), bytes(15)], [1]),
    ([header(11)], [1]), ([header(13), struct.pack("<QII", 0, 0xFFFFFFFF, 0)], [1]),
])  # fmt: skip
def test_requests_that_fail(bench, image, request_) -> None:
    _, answer = bench.rings[0].request(*request_)
    assert answer[-1:] == IOERR and not image.calls


@pytest.mark.parametrize("request_", [
    ([header(3)], [1]), ([header(0xFFFFFFFF)], [512, 1]), ([header(11), struct.pack("<QII", 0, 1, 1)], [1]),
    ([header(13), struct.pack("<QII", 0, 1, 2)], [1]),
])  # fmt: skip
def test_requests_that_are_not_supported(bench, image, request_) -> None:
    assert bench.rings[0].request(*request_)[1][-1:] == UNSUPP and not image.calls


@pytest.mark.parametrize("request_", [([header(0)[:15]], [1]), ([header(1), bytes(512)], [])])
def test_requests_without_header_or_status_break_the_device(bench, request_) -> None:
    bench.rings[0].add(*request_)
    bench.rings[0].notify()
    assert bench.bus.status & NEEDS_RESET and bench.bus.interrupts() & 2
    assert bench.rings[0].take() is None


def test_read_only(make_bench, make_image, transport) -> None:
    image = make_image(readonly=True)
    bench = make_bench(VirtioBlk(image), transport).start()
    assert bench.features & blk.RO and not bench.features & (blk.DISCARD | blk.WRITE_ZEROES)
    assert bench.rings[0].request([header(1), bytes(512)], [1])[1] == IOERR
    assert bench.rings[0].request([header(11), struct.pack("<QII", 0, 1, 0)], [1])[1] == UNSUPP
    assert bench.rings[0].request([header(4)], [1])[1] == OK
    assert bench.rings[0].request([header(0)], [512, 1])[1] == bytes(512) + OK
    assert {call[0] for call in image.calls} == {"read"}


def test_errors_of_the_host_are_error_status(bench, image) -> None:
    image.fail = errno.ENOSPC
    assert bench.rings[0].request([header(1), bytes(512)], [1])[1] == IOERR
    assert bench.platform.warnings == ["write: No space left on device"]
    image.fail = errno.EIO
    assert bench.rings[0].request([header(0)], [512, 1])[1][-1:] == IOERR
    assert bench.rings[0].request([header(4)], [1])[1][-1:] == IOERR
    image.fail = 0
    assert bench.rings[0].request([header(0)], [512, 1])[1][-1:] == OK


def test_several_queues(make_bench, image, transport) -> None:
    bench = make_bench(VirtioBlk(image, queues=3), transport).start()
    assert bench.features & blk.MQ and bench.bus.config(34, 2) == 3
    for index in range(3):
        assert bench.rings[index].request([header(1, index), bytes([index + 1]) * 512], [1]) == (1, OK)
        assert bench.bus.interrupts() == 1
    assert image.data[0:1537:512] == bytes([1, 2, 3, 0])


def test_many_requests_with_one_notification(bench, image) -> None:
    ring = bench.rings[0]
    for turn in range(40):  # the ring's indices wrap around many times
        for number in range(5):
            ring.add([header(1, turn * 5 + number), bytes([turn + 1]) * 512], [1])
        ring.notify()
        answers = [ring.take() for _ in range(5)]
        assert all(answer[2] == OK for answer in answers)
        assert bench.bus.interrupts() == 1
        ring.want_interrupt()
    assert image.data[: 200 * 512] == b"".join(bytes([turn + 1]) * 512 * 5 for turn in range(40))


def test_state_between_offer_and_notification(make_bench, make_image, transport) -> None:
    """A second device goes on where the first one stood: rings, features, interrupt, requests not looked at yet."""
    image = make_image()
    first = make_bench(VirtioBlk(image), transport).start()
    first.rings[0].request([header(1, 3), b"a" * 512], [1])
    head = first.rings[0].add([header(0, 3)], [512, 1])
    state = first.carrier.state()
    assert state == first.carrier.state()
    second = make_bench(VirtioBlk(image), transport)
    second.memory.write(0, first.memory.read(0, 4 << 20))
    if transport != "mmio":
        second.bus.host.restore(first.bus.host.state())
    second.carrier.restore(state)
    second.features = first.features
    second.rings = first.rings
    second.rings[0].bench, second.rings[0].memory = second, second.memory
    second.rings[0].notify()
    assert second.rings[0].take() == (head, 513, b"a" * 512 + OK)
    assert second.bus.interrupts() & 1
    assert second.carrier.state()["device"]["queues"] == second.device.state()["queues"]


def test_reset_in_the_middle(bench, image) -> None:
    bench.rings[0].add([header(1), b"x" * 512], [1])
    bench.bus.status = 0
    bench.rings[0].notify()
    assert not image.calls and bench.bus.status == 0
    bench.start()
    assert bench.rings[0].request([header(0)], [512, 1]) == (513, bytes(512) + OK)


def test_closing_closes_the_image(bench, image) -> None:
    bench.carrier.close()
    assert image.closed
