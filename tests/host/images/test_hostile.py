"""Damaged and malicious images give one line; nothing of them reaches farther."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from kvmpy.errors import ImageError
from kvmpy.host.images import create_qcow2, open_image
from kvmpy.host.images.hostfile import open_file
from kvmpy.host.images.qcow2_check import check
from kvmpy.host.images.qcow2_header import parse

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    create_qcow2(str(path), 4 * MIB)
    image = open_image(str(path))
    image.write_from(0, [memoryview(b"x" * 300_000)[: 512 * 580]])
    image.close()
    return path


def patch(path: Path, offset: int, form: str, *values: int) -> None:
    raw = bytearray(path.read_bytes())
    struct.pack_into(">" + form, raw, offset, *values)
    path.write_bytes(raw)


FIELDS = [
    (4, "I", 1, "version 1"), (4, "I", 4, "version 4"), (20, "I", 8, "clusters of 2"), (20, "I", 22, "clusters of 2"),
    (20, "I", 0xFFFFFFFF, "clusters of 2"), (24, "Q", 0, "multiple of 512"), (24, "Q", 4 * MIB + 5, "multiple of 512"),
    (24, "Q", 1 << 63, "disk of"), (24, "Q", 1 << 50, "too small for the disk"), (32, "I", 1, "encrypted"), (32, "I", 2, "encrypted"),
    (36, "I", 0xFFFFFFFF, "too large"), (36, "I", 0, "too small"), (36, "I", 1 << 20, "outside the file"),
    (40, "Q", 1 << 62, "outside the file"), (40, "Q", 0, "outside the file"), (40, "Q", 0x30001, "outside the file"),
    (48, "Q", 1 << 62, "refcount table"), (48, "Q", 12, "refcount table"), (48, "Q", 0, "refcount table"),
    (56, "I", 0, "refcount table of 0"), (56, "I", 0xFFFFFFFF, "refcount table"), (60, "I", 0xFFFFFFFF, "snapshots"),
    (72, "Q", 4, "external data"), (72, "Q", 16, "extended L2"), (72, "Q", 1 << 40, "bit 40"), (72, "Q", 2, "corrupt"),
    (72, "Q", 8, "compression type"), (96, "I", 7, "refcounts of"), (100, "I", 8, "header of 8"), (100, "I", 1 << 31, "header of"),
    (8, "QI", 1 << 40, 5, "backing file"), (8, "QI", 200, 5000, "backing file"), (112, "II", 0x12345678, 0xFFFFFFF0, "extension"),
]


@pytest.mark.parametrize("case", FIELDS, ids=[f"{case[0]}-{case[2]:#x}" for case in FIELDS])
def test_header_fields(disk: Path, case: tuple) -> None:
    offset, form, *values, text = case
    patch(disk, offset, form, *values)
    with pytest.raises(ImageError, match=text) as caught:
        open_image(str(disk))
    assert str(disk) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [1, 4, 71, 72, 100, 104, 65536, 3 * 65536])
def test_cut_off(disk: Path, length: int) -> None:
    disk.write_bytes(disk.read_bytes()[:length])
    with pytest.raises(ImageError):
        open_image(f"{disk},format=qcow2")


def test_l2_entries_that_point_anywhere(disk: Path) -> None:
    l1 = int.from_bytes(disk.read_bytes()[40:48], "big")
    l2 = int.from_bytes(disk.read_bytes()[l1 : l1 + 8], "big") & 0x00FFFFFFFFFFFE00
    copied = 1 << 63
    data = memoryview(bytearray(512))
    for entry in (copied | 0x10000, copied, copied | l2, copied | l1, copied | 0x200, copied | 1 << 55, (1 << 62) - 1, copied | 1 << 40):
        patch(disk, l2, "Q", entry)
        before = disk.read_bytes()[: 4 * 65536]
        image = open_image(str(disk))
        try:
            image.write_from(0, [data])
        except OSError:
            pass
        try:
            image.read_into(0, [data])
        except OSError:
            pass
        try:
            image.close()
        except OSError:
            pass
        after = disk.read_bytes()
        assert after[: 2 * 65536] == before[: 2 * 65536], hex(entry)
        assert len(after) < 64 * MIB


def test_l1_entries_that_point_anywhere(disk: Path) -> None:
    l1 = int.from_bytes(disk.read_bytes()[40:48], "big")
    for entry in (1 << 63 | 1 << 50, 0x200, 1 << 55, 1 << 63 | 0x30200):
        patch(disk, l1, "Q", entry)
        image = open_image(str(disk))
        with pytest.raises(OSError):
            image.read_into(0, [memoryview(bytearray(512))])
        with pytest.raises(OSError):
            image.write_from(0, [memoryview(bytes(512))])
        image.close()


def test_refcounts_that_lie(disk: Path) -> None:
    """Refcounts of zero never let the allocator give out metadata."""
    raw = bytearray(disk.read_bytes())
    block = int.from_bytes(raw[65536:65544], "big")
    raw[block : block + 65536] = bytes(65536)
    disk.write_bytes(raw)
    image = open_image(str(disk))
    head = disk.read_bytes()[: 3 * 65536]
    for at in range(MIB, 2 * MIB, 65536):
        image.write_from(at, [memoryview(b"y" * 65536)])
    image.close()
    assert disk.read_bytes()[: 2 * 65536] == head[: 2 * 65536]


def test_loops_and_long_chains(tmp_path: Path) -> None:
    for name, behind in (("a", "b"), ("b", "c"), ("c", "a")):
        create_qcow2(str(tmp_path / name), MIB, behind, "qcow2")
    with pytest.raises(ImageError, match="comes back"):
        open_image(str(tmp_path / "a"))
    create_qcow2(str(tmp_path / "self"), MIB, "self", "qcow2")
    with pytest.raises(ImageError, match="comes back"):
        open_image(f"{tmp_path / 'self'}")
    for number in range(80):
        create_qcow2(str(tmp_path / f"n{number}"), MIB, f"n{number + 1}", "qcow2")
    with pytest.raises(ImageError, match="more than 64"):
        open_image(str(tmp_path / "n0"))


@pytest.mark.parametrize("name", ["json:{}", "nbd://localhost/x", "missing", "/dev/null", "."])
def test_backing_files_that_are_none(tmp_path: Path, name: str) -> None:
    create_qcow2(str(tmp_path / "top"), MIB, name, "raw")
    with pytest.raises(ImageError) as caught:
        open_image(str(tmp_path / "top"))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_random_damage(disk: Path) -> None:
    """Whatever is in the file: ImageError at opening, OSError later, nothing else."""
    rng = random.Random(3)
    original = disk.read_bytes()
    for _ in range(300):
        raw = bytearray(original)
        for _ in range(rng.randrange(1, 12)):
            area = rng.choice([0, 0, 65536, 131072, 196608, 262144])
            raw[area + rng.randrange(160)] = rng.choice([0, 1, 0x80, 0xFF, rng.randrange(256)])
        disk.write_bytes(raw)
        try:
            image = open_image(f"{disk},format=qcow2")
        except ImageError:
            continue
        for call in (
            lambda image=image: image.read_into(0, [memoryview(bytearray(4096))]),
            lambda image=image: image.write_from(512, [memoryview(b"z" * 70_000)[: 512 * 130]]),
            lambda image=image: image.discard(0, 131072),
            lambda image=image: image.write_zeroes(65536, 131072, may_unmap=False),
            image.flush, image.close,
        ):
            try:
                call()
            except OSError:
                pass
        assert disk.stat().st_size < 64 * MIB
        file = open_file(str(disk), readonly=True)
        try:
            check(file, parse(file))
        except ImageError:
            pass
        file.close()
