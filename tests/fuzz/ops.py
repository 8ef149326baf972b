"""An input of a fuzzer, read from front to back: zeros behind its end, so that every input means something."""

from __future__ import annotations


class Input:
    """The bytes, and how far they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def number(self, size: int) -> int:
        """`size` bytes, little-endian."""
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little")

    def value(self, size: int) -> int:
        """A number of `size` bytes out of two bytes or more: small, one bit, all ones but, or any."""
        kind = self.byte()
        if kind & 3 == 0:
            value = self.byte()
        elif kind & 3 == 1:
            value = 1 << (kind >> 2)
        elif kind & 3 == 2:
            value = -1 - (kind >> 2)
        else:
            value = self.number(size)
        return value & (1 << 8 * size) - 1

    def bytes(self, most: int) -> bytes:
        """Up to `most` bytes behind their length."""
        size = self.number(2 if most > 255 else 1) % (most + 1)
        self.at += size
        return self.data[self.at - size : self.at]

    def rest(self) -> bytes:
        data = self.data[self.at :]
        self.at = len(self.data)
        return data
