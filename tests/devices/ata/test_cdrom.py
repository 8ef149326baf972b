"""An ATAPI CD-ROM, packet by packet."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmpy.host.images import open_image
from tests.devices.ata.driver import DATA, SECONDARY, Board, Ide

BLOCKS = 50
CONTENT = random.Random(7).randbytes(BLOCKS * 2048 - 1024)
PADDED = CONTENT + bytes(1024)
CHECK, GOOD = 0x41, 0x50


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board()
    (tmp_path / "disk").write_bytes(bytes(4096))
    path = tmp_path / "cd.iso"
    path.write_bytes(CONTENT)
    for _ in range(2):
        (tmp_path / "disk").write_bytes(bytes(4096))
        board.ide.attach(open_image(f"{tmp_path / 'disk'},readonly=on"))
    board.ide.attach(open_image(f"{path},bus=cdrom"), cdrom=True)
    yield board
    board.ide.close()
    board.memory.close()


@pytest.fixture
def cd(board: Board) -> Ide:
    return Ide(board, SECONDARY)


def sense(cd: Ide) -> tuple[int, int, int]:
    cd.packet(0x03, 0, 0, 0, 18)
    data = cd.reply()
    assert len(data) == 18 and data[0] == 0x70
    return data[2], data[12], data[13]


@pytest.fixture
def ready(cd: Ide) -> Ide:
    """After the power-on attention has been told."""
    assert cd.packet(0x00) == CHECK and cd.reply() == b"" and cd.inb(1) >> 4 == 6
    assert sense(cd) == (6, 0x29, 0)
    assert cd.packet(0x00) == GOOD and cd.reply() == b""
    return cd


def test_signature(cd: Ide) -> None:
    assert [cd.inb(n) for n in (2, 3, 4, 5)] == [1, 1, 0x14, 0xEB] and cd.alternate == 0
    assert cd.command(0xEC) == 0x51 and (cd.inb(4), cd.inb(5)) == (0x14, 0xEB)
    cd.command(0xA1)
    assert cd.line.level and cd.status == 0x58
    words = struct.unpack("<256H", cd.read_words(256))
    assert words[0] == 0x85C0 and words[49] & 0x300 == 0x300
    cd.command(0x08)
    assert (cd.inb(4), cd.inb(5)) == (0x14, 0xEB) and cd.alternate == 0 and not cd.line.level


def test_inquiry_before_the_attention(cd: Ide) -> None:
    cd.packet(0x12, 0, 0, 0, 36)
    data = cd.reply()
    assert data[0] == 5 and data[1] == 0x80 and data[8:13] == b"kvmpy" and len(data) == 36
    cd.packet(0x12, 0, 0, 0, 5)
    assert len(cd.reply()) == 5
    assert sense(cd) == (6, 0x29, 0) and sense(cd) == (0, 0, 0)


def test_capacity_and_reads(ready: Ide) -> None:
    ready.packet(0x25)
    assert struct.unpack(">II", ready.reply()) == (BLOCKS - 1, 2048)
    ready.packet(0x28, 0, *struct.pack(">I", 3), 0, *struct.pack(">H", 5))
    assert ready.reply() == PADDED[3 * 2048 : 8 * 2048]
    ready.packet(0xA8, 0, *struct.pack(">II", 45, 5), limit=3000)
    assert ready.reply() == PADDED[45 * 2048 :]
    ready.packet(0x28, 0, *struct.pack(">I", 3), 0, 0, 0)
    assert ready.reply() == b""
    assert ready.packet(0x28, 0, *struct.pack(">I", BLOCKS - 1), 0, 0, 2) == CHECK
    assert ready.reply() == b"" and sense(ready) == (5, 0x21, 0)
    assert ready.packet(0xA8, 0, 255, 255, 255, 255, 255, 255, 255, 255) == CHECK
    assert ready.packet(0x28, 0, 0, 0, 0, 0, 0, 0, 1, limit=0) == CHECK


def test_dma(board: Board, ready: Ide) -> None:
    ready.set_table((DATA, 0x1000), (DATA + 0x8000, 0x1800), (DATA + 0x2000, 0x1000))
    ready.packet(0x28, 0, 0, 0, 0, 46, 0, 0, 4, dma=True)
    assert not ready.line.level
    ready.start(True)
    assert ready.line.level and ready.stop() == 5 and ready.status == GOOD and ready.inb(2) & 3 == 3
    assert board.memory.read(DATA, 0x1000) + board.memory.read(DATA + 0x8000, 0x1000) == PADDED[46 * 2048 :]
    assert board.memory.read(DATA + 0x9000, 0x800) == bytes(0x800)
    ready.set_table((DATA, 36))
    ready.packet(0x12, 0, 0, 0, 36, dma=True)
    ready.start(True)
    assert ready.stop() == 4 and board.memory.read(DATA + 8, 5) == b"kvmpy"


def test_toc(ready: Ide) -> None:
    ready.packet(0x43, 0, 0, 0, 0, 0, 0, 0, 100)
    data = ready.reply()
    assert data == bytes((0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xAA, 0)) + struct.pack(">I", BLOCKS)
    ready.packet(0x43, 2, 0, 0, 0, 0, 0xAA, 0, 100)
    assert ready.reply() == bytes((0, 10, 1, 1, 0, 0x14, 0xAA, 0, 0, 0, (150 + BLOCKS) // 75, (150 + BLOCKS) % 75))
    ready.packet(0x43, 0, 1, 0, 0, 0, 0, 0, 12)
    assert len(ready.reply()) == 12
    ready.packet(0x43, 2, 2, 0, 0, 0, 0, 0, 255)
    assert len(ready.reply()) == 48
    assert ready.packet(0x43, 0, 0, 0, 0, 0, 7, 0, 100) == CHECK and sense(ready) == (5, 0x24, 0)


def test_mode_pages_configuration_events(ready: Ide) -> None:
    ready.packet(0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 200)
    data = ready.reply()
    assert struct.unpack_from(">H", data)[0] == len(data) - 2 and data[8] == 0x2A and data[9] == len(data) - 10
    ready.packet(0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 200)
    assert len(ready.reply()) > 40
    ready.packet(0x1A, 0, 0x01, 0, 12)
    assert len(ready.reply()) == 12
    assert ready.packet(0x5A, 0, 0x15, 0, 0, 0, 0, 0, 200) == CHECK and sense(ready) == (5, 0x24, 0)
    ready.packet(0x46, 0, 0, 0, 0, 0, 0, 0, 200)
    data = ready.reply()
    assert struct.unpack_from(">I", data)[0] == len(data) - 4 and struct.unpack_from(">H", data, 6)[0] == 8
    ready.packet(0x46, 2, 0, 0x10, 0, 0, 0, 0, 200)
    assert len(ready.reply()) == 20
    ready.packet(0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)
    assert ready.reply() == bytes((0, 6, 4, 0x10, 0, 2, 0, 0))
    assert ready.packet(0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8) == CHECK
    ready.packet(0x51, 0, 0, 0, 0, 0, 0, 0, 34)
    assert len(ready.reply()) == 34
    assert ready.packet(0xC7) == CHECK and sense(ready) == (5, 0x20, 0)


def test_eject_and_load(ready: Ide) -> None:
    ready.packet(0x1E, 0, 0, 0, 1)
    assert ready.packet(0x1B, 0, 0, 0, 2) == CHECK and sense(ready) == (5, 0x53, 2)
    ready.packet(0x1E, 0, 0, 0, 0)
    assert ready.packet(0x1B, 0, 0, 0, 2) == GOOD
    assert ready.packet(0x00) == CHECK and sense(ready) == (2, 0x3A, 0)
    assert ready.packet(0x28, 0, 0, 0, 0, 0, 0, 0, 1) == CHECK and ready.inb(1) >> 4 == 2
    ready.packet(0x1B, 0, 0, 0, 3)
    ready.packet(0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)
    assert ready.reply()[4:6] == bytes((2, 2))
    assert ready.packet(0x00) == CHECK and sense(ready) == (6, 0x28, 0)
    assert ready.packet(0x00) == GOOD


def test_state_in_the_middle(board: Board, ready: Ide, tmp_path: Path) -> None:
    twin = Board()
    for name in ("disk", "disk"):
        twin.ide.attach(open_image(f"{tmp_path / name},readonly=on"))
    twin.ide.attach(open_image(f"{tmp_path / 'cd.iso'},bus=cdrom"), cdrom=True)
    other = Ide(twin, SECONDARY)
    ready.command(0xA0, 0xFFFE00)
    ready.write_words(bytes((0x28, 0, 0, 0)))
    twin.ide.restore(board.ide.state())
    other.write_words(bytes((0, 1, 0, 0, 2, 0, 0, 0)))
    assert other.status == 0x58 and other.inb(2) & 3 == 2
    head = other.read_words(1000)
    board.ide.restore(twin.ide.state())
    assert head + ready.read_words(1048) == PADDED[2048 : 3 * 2048]
    assert ready.line.level and ready.status == GOOD
    twin.ide.close()
    twin.memory.close()


def test_any_packet_is_harmless(board: Board, ready: Ide) -> None:
    rng = random.Random(11)
    for _ in range(3000):
        code = rng.choice([0x03, 0x12, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x43, 0x46, 0x4A, 0x51, 0x5A, 0xA8, 0xBD, rng.randrange(256)])
        status = ready.packet(code, *(rng.choice([0, 0, 1, rng.randrange(256)]) for _ in range(11)), limit=rng.choice([2, 64, 2048]))
        assert status & 0x49
        if rng.random() < 0.1:
            ready.command(0x08)
