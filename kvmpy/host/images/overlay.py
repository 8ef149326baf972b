"""snapshot=on: writes go to a temporary file that has no name; the image below stays as it is."""

from __future__ import annotations

import threading

from kvmpy.errors import ImageError
from kvmpy.host.images.hostfile import temporary_file
from kvmpy.host.images.image import Image
from kvmpy.host.images.views import Buffers, Cursor

BLOCK = 1 << 16
BELOW, OWN = 0, 1


class Overlay(Image):
    """A sparse file of the disk's layout, and one byte per block of 64 KiB that says which file has it."""

    format = "overlay"

    def __init__(self, below: Image) -> None:
        super().__init__(below.path, below.size, False)
        self.below = below
        self.serial = below.serial
        try:
            self._file = temporary_file(below.path)
        except ImageError:
            below.close()
            raise
        self._where = bytearray(-(-below.size // BLOCK))
        self._lock = threading.Lock()

    def files(self) -> set[tuple[int, int]]:
        return self.below.files()

    def _run(self, offset: int, length: int) -> tuple[int, int]:
        """(whose, bytes) of the longest run from `offset` that one file has."""
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        kind = self._where[first]
        other = self._where.find(1 - kind, first, end)
        return kind, length if other < 0 else min(length, other * BLOCK - offset)

    def _read(self, offset: int, length: int, buffers: Buffers) -> None:
        with self._lock:
            cursor = Cursor(buffers)
            while length:
                kind, run = self._run(offset, length)
                views = cursor.take(run)
                if kind == OWN:
                    self._file.read(offset, views)
                else:
                    self.below.read_into(offset, views)
                offset += run
                length -= run

    def _write(self, offset: int, length: int, buffers: Buffers) -> None:
        with self._lock:
            end = offset + length
            self._fill(offset // BLOCK, offset, end)
            if end % BLOCK and end // BLOCK != offset // BLOCK:
                self._fill(end // BLOCK, offset, end)
            self._file.write(offset, buffers)
            self._own(offset, end)

    def _own(self, offset: int, end: int) -> None:
        first, last = offset // BLOCK, -(-end // BLOCK)
        self._where[first:last] = b"\1" * (last - first)

    def _fill(self, block: int, offset: int, end: int) -> None:
        """Copies what a change from `offset` to `end` leaves of a block that is still below."""
        start = block * BLOCK
        stop = min(start + BLOCK, self.size)
        if self._where[block] or (offset <= start and end >= stop):
            return
        data = bytearray(stop - start)
        self.below.read_into(start, [memoryview(data)])
        self._file.write(start, [memoryview(data)])
        self._where[block] = OWN

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        with self._lock:
            end = offset + length
            self._fill(offset // BLOCK, offset, end)
            if end % BLOCK:
                self._fill(end // BLOCK, offset, end)
            if not self._file.punch(offset, length):
                self._file.write_zeroes(offset, length, False)
            self._own(offset, end)

    def _discard(self, offset: int, length: int) -> None:
        pass

    def _flush(self) -> None:
        """What is thrown away at the end need not survive a crash."""

    def _close(self) -> None:
        self._file.close()
        self.below.close()
