"""The NE2000 as its drivers see it, on ISA and on PCI."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.net.dp8390 import SIZE, hash_bit
from kvmpy.devices.net.ne2000 import Ne2000Isa, Ne2000Pci
from tests.devices.conftest import CountingLine, FakePlatform
from tests.devices.net.fake_end import MAC, OTHER, FakeEnd, PciBench

START, STOP, TX = 0x46, 0x60, 0x40
FRAME = MAC + OTHER + b"\x88\xb5" + bytes(range(100))


class Driver:
    """What ne.c and its like do, by ports."""

    def __init__(self, kind, platform):
        self.end = FakeEnd()
        if kind == "isa":
            self.line = CountingLine(5)
            self.nic = Ne2000Isa(self.end, MAC, line=self.line)
            self.nic.connect(platform)
            self.read, self.write = self._isa_read, self.nic.write
        else:
            self.bench = PciBench(platform, Ne2000Pci(self.end, MAC))
            self.nic = self.bench.nic
            assert self.bench.cfg(0, 4) == 0x802910EC
            base = self.nic.bars[0].mapped
            self.read = lambda at, size=1: self.bench.ports.read(base + at, size)
            self.write = lambda at, size, value: self.bench.ports.write(base + at, size, value)

    def _isa_read(self, at, size=1):
        return self.nic.read(at, size)

    @property
    def interrupt(self):
        return self.line.level if isinstance(self.nic, Ne2000Isa) else self.bench.interrupt

    def out(self, *pairs):
        for at, value in pairs:
            self.write(at, 1, value)

    def start(self, rcr=0x04, dcr=0x49):
        self.read(0x1F)
        assert self.read(7) & 0x80
        self.out((0, 0x21), (0xE, dcr), (0xA, 0), (0xB, 0), (0xC, 0x20), (0xD, 2))
        self.out((1, START), (2, STOP), (3, START), (7, 0xFF), (0xF, 0x3F))
        self.out((0, 0x61), *((1 + number, byte) for number, byte in enumerate(MAC)), (7, START + 1))
        self.out((0, 0x22), (0xD, 0), (0xC, rcr))
        return self

    def dma(self, command, address, count):
        self.out((0xA, count & 0xFF), (0xB, count >> 8), (8, address & 0xFF), (9, address >> 8), (0, command))

    def get(self, address, count, size=2):
        self.dma(0x0A, address, count)
        data = b"".join(self.read(0x10, size).to_bytes(size, "little") for _ in range(-(-count // size)))
        assert self.read(7) & 0x40
        self.out((7, 0x40), (0, 0x22))
        return data[:count]

    def send(self, data, size=2):
        self.dma(0x12, TX << 8, len(data))
        for at in range(0, len(data), size):
            self.write(0x10, size, int.from_bytes(data[at : at + size], "little"))
        self.out((7, 0x40), (4, TX), (5, len(data) & 0xFF), (6, len(data) >> 8), (0, 0x26))

    def current(self):
        self.out((0, 0x60))
        value = self.read(7)
        self.out((0, 0x20))
        return value

    def received(self):
        out = []
        page = self.read(3) + 1
        page = START if page >= STOP else page
        while page != self.current():
            status, following, low, high = self.get(page << 8, 4)
            assert status & 1
            out.append(self.get((page << 8) + 4, (low | high << 8)))
            page = following
            self.out((3, (page if page > START else STOP) - 1))
        self.out((7, 1))
        return out


@pytest.fixture(params=["isa", "pci"])
def driver(request, platform):
    return Driver(request.param, platform)


def test_the_address_prom(driver) -> None:
    driver.read(0x1F)
    driver.out((0, 0x21), (0xE, 0x48))  # bytes: every one is there twice
    assert driver.get(0, 32, 1)[:14] == bytes(byte for byte in MAC for _ in range(2)) + b"\0\0"
    driver.out((0, 0x21), (0xE, 0x49))  # words: a byte read takes both
    driver.dma(0x0A, 0, 32)
    prom = bytes(driver.read(0x10) for _ in range(16))
    assert prom[:6] == MAC and prom[14:] == b"WW" and driver.read(7) & 0x40


def test_frames_out(driver) -> None:
    driver.start()
    for size in (2, 4, 1):
        data = FRAME if size > 1 else FRAME[:60]
        if size == 1:
            driver.out((0xE, 0x48))
        driver.send(data, size)
        assert driver.end.frames() == [data] and driver.read(4) & 1
        assert driver.read(7) & 2 and driver.interrupt
        driver.out((7, 2))
        assert not driver.interrupt and not driver.read(0) & 4


def test_frames_in_around_the_ring(driver) -> None:
    driver.start()
    for number in range(40):
        data = FRAME + bytes([number]) * (number * 30)
        driver.end.give(data)
        assert driver.interrupt
        assert driver.received() == [data + zlib.crc32(data).to_bytes(4, "little")]
    assert not driver.interrupt
    driver.end.give(OTHER + FRAME[6:])
    driver.end.give(b"\xff" * 6 + FRAME[6:40])
    ((data),) = driver.received()
    assert data[:60] == b"\xff" * 6 + FRAME[6:40] + bytes(20)


def test_multicast_and_promiscuous(driver) -> None:
    driver.start(rcr=0x08)
    group = bytes.fromhex("01005e000001")
    driver.end.give(group + FRAME[6:])
    assert not driver.received()
    bit = hash_bit(group)
    driver.out((0, 0x62), (8 + bit // 8, 1 << bit % 8), (0, 0x22))
    driver.end.give(group + FRAME[6:])
    assert len(driver.received()) == 1
    driver.out((0xC, 0x10))
    driver.end.give(OTHER + FRAME[6:])
    assert len(driver.received()) == 1
    driver.out((0xC, 0x30))
    driver.end.give(FRAME)
    assert not driver.received()


def test_a_full_ring_holds_the_end_back(driver) -> None:
    driver.start()
    for number in range(100):
        driver.end.give(FRAME + bytes([number]))
    assert not driver.end.ready
    driver.out((7, 1))
    assert driver.interrupt  # what waits is worth an interrupt
    saved = driver.nic.state()
    driver.nic.chip.power_on()
    driver.nic.restore(saved)
    got = []
    for _ in range(100):
        driver.end.flush()
        got += driver.received()
        if len(got) == 100:
            break
    assert [data[len(FRAME)] for data in got] == list(range(100))
    assert driver.read(0xF) == 0


def test_without_room_for_one_more(driver) -> None:
    driver.start()
    driver.nic.chip.end = FakeEnd()  # one that does not hold back
    for _ in range(100):
        driver.end.receive(FRAME, None)
    assert driver.read(7) & 0x10 and driver.read(0xF) and not driver.read(0xF)


def test_send_packet_reads_the_frame_at_the_boundary(driver) -> None:
    driver.start()
    driver.end.give(FRAME)
    driver.out((3, START + 1), (0, 0x1A))
    assert driver.read(0x10, 2) & 1 and driver.read(0x10, 2) == len(FRAME) + 4


ACCESS = st.tuples(st.booleans(), st.integers(0, SIZE - 1), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))
VALUES = st.sampled_from([0x22, 0x26, 0x62, 0x0A, 0x12, 0x1A, 0xFF, 0x46, 0x80, 0x10])
SETTINGS = st.tuples(st.just(True), st.integers(0, 15), st.just(1), VALUES)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(ACCESS, SETTINGS, st.binary(min_size=14, max_size=1600)), max_size=60))
def test_no_guest_can_make_it_raise(steps) -> None:
    driver = Driver("isa", FakePlatform()).start(rcr=0x1F)
    for step in steps:
        if isinstance(step, bytes):
            driver.end.give(step)
        elif step[0]:
            driver.write(*step[1:])
        else:
            assert 0 <= driver.read(step[1], step[2]) < 1 << 8 * step[2]
    driver.nic.restore(driver.nic.state())
