"""What --disk says, formats, locks, raw images, overlays."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from kvmpy.errors import ConfigError, ImageError
from kvmpy.host.images import DiskSpec, create_qcow2, create_raw, is_qcow2, open_image, parse_disk
from tests.host.images.qemu import QEMU_IO, needs_qemu_img, qemu_img

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("disk.img", DiskSpec("disk.img")),
        ("a,,b.img,format=raw", DiskSpec("a,b.img", "raw")),
        ("x,,,readonly=on", DiskSpec("x,", readonly=True)),
        ("x,readonly", DiskSpec("x", readonly=True)),
        ("x,ro", DiskSpec("x", readonly=True)),
        ("x,bus=cdrom", DiskSpec("x", bus="cdrom", readonly=True)),
        ("x,snapshot=on,serial=A,,1,bus=virtio,format=qcow2", DiskSpec("x", "qcow2", "virtio", False, True, "A,1")),
        ("x,readonly=off,snapshot=off", DiskSpec("x")),
        (Path("a,b"), DiskSpec("a,b")),
    ],
)
def test_spec(text: str | Path, spec: DiskSpec) -> None:
    assert parse_disk(text) == spec


@pytest.mark.parametrize(
    "text",
    ["", ",format=raw", "x,format=vmdk", "x,bus=scsi", "x,readonly=yes", "x,color=red", "x,serial=" + "9" * 21, "x,format=raw,format=raw",
     "x,serial=ä", "x,", "x,format"],
)
def test_spec_errors(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_disk(text)


def test_raw_image(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    create_raw(str(path), 8 * MIB)
    with pytest.raises(ImageError, match="exists"):
        create_raw(str(path), 8 * MIB)
    image = open_image(f"{path},format=raw")
    page = memoryview(b"p" * 4096)
    image.write_from(4096, [page[:512], page[512:]])
    image.write_from(4 * MIB, [page] * 256)
    image.flush()
    before = path.stat().st_blocks
    assert before < 2 * MIB // 512
    image.discard(4 * MIB, MIB)
    image.write_zeroes(4096, 512, may_unmap=False)
    image.write_zeroes(8192, 8192, may_unmap=True)
    data = bytearray(8192)
    image.read_into(4096, [memoryview(data)])
    assert data == bytes(512) + b"p" * 3584 + bytes(4096)
    with pytest.raises(OSError) as caught:
        image.read_into(8 * MIB - 512, [memoryview(bytearray(1024))])
    assert caught.value.filename == str(path)
    image.close()
    image.close()
    assert path.stat().st_blocks < before and path.stat().st_size == 8 * MIB


def test_many_buffers(tmp_path: Path) -> None:
    """More than the 1024 that one system call takes."""
    path = tmp_path / "disk.raw"
    create_raw(str(path), 4 * MIB)
    image = open_image(path)
    source = memoryview(os.urandom(3000 * 512))
    image.write_from(512, [source[at : at + 512] for at in range(0, len(source), 512)])
    target = bytearray(len(source))
    view = memoryview(target)
    image.read_into(512, [view[at : at + 512] for at in range(0, len(source), 512)])
    assert target == source
    image.close()


def test_last_piece_of_a_sector(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 700)
    image = open_image(path)
    assert image.size == 1024
    data = bytearray(b"\xff" * 1024)
    image.read_into(0, [memoryview(data)])
    assert data == b"x" * 700 + bytes(324)
    image.write_from(512, [memoryview(b"y" * 512)])
    image.read_into(0, [memoryview(data)])
    assert data == b"x" * 512 + b"y" * 512
    image.close()


def test_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    image = open_image(path)
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="shorter"):
        image.read_into(8192, [memoryview(bytearray(512))])
    image.close()


def test_guessed_raw_keeps_its_format(tmp_path: Path) -> None:
    """A guest must not make the next start take its disk for qcow2, whose header names any file of the host."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    image = open_image(path)
    header = memoryview(b"QFI\xfb" + bytes(508))
    with pytest.raises(OSError) as caught:
        image.write_from(0, [header[:2], header[2:]])
    assert caught.value.errno == errno.EPERM
    image.write_from(512, [header])
    image.write_from(0, [memoryview(b"\x55" * 512)])
    image.close()
    named = open_image(f"{path},format=raw")
    named.write_from(0, [header])
    named.close()
    assert is_qcow2(path)


@pytest.mark.parametrize("form", ["vmdk", "vdi", "vpc", "vhdx"])
@needs_qemu_img
def test_other_formats_are_named(tmp_path: Path, form: str) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", form, path, "8M")
    with pytest.raises(ImageError, match="convert with qemu-img convert -O qcow2"):
        open_image(path)


@needs_qemu_img
def test_fixed_vhd_is_named(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "vpc", "-o", "subformat=fixed", path, "8M")
    with pytest.raises(ImageError, match="vhd"):
        open_image(path)
    open_image(f"{path},format=raw").close()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_second_writer_is_kept_out(tmp_path: Path, form: str) -> None:
    path = tmp_path / "disk"
    (create_qcow2 if form == "qcow2" else create_raw)(str(path), MIB)
    writer = open_image(path)
    for options in ("", ",readonly=on", ",snapshot=on"):
        with pytest.raises(ImageError, match="in use"):
            open_image(f"{path}{options}")
    writer.close()
    readers = [open_image(f"{path},readonly=on"), open_image(f"{path},snapshot=on")]
    with pytest.raises(ImageError, match="in use"):
        open_image(path)
    for reader in readers:
        reader.close()
    open_image(path).close()


@needs_qemu_img
def test_qemu_respects_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(str(path), MIB)
    image = open_image(path)
    qemu_img("info", path, status=1)
    if QEMU_IO:
        done = subprocess.run([QEMU_IO, "-f", "qcow2", "-c", "write 0 512", path], capture_output=True, text=True, timeout=20)
        assert done.returncode and "lock" in done.stderr
    image.close()
    reader = open_image(f"{path},readonly=on")
    qemu_img("info", path)
    reader.close()


def test_readonly(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(str(path), MIB)
    before = path.read_bytes()
    image = open_image(f"{path},readonly=on")
    for call in (
        lambda: image.write_from(0, [memoryview(bytes(512))]), lambda: image.discard(0, 512),
        lambda: image.write_zeroes(0, 512, may_unmap=True),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EROFS
    image.flush()
    image.close()
    assert path.read_bytes() == before


def test_full_disk(tmp_path: Path) -> None:
    """ENOSPC reaches the caller; the image stays whole and goes on when there is room again."""
    import resource
    import signal

    path = tmp_path / "disk"
    create_qcow2(str(path), 16 * MIB, cluster_size=4096)
    image = open_image(path)
    piece = memoryview(b"d" * 65536)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    done = 0
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
        with pytest.raises(OSError) as caught:
            for at in range(0, 4 * MIB, 65536):
                image.write_from(at, [piece])
                done = at
        assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    image.write_from(8 * MIB, [piece])
    data = bytearray(65536)
    image.read_into(done, [memoryview(data)])
    assert data == piece
    image.close()
    from tests.host.images.test_qcow2 import our_check

    our_check(path)


def test_snapshot_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"o" * MIB)
    image = open_image(f"{path},snapshot=on,serial=S1")
    assert not image.readonly and image.serial == "S1"
    image.write_from(65536 - 512, [memoryview(b"n" * 1024)])
    image.write_zeroes(200 * 512, 70 * 1024, may_unmap=True)
    data = bytearray(MIB)
    image.read_into(0, [memoryview(data)])
    model = bytearray(b"o" * MIB)
    model[65536 - 512 : 65536 + 512] = b"n" * 1024
    model[200 * 512 : 200 * 512 + 70 * 1024] = bytes(70 * 1024)
    assert data == model
    image.close()
    assert path.read_bytes() == b"o" * MIB


def test_read_only_file_is_opened_read_only(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write every file")
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    path.chmod(0o444)
    assert open_image(path).readonly


@needs_qemu_img
def test_zstd_is_read_or_refused(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "disk"
    raw.write_bytes(b"abc\n" * 65536)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, path)
    try:
        image = open_image(path)
    except ImageError as error:
        assert "zstandard" in str(error)
        pytest.skip(str(error))
    data = bytearray(raw.stat().st_size)
    image.read_into(0, [memoryview(data)])
    image.close()
    assert data == raw.read_bytes()
