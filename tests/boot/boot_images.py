"""Small kernels made by hand, byte by byte, for the boot tests."""

from __future__ import annotations

import struct

CODE = b"\xf4\xeb\xfd"
"""hlt; jmp back."""


def elf64(
    segments: list[tuple[int, bytes, int]], entry: int, *, notes: bytes = b"", machine: int = 62, kind: int = 2, virtual: int = 0
) -> bytes:
    """An ELF64 file with (paddr, content, memory size) segments; `virtual` is added to the virtual addresses."""
    count = len(segments) + bool(notes)
    offset = 64 + 56 * count
    table, body = b"", b""
    if notes:
        table += struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(notes), len(notes), 4)
        body += notes
    for paddr, data, memsz in segments:
        table += struct.pack("<IIQQQQQQ", 1, 7, offset + len(body), paddr + virtual, paddr, len(data), memsz, 4096)
        body += data
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return ident + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, count, 64, 0, 0) + table + body


def elf32(segments: list[tuple[int, bytes, int]], entry: int, *, notes: bytes = b"", sections: bytes = b"") -> bytes:
    """An ELF32 file; `sections` is a ready section header table of 40-byte entries, put at the end."""
    count = len(segments) + bool(notes)
    offset = 52 + 32 * count
    table, body = b"", b""
    if notes:
        table += struct.pack("<8I", 4, offset, 0, 0, len(notes), len(notes), 4, 4)
        body += notes
    for paddr, data, memsz in segments:
        table += struct.pack("<8I", 1, offset + len(body), paddr, paddr, len(data), memsz, 7, 4096)
        body += data
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    shoff = offset + len(body) if sections else 0
    head = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, shoff, 0, 52, 32, count, 40, len(sections) // 40, 0)
    return ident + head + table + body + sections


def pvh_note(entry: int, size: int = 4) -> bytes:
    return struct.pack("<III", 4, size, 18) + b"Xen\0" + entry.to_bytes(size, "little")


def mb1_header(flags: int, *fields: int) -> bytes:
    return struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF) + struct.pack(f"<{len(fields)}I", *fields)


def mb2_tag(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    raw = struct.pack("<HHI", kind, flags, 8 + len(body)) + body
    return raw + bytes(-len(raw) % 8)


def mb2_header(*tags: bytes, architecture: int = 0) -> bytes:
    body = b"".join(tags) + mb2_tag(0)
    length = 16 + len(body)
    return struct.pack("<IIII", 0xE85250D6, architecture, length, -(0xE85250D6 + architecture + length) & 0xFFFFFFFF) + body


def bzimage(
    *, version: int = 0x20F, xload: int = 3, loadflags: int = 1, payload: bytes = CODE.ljust(4096, b"\x90"), setup_sects: int = 1,
    initrd_max: int = 0x7FFFFFFF, init_size: int = 0x200000, pref: int = 0x1000000, relocatable: int = 1, cmdline_size: int = 2047,
    syssize: int | None = None,
) -> bytes:
    """A bzImage whose kernel is `payload`."""
    setup = bytearray((setup_sects + 1) * 512)
    struct.pack_into("<B", setup, 0x1F1, setup_sects)
    struct.pack_into("<I", setup, 0x1F4, len(payload) // 16 if syssize is None else syssize)
    struct.pack_into("<HBB4sH", setup, 0x1FE, 0xAA55, 0xEB, 0x6A, b"HdrS", version)
    struct.pack_into("<BB", setup, 0x210, 0, loadflags)
    struct.pack_into("<I", setup, 0x214, 0x100000)
    struct.pack_into("<IIBBHI", setup, 0x22C, initrd_max, 0x200000, relocatable, 21, xload, cmdline_size)
    struct.pack_into("<QI", setup, 0x258, pref, init_size)
    return bytes(setup) + payload
