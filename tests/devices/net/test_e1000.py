"""The 82540EM as its driver sees it."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.devices.net import e1000_regs as r
from kvmpy.devices.net.checksum import checksum
from kvmpy.devices.net.e1000 import E1000
from tests.devices.conftest import FakePlatform
from tests.devices.net.fake_end import MAC, OTHER, FakeEnd, PciBench

TX_RING, RX_RING, TX_BUFFERS, RX_BUFFERS = 0x10000, 0x20000, 0x40000, 0x80000
COUNT = 16
EOP, IC, RS, DEXT, TSE, VLE = 1, 4, 8, 0x20, 4, 0x40


class Driver(PciBench):
    """Rings of 16 descriptors, buffers of 2 KiB."""

    def __init__(self, platform):
        self.end = FakeEnd()
        super().__init__(platform, E1000(self.end, MAC))
        self.tail = self.done = 0

    def read(self, register):
        return self.mmio.read(self.nic.bars[0].mapped + register, 4)

    def write(self, register, value):
        self.mmio.write(self.nic.bars[0].mapped + register, 4, value)

    def start(self, rctl=0):
        self.memory.fill(TX_RING, 0x20000)
        for base, ring in ((r.TDBAL, TX_RING), (r.RDBAL, RX_RING)):
            self.write(base, ring)
            self.write(base + 4, 0)
            self.write(base + 8, COUNT * 16)
            self.write(base + 0x10, 0)
            self.write(base + 0x18, 0)
        for number in range(COUNT):
            self.memory.write(RX_RING + 16 * number, struct.pack("<QQ", RX_BUFFERS + 2048 * number, 0))
        self.write(r.RDT, COUNT - 1)
        self.write(r.TCTL, r.TCTL_EN | r.TCTL_PSP)
        self.write(r.RCTL, r.RCTL_EN | r.RCTL_BAM | rctl)
        self.write(r.IMS, r.TXDW | r.RXT0 | r.LSC)
        return self

    def describe(self, address, lower, upper=0):
        self.memory.write(TX_RING + 16 * self.tail, struct.pack("<QII", address, lower, upper))
        self.tail = (self.tail + 1) % COUNT

    def kick(self):
        self.write(r.TDT, self.tail)

    def send(self, *pieces, command=0, upper=0, lower=0):
        at = TX_BUFFERS
        for number, piece in enumerate(pieces):
            self.memory.write(at, piece)
            last = EOP | RS if number == len(pieces) - 1 else 0
            self.describe(at, len(piece) | (command | last) << 24 | lower, upper)
            at += len(piece)
        self.kick()

    def received(self):
        """(data, status, errors, special) of every filled descriptor."""
        out = []
        while self.done != self.read(r.RDH):
            address, length, _, status, errors, special = struct.unpack("<QHHBBH", self.memory.read(RX_RING + 16 * self.done, 16))
            out.append((self.memory.read(address, length), status, errors, special))
            self.done = (self.done + 1) % COUNT
        return out


@pytest.fixture
def driver(platform):
    driver = Driver(platform)
    yield driver
    driver.close()


def frame(target=MAC, size=60, kind=0x88B5):
    return target + OTHER + struct.pack("!H", kind) + bytes(number & 0xFF for number in range(size - 14))


def test_identity_and_eeprom(driver) -> None:
    assert driver.cfg(0, 4) == 0x100E8086 and driver.cfg(0xA, 2) == 0x0200
    words = []
    for address in range(64):
        driver.write(r.EERD, address << 8 | 1)
        value = driver.read(r.EERD)
        assert value & 0x10
        words.append(value >> 16)
    assert struct.pack("<3H", *words[:3]) == MAC and sum(words) & 0xFFFF == 0xBABA
    assert (driver.read(r.RA), driver.read(r.RA + 4)) == (0x12005452, 0x80005634)
    assert driver.read(r.STATUS) & 0xC3 == 0x83
    port = driver.nic.bars[1].mapped
    driver.ports.write(port, 4, r.RA)
    assert driver.ports.read(port + 4, 4) == 0x12005452


def test_the_eeprom_bit_by_bit(driver) -> None:
    """Microwire: chip select, start bit and READ, address, then 16 bits out."""
    sk, cs, di, do = 1, 2, 4, 8
    driver.write(r.EECD, 0x40)
    assert driver.read(r.EECD) & 0x180 == 0x180
    driver.write(r.EECD, 0x40 | cs)

    def clock(bit):
        for value in (0, sk, 0):
            driver.write(r.EECD, 0x40 | cs | value | (di if bit else 0))
            if value:
                out = bool(driver.read(r.EECD) & do)
        return out

    def command(bits, count):
        for at in reversed(range(count)):
            clock(bits >> at & 1)

    command(0b110 << 6 | 2, 9)
    assert sum(clock(0) << at for at in reversed(range(16))) == 0x5634
    assert sum(clock(0) << at for at in reversed(range(16))) == 0  # the next word
    for bits, count in ((0b100110000, 9), (0b101 << 6 | 0x20, 9)):
        driver.write(r.EECD, 0x40)
        driver.write(r.EECD, 0x40 | cs)
        command(bits, count)
    command(0xBEEF, 16)
    driver.write(r.EECD, 0x40)
    driver.write(r.EERD, 0x20 << 8 | 1)
    assert driver.read(r.EERD) >> 16 == 0xBEEF


def test_the_phy(driver) -> None:
    def mdic(operation, register, data=0, phy=1):
        driver.write(r.MDIC, operation << 26 | phy << 21 | register << 16 | data)
        return driver.read(r.MDIC)

    assert mdic(2, 2) & 0x1000FFFF == 0x10000141 and mdic(2, 3) & 0xFFF0 == 0x0C20
    assert mdic(2, 1) & 0x24 == 0x24 and mdic(2, 1, phy=2) & 1 << 30
    mdic(1, 0, 0x1340)
    assert mdic(2, 0) & 0xFFFF == 0x1140
    driver.start()
    driver.nic.set_link(False)
    assert not mdic(2, 1) & 4 and not driver.read(r.STATUS) & 2 and driver.interrupt
    assert driver.read(r.ICR) & r.LSC and not driver.interrupt


def test_frames_out(driver) -> None:
    driver.start()
    data = frame(OTHER, 600)
    driver.send(data[:10], data[10:300], data[300:])
    assert driver.end.frames() == [data]
    assert driver.memory.read_u8(TX_RING + 2 * 16 + 12) & 1 and not driver.memory.read_u8(TX_RING + 12) & 1
    assert driver.read(r.TDH) == 3 and driver.interrupt
    assert driver.read(r.ICR) & (r.TXDW | r.TXQE) == r.TXDW | r.TXQE and not driver.interrupt
    driver.send(b"x" * 20)
    assert driver.end.frames() == [b"x" * 20 + bytes(40)]
    assert driver.read(r.STATISTICS + r.GPTC) == 2 and driver.read(r.STATISTICS + r.GPTC) == 0
    assert driver.read(r.STATISTICS + r.GOTC) == 604 + 64 and driver.read(r.STATISTICS + r.GOTC + 4) == 0


def test_vlan_tag_and_legacy_checksum(driver) -> None:
    driver.start()
    driver.write(r.CTRL, driver.read(r.CTRL) | r.CTRL_VME)
    driver.write(r.VET, 0x8100)
    data = frame(OTHER, 80)
    driver.send(data, command=VLE, upper=0x0123 << 16)
    assert driver.end.frames() == [data[:12] + b"\x81\0\x01\x23" + data[12:]]
    driver.send(data, command=IC, lower=20 << 16, upper=14 << 8)
    assert driver.end.frames() == [data[:20] + checksum(data[14:]).to_bytes(2, "big") + data[22:]]


def tcp_header(payload: int, seq: int, flags: int) -> bytes:
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + payload, 7, 0, 64, 6, 0, b"\x0a\0\2\x0f", b"\x0a\0\2\2")
    return OTHER + MAC + b"\x08\0" + ip + struct.pack("!HHIIBBHHH", 1, 2, seq, 0, 0x50, flags, 1000, 0, 0)


def test_segmentation(driver) -> None:
    driver.start()
    payload = bytes(number * 13 & 0xFF for number in range(3500))
    header = bytearray(tcp_header(0, 0xFFFFFF00, 0x19))
    pseudo = checksum(bytes(header[26:34]) + b"\0\6") ^ 0xFFFF  # without the length
    header[50:52] = pseudo.to_bytes(2, "big")
    context = struct.pack("<BBHBBHII", 14, 24, 33, 34, 50, 0, len(payload) | (DEXT | TSE | 3) << 24, 54 << 8 | 1460 << 16)
    driver.memory.write(TX_RING, context)
    driver.tail = 1
    driver.memory.write(TX_BUFFERS, bytes(header) + payload)
    driver.describe(TX_BUFFERS, 54 | 1 << 20 | (DEXT | TSE) << 24, 3 << 8)
    driver.describe(TX_BUFFERS + 54, len(payload) | 1 << 20 | (DEXT | TSE | EOP | RS) << 24)
    driver.kick()
    frames = driver.end.frames()
    assert b"".join(each[54:] for each in frames) == payload and [len(each) - 54 for each in frames] == [1460, 1460, 580]
    for number, each in enumerate(frames):
        assert int.from_bytes(each[16:18], "big") == len(each) - 14 and int.from_bytes(each[18:20], "big") == 7 + number
        assert checksum(each[14:34]) == 0
        assert int.from_bytes(each[38:42], "big") == (0xFFFFFF00 + number * 1460) & 0xFFFFFFFF
        assert each[47] == (0x19 if number == 2 else 0x10)
        assert checksum(each[26:34] + struct.pack("!HH", 6, len(each) - 34) + each[34:]) == 0


def test_frames_in(driver) -> None:
    driver.start()
    for target in (MAC, b"\xff" * 6, OTHER, bytes.fromhex("01005e000001")):
        driver.end.give(frame(target))
    (first, status, errors, _), (second, _, _, _) = driver.received()
    assert first == frame() + zlib.crc32(frame()).to_bytes(4, "little") and second[:6] == b"\xff" * 6
    assert status & 3 == 3 and not errors and driver.interrupt
    assert driver.read(r.ICR) & r.RXT0 and not driver.interrupt
    for mode, count in ((r.RCTL_UPE, 1), (r.RCTL_MPE, 1), (r.RCTL_UPE | r.RCTL_MPE, 2)):
        driver.write(r.RCTL, r.RCTL_EN | mode | r.RCTL_SECRC)
        for target in (OTHER, bytes.fromhex("01005e000001")):
            driver.end.give(frame(target))
        assert [len(data) for data, *_ in driver.received()] == [60] * count
    driver.write(r.RCTL, r.RCTL_EN)
    bit = (0x01 << 8 | 0x00) >> 4 & 0xFFF
    driver.write(r.MTA + 4 * (bit >> 5), 1 << (bit & 31))
    driver.end.give(frame(bytes.fromhex("01005e000001")))
    assert [status & 0x80 for _, status, _, _ in driver.received()] == [0x80]


def test_long_frames_take_several_buffers(driver) -> None:
    driver.start(r.RCTL_LPE | r.RCTL_SECRC)
    driver.end.give(frame(size=5000))
    parts = driver.received()
    assert b"".join(data for data, *_ in parts) == frame(size=5000) and [status & 3 for _, status, _, _ in parts] == [1, 1, 3]
    driver.write(r.RCTL, r.RCTL_EN)
    driver.end.give(frame(size=1600))
    assert not driver.received() and driver.read(r.STATISTICS + r.ROC) == 1


def test_checksums_and_vlans_in(driver) -> None:
    driver.start(r.RCTL_SECRC | r.RCTL_VFE)
    driver.write(r.RXCSUM, r.RXCSUM_IPOFL | r.RXCSUM_TUOFL)
    data = bytearray(MAC + tcp_header(10, 5, 0x10)[6:] + b"0123456789")
    data[24:26] = checksum(data[14:34]).to_bytes(2, "big")
    data[50:52] = checksum(data[26:34] + struct.pack("!HH", 6, 30) + data[34:]).to_bytes(2, "big")
    driver.end.give(bytes(data))
    data[60] ^= 1
    driver.end.give(bytes(data))
    data[15] ^= 1
    driver.end.give(bytes(data))
    assert [(status & 0x64, errors) for _, status, errors, _ in driver.received()] == [(0x60, 0), (0x60, 0x20), (0x60, 0x60)]
    driver.write(r.CTRL, driver.read(r.CTRL) | r.CTRL_VME)
    driver.write(r.VET, 0x8100)
    tagged = frame()[:12] + b"\x81\0\x00\x25" + frame(size=80)[12:]
    driver.end.give(tagged)
    assert not driver.received()
    driver.write(r.VFTA + 4, 1 << 5)
    driver.end.give(tagged)
    ((stripped, status, _, special),) = driver.received()
    assert stripped == frame(size=80) and status & 8 and special == 0x25


def test_the_end_is_held_back(driver) -> None:
    driver.start()
    for number in range(COUNT + 4):
        driver.end.give(frame(size=60 + number))
    assert len(driver.received()) == COUNT - 1 and not driver.end.ready and len(driver.end.waiting) == 4
    driver.write(r.RDT, (COUNT - 1 + 3) % COUNT)
    driver.end.flush()
    assert [len(data) for data, *_ in driver.received()] == [60 + number + 4 for number in (15, 16, 17)]
    saved = driver.nic.state()
    driver.nic.reset()
    driver.nic.restore(saved)
    assert not driver.end.ready
    driver.write(r.RDT, (COUNT - 1 + 6) % COUNT)
    driver.end.flush()
    assert [len(data) for data, *_ in driver.received()] == [60 + number + 4 for number in (18, 19)]


def test_interrupts_are_moderated(driver) -> None:
    driver.start()
    driver.write(r.ITR, 1000)  # 256 us
    driver.end.give(frame())
    assert driver.interrupt
    driver.read(r.ICR)
    driver.end.give(frame())
    assert not driver.interrupt
    driver.platform.clock.advance(255_000)
    assert not driver.interrupt
    driver.platform.clock.advance(2_000)
    assert driver.interrupt and driver.read(r.ICR) & r.RXT0


def test_state_in_the_middle_of_a_frame(driver) -> None:
    driver.start()
    data = frame(OTHER, 200)
    driver.memory.write(TX_BUFFERS, data)
    driver.describe(TX_BUFFERS, 100)
    driver.kick()
    saved = driver.nic.state()
    driver.nic.reset()
    assert not driver.nic.registers[r.TDT]
    driver.nic.restore(saved)
    driver.describe(TX_BUFFERS + 100, 100 | (EOP | RS) << 24)
    driver.kick()
    assert driver.end.frames() == [data] and dict(driver.nic.state()["registers"])[r.TDH] == 2


def test_addresses_outside_memory(driver) -> None:
    driver.start()
    driver.describe(1 << 40, 60 | EOP << 24)
    driver.describe(TX_BUFFERS, 60 | EOP << 24)
    driver.kick()
    assert len(driver.end.frames()) == 1 and driver.cfg(6, 2) & 0x2000
    driver.write(r.TDBAH, 0x7FFF)
    driver.send(frame(OTHER))
    driver.write(r.RDBAH, 0x7FFF)
    driver.end.give(frame())
    assert not driver.end.sent
    driver.set_cfg(4, 2, 2)
    driver.write(r.TDT, 9)
    assert not driver.end.sent


WRITES = st.tuples(
    st.sampled_from([
        *r.MASKS, r.ICR, r.ICS, r.IMS, r.IMC, r.EECD, r.EERD, r.MDIC, r.MTA, r.RA, r.VFTA, r.STATISTICS, 0x8000, r.TDT, r.RDT,
    ]),
    st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0, 300), st.sampled_from([TX_RING, RX_RING, 0x1FFFF0, r.RCTL_EN | 0x38, r.TCTL_EN])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(WRITES, st.binary(min_size=14, max_size=64)), max_size=40), st.binary(max_size=512))
def test_no_guest_can_make_it_raise(steps, ring) -> None:
    driver = Driver(FakePlatform()).start()
    driver.memory.write(TX_RING, ring)
    driver.memory.write(RX_RING, ring[::-1])
    for step in steps:
        if isinstance(step, bytes):
            driver.end.give(step)
        else:
            driver.write(*step)
            driver.read(step[0])
    driver.nic.restore(driver.nic.state())
    driver.platform.clock.advance(1 << 30)
    driver.close()
