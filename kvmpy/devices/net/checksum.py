"""The Internet checksum (RFC 1071)."""

from __future__ import annotations


def ones_sum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """Ones' complement sum of big-endian 16-bit words, an odd last byte padded with 0; 0xFFFF rather than 0 unless all is 0."""
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    number += start
    # 2^16 is 1 modulo 65535, so the remainder is the folded sum.
    return (number % 0xFFFF or 0xFFFF) if number else 0


def checksum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """What stands in a header: the complement of the sum."""
    return ones_sum(data, start) ^ 0xFFFF


def insert(frame: bytearray, first: int, at: int, end: int = 0) -> None:
    """Puts the checksum of frame[first:end] (0: to the end) at offset `at`, whose old content counts; nothing happens
    where that is outside the frame."""
    stop = min(end, len(frame)) if end else len(frame)
    if first < stop and at + 2 <= len(frame):
        frame[at : at + 2] = checksum(memoryview(frame)[first:stop]).to_bytes(2, "big")
