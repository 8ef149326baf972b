"""Opening images: the format, the chain of backing files, the overlay."""

from __future__ import annotations

import errno
import os

from kvmpy.errors import ImageError
from kvmpy.host.images.hostfile import HostFile, open_file
from kvmpy.host.images.image import SECTOR, Image
from kvmpy.host.images.magic import QCOW2, recognise, recognise_last
from kvmpy.host.images.overlay import Overlay
from kvmpy.host.images.qcow2 import Qcow2Image
from kvmpy.host.images.qcow2_header import parse
from kvmpy.host.images.raw import RawImage
from kvmpy.host.images.spec import DiskSpec, parse_disk

LONGEST_CHAIN = 64


def open_image(spec: DiskSpec | str | os.PathLike[str]) -> Image:
    """The image that a spec names. ImageError names the file.

    Without a format, a file that begins as qcow2 does is qcow2, one of a format that is not supported is refused, and any
    other is raw; such a raw image refuses a guest's write that would make it look like another format the next time.
    """
    if not isinstance(spec, DiskSpec):
        spec = parse_disk(spec)
    image = _open(open_file(spec.path, readonly=spec.readonly or spec.snapshot), spec.format, [])
    if spec.snapshot and not spec.readonly:
        image = Overlay(image)
    image.serial = spec.serial
    return image


def _open(file: HostFile, wanted: str, chain: list[tuple[int, int]]) -> Image:
    try:
        identity = file.identity()
        if len(chain) >= LONGEST_CHAIN:
            raise ImageError(f"{file.path}: more than {LONGEST_CHAIN} backing files behind each other")
        found = _recognise(file)
        if not wanted and found not in ("", "qcow2"):
            raise ImageError(f"{file.path}: {found} images are not supported: convert with qemu-img convert -O qcow2 {file.path} NEW.qcow2")
        if (wanted or found) != "qcow2":
            return RawImage(file, guessed=not wanted)
        backing = _open_backing(file, [*chain, identity])
        return Qcow2Image(file, backing)
    except BaseException:
        file.close()
        raise


def _recognise(file: HostFile) -> str:
    try:
        found = recognise(file.read_bytes(0, SECTOR))
        if not found and file.size >= 2 * SECTOR and file.size % SECTOR == 0:
            found = recognise_last(file.read_bytes(file.size - SECTOR, SECTOR))
        return found
    except OSError as error:
        raise ImageError(f"{file.path}: {error.strerror}") from None


def _open_backing(file: HostFile, chain: list[tuple[int, int]]) -> Image | None:
    """The image behind a qcow2 one. Its format is the one that the header names; without one, only qcow2 is recognised."""
    header = parse(file)
    if not header.backing:
        return None
    path = backing_path(file.path, header.backing)
    wanted = header.backing_format
    if wanted and wanted not in ("raw", "qcow2"):
        raise ImageError(f"{file.path}: a backing file of format {wanted!r} is not supported: convert with qemu-img convert -O qcow2")
    try:
        # Before it is opened: the lock of the image that is open already would be in the way, and say less.
        found = os.stat(path)
        if (found.st_dev, found.st_ino) in chain:
            raise ImageError(f"{file.path}: the chain of backing files comes back to {path}")
        behind = open_file(path, readonly=True)
        if not wanted:
            wanted = "qcow2" if behind.read_bytes(0, 4) == QCOW2 else "raw"
        return _open(behind, wanted, chain)
    except ImageError as error:
        raise ImageError(f"{error} (backing file of {file.path})" if "backing file" not in str(error) else str(error)) from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or os.strerror(errno.EIO)} (backing file of {file.path})") from None


def backing_path(path: str, name: str) -> str:
    """The backing file's path: relative names start at the directory of the image that names it."""
    if name.startswith("file:"):
        name = name.removeprefix("file:")
    elif name.startswith("json:") or ("://" in name and not name.startswith(("/", "."))):
        raise ImageError(f"{path}: the backing file {name!r} is no local file")
    return os.path.join(os.path.dirname(path), name)
