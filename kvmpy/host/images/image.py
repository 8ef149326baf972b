"""What all images have in common: checked ranges, errors that name the file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from kvmpy.host.images.views import Buffers, Cursor, length_of, zero

SECTOR = 512


class Image:
    """A disk image as devices see it (kvmpy.devices.blockend.BlockEnd). A format fills in the methods with an underscore.

    Calls may come from several threads. They raise OSError with the image's path.
    """

    format = ""

    def __init__(self, path: str, size: int, readonly: bool) -> None:
        self.path = path
        self.size = size
        self.readonly = readonly
        self.serial = ""
        self.on_request: Callable[[str, int, int], None] | None = None
        """Called before each request as (kind, offset, length), kind one of read, write, flush, discard, zero; the OSError that it
        raises is what the device gets."""
        self._closed = False

    def read_into(self, offset: int, buffers: Buffers) -> None:
        """Fills the buffers in order."""
        try:
            length = length_of(buffers)
            self._check(offset, length)
            if self.on_request is not None:
                self.on_request("read", offset, length)
            self._read(offset, length, buffers)
        except OSError as error:
            raise self._failed(error) from None

    def write_from(self, offset: int, buffers: Buffers) -> None:
        """Writes the buffers in order."""
        try:
            length = length_of(buffers)
            self._check(offset, length, True)
            if self.on_request is not None:
                self.on_request("write", offset, length)
            self._write(offset, length, buffers)
        except OSError as error:
            raise self._failed(error) from None

    def flush(self) -> None:
        """Everything written before is on stable storage when this returns."""
        if self.readonly:
            return
        try:
            if self.on_request is not None:
                self.on_request("flush", 0, 0)
            self._flush()
        except OSError as error:
            raise self._failed(error) from None

    def discard(self, offset: int, length: int) -> None:
        """The content of the range is of no more use."""
        try:
            self._check(offset, length, True)
            if self.on_request is not None:
                self.on_request("discard", offset, length)
            if length:
                self._discard(offset, length)
        except OSError as error:
            raise self._failed(error) from None

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool) -> None:
        """The range reads as zeroes."""
        try:
            self._check(offset, length, True)
            if self.on_request is not None:
                self.on_request("zero", offset, length)
            if length:
                self._write_zeroes(offset, length, may_unmap)
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Writes everything back and ends; an error of that is raised after the files are closed. Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self.on_request = None  # what the guest has written is saved in any case
        try:
            self.flush()
        finally:
            self._close()

    def files(self) -> set[tuple[int, int]]:
        """Device and inode numbers of this image's files and of those behind it."""
        return set()

    def _check(self, offset: int, length: int, write: bool = False) -> None:
        if write and self.readonly:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(errno.EINVAL, f"bytes {offset} to {offset + length} of an image of {self.size}")

    def _failed(self, error: OSError) -> OSError:
        return OSError(error.errno or errno.EIO, error.strerror or str(error), self.path)

    def _read(self, offset: int, length: int, buffers: Buffers) -> None:
        raise AssertionError

    def _write(self, offset: int, length: int, buffers: Buffers) -> None:
        raise AssertionError

    def _flush(self) -> None:
        raise AssertionError

    def _discard(self, offset: int, length: int) -> None:
        raise AssertionError

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        raise AssertionError

    def _close(self) -> None:
        raise AssertionError


def read_padded(image: Image, offset: int, buffers: Buffers) -> None:
    """Reads of an image that may be shorter: what lies behind its end is zero."""
    length = length_of(buffers)
    inside = max(0, min(length, image.size - offset))
    cursor = Cursor(buffers)
    if inside:
        image.read_into(offset, cursor.take(inside))
    if inside < length:
        zero(cursor.take(length - inside))
