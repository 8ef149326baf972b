"""A guest image as bytes with a name; every read is checked and refuses with the file's name and the reason."""

from __future__ import annotations

import os
import stat
import struct

from kvmpy.errors import ImageError
from kvmpy.units import GIB, format_size

LARGEST = 4 * GIB
"""Kernels and modules are read whole; a file beyond this is a disk, not a kernel."""


class Image:
    """The bytes of one file. `name` is what messages call it."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def error(self, reason: str) -> ImageError:
        """An ImageError that names this file."""
        return ImageError(f"{self.name}: {reason}")

    def bytes(self, offset: int, size: int, what: str) -> bytes:
        """Exactly `size` bytes at `offset`; ImageError when the file ends before them."""
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise self.error(
                f"truncated: {what} needs bytes {offset:#x} to {offset + size:#x}, the file has {len(self.data):#x}"
            )
        return self.data[offset : offset + size]

    def unpack(self, layout: str, offset: int, what: str) -> tuple[int, ...]:
        """struct.unpack at an offset of the file; ImageError when the file ends before it."""
        return struct.unpack(layout, self.bytes(offset, struct.calcsize(layout), what))


def read_image(path: str | os.PathLike[str], what: str = "image") -> Image:
    """Reads a whole file. ImageError for a missing, unreadable, empty or endless file and for a directory."""
    name = os.fspath(path)
    try:
        with open(name, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                raise ImageError(f"{name}: not a regular file, no {what} can be read from it")
            if status.st_size > LARGEST:
                raise ImageError(f"{name}: {format_size(status.st_size)} is too large for a {what} (limit {format_size(LARGEST)})")
            data = file.read(LARGEST + 1)
    except IsADirectoryError:
        raise ImageError(f"{name}: is a directory, not a file") from None
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from None
    except ValueError as error:
        raise ImageError(f"{name!r}: {error}") from None
    if not data:
        raise ImageError(f"{name}: the file is empty")
    return Image(name, data)


def read_head(path: str | os.PathLike[str], size: int) -> bytes:
    """The first bytes of a file, without judging it; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except (OSError, ValueError):
        return b""
