"""Linux `struct boot_params`: the setup header of a bzImage, and the page that a 32- or 64-bit entry is given
(Documentation/arch/x86/boot.rst, zero-page.rst)."""

from __future__ import annotations

import struct

from kvmpy.boot.image import Image
from kvmpy.boot.layout import Range, upper_kib

PAGE_SIZE = 4096
HEADER = 0x1F1
"""First byte of the setup header, in the file and in boot_params alike."""

# Offsets of struct boot_params.
ORIG_VIDEO_MODE = 0x06
ORIG_VIDEO_COLS = 0x07
ORIG_VIDEO_LINES = 0x0E
ORIG_VIDEO_IS_VGA = 0x0F
ORIG_VIDEO_POINTS = 0x10
EXT_MEM_K = 0x02
ACPI_RSDP_ADDR = 0x70
EXT_RAMDISK_IMAGE = 0xC0
EXT_RAMDISK_SIZE = 0xC4
EXT_CMD_LINE_PTR = 0xC8
ALT_MEM_K = 0x1E0
E820_ENTRIES = 0x1E8
E820_TABLE = 0x2D0
E820_MOST = 128

# Setup header: offset, struct format.
FIELDS: dict[str, tuple[int, str]] = {
    "setup_sects": (0x1F1, "B"),
    "root_flags": (0x1F2, "H"),
    "syssize": (0x1F4, "I"),
    "vid_mode": (0x1FA, "H"),
    "boot_flag": (0x1FE, "H"),
    "jump": (0x200, "H"),
    "header": (0x202, "I"),
    "version": (0x206, "H"),
    "type_of_loader": (0x210, "B"),
    "loadflags": (0x211, "B"),
    "setup_move_size": (0x212, "H"),
    "code32_start": (0x214, "I"),
    "ramdisk_image": (0x218, "I"),
    "ramdisk_size": (0x21C, "I"),
    "heap_end_ptr": (0x224, "H"),
    "cmd_line_ptr": (0x228, "I"),
    "initrd_addr_max": (0x22C, "I"),
    "kernel_alignment": (0x230, "I"),
    "relocatable_kernel": (0x234, "B"),
    "xloadflags": (0x236, "H"),
    "cmdline_size": (0x238, "I"),
    "payload_offset": (0x248, "I"),
    "payload_length": (0x24C, "I"),
    "pref_address": (0x258, "Q"),
    "init_size": (0x260, "I"),
}

BOOT_FLAG = 0xAA55
MAGIC = 0x53726448
"""The bytes "HdrS"."""
LOADER_UNDEFINED = 0xFF
"""type_of_loader of a loader without an assigned number."""
LOADED_HIGH = 1 << 0
CAN_USE_HEAP = 1 << 7
XLF_KERNEL_64 = 1 << 0
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1


class SetupHeader:
    """The setup header within a copy of the file's first bytes. Fields newer than `version` read as their old default."""

    _since = {
        "cmd_line_ptr": 0x202, "heap_end_ptr": 0x201, "initrd_addr_max": 0x203, "kernel_alignment": 0x205,
        "relocatable_kernel": 0x205, "xloadflags": 0x20C, "cmdline_size": 0x206, "payload_offset": 0x208,
        "payload_length": 0x208, "pref_address": 0x20A, "init_size": 0x20A,
    }
    _default = {"initrd_addr_max": 0x37FFFFFF, "cmdline_size": 255}

    def __init__(self, image: Image) -> None:
        head = image.bytes(0, 0x204, "the Linux setup header")
        # The byte at 0x201 is the reach of the jump at 0x200, which skips the header: its end in every version.
        end = min(0x202 + head[0x201], PAGE_SIZE)
        raw = image.bytes(0, max(end, 0x226), "the Linux setup header")
        self.end = end
        self.raw = bytearray(raw.ljust(PAGE_SIZE, b"\0"))
        self.raw[end:] = bytes(PAGE_SIZE - end)

    def __getitem__(self, name: str) -> int:
        offset, code = FIELDS[name]
        if name in self._since and self._version() < self._since[name]:
            return self._default.get(name, 0)
        return int(struct.unpack_from("<" + code, self.raw, offset)[0])

    def _version(self) -> int:
        return int.from_bytes(self.raw[0x206:0x208], "little")

    @property
    def setup_size(self) -> int:
        """Bytes of the real-mode part: the boot sector and setup_sects sectors (0 means 4)."""
        return ((self["setup_sects"] or 4) + 1) * 512


def is_bzimage(image: Image) -> bool:
    """True for the boot flag and the "HdrS" of a kernel of protocol 2.00 or later."""
    data = image.data
    return len(data) > 0x206 and data[0x1FE:0x200] == b"\x55\xaa" and data[0x202:0x206] == b"HdrS"


class BootParams:
    """The zero page under construction."""

    def __init__(self, header: SetupHeader | None = None) -> None:
        self.raw = bytearray(PAGE_SIZE)
        if header is not None:
            self.raw[HEADER : header.end] = header.raw[HEADER : header.end]

    def __setitem__(self, name: str, value: int) -> None:
        offset, code = FIELDS[name]
        struct.pack_into("<" + code, self.raw, offset, value)

    def set_memory(self, entries: list[Range]) -> None:
        """The E820 table, and the older counts of KiB above 1 MiB."""
        entries = entries[:E820_MOST]
        self.raw[E820_ENTRIES] = len(entries)
        for index, r in enumerate(entries):
            struct.pack_into("<QQI", self.raw, E820_TABLE + 20 * index, r.base, r.size, r.kind)
        upper = upper_kib(entries)
        struct.pack_into("<H", self.raw, EXT_MEM_K, min(upper, 0xFC00))
        struct.pack_into("<I", self.raw, ALT_MEM_K, min(upper, 0xFFFFFFFF))

    def set_text_screen(self) -> None:
        """An 80x25 colour text screen at B8000h, the cursor at its top left corner."""
        self.raw[ORIG_VIDEO_MODE] = 3
        self.raw[ORIG_VIDEO_COLS] = 80
        self.raw[ORIG_VIDEO_LINES] = 25
        self.raw[ORIG_VIDEO_IS_VGA] = 1
        struct.pack_into("<H", self.raw, ORIG_VIDEO_POINTS, 16)

    def set_rsdp(self, address: int) -> None:
        struct.pack_into("<Q", self.raw, ACPI_RSDP_ADDR, address)

    def set_initrd(self, base: int, size: int) -> None:
        """Low halves in the header, high halves in the ext_ fields."""
        self["ramdisk_image"], self["ramdisk_size"] = base & 0xFFFFFFFF, size & 0xFFFFFFFF
        struct.pack_into("<II", self.raw, EXT_RAMDISK_IMAGE, base >> 32, size >> 32)

    def set_cmdline(self, base: int) -> None:
        self["cmd_line_ptr"] = base & 0xFFFFFFFF
        struct.pack_into("<I", self.raw, EXT_CMD_LINE_PTR, base >> 32)
