"""Sequences of buffers as one run of bytes: cut, fill, copy."""

from __future__ import annotations

from collections.abc import Sequence

from kvmpy.iovector import IoVector

Buffers = Sequence[memoryview]

_ZEROES = memoryview(bytes(1 << 20))


class Cursor:
    """Takes a run of buffers apart from its front, without copying."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._index = 0
        self._at = 0

    def take(self, length: int) -> Buffers:
        """Views of the next `length` bytes; the run must have them."""
        if isinstance(self._buffers, IoVector):
            self._at += length
            return self._buffers.cut(self._at - length, length)
        taken: list[memoryview] = []
        while length:
            buffer = self._buffers[self._index]
            size = len(buffer) - self._at
            if size <= length:
                taken.append(buffer[self._at :] if self._at else buffer)
                self._index += 1
                self._at = 0
            else:
                size = length
                taken.append(buffer[self._at : self._at + size])
                self._at += size
            length -= size
        return taken


def length_of(buffers: Buffers) -> int:
    """Bytes in all."""
    if isinstance(buffers, IoVector):
        return buffers.nbytes
    if len(buffers) == 1:
        return len(buffers[0])
    return sum(map(len, buffers))


def zero(buffers: Buffers) -> None:
    """Fills the buffers with zeroes."""
    for buffer in buffers:
        for start in range(0, len(buffer), len(_ZEROES)):
            size = min(len(buffer) - start, len(_ZEROES))
            buffer[start : start + size] = _ZEROES[:size]


def zeroes(length: int) -> list[memoryview]:
    """Read-only buffers of `length` zero bytes."""
    whole, rest = divmod(length, len(_ZEROES))
    return [_ZEROES] * whole + ([_ZEROES[:rest]] if rest else [])


def put(buffers: Buffers, data: bytes | memoryview) -> None:
    """Copies `data`, which is as long as the buffers, into them."""
    at = 0
    for buffer in buffers:
        buffer[:] = data[at : at + len(buffer)]
        at += len(buffer)
