"""Runs of buffers in guest memory: as memoryviews for Python, as one array for preadv(2) and pwritev(2)."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from mmap import mmap
from typing import Any, Protocol, overload

from kvmpy.native import CData, ffi, lib


class HostBacking(Protocol):
    """What is wanted of a mapping behind guest memory."""

    address: int
    map: mmap


class HostRegion(Protocol):
    """What is wanted of a region of guest memory."""

    gpa: int
    size: int
    readonly: bool

    @property
    def backing(self) -> HostBacking: ...
    @property
    def host(self) -> int: ...


class HostMap:
    """Regions of guest memory in order of guest address. Whoever holds it keeps their mappings alive."""

    __slots__ = ("_starts", "_views", "count", "regions")

    def __init__(self, regions: Sequence[HostRegion]) -> None:
        self.count = len(regions)
        self.regions: CData = ffi.new("struct kp_region[]", self.count)
        """`struct kp_region[count]`."""
        for at, region in enumerate(regions):
            host = ffi.cast("uint8_t *", region.host)
            self.regions[at] = {"gpa": region.gpa, "size": region.size, "host": host, "readonly": region.readonly}
        backings = {region.backing.address: region.backing for region in regions}
        self._starts = sorted(backings)
        self._views = [memoryview(backings[start].map) for start in self._starts]

    def view(self, host: int, size: int) -> memoryview:
        """The bytes at an address of the host inside a region."""
        index = bisect_right(self._starts, host) - 1
        at = host - self._starts[index]
        return self._views[index][at : at + size]


class IoVector(Sequence[memoryview]):
    """A run of buffers in guest memory. As a sequence it gives memoryviews; `read_file` and `write_file` need none of them."""

    __slots__ = ("_buffers", "_map", "_start", "_views", "nbytes", "pieces", "writable")

    def __init__(self, where: HostMap, buffers: CData, start: int, pieces: int, nbytes: int, writable: bool) -> None:
        """`buffers` is an owned `struct kp_buffer[]`, of which `pieces` from `start` on, `nbytes` in all, are meant; all lie in `where`."""
        self._map = where
        self._buffers = buffers
        self._start = start
        self.pieces = pieces
        self.nbytes = nbytes
        self.writable = writable
        self._views: list[memoryview] | None = None

    def _as_views(self) -> list[memoryview]:
        if self._views is None:
            buffers, start = self._buffers, self._start
            view = self._map.view
            views = [view(int(ffi.cast("uintptr_t", buffers[at].base)), buffers[at].size) for at in range(start, start + self.pieces)]
            self._views = views if self.writable else [view.toreadonly() for view in views]
        return self._views

    def __len__(self) -> int:
        return len(self._as_views())

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._as_views()[index]

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._as_views())

    def cut(self, offset: int, size: int) -> IoVector:
        """The part from `offset` on, at most `size` bytes."""
        size = max(min(size, self.nbytes - offset), 0)
        if offset == 0 and size == self.nbytes:
            return self
        out = ffi.new("struct kp_buffer[]", self.pieces or 1)
        count = lib.kp_buffers_cut(self._buffers + self._start, self.pieces, offset, size, out)
        return IoVector(self._map, out, 0, count, size, self.writable)

    def tobytes(self, offset: int, size: int) -> bytes:
        """A copy of a part."""
        if self.pieces:
            first = self._buffers[self._start]
            if offset + size <= first.size:
                return bytes(ffi.buffer(ffi.cast("char *", first.base) + offset, size))
        return b"".join(self.cut(offset, size))

    def set_last(self, value: int) -> None:
        """Sets the last byte."""
        assert self.writable and self.pieces
        last = self._buffers[self._start + self.pieces - 1]
        ffi.cast("uint8_t *", last.base)[last.size - 1] = value

    def read_file(self, fd: int, offset: int) -> int:
        """Fills the buffers from a file, up to its end; gives the bytes. OSError."""
        assert self.writable
        return _done(lib.kp_buffers_read(fd, self._buffers + self._start, self.pieces, offset))

    def write_file(self, fd: int, offset: int) -> int:
        """Writes the buffers into a file; gives the bytes, less than all only where it takes no more. OSError."""
        return _done(lib.kp_buffers_write(fd, self._buffers + self._start, self.pieces, offset))


def _done(answer: int) -> int:
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))
    return answer
