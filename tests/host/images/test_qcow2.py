"""qcow2 images against qemu-img, in both directions, and against a model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpy.host.images import create_qcow2, open_image
from kvmpy.host.images.hostfile import open_file
from kvmpy.host.images.image import Image
from kvmpy.host.images.qcow2_check import check
from kvmpy.host.images.qcow2_header import parse
from tests.host.images.qemu import assert_clean, content, create, needs_qemu_img, qemu_img

MIB = 1 << 20


def read(image: Image, offset: int, length: int) -> bytes:
    data = bytearray(b"\xa5" * length)
    # Two uneven pieces: requests come scattered over guest pages.
    half = length // 3
    view = memoryview(data)
    image.read_into(offset, [view[:half], view[half:]] if half else [view])
    return bytes(data)


def write(image: Image, offset: int, data: bytes) -> None:
    view = memoryview(data)
    image.write_from(offset, [view[:1], view[1 : len(data) // 2], view[len(data) // 2 :]])


def our_check(path: Path) -> None:
    file = open_file(str(path), readonly=True)
    try:
        finding = check(file, parse(file))
    finally:
        file.close()
    assert not finding.errors and not finding.leaks, finding


VARIANTS = [
    ("compat=1.1",), ("compat=0.10",), ("compat=1.1", "cluster_size=512"), ("compat=1.1", "cluster_size=4096", "lazy_refcounts=on"),
    ("compat=1.1", "cluster_size=2M"), ("compat=1.1", "refcount_bits=1"), ("compat=1.1", "refcount_bits=64", "cluster_size=1024"),
    ("compat=1.1", "preallocation=metadata"), ("compat=0.10", "cluster_size=1024"),
]


@needs_qemu_img
@pytest.mark.parametrize("options", VARIANTS, ids=["-".join(option.split("=")[1] for option in options) for options in VARIANTS])
@pytest.mark.parametrize("backing", ["", "qcow2", "raw"])
def test_random_work_on_an_image_of_qemu(tmp_path: Path, options: tuple[str, ...], backing: str) -> None:
    if backing and "preallocation=metadata" in options:
        pytest.skip("qemu-img preallocates no overlays here")
    rng = random.Random(f"{options}{backing}")
    size = 3 * MIB + 512 * 7
    model = bytearray(size)
    base = None
    if backing:
        # Shorter than the image over it.
        behind = bytearray(rng.randbytes(2 * MIB + 512))
        behind[300_000:900_000] = bytes(600_000)
        model[: len(behind)] = behind
        raw = tmp_path / "base.raw"
        raw.write_bytes(behind)
        base = raw
        if backing == "qcow2":
            base = tmp_path / "base.qcow2"
            qemu_img("convert", "-q", "-c", "-f", "raw", "-O", "qcow2", raw, base)
    path = create(tmp_path / "disk.qcow2", size, *options, backing=base, backing_format=backing)
    for _ in range(3):
        image = open_image(f"{path},format=qcow2")
        assert image.size == size and not image.readonly
        for _ in range(60):
            _one(rng, image, model)
        assert read(image, 0, size) == model
        image.close()
        assert_clean(path)
        our_check(path)
        assert content(path, tmp_path) == model


def _one(rng: random.Random, image: Image, model: bytearray) -> None:
    size = len(model)
    kind = rng.randrange(8)
    length = min(512 * rng.choice([1, 2, 7, 8, 64, 128, 129, 512, 1000]), size)
    offset = rng.randrange((size - length) // 512 + 1) * 512
    if kind < 4:
        data = rng.randbytes(length)
        write(image, offset, data)
        model[offset : offset + length] = data
    elif kind == 4:
        image.flush()
    elif kind == 5:
        image.write_zeroes(offset, length, may_unmap=rng.random() < 0.5)
        model[offset : offset + length] = bytes(length)
    elif kind == 6:
        image.discard(offset, length)
        after = read(image, offset, length)
        assert all(new in (old, 0) for new, old in zip(after, model[offset : offset + length], strict=True))
        model[offset : offset + length] = after
    else:
        assert read(image, offset, length) == model[offset : offset + length]


@needs_qemu_img
@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 * MIB])
def test_images_of_ours_for_qemu(tmp_path: Path, cluster: int) -> None:
    path = tmp_path / "new.qcow2"
    size = 20 * MIB
    create_qcow2(str(path), size, cluster_size=cluster)
    assert_clean(path)
    our_check(path)
    rng = random.Random(cluster)
    data = rng.randbytes(6 * MIB)
    image = open_image(str(path))
    for at in range(0, len(data), 1 << 16):
        write(image, 5 * MIB + at, data[at : at + (1 << 16)])
    image.close()
    assert_clean(path)
    our_check(path)
    raw = tmp_path / "same.raw"
    with raw.open("wb") as file:
        file.truncate(size)
        file.seek(5 * MIB)
        file.write(data)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", path, raw)
    # And back: qemu-img rewrites it, compressed.
    again = tmp_path / "again.qcow2"
    qemu_img("convert", "-c", "-O", "qcow2", path, again)
    image = open_image(str(again))
    assert read(image, 5 * MIB, len(data)) == data
    write(image, 5 * MIB + 512, b"x" * 512)
    assert read(image, 5 * MIB, 2048) == data[:512] + b"x" * 512 + data[1024:2048]
    image.close()
    assert_clean(again)
    our_check(again)


@needs_qemu_img
def test_created_overlay_and_relative_backing(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    base = folder / "base.raw"
    base.write_bytes(b"base" * 256 * 1024)
    create_qcow2(str(folder / "top.qcow2"), MIB, backing="base.raw", backing_format="raw")
    image = open_image(str(folder / "top.qcow2"))
    write(image, 4096, b"t" * 512)
    assert read(image, 3584, 1536) == b"base" * 128 + b"t" * 512 + b"base" * 128
    image.close()
    assert_clean(folder / "top.qcow2")
    assert content(folder / "top.qcow2", tmp_path)[4096:4608] == b"t" * 512
    assert base.read_bytes() == b"base" * 256 * 1024


@needs_qemu_img
def test_internal_snapshots_keep_their_content(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2", 4 * MIB, "cluster_size=4096")
    rng = random.Random(5)
    first = rng.randbytes(MIB)
    image = open_image(str(path))
    write(image, 0, first)
    image.close()
    qemu_img("snapshot", "-c", "one", path)
    image = open_image(str(path))
    second = rng.randbytes(MIB)
    write(image, 512, second)
    image.discard(0, 8192)
    image.close()
    assert_clean(path)
    our_check(path)
    qemu_img("snapshot", "-a", "one", path)
    assert content(path, tmp_path)[:MIB] == first
    qemu_img("snapshot", "-d", "one", path)
    assert_clean(path)


@needs_qemu_img
def test_refcount_table_grows(tmp_path: Path) -> None:
    """Clusters of 512 bytes: a refcount block counts 128 KiB, the table's first cluster 8 MiB."""
    path = create(tmp_path / "disk.qcow2", 40 * MIB, "cluster_size=512")
    rng = random.Random(9)
    data = rng.randbytes(MIB)
    image = open_image(str(path))
    for start in range(0, 30, 1):
        write(image, start * MIB, data)
    image.close()
    assert_clean(path)
    image = open_image(f"{path},readonly=on")
    for start in range(0, 30, 7):
        assert read(image, start * MIB, MIB) == data
    image.close()


@needs_qemu_img
def test_dirty_image_is_mended(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2", 4 * MIB, "lazy_refcounts=on", "cluster_size=4096")
    image = open_image(str(path))
    write(image, 0, b"a" * 100 * 512)
    image.close()
    raw = bytearray(path.read_bytes())
    raw[79] |= 1  # dirty
    block = int.from_bytes(raw[int.from_bytes(raw[48:56], "big") :][:8], "big")
    raw[block + 4 : block + 60] = bytes(56)
    path.write_bytes(raw)
    reader = open_image(f"{path},readonly=on")
    assert read(reader, 0, 512) == b"a" * 512
    reader.close()
    image = open_image(str(path))
    write(image, 2 * MIB, b"b" * 512)
    image.close()
    assert_clean(path)
    assert not path.read_bytes()[79] & 1
    assert content(path, tmp_path)[: 100 * 512] == b"a" * 100 * 512


OPERATION = st.tuples(
    st.sampled_from(["write", "write", "read", "zero", "unmap", "discard", "flush", "reopen"]),
    st.integers(0, 511), st.integers(1, 80), st.integers(0, 255),
)


@pytest.mark.parametrize("snapshot", [False, True])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(OPERATION, max_size=40), cluster=st.sampled_from([512, 1024, 4096, 65536]))
def test_operations_as_in_a_model(tmp_path: Path, snapshot: bool, operations: list[tuple[str, int, int, int]], cluster: int) -> None:
    path = tmp_path / "model.qcow2"
    path.unlink(missing_ok=True)
    size = 512 * 512
    create_qcow2(str(path), size, cluster_size=cluster)
    model = bytearray(size)
    option = ",snapshot=on" if snapshot else ""
    image = open_image(f"{path}{option}")
    try:
        for kind, sector, count, value in operations:
            offset = sector * 512
            length = min(count * 512, size - offset)
            if kind == "write":
                data = bytes([value]) * length
                write(image, offset, data)
                model[offset : offset + length] = data
            elif kind == "read":
                assert read(image, offset, length) == model[offset : offset + length]
            elif kind in ("zero", "unmap"):
                image.write_zeroes(offset, length, may_unmap=kind == "unmap")
                model[offset : offset + length] = bytes(length)
            elif kind == "discard":
                image.discard(offset, length)
                model[offset : offset + length] = read(image, offset, length)
            elif kind == "flush":
                image.flush()
            elif not snapshot:
                image.close()
                image = open_image(str(path))
        assert read(image, 0, size) == model
    finally:
        image.close()
    our_check(path)
