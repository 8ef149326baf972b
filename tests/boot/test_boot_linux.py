"""Linux kernels by each of their entries: boot_params, initrd, command line, limits."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvmpy.boot import bootparams as bp
from kvmpy.boot import load
from kvmpy.errors import ImageError
from kvmpy.memory import GuestMemory
from tests.boot.boot_images import CODE, bzimage, elf64

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guests"


def field(page: bytes, name: str) -> int:
    offset, code = bp.FIELDS[name]
    return struct.unpack_from("<" + code, page, offset)[0]


def test_64_bit_entry(memory: GuestMemory, kernel) -> None:
    image = bzimage()
    state = load(memory, kernel(image), cmdline="console=ttyS0", initrd=kernel(b"I" * 5000, "initrd"))
    assert (state.protocol, state.mode, state.rip) == ("linux64", "long", 0x100200)
    assert memory.read(0x100000, 4096) == image[1024:]
    page = memory.read(state.gprs["rsi"], 4096)
    assert page[0x1F1:0x210] == image[0x1F1:0x210]
    assert field(page, "type_of_loader") == 0xFF
    assert memory.read_cstring(field(page, "cmd_line_ptr")) == b"console=ttyS0"
    base, size = field(page, "ramdisk_image"), field(page, "ramdisk_size")
    assert base % 4096 == 0 and memory.read(base, size) == b"I" * 5000
    assert base + 0x2000 == 64 << 20
    assert page[bp.E820_ENTRIES] == 5
    table = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(5)]
    assert table[0] == (0, 0x9FC00, 1) and table[3] == (0x100000, 63 << 20, 1)
    (rsdp,) = struct.unpack_from("<Q", page, 0x70)
    assert memory.read(rsdp, 8) == b"RSD PTR "
    assert page[0x1EF] == 0, "a sentinel other than 0 makes the kernel clear the fields it guards"


def test_32_bit_entry(memory: GuestMemory, kernel) -> None:
    state = load(memory, kernel(bzimage(xload=0)))
    assert (state.protocol, state.mode, state.rip) == ("linux32", "protected", 0x100000)
    assert load(memory, kernel(bzimage()), boot="linux32").rip == 0x100000


def test_16_bit_entry(memory: GuestMemory, kernel, rom: bytes) -> None:
    image = bzimage(version=0x203, initrd_max=0x37FFFFFF)
    state = load(memory, kernel(image), cmdline="dhcp", initrd=kernel(b"I" * 5000, "initrd"))
    assert (state.protocol, state.mode, state.firmware, state.rip) == ("linux16", "real", True, 0xFFF0)
    assert state.segments["cs"].base == 0xFFFF0000 and state.segments["cs"].selector == 0xF000
    assert memory.read(0xFFFF0000, 0x10000) == rom and memory.read(0xF0000, 0x10000) == rom
    setup = memory.read(0x90000, 1024)
    assert field(setup, "heap_end_ptr") == 0xDE00 and field(setup, "cmd_line_ptr") == 0x9E000
    assert field(setup, "loadflags") == 0x81
    assert memory.read_cstring(0x9E000) == b"dhcp"
    assert memory.read(field(setup, "ramdisk_image"), 5000) == b"I" * 5000
    table = memory.read(0xEF000, 0x1C)
    assert struct.unpack("<8sBBHHHHHHHHH", table) == (
        b"KVMPYFW1", 2, 0xFF, 639, 15 * 1024, 48 * 16, 0, 0x9020, 0x9000, 0xE000, 5, 0x40
    )
    # Loaded a second time after a reset, the ROM is still there.
    load(memory, kernel(image))


def test_vmlinux_without_pvh(memory: GuestMemory, kernel) -> None:
    code = CODE + b"Linux version 6.1 (x)"
    high = 0xFFFFFFFF80000000
    state = load(memory, kernel(elf64([(0x1000000, code, 0x100000)], 0x1000000, virtual=high)), cmdline="a")
    assert (state.protocol, state.rip) == ("vmlinux", 0x1000000)
    page = memory.read(state.gprs["rsi"], 4096)
    assert field(page, "header") == bp.MAGIC and field(page, "boot_flag") == 0xAA55
    assert memory.read_cstring(field(page, "cmd_line_ptr")) == b"a"


def test_initrd_above_4_gib_only_where_allowed(kernel) -> None:
    guest = GuestMemory("4G", hole=(0x4000000, 1 << 32))
    try:
        big = kernel(bytes(50 << 20), "big")
        state = load(guest, kernel(bzimage()), initrd=big)
        page = guest.read(state.gprs["rsi"], 4096)
        assert struct.unpack_from("<I", page, bp.EXT_RAMDISK_IMAGE)[0] == 1
        with pytest.raises(ImageError, match="initrd too large"):
            load(guest, kernel(bzimage(xload=1)), initrd=big)
    finally:
        guest.close()


def test_initrd_addr_max(memory: GuestMemory, kernel) -> None:
    state = load(memory, kernel(bzimage(initrd_max=0x2FFFFFF)), initrd=kernel(b"I" * 4096, "i"))
    assert field(memory.read(state.gprs["rsi"], 4096), "ramdisk_image") == 0x2FFF000


@pytest.mark.parametrize(
    ("image", "more", "words"),
    [
        (bzimage(syssize=0x1000), {}, "truncated: the header promises 0x10400 bytes, the file has 0x1400"),
        (bzimage()[:0x240], {}, "truncated: the Linux setup header"),
        (bzimage(payload=b""), {}, "truncated"),
        (bzimage(cmdline_size=3), {"cmdline": "abcd"}, "the command line has 4 bytes, this kernel takes 3"),
        (bzimage(pref=0x4000000), {}, "init_size"),
        (bzimage(init_size=0x8000000), {}, "needs 144M of RAM"),
        (bzimage(xload=0), {"boot": "linux64"}, "no 64-bit entry"),
        (bzimage(loadflags=0), {}, "old zImage"),
        (CODE * 1000, {"boot": "linux"}, "no Linux bzImage"),
        (bzimage(version=0x1FF), {}, "older than 2.00"),
    ],
)
def test_refusals(memory: GuestMemory, kernel, image: bytes, more: dict[str, str], words: str) -> None:
    path = kernel(image)
    with pytest.raises(ImageError) as caught:
        load(memory, path, **more)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and words in text and "\n" not in text


def test_initrd_too_large(memory: GuestMemory, kernel) -> None:
    with pytest.raises(ImageError, match=r"big: initrd too large: 63.0 MiB do not fit"):
        load(memory, kernel(bzimage()), initrd=kernel(bytes(63 << 20), "big"))


@pytest.mark.parametrize("name", ["vmlinuz", "vmlinux", "memtest64.bin"])
def test_real_kernels(name: str) -> None:
    path = CACHE / name
    if not path.exists():
        pytest.skip(f"{path} is not there: make linux fetches it")
    guest = GuestMemory("256M")
    try:
        state = load(guest, path, cmdline="console=ttyS0", initrd=None if "memtest" in name else CACHE / "initrd.cpio.gz")
        assert state.protocol == ("pvh" if name == "vmlinux" else "linux64")
    finally:
        guest.close()
