"""What has been executed, as data: bits by linear page, privilege and address space. Merges, saves and loads."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from os import PathLike, fspath
from typing import NamedTuple

from kvmpy.errors import HostError, ImageError

PAGE = 4096
_MAGIC = b"kvmpy coverage 1\n"
_KEY = struct.Struct("<QQB")
_BITS = PAGE // 8
_MOST = 512 << 20
"""Bytes that a file may unpack to."""


class Page(NamedTuple):
    """Key of a page: its linear address, whether it was executed in user mode, and CR3's address where spaces are told apart, or 0."""

    linear: int
    user: bool = False
    space: int = 0


class Bits(NamedTuple):
    """Bit n of each number is the byte at offset n of the page."""

    start: int
    """An instruction that begins here was begun."""
    bytes: int
    """Part of one."""
    taken: int
    """A conditional jump here has jumped."""
    passed: int
    """It has gone on."""

    def __or__(self, other: tuple[int, ...]) -> Bits:
        return Bits(*(mine | its for mine, its in zip(self, other, strict=True)))


class Coverage:
    """Executed code. An instruction counts from the moment when it is begun, also where it faults."""

    def __init__(self) -> None:
        self.pages: dict[Page, Bits] = {}
        self.images: list[tuple[str, int]] = []
        """Symbol files of the guest and how far their addresses are moved."""
        self.tables: dict[str, list[tuple[str, str, int]]] = {}
        """Symbols that no file has, by name, kind ("t": a function) and address: a kernel's, out of its memory."""
        self.branches = False
        """Ways of conditional jumps were recorded."""

    def add(self, page: Page, bits: Bits) -> None:
        """Adds what was executed in a page."""
        known = self.pages.get(page)
        self.pages[page] = bits if known is None else known | bits

    def merge(self, other: Coverage) -> Coverage:
        """Adds what another run has executed; gives itself."""
        for page, bits in other.pages.items():
            self.add(page, bits)
        self.images += [image for image in other.images if image not in self.images]
        self.tables |= other.tables
        self.branches |= other.branches
        return self

    def __len__(self) -> int:
        """Instructions executed."""
        return sum(bits.start.bit_count() for bits in self.pages.values())

    def only(self, user: bool | None = None, space: int | None = None) -> Coverage:
        """The part that was executed in user mode, or in supervisor mode, or under one CR3."""
        part = Coverage()
        part.images, part.tables, part.branches = list(self.images), dict(self.tables), self.branches
        part.pages = {
            page: bits for page, bits in self.pages.items() if user in (None, page.user) and space in (None, page.space)
        }  # fmt: skip
        return part

    def flat(self) -> dict[int, Bits]:
        """By linear page alone."""
        found: dict[int, Bits] = {}
        for page, bits in self.pages.items():
            known = found.get(page.linear)
            found[page.linear] = bits if known is None else known | bits
        return found

    def addresses(self) -> list[int]:
        """Linear addresses of all instructions executed, in order."""
        return [page + offset for page, bits in sorted(self.flat().items()) for offset in _ones(bits.start)]

    def blocks(self) -> list[tuple[int, int]]:
        """Address and size of every piece of executed code, neighbours joined, in order."""
        found: list[tuple[int, int]] = []
        for page, bits in sorted(self.flat().items()):
            for offset, size in _runs(bits.bytes):
                start = page + offset
                if found and sum(found[-1]) == start:
                    start, size = found[-1][0], found.pop()[1] + size
                found.append((start, size))
        return found

    def jumps(self) -> dict[int, tuple[bool, bool]]:
        """Of every conditional jump executed: whether it has jumped, and whether it has gone on."""
        found = {}
        for page, bits in sorted(self.flat().items()):
            for offset in _ones(bits.taken | bits.passed):
                found[page + offset] = bool(bits.taken >> offset & 1), bool(bits.passed >> offset & 1)
        return found

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a file of some hundred bytes for each page, and the tables. Raises HostError."""
        about = json.dumps({"images": self.images, "tables": self.tables, "branches": self.branches}).encode()
        parts = [struct.pack("<I", len(about)), about]
        for page, bits in sorted(self.pages.items()):
            parts.append(_KEY.pack(page.linear, page.space, page.user))
            parts += [one.to_bytes(_BITS, "little") for one in bits]
        try:
            with open(path, "wb") as out:
                out.write(_MAGIC + zlib.compress(b"".join(parts), 6))
        except OSError as error:
            raise HostError(f"write {fspath(path)}", error.errno or 0) from None

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Coverage:
        """What `save` wrote. Raises ImageError."""
        try:
            with open(path, "rb") as file:
                packed = file.read()
        except OSError as error:
            raise ImageError(f"{fspath(path)}: {error.strerror}") from None
        if not packed.startswith(_MAGIC):
            raise ImageError(f"{fspath(path)}: no coverage of kvmpy")
        try:
            return cls._unpack(packed[len(_MAGIC) :])
        except (zlib.error, struct.error, ValueError, KeyError, TypeError):
            raise ImageError(f"{fspath(path)}: the file is damaged") from None

    @classmethod
    def _unpack(cls, packed: bytes) -> Coverage:
        unpacker = zlib.decompressobj()
        data = memoryview(unpacker.decompress(packed, _MOST))
        if not unpacker.eof:
            raise ValueError
        (size,) = struct.unpack_from("<I", data)
        about = json.loads(bytes(data[4 : 4 + size]))
        self = cls()
        self.images = [(str(path), int(offset)) for path, offset in about["images"]]
        self.tables = {str(name): [(str(one), str(kind), int(at)) for one, kind, at in table] for name, table in about["tables"].items()}
        self.branches = bool(about["branches"])
        rest, step = data[4 + size :], _KEY.size + 4 * _BITS
        if len(rest) % step:
            raise ValueError
        for at in range(0, len(rest), step):
            linear, space, user = _KEY.unpack_from(rest, at)
            first = at + _KEY.size
            bits = Bits(*(int.from_bytes(rest[first + n * _BITS : first + (n + 1) * _BITS], "little") for n in range(4)))
            self.add(Page(linear, bool(user), space), bits)
        return self


def is_coverage(path: str) -> bool:
    """A file of `Coverage.save`. False for what cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _ones(bits: int) -> Iterator[int]:
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each run of ones."""
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        size = (~bits & (bits + 1)).bit_length() - 1
        yield at + skip, size
        bits >>= size
        at += skip + size
