"""Requests of a disk that threads do while the guest runs on."""

from __future__ import annotations

import errno
import struct
import threading
import time

import pytest

from kvmpy.devices.virtio import blk
from kvmpy.devices.virtio.blk import VirtioBlk
from tests.devices.virtio.conftest import FakeImage
from tests.devices.virtio.driver import Bench

OK, IOERR = b"\0", b"\1"


def header(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


class GatedImage(FakeImage):
    """An image whose calls wait at a gate, when it is closed, before they do anything."""

    def __init__(self):
        super().__init__()
        self.delay = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def _called(self, what, *arguments):
        self.entered.release()
        assert self.gate.wait(10)
        if self.delay:
            time.sleep(self.delay)
        super()._called(what, *arguments)


class Posts:
    """What threads have posted, run when the test says so, as the loop does between two runs of a vCPU."""

    def __init__(self):
        self.waiting = []
        self.there = threading.Event()

    def post(self, function):
        self.waiting.append(function)
        self.there.set()

    def run(self, count=1):
        end = time.monotonic() + 10
        while count:
            assert self.there.wait(end - time.monotonic())
            if not self.waiting:
                self.there.clear()
                time.sleep(0.001)
                continue
            self.waiting.pop(0)()
            count -= 1


@pytest.fixture
def image():
    return GatedImage()


@pytest.fixture
def posts():
    return Posts()


@pytest.fixture
def make(make_platform, posts):
    benches = []

    def make(image, transport="mmio"):
        platform = make_platform()
        platform.asynchronous = True
        platform.call = posts.post
        benches.append(Bench(platform, VirtioBlk(image), transport))
        return benches[-1]

    yield make
    for bench in benches:
        bench.carrier.close()
        bench.close()


@pytest.fixture
def bench(make, image, transport):
    bench = make(image, transport).start()
    yield bench
    image.gate.set()


def flush_in_flight(bench, image):
    """A flush that has begun; gives its head."""
    image.gate.clear()
    head = bench.rings[0].add([header(4)], [1])
    bench.rings[0].notify()
    assert image.entered.acquire(timeout=10)
    assert bench.rings[0].take() is None
    return head


def test_quick_requests_are_done_at_the_doorbell(bench, image, posts) -> None:
    assert bench.rings[0].request([header(1, 1), b"a" * 512], [1]) == (1, OK)
    assert bench.rings[0].request([header(0, 1)], [512, 1]) == (513, b"a" * 512 + OK)
    assert not posts.waiting and not bench.device.requests["threaded"]


def test_a_flush_does_not_hold_the_guest(bench, image, posts) -> None:
    head = flush_in_flight(bench, image)
    image.gate.set()
    posts.run()
    assert bench.rings[0].take() == (head, 1, OK) and bench.bus.interrupts() == 1 and image.calls == [("flush",)]


def test_requests_behind_a_waiting_one(bench, image, posts) -> None:
    """They may end in any order, each with its own answer."""
    flush_in_flight(bench, image)
    for number in range(4):
        bench.rings[0].add([header(1, number), bytes([number + 1]) * 512], [1])
    bench.rings[0].notify()
    image.gate.set()
    posts.run(5)
    answers = [bench.rings[0].take() for _ in range(5)]
    assert all(answer[2] == OK for answer in answers) and bench.rings[0].take() is None
    assert image.data[0:2048:512] == bytes([1, 2, 3, 4]) and bench.device.requests["threaded"] == 5


def test_after_a_slow_request_threads_take_over_for_a_while(bench, image, posts, monkeypatch) -> None:
    ring = bench.rings[0]
    monkeypatch.setattr(blk, "SLOW_NS", -10000)
    ring.request([header(0)], [512, 1])
    assert not bench.device.requests["threaded"]  # it did not wait: at most others had the processor
    image.delay = 0.001
    ring.request([header(0)], [512, 1])
    image.delay = 0
    monkeypatch.setattr(blk, "SLOW_NS", 1 << 40)
    for number in range(blk.CAUTION):
        ring.add([header(0)], [512, 1])
        ring.notify()
        assert ring.take() is None, number
        posts.run()
        assert ring.take()[2][-1:] == OK
        ring.want_interrupt()
    assert ring.request([header(0)], [512, 1])[1][-1:] == OK


def test_errors_from_a_thread(bench, image, posts) -> None:
    flush_in_flight(bench, image)
    image.fail = errno.EIO
    image.gate.set()
    posts.run()
    assert bench.rings[0].take()[2] == IOERR and bench.platform.warnings == ["flush: Input/output error"]
    assert bench.device.requests["errors"] == 1


def test_a_bad_request_behind_a_waiting_one(bench, image, posts) -> None:
    flush_in_flight(bench, image)
    bench.rings[0].add([header(0, 1 << 40)], [512, 1])
    bench.rings[0].notify()
    image.gate.set()
    posts.run(2)
    assert sorted(bench.rings[0].take()[2][-1:] for _ in range(2)) == [OK, IOERR]


def test_writethrough_waits_in_a_thread(bench, image, posts) -> None:
    bench.bus.set_config(32, 1, 0)
    image.gate.clear()
    bench.rings[0].add([header(1), bytes(512)], [1])
    bench.rings[0].notify()
    assert bench.rings[0].take() is None
    image.gate.set()
    posts.run()
    assert bench.rings[0].take()[2] == OK and image.calls == [("write", 0, 512), ("flush",)]


def test_reset_waits_for_threads_and_forgets(bench, image, posts) -> None:
    """After a reset the driver may use its buffers for other things: nobody writes them any more, and nothing is answered."""
    flush_in_flight(bench, image)
    bench.rings[0].add([header(0)], [512, 1])
    bench.rings[0].notify()
    threading.Timer(0.05, image.gate.set).start()
    bench.bus.status = 0
    assert ("flush",) in image.calls and ("read", 0, 512) in image.calls
    memory = bench.memory.read(0, bench.memory.size)
    posts.run(2)
    assert bench.memory.read(0, bench.memory.size) == memory and bench.bus.interrupts() == 0
    bench.start()
    assert bench.rings[0].request([header(0)], [512, 1]) == (513, bytes(512) + OK)


def test_a_queue_that_is_turned_off_is_answered_before(make, image, posts) -> None:
    bench = make(image).start()
    head = flush_in_flight(bench, image)
    threading.Timer(0.05, image.gate.set).start()
    bench.bus.write(0x30, 0)
    bench.bus.write(0x44, 0)
    assert bench.rings[0].take() == (head, 1, OK)
    posts.run()


def test_a_machine_that_stands_still_has_nothing_in_flight(bench, image, posts) -> None:
    head = flush_in_flight(bench, image)
    threading.Timer(0.05, image.gate.set).start()
    for call in bench.platform.resting:
        call()
    assert bench.rings[0].take() == (head, 1, OK) and bench.bus.interrupts() == 1
    posts.run()
    assert bench.rings[0].take() is None and not bench.device.queues[0].held


def test_state_in_the_middle_of_a_request(make, image, posts, transport) -> None:
    """The request is done again where the state is restored, and the first device's end of it goes its own way."""
    first = make(image, transport).start()
    image.data[:512] = b"d" * 512
    flush = flush_in_flight(first, image)
    read = first.rings[0].add([header(0)], [512, 1])
    first.rings[0].notify()
    state, memory = first.carrier.state(), first.memory.read(0, first.memory.size)
    assert sorted(state["device"]["queues"][0]["held"]) == sorted([flush, read])
    image.gate.set()
    posts.run(2)
    second = make(image, transport)
    second.memory.write(0, memory)
    if transport != "mmio":
        second.bus.host.restore(first.bus.host.state())
    second.carrier.restore(state)
    second.features, second.rings = first.features, first.rings
    second.rings[0].bench, second.rings[0].memory = second, second.memory
    posts.run()
    answers = {answer[0]: answer[2] for answer in (second.rings[0].take(), second.rings[0].take())}
    assert answers == {flush: OK, read: b"d" * 512 + OK} and second.bus.interrupts() == 1
    assert second.rings[0].take() is None and not second.device.queues[0].held


def test_closing_waits_for_threads(make, image) -> None:
    bench = make(image).start()
    flush_in_flight(bench, image)
    threading.Timer(0.05, image.gate.set).start()
    bench.carrier.close()
    assert image.calls == [("flush",)] and image.closed


def test_virtual_time_does_everything_at_the_doorbell(make_bench, image, transport) -> None:
    bench = make_bench(VirtioBlk(image), transport).start()
    assert not bench.platform.asynchronous
    for _ in range(3):
        assert bench.rings[0].request([header(4)], [1]) == (1, OK)
    assert not bench.device.requests["threaded"]
