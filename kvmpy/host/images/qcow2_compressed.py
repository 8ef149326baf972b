"""Compressed clusters of qcow2: raw deflate, or zstd where Python has it."""

from __future__ import annotations

import errno
import importlib
import zlib
from collections.abc import Callable
from typing import Any

from kvmpy.errors import ImageError

DEFLATE, ZSTD = 0, 1

Decompress = Callable[[bytes, int], bytes]


def place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Offset and length in the file of the sectors that an L2 entry names; the data may end earlier."""
    shift = 62 - (cluster_bits - 8)
    offset = entry & (1 << shift) - 1
    sectors = (entry >> shift & (1 << 62 - shift) - 1) + 1
    return offset, sectors * 512 - (offset & 511)


def decompressor(kind: int, path: str) -> Decompress:
    """The function that makes one cluster from its compressed data. ImageError where Python lacks it."""
    if kind == DEFLATE:
        return _deflate
    for name in ("compression.zstd", "backports.zstd"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return _with_zstd(module)
    try:
        return _with_zstandard(importlib.import_module("zstandard"))
    except ImportError:
        raise ImageError(f"{path}: zstd compression needs Python 3.14 or the package zstandard") from None


def _damaged() -> OSError:
    return OSError(errno.EIO, "qcow2: a compressed cluster is damaged")


def _deflate(data: bytes, size: int) -> bytes:
    try:
        out = zlib.decompressobj(-15).decompress(data, size)
    except zlib.error:
        raise _damaged() from None
    if len(out) != size:
        raise _damaged()
    return out


def _with_zstd(module: Any) -> Decompress:
    def decompress(data: bytes, size: int) -> bytes:
        try:
            out = bytes(module.ZstdDecompressor().decompress(data, size))
        except module.ZstdError:
            raise _damaged() from None
        if len(out) != size:
            raise _damaged()
        return out

    return decompress


def _with_zstandard(module: Any) -> Decompress:
    def decompress(data: bytes, size: int) -> bytes:
        try:
            # A reader gives no more than was asked for, whatever the frame's header says.
            out = bytes(module.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data).read(size))
        except module.ZstdError:
            raise _damaged() from None
        if len(out) != size:
            raise _damaged()
        return out

    return decompress
