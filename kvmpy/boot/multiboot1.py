"""Multiboot Specification 0.6.96: header in the first 8 KiB, 32-bit entry with EAX = 2BADB002h, EBX = boot information."""

from __future__ import annotations

import struct

from kvmpy.boot.elf import Elf, is_elf
from kvmpy.boot.image import Image
from kvmpy.boot.job import LOADER_NAME, Job
from kvmpy.boot.layout import lower_kib, upper_kib
from kvmpy.boot.multiboot import TEXT_COLUMNS, TEXT_MEMORY, TEXT_ROWS, AddressFields, place_sections
from kvmpy.boot.state import BootState, protected_mode
from kvmpy.record import Record

HEADER_MAGIC = 0x1BADB002
LOADER_MAGIC = 0x2BADB002
SEARCH = 8192

# Header flags (3.1.2). Bits 0-15 are demands, 16-31 may be ignored.
PAGE_ALIGN = 1 << 0
MEMORY_INFO = 1 << 1
VIDEO_MODE = 1 << 2
ADDRESS_FIELDS = 1 << 16
KNOWN_DEMANDS = PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE

# Boot information flags (3.3).
INFO_MEMORY = 1 << 0
INFO_CMDLINE = 1 << 2
INFO_MODS = 1 << 3
INFO_ELF = 1 << 5
INFO_MMAP = 1 << 6
INFO_LOADER = 1 << 9
INFO_FRAMEBUFFER = 1 << 12
INFO_SIZE = 116


class Header(Record, frozen=True):
    """A header with a right checksum, and its offset in the file."""

    at: int
    flags: int


def find_header(image: Image) -> Header | None:
    """The first 4-aligned header wholly within the first 8 KiB."""
    window = image.data[:SEARCH]
    at = window.find(HEADER_MAGIC.to_bytes(4, "little"))
    while at >= 0:
        if at % 4 == 0 and at + 12 <= len(window):
            magic, flags, checksum = struct.unpack_from("<III", window, at)
            if (magic + flags + checksum) & 0xFFFFFFFF == 0:
                return Header(at, flags)
        at = window.find(HEADER_MAGIC.to_bytes(4, "little"), at + 1)
    return None


def recognises(image: Image) -> bool:
    return find_header(image) is not None


def _check_demands(image: Image, header: Header) -> None:
    unknown = header.flags & 0xFFFF & ~KNOWN_DEMANDS
    if unknown:
        raise image.error(f"the multiboot header demands features this loader lacks (flags {unknown:#x})")
    if header.flags & VIDEO_MODE:
        mode, width, height, depth = image.unpack("<IIII", header.at + 32, "the multiboot video fields")
        # Mode type 1 is EGA text; 0 is a linear frame buffer, which there is no device for.
        if mode != 1:
            raise image.error(f"the multiboot header demands a graphics mode ({width}x{height}x{depth}): only text mode is there")


def load(job: Job) -> BootState:
    image = job.image
    header = find_header(image)
    if header is None:
        raise image.error("no multiboot kernel: no header with a right checksum in the first 8 KiB")
    _check_demands(image, header)
    elf: Elf | None = None
    if header.flags & ADDRESS_FIELDS:
        fields = image.unpack("<5I", header.at + 12, "the multiboot address fields")
        if fields[1] > fields[0]:
            raise image.error(f"multiboot load_addr {fields[1]:#x} is above header_addr {fields[0]:#x}")
        first, end = AddressFields(*fields[:4]).place(job, header.at)
        entry = fields[4]
        if not first <= entry < end:
            raise image.error(f"the multiboot entry point {entry:#x} lies outside the image")
    elif is_elf(image):
        elf = Elf(image)
        entry = elf.physical_entry(elf.load(job.layout))
    else:
        raise image.error("a multiboot header, but neither an ELF file nor address fields that say where to load it")
    if entry >> 32:
        raise image.error(f"the entry point {entry:#x} is beyond 4 GiB, a multiboot kernel starts in 32-bit mode")
    info = _information(job, elf)
    gprs = {"rax": LOADER_MAGIC, "rbx": info}
    return job.finish(protected_mode("multiboot1", entry, gprs=gprs, summary=f"entry {entry:#x}, information at {info:#x}"))


def _information(job: Job, elf: Elf | None) -> int:
    """Writes the boot information structure and all it points to; returns its address."""
    image, entries = job.image, job.layout.map
    info = bytearray(INFO_SIZE)
    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODS | INFO_MMAP | INFO_LOADER | INFO_FRAMEBUFFER
    struct.pack_into("<II", info, 4, lower_kib(entries), upper_kib(entries))
    text = image.name.encode(errors="surrogateescape") + (b" " + job.cmdline if job.cmdline else b"")
    struct.pack_into("<I", info, 16, job.put_low(text + b"\0", "command line"))
    placed = job.put_modules()
    records = b"".join(
        struct.pack("<IIII", base, base + size, job.put_low(line + b"\0", "module command line"), 0) for base, size, line in placed
    )
    struct.pack_into("<II", info, 20, len(placed), job.put_low(records, "module list") if records else 0)
    if elf is not None:
        table = place_sections(job, elf)
        if table:
            flags |= INFO_ELF
            struct.pack_into("<IIII", info, 28, elf.shnum, elf.shentsize, job.put_low(table, "section headers"), elf.shstrndx)
    # The size field stands before each entry and does not count itself.
    memmap = b"".join(struct.pack("<IQQI", 20, r.base, r.size, r.kind) for r in entries)
    struct.pack_into("<II", info, 44, len(memmap), job.put_low(memmap, "memory map"))
    struct.pack_into("<I", info, 64, job.put_low(LOADER_NAME + b"\0", "loader name"))
    # Frame buffer type 2: EGA text, pitch in bytes, 16 bits per character cell.
    struct.pack_into("<QIIIBB", info, 88, TEXT_MEMORY, TEXT_COLUMNS * 2, TEXT_COLUMNS, TEXT_ROWS, 16, 2)
    struct.pack_into("<I", info, 0, flags)
    return job.put_low(bytes(info), "boot information")
