"""Files that somebody else made: kernels of every boot protocol, and qcow2 images. They are loaded or refused in one line."""

from __future__ import annotations

import os
import struct
import tempfile
from functools import partial

from kvmpy.boot.image import Image
from kvmpy.boot.loader import load
from kvmpy.errors import ConfigError, ImageError
from kvmpy.host.images import create_qcow2, open_image
from kvmpy.host.images.hostfile import open_file
from kvmpy.host.images.qcow2_check import check
from kvmpy.host.images.qcow2_header import parse
from kvmpy.memory import GuestMemory
from tests.boot.boot_images import CODE, bzimage, elf32, elf64, mb1_header, mb2_header, mb2_tag, pvh_note
from tests.fuzz.ops import Input

MEMORY = "32M"
MIB = 1 << 20


def _patched(source: Input, bases: list[bytes], most: int = 24) -> bytes:
    """One of the files with some places changed, cut off or lengthened; or all of the input as a file."""
    which = source.byte()
    if which == 255:
        return source.rest()
    data = bytearray(bases[which % len(bases)])
    for _ in range(source.byte() % most):
        kind, at = source.byte(), source.number(2) % max(len(data), 1)
        if kind == 255:
            del data[at:]
        elif kind == 254:
            data += bytes(at)
        else:
            size = (1, 2, 4, 8)[kind & 3]
            order = "big" if kind & 4 else "little"
            data[at : at + size] = source.value(size).to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(data)


def one_line(error: Exception) -> None:
    assert "\n" not in str(error) and len(str(error)) < 2000, repr(str(error))[:3000]


def boot(bases: list[bytes], protocols: tuple[str, ...], data: bytes) -> None:
    source = Input(data)
    protocol, cmdline = protocols[source.byte() % len(protocols)], source.bytes(40).replace(b"\0", b" ")
    image = Image("fuzz", _patched(source, bases))
    if not image.data:
        return
    memory = GuestMemory(MEMORY)
    try:
        load(memory, image, boot=protocol, cmdline=cmdline)
    except (ImageError, ConfigError) as error:
        one_line(error)
    finally:
        memory.close()


NOTE = pvh_note(MIB)
SEGMENT = [(MIB, CODE.ljust(64, b"\x90"), 0x3000)]
SECTIONS = b"".join(struct.pack("<10I", 0, kind, 0, MIB, 52, 64, 0, 0, 4, 16) for kind in (0, 1, 2, 3))
TAG_SIZES = ((1, 12), (2, 12), (3, 4), (5, 12), (6, 0), (7, 4), (8, 4), (9, 4), (10, 12))
TAGS = [mb2_tag(kind, bytes((1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0)[:size])) for kind, size in TAG_SIZES]
HIGH = 0xFFFFFFFF80000000
ELVES = [elf64(SEGMENT, MIB), elf32(SEGMENT, MIB), elf32(SEGMENT, MIB, sections=SECTIONS), elf64(SEGMENT * 2, MIB, virtual=HIGH)]
MULTIBOOTS = [
    mb1_header(0x10003, MIB, MIB, MIB + 0x1000, MIB + 0x2000, MIB) + CODE,
    elf32([(MIB, mb1_header(7, 0, 0, 0, 0, 0, 1, 80, 25, 0) + CODE, 0x2000)], MIB, sections=SECTIONS),
    mb2_header(*TAGS[:2]) + CODE, mb2_header(*TAGS[2:]) + CODE, elf64([(MIB, mb2_header(TAGS[4]) + CODE, 0x2000)], MIB),
]  # fmt: skip
KERNELS = [bzimage(), bzimage(payload=CODE.ljust(64, b"\x90")), bzimage(version=0x202, xload=0), elf64(SEGMENT, MIB, virtual=HIGH)]
PVH = [elf64(SEGMENT, MIB, notes=NOTE), elf32(SEGMENT, MIB, notes=NOTE), elf64(SEGMENT, MIB, notes=pvh_note(MIB, 8))]
SECTOR_BOOTS = ("auto", "bios", "bios-memory", "sector", "flat16", "flat32", "flat64", "flat32@0x200000")
SECTOR_IMAGE = CODE.ljust(510, b"\0") + b"\x55\xaa"


def _base_disk(size: int, cluster: int, written: tuple[tuple[int, int], ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="kvmpy-fuzz-") as folder:
        path = os.path.join(folder, "disk")
        create_qcow2(path, size, cluster_size=cluster)
        image = open_image(path)
        for offset, length in written:
            image.write_from(offset, [memoryview(b"k" * length)])
        image.write_zeroes(0, 512, may_unmap=True)
        image.close()
        with open(path, "rb") as file:
            return file.read()


DISK = 256 << 10
_bases: list[bytes] = []


def qcow2(data: bytes) -> None:
    """An image with places changed is opened or refused; requests are done or fail with OSError. One that nothing was changed in
    holds what was written, and is whole when it is closed."""
    if not _bases:
        _bases.extend((_base_disk(DISK, 512, ((0, 2048), (100 << 10, 512))), _base_disk(DISK, 4096, ((8192, 8192),))))
    source = Input(data)
    whole = source.byte() == 0
    content = _bases[source.byte() & 1] if whole else _patched(source, _bases)
    fd = os.memfd_create("kvmpy-fuzz")
    try:
        os.write(fd, content)
        path = f"/proc/self/fd/{fd}"
        try:
            image = open_image(f"{path},format=qcow2")
        except ImageError as error:
            assert not whole, error
            one_line(error)
            return
        model = bytearray(image.size) if whole else None
        if model is not None:
            image.read_into(0, [memoryview(model)])
        try:
            for _ in range(40):
                if not source:
                    break
                _request(image, model, source)
        finally:
            try:
                image.close()
            except OSError:
                assert not whole
        file = open_file(path, readonly=True)
        try:
            found = check(file, parse(file))
            assert not (whole and (found.errors or found.leaks)), found.messages
        except ImageError as error:
            assert not whole, error
        finally:
            file.close()
    finally:
        os.close(fd)


def _request(image: object, model: bytearray | None, source: Input) -> None:
    what, first, count = source.byte(), source.number(2), 1 + source.byte() % 40
    sectors = image.size // 512  # type: ignore[attr-defined]
    offset = first % sectors * 512
    length = min(count * 512, image.size - offset)  # type: ignore[attr-defined]
    try:
        if what % 8 < 3:
            data = bytes((what, first & 0xFF)) * (length // 2)
            image.write_from(offset, [memoryview(data)])  # type: ignore[attr-defined]
            if model is not None:
                model[offset : offset + length] = data
        elif what % 8 == 3:
            image.write_zeroes(offset, length, may_unmap=bool(what & 8))  # type: ignore[attr-defined]
            if model is not None:
                model[offset : offset + length] = bytes(length)
        elif what % 8 == 4:
            image.discard(offset, length)  # type: ignore[attr-defined]
            if model is not None:  # it may read as zeroes or as before
                image.read_into(offset, [memoryview(model)[offset : offset + length]])  # type: ignore[attr-defined]
        elif what % 8 == 5:
            image.flush()  # type: ignore[attr-defined]
        else:
            data = bytearray(length)
            image.read_into(offset, [memoryview(data)])  # type: ignore[attr-defined]
            assert model is None or data == model[offset : offset + length], (offset, length)
    except OSError:
        assert model is None


RUN = {
    "qcow2": qcow2,
    "elf": partial(boot, ELVES, ("auto", "elf", "vmlinux")),
    "multiboot": partial(boot, MULTIBOOTS, ("auto", "multiboot1", "multiboot2")),
    "linux": partial(boot, KERNELS, ("auto", "linux", "linux64", "linux32", "linux16", "vmlinux")),
    "pvh": partial(boot, PVH, ("auto", "pvh")),
    "sector": partial(boot, [SECTOR_IMAGE, SECTOR_IMAGE + bytes(1024)], SECTOR_BOOTS),
}
