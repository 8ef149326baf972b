"""Raw images: the file is the disk. Sparse files stay sparse; block devices are disks as they are."""

from __future__ import annotations

import errno
import os
import threading

from kvmpy.errors import ImageError
from kvmpy.host.images.hostfile import HostFile
from kvmpy.host.images.image import SECTOR, Image
from kvmpy.host.images.magic import recognise
from kvmpy.host.images.views import Buffers, Cursor, zero


class RawImage(Image):
    """A last piece of a sector counts as one; it reads as zeroes behind the file's end, and a write fills it up.

    With `guessed`, nobody has said that the file is raw. A guest that wrote the header of another format into the first
    sector could make the next start open any file of the host as its backing file; such a write fails with EPERM.
    """

    format = "raw"

    def __init__(self, file: HostFile, *, guessed: bool = False) -> None:
        if file.size == 0:
            file.close()
            raise ImageError(f"{file.path}: the file is empty")
        super().__init__(file.path, -(-file.size // SECTOR) * SECTOR, file.readonly)
        self.file = file
        self.guessed = guessed and not file.readonly
        self._guarding = threading.Lock()

    def files(self) -> set[tuple[int, int]]:
        return {self.file.identity()}

    def _read(self, offset: int, length: int, buffers: Buffers) -> None:
        done = self.file.read_some(offset, buffers)
        if done == length:
            return
        if offset + done < self.file.size:
            raise OSError(errno.EIO, "the file has become shorter")
        cursor = Cursor(buffers)
        cursor.take(done)
        zero(cursor.take(length - done))

    def _write(self, offset: int, length: int, buffers: Buffers) -> None:
        if offset < SECTOR and self.guessed:
            with self._guarding:
                self._guard(offset, length, buffers)
                self.file.write(offset, buffers)
        else:
            self.file.write(offset, buffers)

    def _guard(self, offset: int, length: int, buffers: Buffers) -> None:
        first = bytearray(SECTOR)
        self.file.read(0, [memoryview(first)])
        piece = b"".join(map(bytes, Cursor(buffers).take(min(length, SECTOR - offset))))
        first[offset : offset + len(piece)] = piece
        found = recognise(bytes(first))
        if found:
            raise OSError(errno.EPERM, f"the guest wrote a {found} header; say format=raw to let it")

    def _flush(self) -> None:
        self.file.sync()

    def _discard(self, offset: int, length: int) -> None:
        self.file.punch(offset, min(length, self.file.size - offset))

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        # A hole does not make a file longer; a piece of the last sector outside the file is zero anyway.
        inside = min(length, self.file.size - offset)
        if inside > 0:
            self.file.write_zeroes(offset, inside, unmap)

    def _close(self) -> None:
        self.file.close()


def create_raw(path: str, size: int) -> None:
    """Makes a sparse file of `size` bytes. ImageError when it is there already or cannot be made."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
    except (OSError, ValueError, OverflowError) as error:
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


