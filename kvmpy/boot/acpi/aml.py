"""An assembler of ACPI Machine Language (ACPI 6.5 chapter 20): each function gives the bytes of one term."""

from __future__ import annotations

import struct


def name_seg(text: str) -> bytes:
    """Four characters, filled up with underscores (20.2.2)."""
    assert 1 <= len(text) <= 4 and text.upper() == text, text
    return text.ljust(4, "_").encode("ascii")


def name_string(path: str) -> bytes:
    r"""A path such as `\_SB.ISA.COM1` or `_CRS`."""
    prefix = b""
    while path[:1] in ("\\", "^"):
        prefix, path = prefix + path[:1].encode("ascii"), path[1:]
    parts = [name_seg(part) for part in path.split(".")] if path else []
    if len(parts) > 2:
        return prefix + b"\x2f" + bytes([len(parts)]) + b"".join(parts)
    return prefix + (b"\0" if not parts else b"\x2e" if len(parts) == 2 else b"") + b"".join(parts)


def package_length(size: int) -> bytes:
    """PkgLength of a body of `size` bytes; it counts itself (20.2.4)."""
    if size + 1 <= 0x3F:
        return bytes([size + 1])
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"an AML package of {size} bytes")


def _sized(opcode: bytes, body: bytes) -> bytes:
    return opcode + package_length(len(body)) + body


def integer(value: int) -> bytes:
    """The shortest encoding of an unsigned integer."""
    if value in (0, 1):
        return bytes([value])
    for prefix, layout, limit in ((0x0A, "B", 8), (0x0B, "<H", 16), (0x0C, "<I", 32), (0x0E, "<Q", 64)):
        if value < 1 << limit:
            return bytes([prefix]) + struct.pack(layout, value)
    raise ValueError(f"an AML integer of {value:#x}")


def string(text: str) -> bytes:
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """"PNP0501" as the compressed 32-bit number (19.3.4)."""
    a, b, c = (ord(letter) - 0x40 for letter in text[:3])
    value = (a << 10 | b << 5 | c) << 16 | int(text[3:], 16)
    return b"\x0c" + value.to_bytes(4, "big")


def name(path: str, value: bytes) -> bytes:
    return b"\x08" + name_string(path) + value


def buffer(data: bytes) -> bytes:
    return _sized(b"\x11", integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    return _sized(b"\x12", bytes([len(elements)]) + b"".join(elements))


def scope(path: str, *terms: bytes) -> bytes:
    return _sized(b"\x10", name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    return _sized(b"\x5b\x82", name_string(path) + b"".join(terms))


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    return _sized(b"\x14", name_string(path) + bytes([arguments]) + b"".join(terms))


def returns(value: bytes) -> bytes:
    return b"\xa4" + value


# Resource descriptors (6.4).


def io_ports(first: int, size: int) -> bytes:
    """Fixed ports, decoded with all 16 bits."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, size)


def irq(number: int) -> bytes:
    """An ISA interrupt: edge triggered, active high, not shared."""
    return struct.pack("<BH", 0x22, 1 << number)


def memory32(base: int, size: int) -> bytes:
    """Fixed, writable memory."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, size)


def _address_space(tag: int, layout: str, kind: int, flags: int, first: int, size: int) -> bytes:
    """A window that a bridge decodes: minimum and maximum fixed, no translation (6.4.3.5)."""
    body = struct.pack("<BBB5" + layout, kind, 0x0C, flags, 0, first, first + size - 1, 0, size)
    return struct.pack("<BH", tag, len(body)) + body


def bus_numbers(first: int, count: int) -> bytes:
    return _address_space(0x88, "H", 2, 0, first, count)


def io_window(first: int, size: int) -> bytes:
    return _address_space(0x88, "H", 1, 3, first, size)


def memory_window(first: int, size: int) -> bytes:
    """Writable, not cacheable, below 4 GiB."""
    return _address_space(0x87, "I", 0, 1, first, size)


def interrupt(gsi: int) -> bytes:
    """A level, active high, that others may share (6.4.3.6)."""
    return struct.pack("<BHBBI", 0x89, 6, 0x09, 1, gsi)


def resources(*descriptors: bytes) -> bytes:
    """A resource template. The checksum of the end tag is 0, which means "not checked"."""
    return buffer(b"".join(descriptors) + b"\x79\0")
