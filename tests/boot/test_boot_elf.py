"""Plain ELF files and PVH kernels: where they are put, and the state they start in."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from kvmpy import x86
from kvmpy.boot import load
from kvmpy.errors import ImageError
from kvmpy.memory import GuestMemory
from tests.boot.boot_images import CODE, elf32, elf64, pvh_note


def test_elf64_starts_in_long_mode(memory: GuestMemory, kernel) -> None:
    memory.write(0x200000, b"\xaa" * 0x2000)
    state = load(memory, kernel(elf64([(0x200000, CODE, 0x1000)], 0x200001)), cmdline="hello")
    assert (state.protocol, state.mode, state.rip) == ("elf", "long", 0x200001)
    assert memory.read(0x200000, 0x1000) == CODE.ljust(0x1000, b"\0")
    assert memory.read(0x201000, 1) == b"\xaa"
    assert state.efer == x86.EFER_LME | x86.EFER_LMA and state.cr4 == x86.CR4_PAE and state.cr0 & x86.CR0_PG
    assert state.segments["cs"].l == 1 and state.segments["cs"].db == 0
    assert state.gprs["rsp"] % 16 == 8
    for address in (0, 0x200000, 0xFEE00000, 0xFFFFFFFF):
        assert walk(memory, state.cr3, address) == address
    info = memory.read(state.gprs["rdi"], 56)
    magic, version, _, modules, _, cmdline, rsdp, _, _, _ = struct.unpack("<IIIIQQQQII", info)
    assert (magic, version, modules) == (0x336EC578, 1, 0)
    assert memory.read_cstring(cmdline) == b"hello"
    assert memory.read(rsdp, 8) == b"RSD PTR "


def walk(memory: GuestMemory, cr3: int, linear: int) -> int:
    """Page walk down to a 2 MiB page."""
    table = cr3
    for shift in (39, 30):
        entry = memory.read_u64(table + 8 * (linear >> shift & 511))
        assert entry & x86.PTE_P
        table = entry & ~0xFFF
    entry = memory.read_u64(table + 8 * (linear >> 21 & 511))
    assert entry & x86.PTE_P and entry & x86.PTE_PS
    return (entry & ~0x1FFFFF) + (linear & 0x1FFFFF)


def test_gdt_in_memory_agrees_with_the_segments(memory: GuestMemory, kernel) -> None:
    state = load(memory, kernel(elf64([(0x200000, CODE, 0x1000)], 0x200000)))
    entries = struct.unpack("<6Q", memory.read(state.gdt.base, state.gdt.limit + 1))
    assert entries[2] == 0x00AF9B000000FFFF
    assert entries[3] == 0x00CF93000000FFFF
    assert entries[0] == 0
    state = load(memory, kernel(elf32([(0x200000, CODE, 0x1000)], 0x200000)))
    assert struct.unpack("<6Q", memory.read(state.gdt.base, 48))[2] == 0x00CF9B000000FFFF


def test_elf32_starts_in_protected_mode(memory: GuestMemory, kernel) -> None:
    state = load(memory, kernel(elf32([(0x100000, CODE, 3)], 0x100000)))
    assert (state.mode, state.rip, state.cr0, state.efer) == ("protected", 0x100000, x86.CR0_PE | x86.CR0_ET, 0)
    assert memory.read_u32(state.gprs["rbx"]) == 0x336EC578


def test_virtual_entry_is_translated(memory: GuestMemory, kernel) -> None:
    high = 0xFFFFFFFF80000000
    state = load(memory, kernel(elf64([(0x200000, CODE, 0x1000)], high + 0x200002, virtual=high)))
    assert state.rip == 0x200002


@pytest.mark.parametrize("size", [4, 8])
def test_pvh(memory: GuestMemory, kernel, size: int) -> None:
    image = elf64([(0x100000, CODE, 0x1000)], 0xFFFF, notes=pvh_note(0x100000, size))
    initrd = kernel(b"module" * 1000, "module")
    state = load(memory, kernel(image), cmdline="a=b", initrd=initrd)
    assert (state.protocol, state.mode, state.rip) == ("pvh", "protected", 0x100000)
    info = struct.unpack("<IIIIQQQQII", memory.read(state.gprs["rbx"], 56))
    modules, listed, memmap, entries = info[3], info[4], info[7], info[8]
    assert modules == 1
    base, length, text, _ = struct.unpack("<QQQQ", memory.read(listed, 32))
    assert memory.read(base, length) == b"module" * 1000
    assert memory.read_cstring(text) == b"module"
    ranges = [struct.unpack("<QQII", memory.read(memmap + 24 * i, 24)) for i in range(entries)]
    assert ranges[0] == (0, 0x9FC00, 1, 0)
    assert (0x100000, 63 << 20, 1, 0) in ranges


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (elf64([(0x200000, CODE, 0x1000)], 0x200000, machine=183), "wrong architecture: an ELF file for AArch64"),
        (elf64([(0x200000, CODE, 0x1000)], 0x200000, kind=1), "relocatable object"),
        (elf64([(0x200000, CODE, 0x1000)], 0x300000), "entry point 0x300000 lies in no segment"),
        (elf64([(0x200000, CODE, 0x1000), (0x200800, CODE, 16)], 0x200000), "segment 1 (0x200800-0x20080f) overlaps segment 0"),
        (elf64([(0x8000000, CODE, 0x1000)], 0x8000000), "outside memory, which ends at 0x4000000: it needs 129M of RAM"),
        (elf64([(0x200000, CODE, 1 << 62)], 0x200000), "lies outside memory"),
        (elf64([(0xF0000, CODE, 0x1000)], 0xF0000), "reaches into the BIOS area"),
        (elf64([(0x200000, CODE, 1)], 0x200000), "larger in the file"),
        (elf64([(0x200000, CODE, 0x1000)], 0x200000)[:-1], "truncated: segment 0"),
        (elf64([(0x200000, CODE, 0x1000)], 0x200000)[:100], "truncated: a program header"),
        (b"\x7fELF", "truncated: the ELF header"),
        (elf64([], 0), "no program headers"),
    ],
)
def test_refusals(memory: GuestMemory, kernel, image: bytes, words: str) -> None:
    path = kernel(image)
    with pytest.raises(ImageError) as caught:
        load(memory, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and words in text and "\n" not in text


def test_refused_image_leaves_memory_alone(memory: GuestMemory, kernel) -> None:
    with pytest.raises(ImageError):
        load(memory, kernel(elf64([(0x200000, CODE, 0x1000), (0x9000000, CODE, 3)], 0x200000)))
    assert memory.read(0x200000, 3) == bytes(3)


def test_module_too_large(memory: GuestMemory, kernel) -> None:
    image = kernel(elf64([(0x200000, CODE, 0x1000)], 0x200000))
    big = kernel(bytes(65 << 20), "big")
    with pytest.raises(ImageError, match="big: module too large"):
        load(memory, image, initrd=big)


def test_assembled_by_gcc(memory: GuestMemory, tmp_path: Path) -> None:
    source = tmp_path / "k.S"
    source.write_text(".globl _start\n_start: hlt\njmp _start\n.data\n.long 0x12345678\n.bss\n.skip 9000\n")
    out = tmp_path / "k.elf"
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x400000,--build-id=none", "-o", out, source], check=True, timeout=60
    )
    state = load(memory, out)
    assert state.rip == 0x400000 and memory.read(0x400000, 1) == b"\xf4"


def test_all_memory_is_mapped_beyond_4_gib(kernel) -> None:
    guest = GuestMemory("6G")
    try:
        state = load(guest, kernel(elf64([(0x200000, CODE, 0x1000)], 0x200000)))
        assert walk(guest, state.cr3, (7 << 30) - 1) == (7 << 30) - 1
    finally:
        guest.close()
