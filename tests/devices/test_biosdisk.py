"""The BIOS disk device by its registers, without a machine."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpy.devices import biosdisk as bd
from kvmpy.devices.biosdisk import BiosDisk
from kvmpy.errors import ConfigError, ImageError
from kvmpy.host.images import open_image
from kvmpy.memory import GuestMemory


class Board:
    """What the device asks of its machine."""

    def __init__(self):
        self.memory = GuestMemory("1M")
        self.events = []

    def event(self, device, what, **payload):
        self.events.append(what)


@pytest.fixture
def board():
    board = Board()
    yield board
    board.memory.close()


@pytest.fixture
def disk(board, tmp_path):
    """A disk of 9 sectors and 100 bytes, each sector full of its number."""
    path = tmp_path / "disk"
    path.write_bytes(b"".join(bytes([number]) * 512 for number in range(9)) + b"end" + bytes(97))
    device = BiosDisk([open_image(path)])
    device.connect(board)
    yield device
    device.close()


def command(device, number, *, drive=0x80, lba=0, count=1, address=0x1000):
    device.write(bd.DRIVE, 1, drive)
    device.write(bd.COUNT, 2, count)
    device.write(bd.LBA, 4, lba & 0xFFFFFFFF)
    device.write(bd.LBA + 4, 4, lba >> 32)
    device.write(bd.BUFFER, 4, address)
    device.write(bd.COMMAND, 1, number)
    return device.read(bd.COMMAND, 1), device.read(bd.COUNT, 2)


def test_identify(disk):
    assert command(disk, bd.IDENTIFY)[0] == bd.OK
    assert (disk.read(bd.TOTAL, 4), disk.read(bd.CYLINDERS, 2), disk.read(bd.HEADS, 1), disk.read(bd.SECTORS, 1)) == (10, 1, 16, 63)
    assert (disk.read(bd.KIND, 1), disk.read(bd.FLAGS, 1), disk.read(bd.FLOPPIES, 1), disk.read(bd.DISKS, 1)) == (2, 0, 0, 1)
    assert command(disk, bd.IDENTIFY, drive=0)[0] == bd.NO_DRIVE and disk.read(bd.KIND, 1) == 0


def test_read_and_the_short_last_sector(disk, board):
    board.memory.fill(0x1000, 0x1000, 0xEE)
    assert command(disk, bd.READ, lba=8, count=2) == (bd.OK, 2)
    assert board.memory.read(0x1000, 1025) == b"\x08" * 512 + b"end" + bytes(509) + b"\xee"


def test_read_past_the_end(disk, board):
    assert command(disk, bd.READ, lba=9, count=2) == (bd.NOT_FOUND, 1)
    assert command(disk, bd.READ, lba=10) == (bd.NOT_FOUND, 0)
    assert command(disk, bd.READ, lba=1 << 63) == (bd.NOT_FOUND, 0)


def test_write(disk, board):
    board.memory.write(0x2000, b"\xab" * 1024)
    assert command(disk, bd.WRITE, lba=3, count=2, address=0x2000) == (bd.OK, 2)
    assert command(disk, bd.READ, lba=2, count=4) == (bd.OK, 4)
    assert board.memory.read(0x1000, 2048) == b"\x02" * 512 + b"\xab" * 1024 + b"\x05" * 512


def test_verify_reads_nothing(disk, board):
    assert command(disk, bd.VERIFY, count=10) == (bd.OK, 10)
    assert command(disk, bd.VERIFY, count=11) == (bd.NOT_FOUND, 10)
    assert board.memory.read(0x1000, 512) == bytes(512)


def test_outside_memory(disk, board):
    assert command(disk, bd.READ, address=0xFFE00, count=2) == (bd.DMA_ERROR, 0)
    assert command(disk, bd.READ, address=0xFFFFFFFF)[0] == bd.DMA_ERROR
    assert board.events == ["transfer outside RAM"] * 2


def test_unknown_command_and_drive(disk):
    assert command(disk, 77)[0] == bd.BAD_COMMAND
    assert command(disk, bd.READ, drive=0x81)[0] == bd.NO_DRIVE


def test_readonly(board, tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    device = BiosDisk([open_image(f"{path},readonly")])
    device.connect(board)
    assert command(device, bd.WRITE) == (bd.WRITE_PROTECTED, 0)
    device.close()


@pytest.mark.parametrize(
    ("size", "kind", "shape"),
    [
        (1440 << 10, 1, (80, 2, 18)), (360 << 10, 1, (40, 2, 9)), (512, 2, (1, 16, 63)), (1 << 20, 2, (3, 16, 63)),
        (504 << 20, 2, (1024, 16, 63)), (1 << 30, 2, (521, 64, 63)), (1 << 40, 2, (1024, 255, 63)),
    ],
)
def test_geometry(size, kind, shape):
    got, (cylinders, heads, sectors) = bd.geometry(size)
    assert (got, (cylinders, heads, sectors)) == (kind, shape)
    assert cylinders <= 1024


def test_order_of_drives(board, tmp_path):
    paths = {name: tmp_path / name for name in "abc"}
    for name, path in paths.items():
        path.write_bytes(name.encode() * 512)
    device = BiosDisk([open_image(paths["a"])])
    device.connect(board)
    device.boot_from(open_image(paths["b"]))
    assert [drive.image.path for drive in device.drives] == [str(paths["b"]), str(paths["a"])]
    device.boot_from(open_image(paths["c"]))
    assert [drive.image.path for drive in device.drives] == [str(paths["c"]), str(paths["a"])]
    device.close()


def test_refusals(tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    refused = {tmp_path: "is a directory", tmp_path / "none": "No such file", empty: "the file is empty", "/dev/null": "not a file"}
    for path, words in refused.items():
        with pytest.raises(ImageError, match=words):
            open_image(path)
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    with pytest.raises(ConfigError, match="too many disks"):
        BiosDisk([open_image(f"{path},readonly") for _ in range(9)])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 0x1F), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1)), max_size=40))
def test_any_accesses_are_harmless(disk, accesses):
    for write, offset, size, value in accesses:
        if write:
            disk.write(offset, size, value)
        else:
            assert 0 <= disk.read(offset, size) < 1 << 8 * size
    state = disk.state()
    disk.reset()
    disk.restore(state)
    assert disk.state() == state and len(state["registers"]) == struct.calcsize("32s")
