"""ATA disks, register by register."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpy.host.images import open_image
from tests.devices.ata.driver import DATA, SECONDARY, Board, Ide

SECTORS = 3000
CONTENT = random.Random(1).randbytes(SECTORS * 512)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board()
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    board.ide.attach(open_image(f"{path},serial=SN-1,format=raw"))
    board.path = path
    yield board
    board.ide.close()
    board.memory.close()


@pytest.fixture
def ide(board: Board) -> Ide:
    return Ide(board)


def test_signature_and_absent_devices(board: Board, ide: Ide) -> None:
    assert [ide.inb(n) for n in (1, 2, 3, 4, 5)] == [1, 1, 1, 0, 0] and ide.alternate == 0x50
    ide.outb(6, 0xB0)
    assert ide.status == 0 and ide.inb(6) & 0x10
    ide.outb(7, 0xEC)
    assert ide.status == 0 and not ide.line.level
    other = Ide(board, SECONDARY)
    assert other.status == 0xFF and other.inb(2) == 0xFF


def test_soft_reset(ide: Ide) -> None:
    ide.command(0x20, 5, 3)
    ide.control(0x04)
    assert ide.alternate == 0x80
    ide.control(0x00)
    assert [ide.inb(n) for n in (1, 2, 3, 4, 5)] == [1, 1, 1, 0, 0] and ide.status == 0x50 and not ide.line.level
    assert ide.pio_read(0x20, 5, 1) == CONTENT[5 * 512 : 6 * 512]


def test_identify(ide: Ide) -> None:
    ide.command(0xEC)
    assert ide.line.level and ide.status == 0x58
    data = ide.read_words(256)
    words = struct.unpack("<256H", data)
    assert sum(data) & 0xFF == 0 and words[255] & 0xFF == 0xA5
    assert (words[1], words[3], words[6]) == (2, 16, 63)
    assert words[60] | words[61] << 16 == SECTORS == words[100] | words[101] << 16
    assert bytes(data[20 + (n ^ 1)] for n in range(20)) == b"SN-1".ljust(20)
    assert words[83] & 0xC000 == 0x4000 and words[83] & 0x3400 == 0x3400
    assert ide.status == 0x50


@pytest.mark.parametrize(("code", "wide", "block"), [(0x20, 0, 1), (0x21, 0, 1), (0x24, 1, 1), (0xC4, 0, 16), (0x29, 1, 16)])
def test_pio_read(ide: Ide, code: int, wide: int, block: int) -> None:
    assert ide.pio_read(code, 100, 37, block, wide=bool(wide)) == CONTENT[51200 : 51200 + 37 * 512]
    assert ide.pio_read(code, 0, 0 if not wide else 256, block, wide=bool(wide)) == CONTENT[: 256 * 512]


@pytest.mark.parametrize(("code", "wide", "block"), [(0x30, 0, 1), (0x34, 1, 1), (0xC5, 0, 16), (0x39, 1, 16), (0xCE, 1, 16)])
def test_pio_write(board: Board, ide: Ide, code: int, wide: int, block: int) -> None:
    data = random.Random(2).randbytes(21 * 512)
    ide.pio_write(code, 77, data, block, wide=bool(wide))
    ide.command(0xE7)
    assert ide.status == 0x50
    assert board.path.read_bytes() == CONTENT[: 77 * 512] + data + CONTENT[98 * 512 :]


def test_data_port_of_32_bits(ide: Ide) -> None:
    ide.command(0x20, 9, 1)
    assert ide.read_words(256, 4) == CONTENT[9 * 512 : 10 * 512]


def test_chs(ide: Ide) -> None:
    ide.device = 0xA0
    ide.command(0x20, 0, 1)
    assert ide.status == 0x51 and ide.inb(1) == 0x10  # there is no sector 0
    ide.outb(6, 0xA3)
    for offset, value in ((2, 1), (3, 7), (4, 1), (5, 0), (7, 0x20)):
        ide.outb(offset, value)
    assert ide.status == 0x58
    sector = (1 * 16 + 3) * 63 + 6
    assert ide.read_words(256) == CONTENT[sector * 512 : sector * 512 + 512]
    # Another translation.
    ide.outb(6, 0xA1)
    ide.outb(2, 10)
    ide.outb(7, 0x91)
    assert ide.status == 0x50
    ide.outb(6, 0xA1)
    for offset, value in ((2, 1), (3, 2), (4, 5), (5, 0), (7, 0x20)):
        ide.outb(offset, value)
    sector = (5 * 2 + 1) * 10 + 1
    assert ide.read_words(256) == CONTENT[sector * 512 : sector * 512 + 512]


@pytest.mark.parametrize("code", [0x20, 0x24, 0x25, 0xC8, 0xC4, 0x30, 0x35, 0xCA, 0x40, 0x42])
def test_beyond_the_end(ide: Ide, code: int) -> None:
    wide = code in (0x24, 0x25, 0x35, 0x42)
    ide.command(code, SECTORS - 1, 2, wide=wide)
    assert ide.line.level and ide.status == 0x51 and ide.inb(1) & 0x10
    ide.command(code, (1 << 28) - 1 if not wide else (1 << 48) - 1, 1, wide=wide)
    assert ide.status == 0x51 and ide.inb(1) & 0x10


def test_unknown_commands_abort(board: Board, ide: Ide) -> None:
    for code in (0x00, 0x99, 0xA0, 0xA1, 0xF5):
        ide.command(code)
        assert ide.line.level and ide.status == 0x51 and ide.inb(1) == 0x04
    assert board.events["unknown command"] == 3


def test_hob(ide: Ide) -> None:
    ide.command(0x27, wide=True)
    assert ide.status == 0x50
    last = SECTORS - 1
    assert [ide.inb(n) for n in (3, 4, 5)] == [last & 0xFF, last >> 8, 0]
    ide.outb(2, 0x12)
    ide.outb(2, 0x34)
    assert ide.inb(2) == 0x34
    ide.control(0x80)
    assert ide.inb(2) == 0x12
    ide.outb(3, 0)
    assert ide.inb(2) == 0x34


def test_interrupt_enable(ide: Ide) -> None:
    ide.control(0x02)
    ide.command(0xE7)
    assert not ide.line.level
    ide.control(0x00)
    assert ide.line.level  # it is still pending
    assert ide.alternate == 0x50 and ide.line.level
    assert ide.status == 0x50 and not ide.line.level


def test_features(board: Board, ide: Ide) -> None:
    for feature, count in ((0x02, 0), (0x82, 0), (0xAA, 0), (0x55, 0), (0x03, 0x0C), (0x03, 0x22), (0x03, 0x45)):
        ide.command(0xEF, 0, count, feature)
        assert ide.status == 0x50
    ide.command(0xEC)
    words = struct.unpack("<256H", ide.read_words(256))
    assert words[88] == 0x203F and not words[85] & 0x20
    for feature, count in ((0x03, 0x47), (0x77, 0)):
        ide.command(0xEF, 0, count, feature)
        assert ide.status == 0x51
    ide.command(0xC6, 0, 0)
    assert ide.status == 0x50
    ide.command(0xC4, 0, 1)
    assert ide.status == 0x51  # no multiple mode
    ide.command(0xC6, 0, 3)
    assert ide.status == 0x51
    ide.command(0xC6, 0, 8)
    assert ide.status == 0x50
    assert ide.pio_read(0xC4, 0, 20, 8) == CONTENT[: 20 * 512]


def test_power_smart_and_seeks(ide: Ide) -> None:
    for code in (0xE0, 0xE1, 0xE2, 0xE3, 0x10, 0x70, 0x40):
        ide.command(code, 1, 1)
        assert ide.status == 0x50
    ide.command(0xE5)
    assert ide.status == 0x50 and ide.inb(2) == 0xFF
    ide.command(0xB0, 0xC24F00, 0, 0xDA)
    assert ide.status == 0x50 and (ide.inb(4), ide.inb(5)) == (0x4F, 0xC2)
    ide.command(0xB0, 0xC24F00, 1, 0xD0)
    assert sum(ide.read_words(256)) & 0xFF == 0
    ide.command(0xB0, 0x123400, 0, 0xDA)
    assert ide.status == 0x51
    ide.command(0xB0, 0xC24F00, 0, 0xD9)
    ide.command(0xB0, 0xC24F00, 0, 0xDA)
    assert ide.status == 0x51


def test_diagnostic(ide: Ide) -> None:
    ide.command(0x90)
    assert ide.line.level and ide.status == 0x50 and ide.inb(1) == 1


@pytest.mark.parametrize("order", ["command first", "start first"])
@pytest.mark.parametrize("code", [0xC8, 0x25])
def test_dma_read(board: Board, ide: Ide, order: str, code: int) -> None:
    ide.set_table((DATA, 0), (DATA + 0x40000, 512), (DATA + 0x30000, 6 * 512))
    if order == "start first":
        ide.start(True)
        ide.command(code, 40, 135, wide=code == 0x25)
    else:
        assert ide.command(code, 40, 135, wide=code == 0x25) == 0x58 and not ide.line.level
        ide.start(True)
    assert ide.line.level and ide.stop() == 0x04 and ide.status == 0x50
    wanted = CONTENT[40 * 512 : 175 * 512]
    assert board.memory.read(DATA, 0x10000) == wanted[:0x10000]
    assert board.memory.read(DATA + 0x40000, 512) == wanted[0x10000:0x10200]
    assert board.memory.read(DATA + 0x30000, 3072) == wanted[0x10200:]


@pytest.mark.parametrize("code", [0xCA, 0x35, 0x3D])
def test_dma_write(board: Board, ide: Ide, code: int) -> None:
    data = random.Random(3).randbytes(100 * 512)
    board.memory.write(DATA, data)
    ide.set_table((DATA, 100), (DATA + 100, 51100))
    ide.command(code, 2900, 100, wide=code != 0xCA)
    ide.start(False)
    assert ide.line.level and ide.stop() == 0x04 and ide.status == 0x50
    assert board.path.read_bytes() == CONTENT[: 2900 * 512] + data


def test_dma_tables_of_other_lengths(board: Board, ide: Ide) -> None:
    # Longer than the transfer: done, with the bus master still active.
    ide.set_table((DATA, 4096))
    ide.command(0xC8, 0, 1)
    ide.start(True)
    assert ide.stop() == 0x05 and ide.status == 0x50
    # Shorter: no interrupt; a second table goes on.
    ide.set_table((DATA, 1024))
    ide.command(0xC8, 8, 4)
    ide.start(True)
    assert not ide.line.level and ide.stop() == 0 and ide.alternate == 0x58
    ide.set_table((DATA + 1024, 1024))
    ide.start(True)
    assert ide.line.level and ide.stop() == 4 and ide.status == 0x50
    assert board.memory.read(DATA, 2048) == CONTENT[8 * 512 : 12 * 512]


def test_dma_to_nowhere(board: Board, ide: Ide) -> None:
    for table in (((0xF0000000, 512),), ((DATA, 100),)):
        ide.set_table(*table)
        ide.command(0xC8, 0, 1 if table[0][1] == 512 else 2)
        ide.start(True)
        assert ide.line.level and ide.stop() & 3 == 2 and ide.status & 1
    ide.set_table((DATA, 512))
    ide.command(0xC8, 0, 1)
    ide.start(False)  # the wrong direction
    assert ide.stop() & 2 and ide.status & 1
    board.ports.write(ide.master + 4, 4, 0xFFFFFFFC)
    ide.command(0xC8, 0, 1)
    ide.start(True)
    assert ide.stop() & 2 and ide.status & 1
    assert board.events["bus master error"] == 4
    assert ide.pio_read(0x20, 0, 1) == CONTENT[:512]


def test_dma_waits_for_bus_mastering(board: Board, ide: Ide) -> None:
    board.bus_master(False)
    ide.set_table((DATA, 512))
    ide.command(0xC8, 3, 1)
    ide.start(True)
    assert not ide.line.level
    board.bus_master(True)
    assert ide.line.level and board.memory.read(DATA, 512) == CONTENT[3 * 512 : 4 * 512]


def test_trim(board: Board, ide: Ide) -> None:
    board.memory.write(DATA, struct.pack("<QQ", 8 << 48 | 16, 8 << 48 | 100).ljust(512, b"\0"))
    ide.set_table((DATA, 512))
    ide.command(0x06, 0, 1, 1, wide=True)
    ide.start(False)
    assert ide.stop() == 4 and ide.status == 0x50
    data = board.path.read_bytes()
    assert data[100 * 512 : 108 * 512] in (bytes(4096), CONTENT[100 * 512 : 108 * 512]) and data[:8192] == CONTENT[:8192]


class Broken:
    """An image whose host fails."""

    size, readonly, serial = 1 << 20, False, ""

    def read_into(self, offset: int, buffers: list[memoryview]) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def write_from(self, offset: int, buffers: list[memoryview]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def discard(self, offset: int, length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def close(self) -> None:
        pass


def test_errors_of_the_host(board: Board) -> None:
    board.ide.attach(Broken())
    ide = Ide(board, drive=1)
    ide.command(0x20, 0x1234 >> 4, 1)
    assert ide.line.level and ide.status == 0x51 and ide.inb(1) == 0x40 and ide.inb(3) == 0x23
    ide.command(0x30, 1, 1)
    ide.write_words(bytes(512))
    assert ide.line.level and ide.status == 0x71 and ide.inb(1) == 0x04
    ide.command(0xE7)
    assert ide.status == 0x71
    ide.set_table((DATA, 512))
    ide.command(0xC8, 1, 1)
    ide.start(True)
    assert ide.line.level and ide.status == 0x51 and ide.stop() & 4
    assert len(board.warnings) == 4 and "No space left" in board.warnings[1] and "primary slave" in board.warnings[1]


def test_two_drives(board: Board, tmp_path: Path) -> None:
    (tmp_path / "second").write_bytes(b"2" * 4096)
    board.ide.attach(open_image(tmp_path / "second"))
    (tmp_path / "third").write_bytes(b"3" * 4096)
    board.ide.attach(open_image(f"{tmp_path / 'third'},readonly=on"))
    first, second, third = Ide(board), Ide(board, drive=1), Ide(board, SECONDARY)
    assert second.pio_read(0x20, 0, 2) == b"2" * 1024
    assert first.pio_read(0x20, 0, 1) == CONTENT[:512]
    assert third.pio_read(0x20, 0, 1) == b"3" * 512
    third.command(0x30, 0, 1)
    assert third.status == 0x51 and third.inb(1) == 0x44
    # A pending interrupt is the selected drive's.
    first.command(0xE7)
    assert first.line.level
    first.outb(6, 0xB0)
    assert not first.line.level
    first.outb(6, 0xA0)
    assert first.line.level


def test_state_in_the_middle(board: Board, ide: Ide, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(CONTENT)
    twin = Board()
    twin.ide.attach(open_image(f"{copy},format=raw"))
    other = Ide(twin)

    def move() -> None:
        twin.memory.write(0, board.memory.read(0, 4 << 20))
        twin.ide.restore(board.ide.state())

    ide.command(0x20, 50, 3)
    head = ide.read_words(300)
    move()
    assert head + other.read_words(84 * 2 + 300) == CONTENT[50 * 512 : 53 * 512]
    ide.control(4)
    ide.control(0)
    data = random.Random(4).randbytes(1024)
    ide.command(0x30, 60, 2)
    ide.write_words(data[:600])
    move()
    other.write_words(data[600:])
    assert other.status == 0x50 and other.pio_read(0x20, 61, 1) == data[512:]  # the first went to the other image
    ide.control(4)
    ide.control(0)
    ide.set_table((DATA, 1024))
    ide.command(0xC8, 8, 4)
    ide.start(True)
    move()
    other.set_table((DATA + 1024, 1024))
    assert other.stop() == 0
    other.start(True)
    assert other.line.level and twin.memory.read(DATA, 2048) == CONTENT[8 * 512 : 12 * 512]
    twin.ide.close()
    twin.memory.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(
    st.tuples(
        st.booleans(), st.sampled_from([*range(9), 16, 18, 20, 7, 7, 0, 0]), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1),
    ),
    max_size=60,
))
def test_any_accesses_are_harmless(board: Board, accesses: list[tuple[bool, int, int, int]]) -> None:
    bar = board.ide.bars[0].mapped
    for write, offset, size, value in accesses:
        port = bar + offset - 16 if offset >= 16 else 0x3F6 if offset == 8 else 0x1F0 + offset
        if write:
            board.ports.write(port, size, value)
        else:
            assert 0 <= board.ports.read(port, size) < 1 << 8 * size
