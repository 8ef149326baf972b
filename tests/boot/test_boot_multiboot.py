"""Multiboot 1 and 2: headers, information, refusals."""

from __future__ import annotations

import struct

import pytest

from kvmpy.boot import load
from kvmpy.boot.state import BootState
from kvmpy.errors import ImageError
from kvmpy.memory import GuestMemory
from tests.boot.boot_images import CODE, elf32, elf64, mb1_header, mb2_header, mb2_tag


def info1(memory: GuestMemory, state: BootState) -> dict[str, int]:
    names = (
        "flags lower upper device cmdline mods_count mods elf_num elf_size elf_addr elf_shndx mmap_size mmap "
        "drives_size drives config loader"
    )
    raw = memory.read(state.gprs["rbx"], 116)
    found = dict(zip(names.split(), struct.unpack_from("<17I", raw), strict=True))
    found["fb"] = struct.unpack_from("<Q", raw, 88)[0]
    return found


def tags(memory: GuestMemory, state: BootState) -> dict[int, list[bytes]]:
    at = state.gprs["rbx"]
    assert at % 8 == 0
    end = at + memory.read_u32(at)
    at += 8
    found: dict[int, list[bytes]] = {}
    while at < end:
        kind, size = memory.read_u32(at), memory.read_u32(at + 4)
        found.setdefault(kind, []).append(memory.read(at + 8, size - 8))
        at += size + 7 & ~7
    assert at == end and 0 in found
    return found


def test_multiboot1_elf(memory: GuestMemory, kernel) -> None:
    path = kernel(elf32([(0x100000, mb1_header(3) + CODE, 0x2000)], 0x10000C))
    modules = [(kernel(b"one" * 2000, "one"), "one arg"), (kernel(b"two", "two"), "")]
    state = load(memory, path, cmdline="root=x", modules=modules)
    assert (state.protocol, state.mode, state.rip) == ("multiboot1", "protected", 0x10000C)
    assert state.gprs["rax"] == 0x2BADB002
    info = info1(memory, state)
    assert info["flags"] == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9 | 1 << 12
    assert (info["lower"], info["upper"]) == (639, 63 * 1024)
    assert memory.read_cstring(info["cmdline"]) == f"{path} root=x".encode()
    assert memory.read_cstring(info["loader"]) == b"kvmpy"
    assert info["mods_count"] == 2 and info["fb"] == 0xB8000
    start, end, text, _ = struct.unpack("<IIII", memory.read(info["mods"], 16))
    assert start % 4096 == 0 and memory.read(start, end - start) == b"one" * 2000
    assert memory.read_cstring(text) == b"one arg"
    at, entries = info["mmap"], []
    while at < info["mmap"] + info["mmap_size"]:
        size, base, length, kind = struct.unpack("<IQQI", memory.read(at, 24))
        entries.append((base, length, kind))
        at += size + 4
    assert (0x100000, 63 << 20, 1) in entries


def test_multiboot1_takes_elf64(memory: GuestMemory, kernel) -> None:
    state = load(memory, kernel(elf64([(0x100000, mb1_header(0) + CODE, 0x1000)], 0x10000C)))
    assert state.mode == "protected" and state.protocol == "multiboot1"


def test_multiboot1_address_fields(memory: GuestMemory, kernel) -> None:
    # Header at 16 in the file; what stands before it is not loaded.
    head = mb1_header(1 << 16, 0x200000, 0x200000, 0x200000 + 35, 0x201000, 0x200020)
    memory.write(0x200000, b"\xff" * 0x1000)
    state = load(memory, kernel(bytes(16) + head + CODE + b"tail not loaded"))
    assert state.rip == 0x200020
    assert memory.read(0x200000, 35) == head + CODE
    assert memory.read(0x200023, 0xFDD) == bytes(0xFDD)


def test_multiboot1_sections(memory: GuestMemory, kernel) -> None:
    strings = struct.pack("<10I", 1, 3, 0, 0, 64, 20, 0, 0, 1, 0)
    path = kernel(elf32([(0x100000, mb1_header(0) + CODE, 0x1000)], 0x10000C, sections=bytes(40) + strings))
    info = info1(memory, load(memory, path))
    assert info["flags"] & 1 << 5 and (info["elf_num"], info["elf_size"]) == (2, 40)
    address = memory.read_u32(info["elf_addr"] + 40 + 12)
    assert address >= 0x100000 and memory.read(address, 20) == path.read_bytes()[64:84]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (elf32([(0x100000, mb1_header(1 << 5), 32)], 0x100000), "demands features"),
        (elf32([(0x100000, mb1_header(4, 0, 0, 0, 0, 0, 0, 1024, 768, 32), 64)], 0x100000), "graphics mode (1024x768x32)"),
        (mb1_header(0) + CODE, "neither an ELF file nor address fields"),
        (mb1_header(1 << 16, 0x200000, 0x200010, 0, 0, 0x200000), "is above header_addr"),
        (mb1_header(1 << 16, 0x200000, 0x100000, 0, 0, 0x200000), "do not agree"),
        (mb1_header(1 << 16, 0x200000, 0x200000, 0x300000, 0, 0x200000), "truncated: the multiboot load range"),
        (mb1_header(1 << 16, 0x200000, 0x200000, 0x1FFFFF, 0, 0x200000), "is below load_addr"),
        (mb1_header(1 << 16, 0x200000, 0x200000, 0x200020, 0x200010, 0x200000), "is below the end of the data"),
        (mb1_header(1 << 16, 0x200000, 0x200000, 0, 0xFFFFFFFF, 0x200000), "lies outside memory"),
        (mb1_header(1 << 16, 0x200000, 0x200000, 0, 0, 0x100000), "entry point 0x100000 lies outside the image"),
        (mb1_header(1 << 16, 0x200000), "truncated: the multiboot address fields"),
        (mb2_header(architecture=4), "architecture 4, not i386"),
        (mb2_header(), "neither an ELF file nor an address tag"),
        (mb2_header(mb2_tag(99)), "demands tag 99"),
        (mb2_header(mb2_tag(5, struct.pack("<III", 800, 600, 32))), "graphics mode (800x600x32)"),
        (mb2_header(mb2_tag(2, bytes(4))), "tag 2 is only 12 bytes"),
        (mb2_header(struct.pack("<HHI", 1, 0, 4096)), "claims 0x1000 bytes"),
        (mb2_header(struct.pack("<HHI", 1, 0, 3)), "claims 0x3 bytes"),
        (mb2_header(mb2_tag(1, struct.pack("<II", 1, 7))) + CODE, "information tags that cannot be given: 7"),
        (mb2_header(mb2_tag(2, struct.pack("<IIII", 0x200000, 0x200000, 0, 0))), "without an entry address tag"),
    ],
)
def test_refusals(memory: GuestMemory, kernel, image: bytes, words: str) -> None:
    path = kernel(image)
    with pytest.raises(ImageError) as caught:
        load(memory, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and words in text and "\n" not in text


def test_multiboot2_elf(memory: GuestMemory, kernel) -> None:
    header = mb2_header(mb2_tag(1, struct.pack("<6I", 1, 2, 4, 6, 14, 15)), mb2_tag(6), mb2_tag(77, b"", 1))
    image = elf64([(0x100000, header + CODE, 0x1000)], 0x100000 + len(header))
    # The header must lie on 8 bytes in the file: 64 + 56 does.
    state = load(memory, kernel(image), cmdline="x y", initrd=kernel(b"disk", "disk"))
    assert (state.protocol, state.rip) == ("multiboot2", 0x100000 + len(header))
    assert state.gprs["rax"] == 0x36D76289
    found = tags(memory, state)
    assert found[1] == [b"x y\0"] and found[2] == [b"kvmpy\0"]
    start, end = struct.unpack_from("<II", found[3][0])
    assert memory.read(start, end - start) == b"disk" and found[3][0][8:] == b"disk\0"
    assert struct.unpack("<II", found[4][0]) == (639, 63 * 1024)
    assert struct.unpack_from("<IIQQI", found[6][0]) == (24, 0, 0, 0x9FC00, 1)
    assert found[15][0][:8] == b"RSD PTR " and len(found[15][0]) == 36 and found[14][0] == found[15][0][:20]
    assert sum(found[14][0]) % 256 == 0 and sum(found[15][0]) % 256 == 0
    assert 21 not in found


@pytest.mark.parametrize(("preference", "want"), [(0, 0x400000), (1, 0x100000), (2, 0x3FFF000)])
def test_multiboot2_relocatable(memory: GuestMemory, kernel, preference: int, want: int) -> None:
    header = mb2_header(mb2_tag(10, struct.pack("<IIII", 0, 0xFFFFFFFF, 0x1000, preference)))
    image = elf64([(0x400000, header + CODE, 0x1000)], 0x400000 + len(header))
    state = load(memory, kernel(image))
    assert state.rip == want + len(header)
    assert memory.read(want, len(header)) == header
    assert tags(memory, state)[21] == [struct.pack("<I", want)]


def test_multiboot2_relocates_out_of_the_way(memory: GuestMemory, kernel) -> None:
    header = mb2_header(mb2_tag(10, struct.pack("<IIII", 0x200000, 0x3FFFFFF, 0x100000, 0)))
    state = load(memory, kernel(elf64([(0x10000000, header + CODE, 0x1000)], 0x10000000)))
    assert state.rip == 0x200000


@pytest.mark.parametrize("load_address", [0x200000, 0xFFFFFFFF])
def test_multiboot2_address_tag(memory: GuestMemory, kernel, load_address: int) -> None:
    entry = 0x200000 + 16 + 24 + 16 + 8
    header = mb2_header(
        mb2_tag(2, struct.pack("<IIII", 0x200000, load_address, 0, 0x202000)), mb2_tag(3, struct.pack("<I", entry))
    )
    memory.write(0x201000, b"\xff")
    state = load(memory, kernel(header + CODE))
    assert state.rip == entry and memory.read(entry, 3) == CODE and memory.read(0x201000, 1) == b"\0"


def test_multiboot2_goes_before_multiboot1(memory: GuestMemory, kernel) -> None:
    body = mb2_header() + mb1_header(0) + CODE
    assert load(memory, kernel(elf32([(0x100000, bytes(4) + body, 0x1000)], 0x100000))).protocol == "multiboot2"
    assert load(memory, kernel(elf32([(0x100000, bytes(4) + body, 0x1000)], 0x100000)), boot="multiboot1").protocol == "multiboot1"
