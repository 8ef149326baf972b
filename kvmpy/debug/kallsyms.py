"""A Linux kernel's own symbol table (kallsyms), read out of its image: names for kernels that come without a vmlinux.

The tables have no header. They are found by the token table, which holds the digits one by one, and checked against one another
(scripts/kallsyms.c and kernel/kallsyms.c of Linux tell their form).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Iterator

TOKENS = 256
_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_PER_MARKER = 256
_LONGEST = 512
_MOST = 1 << 20
_HEADER_MAGIC = b"HdrS"


class NoTable(ValueError):
    """There is no symbol table that can be read."""


def _align(at: int) -> int:
    return at + 7 & ~7


def unpack_kernel(image: bytes) -> bytes:
    """The kernel inside a bzImage (Linux/x86 boot protocol 2.08 and on: payload_offset), unpacked; anything else as it is."""
    if image[0x202:0x206] != _HEADER_MAGIC:
        return image
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    try:
        if payload[:2] == b"\x1f\x8b":
            return zlib.decompressobj(31).decompress(payload)
        if payload[:6] == b"\xfd7zXZ\0" or payload[:3] == b"\x5d\0\0":
            return lzma.LZMADecompressor().decompress(payload)
        if payload[:3] == b"BZh":
            return bz2.BZ2Decompressor().decompress(payload)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise NoTable(f"the kernel in the image cannot be unpacked: {error}") from None
    if payload[:4] == b"\x7fELF":
        return payload
    raise NoTable(f"the kernel in the image is packed in a way that is not known here ({payload[:4].hex()})")


def kernel_symbols(image: bytes) -> list[tuple[str, str, int]]:
    """(name, type letter, address) of every symbol, in the table's order. Raises NoTable."""
    why = "no token table"
    for digits in _occurrences(image, _DIGITS):
        try:
            return _Table(image, digits).symbols()
        except (NoTable, IndexError, struct.error) as error:
            why = str(error)
    raise NoTable(f"no kallsyms: {why}")


def _occurrences(image: bytes, what: bytes) -> Iterator[int]:
    at = image.find(what)
    while at >= 0:
        yield at
        at = image.find(what, at + 1)


class _Table:
    def __init__(self, image: bytes, digits: int) -> None:
        self.image = image
        second = digits
        for _ in range(ord("0") - 1):
            second = image.rfind(b"\0", 0, second - 1) + 1
        self.tokens: list[bytes] = []
        self.start = self.after = 0
        # What stands before the table need not end in a zero byte, but the table is aligned.
        first = (second - 2) & ~7
        while first > second - 64 and first >= 0 and b"\0" not in image[first : second - 1]:
            if self._read_tokens(first):
                break
            first -= 8
        else:
            raise NoTable("the token table and its index do not agree")
        for at, markers in self._find_markers():
            self.markers_at, self.markers = at, markers
            found = self._find_names()
            if found is not None:
                self.names_at, self.count = found
                return
        raise NoTable("the names are not found")

    def _read_tokens(self, start: int) -> bool:
        """The token table at `start`, if it is one: its index behind it must fit."""
        tokens, index, at = [], [], start
        for _ in range(TOKENS):
            end = self.image.find(b"\0", at, at + 65)
            if end <= at:
                return False
            index.append(at - start)
            tokens.append(self.image[at:end])
            at = end + 1
        at = _align(at)
        self.tokens, self.start, self.after = tokens, start, _align(at + 2 * TOKENS)
        return self.image[at : at + 2 * TOKENS] == struct.pack("<256H", *index)

    def _find_markers(self) -> Iterator[tuple[int, list[int]]]:
        """Offsets of every 256th name, the first of them 0. They end where the token table begins, or where the order of the names
        by the alphabet does, three bytes for each."""
        at = self.start - 4
        if self._u32(at) == 0:
            at -= 4  # padding
        found = [self._u32(at)]
        while found[-1] and at >= 4 and self._u32(at - 4) < found[-1]:
            at -= 4
            found.append(self._u32(at))
        if not found[-1]:
            yield at, found[::-1]
        for words in range(_MOST // 8 * 3):
            end = self.start - 8 * words
            number = -(-(8 * words // 3) // _PER_MARKER)
            for count in (number, number - 1):
                at = end - _align(4 * count)
                if count < 2 or at < 0:
                    continue
                if self._u32(at) == 0 and 0 < self._u32(at + 4) < _PER_MARKER * _LONGEST:
                    markers = list(struct.unpack_from(f"<{count}I", self.image, at))
                    if all(map(int.__lt__, markers, markers[1:])):
                        yield at, markers

    def _u32(self, at: int) -> int:
        return int.from_bytes(self.image[at : at + 4], "little") if at >= 0 else 0

    def _u64(self, at: int) -> int:
        return int.from_bytes(self.image[at : at + 8], "little") if at >= 0 else 0

    def _name(self, at: int) -> tuple[bytes, int]:
        """A name's tokens and where the next one begins; a length above 127 takes two bytes."""
        size, at = self.image[at], at + 1
        if size & 0x80:
            size, at = size & 0x7F | self.image[at] << 7, at + 1
        return self.image[at : at + size], at + size

    def _find_names(self) -> tuple[int, int] | None:
        last = self.markers_at - self.markers[-1]
        for start in range(last & ~7, max(last - _PER_MARKER * _LONGEST, 8), -8):
            count = self._u32(start - 8)
            if -(-count // _PER_MARKER) == len(self.markers) and self._fits(start, count):
                return start, count
        return None

    def _fits(self, start: int, count: int) -> bool:
        at = start
        for number in range(min(count, _PER_MARKER + 1)):
            if at - start == self.markers[1 if number == _PER_MARKER else 0] and number in (0, _PER_MARKER):
                if number:
                    return True
            elif number == _PER_MARKER or not self.image[at]:
                return False
            at = self._name(at)[1]
        return _align(at) == self.markers_at

    def _addresses(self) -> list[int]:
        """Offsets from a base, before the count (to Linux 6.3) or behind the token index."""
        size = _align(4 * self.count)
        before = self.names_at - 8
        for base_at, offsets_at in ((before - 8, before - 8 - size), (self.after + size, self.after)):
            base = self._u64(base_at)
            if base >> 47 == 0x1FFFF and not base & 0xFFF and 0 <= offsets_at <= len(self.image) - size:
                offsets = struct.unpack_from(f"<{self.count}i", self.image, offsets_at)
                if sum(offset < 0 for offset in offsets) * 2 > self.count:  # per-CPU symbols are absolute, all others negative
                    return [offset if offset >= 0 else base - 1 - offset for offset in offsets]
                return [base + (offset & 0xFFFFFFFF) for offset in offsets]
        raise NoTable("the addresses are not found")

    def symbols(self) -> list[tuple[str, str, int]]:
        found = []
        at = self.names_at
        for address in self._addresses():
            packed, at = self._name(at)
            text = b"".join(self.tokens[token] for token in packed).decode("ascii", "replace")
            found.append((text[1:], text[:1], address))
        return found
