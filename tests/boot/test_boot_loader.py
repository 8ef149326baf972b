"""Recognition, naming a protocol, flat images, boot sectors, and what is said about bad input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpy.boot import Image, Range, load, memory_map
from kvmpy.errors import ConfigError, ImageError
from kvmpy.memory import GuestMemory
from tests.boot.boot_images import CODE, bzimage, elf32, elf64, mb1_header, mb2_header, mb2_tag, pvh_note

SECTOR = CODE.ljust(510, b"\0") + b"\x55\xaa"


def test_flat_images(memory: GuestMemory, kernel) -> None:
    path = kernel(CODE)
    state = load(memory, path, boot="flat16")
    assert (state.mode, state.rip, state.segments["cs"].base) == ("real", 0x7C00, 0)
    state = load(memory, path, boot="flat16@0x20000")
    assert (state.rip, state.segments["cs"].selector, state.segments["cs"].base) == (0, 0x2000, 0x20000)
    state = load(memory, path, boot="flat32")
    assert (state.mode, state.rip) == ("protected", 0x100000) and memory.read(0x100000, 3) == CODE
    state = load(memory, path, boot="flat64@0x200000")
    assert (state.mode, state.rip) == ("long", 0x200000) and memory.read_u32(state.gprs["rdi"]) == 0x336EC578


def test_boot_sector(memory: GuestMemory, kernel, rom: bytes) -> None:
    path = kernel(SECTOR)
    state = load(memory, path, boot="sector")
    assert (state.rip, state.gprs["rdx"], state.firmware) == (0x7C00, 0x80, False)
    state = load(memory, path)
    assert (state.protocol, state.firmware, state.disk) == ("bios", True, str(path))
    state = load(memory, path, boot="bios-memory")
    assert state.firmware and not state.disk and memory.read(0x7C00, 512) == SECTOR
    assert load(memory, None).firmware


def test_a_disk_with_a_multiboot_header_on_it_is_a_disk(memory: GuestMemory, kernel, rom: bytes) -> None:
    image = SECTOR + mb1_header(1 << 16, 0x100200, 0x100200, 0, 0, 0x100220) + bytes(4096)
    assert load(memory, kernel(image)).protocol == "bios"
    assert load(memory, kernel(image), boot="multiboot1").protocol == "multiboot1"


def test_large_disk_is_not_read_whole(memory: GuestMemory, kernel, rom: bytes) -> None:
    path = kernel(SECTOR)
    os.truncate(path, 64 << 30)
    assert load(memory, path).disk == str(path)


@pytest.mark.parametrize(
    ("boot", "words"),
    [("nonsense", "unknown boot protocol 'nonsense'"), ("elf@0x1000", "takes no address"), ("flat32@x", "not a number"),
     ("flat32@-1", "not a guest physical address")],
)
def test_bad_names(memory: GuestMemory, kernel, boot: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(memory, kernel(CODE), boot=boot)


def test_bad_files(memory: GuestMemory, kernel, tmp_path: Path) -> None:
    def refusal(path: Path, **more: object) -> str:
        with pytest.raises(ImageError) as caught:
            load(memory, path, **more)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refusal(tmp_path) == f"{tmp_path}: is a directory, not a file"
    assert "No such file" in refusal(tmp_path / "none")
    assert refusal(kernel(b"")) == f"{tmp_path / 'kernel'}: the file is empty"
    assert "not a regular file" in refusal(Path("/dev/null"))
    text = refusal(kernel(b"just text\n" * 100))
    assert "no header of bios, multiboot2, multiboot1, pvh, vmlinux, elf, linux was found" in text
    good = kernel(elf64([(0x200000, CODE, 3)], 0x200000))
    assert "initrd-missing: No such file" in refusal(good, initrd=tmp_path / "initrd-missing")
    assert "cannot hand one over" in refusal(kernel(SECTOR), boot="sector", initrd=good)
    assert "no boot sector" in refusal(kernel(CODE), boot="sector")
    assert "below 1 MiB" in refusal(kernel(CODE), boot="flat16@0x100000")
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refusal(tmp_path / "fifo")


def test_small_memory(kernel, rom: bytes) -> None:
    guest = GuestMemory("128K")
    try:
        assert load(guest, kernel(CODE), boot="flat16").rip == 0x7C00
        with pytest.raises(ImageError, match="needs 2M of RAM"):
            load(guest, kernel(CODE), boot="flat32")
        with pytest.raises(ImageError, match="needs 1M of RAM"):
            load(guest, kernel(SECTOR))
    finally:
        guest.close()


def test_memory_map() -> None:
    assert memory_map([(0, 0xC0000000), (1 << 32, 1 << 30)]) == [
        Range(0, 0x9FC00, 1), Range(0x9FC00, 0x400, 2), Range(0xE0000, 0x20000, 2), Range(0x100000, 0xBFF00000, 1),
        Range(0xFEC00000, 0x1400000, 2), Range(1 << 32, 1 << 30, 1),
    ]
    # A ROM over F0000h takes that part out of RAM; the map stays the same.
    assert memory_map([(0, 0xF0000), (0x100000, 0x100000)]) == memory_map([(0, 0x200000)])
    assert memory_map([(0, 0x10000)])[:1] == [Range(0, 0x10000, 1)]


SEEDS = [
    elf64([(0x200000, CODE, 0x1000), (0x300000, CODE * 9, 0x100)], 0x200000),
    elf32([(0x200000, CODE, 0x1000)], 0x200000, sections=bytes(80)),
    elf64([(0x200000, CODE, 0x1000)], 0x200000, notes=pvh_note(0x200000)),
    elf32([(0x100000, mb1_header(3) + CODE, 64)], 0x10000C, sections=bytes(80)),
    mb1_header(1 << 16, 0x200000, 0x200000, 0, 0, 0x200020) + CODE,
    elf64([(0x100000, mb2_header(mb2_tag(10, bytes(8) + b"\0\x10\0\0\1\0\0\0"), mb2_tag(1, b"\1\0\0\0", 1)) + CODE, 99)], 0x100000),
    mb2_header(mb2_tag(2, b"\0\0\x20\0" * 2 + bytes(8)), mb2_tag(3, b"\0\0\x20\0")) + CODE,
    bzimage(), bzimage(version=0x203), SECTOR,
]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_images_never_raise_anything_else(memory: GuestMemory, rom: bytes, data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, min(len(image), 0x300) - 1))
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        value = data.draw(st.sampled_from([0, 1, 0x7F, 0xFF, 0x1000, 0x200000, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1]))
        image[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image) - 1)) :]
    name = data.draw(st.sampled_from(["auto", "multiboot1", "multiboot2", "pvh", "elf", "vmlinux", "linux", "linux16", "linux32", "bios"]))
    try:
        state = load(memory, Image("fuzzed", bytes(image)), boot=name, cmdline="x")
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert state.protocol
