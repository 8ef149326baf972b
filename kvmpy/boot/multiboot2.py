"""Multiboot2 Specification 2.0: header in the first 32 KiB, 32-bit entry with EAX = 36D76289h, EBX = boot information tags."""

from __future__ import annotations

import struct

from kvmpy.boot.elf import Elf, is_elf
from kvmpy.boot.image import Image
from kvmpy.boot.job import LOADER_NAME, Job
from kvmpy.boot.layout import lower_kib, upper_kib
from kvmpy.boot.multiboot import TEXT_COLUMNS, TEXT_MEMORY, TEXT_ROWS, AddressFields, place_sections
from kvmpy.boot.state import BootState, protected_mode
from kvmpy.record import Record, field
from kvmpy.units import MIB

HEADER_MAGIC = 0xE85250D6
LOADER_MAGIC = 0x36D76289
SEARCH = 32768
ARCHITECTURE_I386 = 0

# Header tags (3.1.3 ff.).
TAG_END = 0
TAG_REQUEST = 1
TAG_ADDRESS = 2
TAG_ENTRY = 3
TAG_CONSOLE = 4
TAG_FRAMEBUFFER = 5
TAG_MODULE_ALIGN = 6
TAG_EFI_SERVICES = 7
TAG_ENTRY_EFI32 = 8
TAG_ENTRY_EFI64 = 9
TAG_RELOCATABLE = 10
OPTIONAL = 1

# Boot information tags (3.6).
INFO_END = 0
INFO_CMDLINE = 1
INFO_LOADER = 2
INFO_MODULE = 3
INFO_MEMORY = 4
INFO_MMAP = 6
INFO_FRAMEBUFFER = 8
INFO_ELF = 9
INFO_ACPI_OLD = 14
INFO_ACPI_NEW = 15
INFO_LOAD_BASE = 21


class Header(Record):
    """A header with its tags read."""

    at: int
    address: AddressFields | None = None
    entry: int | None = None
    requested: set[int] = field(default_factory=set)
    """Information tags without which the kernel does not want to start."""
    relocatable: tuple[int, int, int, int] | None = None
    """(lowest, highest, alignment, preference 0 none, 1 lowest, 2 highest)."""


def _locate(image: Image) -> tuple[int, int, int] | None:
    """(offset, architecture, length) of the first 8-aligned header with a right checksum."""
    window = image.data[:SEARCH]
    magic = HEADER_MAGIC.to_bytes(4, "little")
    at = window.find(magic)
    while at >= 0:
        if at % 8 == 0 and at + 16 <= len(window):
            fields = struct.unpack_from("<IIII", window, at)
            if sum(fields) & 0xFFFFFFFF == 0:
                return at, fields[1], fields[2]
        at = window.find(magic, at + 1)
    return None


def recognises(image: Image) -> bool:
    return _locate(image) is not None


def read_header(image: Image) -> Header:
    """Finds and reads the header. ImageError when there is none, or when it demands what this loader lacks."""
    found = _locate(image)
    if found is None:
        raise image.error("no multiboot2 kernel: no header with a right checksum in the first 32 KiB")
    at, architecture, length = found
    if architecture != ARCHITECTURE_I386:
        raise image.error(f"wrong architecture: the multiboot2 header is for architecture {architecture}, not i386 (0)")
    if length < 16 or at + length > SEARCH:
        raise image.error(f"the multiboot2 header claims {length:#x} bytes, it must end within the first 32 KiB")
    header = Header(at)
    position, end = at + 16, at + length
    while position + 8 <= end:
        kind, flags, size = image.unpack("<HHI", position, "a multiboot2 header tag")
        if size < 8 or position + size > end:
            raise image.error(f"multiboot2 header tag {kind} claims {size:#x} bytes, more than the header holds")
        if kind == TAG_END:
            return header
        body = image.bytes(position + 8, size - 8, f"multiboot2 header tag {kind}")
        _read_tag(image, header, kind, flags, body)
        position += size + 7 & ~7
    raise image.error("the multiboot2 header has no end tag")


_TAG_BODY = {TAG_ADDRESS: 16, TAG_ENTRY: 4, TAG_CONSOLE: 4, TAG_FRAMEBUFFER: 12, TAG_RELOCATABLE: 16}


def _read_tag(image: Image, header: Header, kind: int, flags: int, body: bytes) -> None:
    if len(body) < _TAG_BODY.get(kind, 0):
        raise image.error(f"multiboot2 header tag {kind} is only {len(body) + 8} bytes long")
    if kind == TAG_REQUEST:
        if not flags & OPTIONAL:
            header.requested.update(struct.unpack_from(f"<{len(body) // 4}I", body))
    elif kind == TAG_ADDRESS:
        header.address = AddressFields(*struct.unpack_from("<4I", body))
    elif kind == TAG_ENTRY:
        (header.entry,) = struct.unpack_from("<I", body)
    elif kind == TAG_FRAMEBUFFER:
        width, height, depth = struct.unpack_from("<III", body)
        if depth and not flags & OPTIONAL:
            raise image.error(f"the multiboot2 header demands a graphics mode ({width}x{height}x{depth}): only text mode is there")
    elif kind == TAG_RELOCATABLE:
        header.relocatable = struct.unpack_from("<4I", body)
    elif kind in (TAG_CONSOLE, TAG_MODULE_ALIGN, TAG_EFI_SERVICES, TAG_ENTRY_EFI32, TAG_ENTRY_EFI64):
        # A text console is always there, modules always stand on pages, and the EFI tags speak to EFI loaders only.
        return
    elif not flags & OPTIONAL:
        raise image.error(f"the multiboot2 header demands tag {kind}, which this loader lacks")


def _check_requests(job: Job, header: Header, elf: Elf | None) -> None:
    offered = {INFO_CMDLINE, INFO_LOADER, INFO_MODULE, INFO_MEMORY, INFO_MMAP, INFO_FRAMEBUFFER}
    if elf is not None and elf.section_table():
        offered.add(INFO_ELF)
    if job.rsdp:
        offered |= {INFO_ACPI_OLD, INFO_ACPI_NEW}
    if header.relocatable is not None:
        offered.add(INFO_LOAD_BASE)
    missing = sorted(header.requested - offered)
    if missing:
        raise job.image.error(f"the multiboot2 kernel demands information tags that cannot be given: {', '.join(map(str, missing))}")


def _choose_base(job: Job, header: Header, base: int, size: int) -> int:
    """Where a relocatable image linked at `base` goes (3.1.13)."""
    assert header.relocatable is not None
    low, high, align, preference = header.relocatable
    if align == 0 or align & (align - 1):
        raise job.image.error(f"the multiboot2 relocatable tag has alignment {align:#x}, not a power of two")
    if preference == 0 and low <= base and base + size - 1 <= high and base % align == 0:
        if job.layout.usable(base, size) and job.layout.overlap(base, size) is None:
            return base
    # Low memory is for the information and for the guest's real-mode needs, unless the kernel leaves no choice.
    for floor in (MIB, 0x1000):
        found = job.layout.find(size, align=align, low=max(low, floor), high=high + 1, top=preference == 2)
        if found is not None:
            return found
    raise job.image.error(f"no room in memory for the relocatable kernel ({size:#x} bytes between {low:#x} and {high:#x})")


def load(job: Job) -> BootState:
    image = job.image
    header = read_header(image)
    elf = None if header.address is not None or not is_elf(image) else Elf(image)
    _check_requests(job, header, elf)
    shift = 0
    if header.address is not None:
        first, end, shift = _place_flat(job, header, header.address)
        if header.entry is None:
            raise image.error("a multiboot2 address tag without an entry address tag")
        entry, base = header.entry + shift, first
        inside = first <= entry < end
    elif elf is not None:
        segments = elf.segments
        if header.relocatable is not None and segments:
            link = min(p.paddr for p in segments)
            span = max(p.paddr + p.memsz for p in segments) - link
            shift = _choose_base(job, header, link, span) - link
        placed = elf.load(job.layout, shift)
        base = min(p.paddr for p in placed)
        entry = elf.physical_entry() + shift if header.entry is None else header.entry + shift
        inside = any(p.paddr <= entry < p.paddr + p.memsz for p in placed)
    else:
        raise image.error("a multiboot2 header, but neither an ELF file nor an address tag that says where to load it")
    if not inside or entry >> 32:
        raise image.error(f"the multiboot2 entry point {entry:#x} lies outside the image")
    info = _information(job, header, elf, base, shift)
    gprs = {"rax": LOADER_MAGIC, "rbx": info}
    return job.finish(protected_mode("multiboot2", entry, gprs=gprs, summary=f"entry {entry:#x}, information at {info:#x}"))


def _place_flat(job: Job, header: Header, fields: AddressFields) -> tuple[int, int, int]:
    shift = 0
    if header.relocatable is not None:
        link = fields.header - header.at if fields.load == 0xFFFFFFFF else fields.load
        start = 0 if fields.load == 0xFFFFFFFF else header.at - (fields.header - fields.load)
        end = max(fields.load_end or link + len(job.image) - start, fields.bss_end)
        if link < 0 or end <= link:
            raise job.image.error("the multiboot2 address tag describes an empty image")
        shift = _choose_base(job, header, link, end - link) - link
    first, last = fields.place(job, header.at, shift)
    return first, last, shift


def _tag(kind: int, body: bytes) -> bytes:
    """A boot information tag, padded to 8 bytes; the size does not count the padding."""
    raw = struct.pack("<II", kind, 8 + len(body)) + body
    return raw + bytes(-len(raw) % 8)


def _information(job: Job, header: Header, elf: Elf | None, base: int, shift: int) -> int:
    """Writes the boot information tags; returns their address."""
    entries = job.layout.map
    tags = _tag(INFO_CMDLINE, job.cmdline + b"\0") + _tag(INFO_LOADER, LOADER_NAME + b"\0")
    for start, size, line in job.put_modules():
        tags += _tag(INFO_MODULE, struct.pack("<II", start, start + size) + line + b"\0")
    tags += _tag(INFO_MEMORY, struct.pack("<II", lower_kib(entries), upper_kib(entries)))
    memmap = b"".join(struct.pack("<QQII", r.base, r.size, r.kind, 0) for r in entries)
    tags += _tag(INFO_MMAP, struct.pack("<II", 24, 0) + memmap)
    text = struct.pack("<QIIIBBH", TEXT_MEMORY, TEXT_COLUMNS * 2, TEXT_COLUMNS, TEXT_ROWS, 16, 2, 0)
    tags += _tag(INFO_FRAMEBUFFER, text)
    if elf is not None:
        table = place_sections(job, elf, shift)
        if table:
            tags += _tag(INFO_ELF, struct.pack("<III", elf.shnum, elf.shentsize, elf.shstrndx) + table)
    if job.rsdp:
        pointer = job.layout.memory.read(job.rsdp, 36)
        tags += _tag(INFO_ACPI_OLD, pointer[:20]) + _tag(INFO_ACPI_NEW, pointer)
    if header.relocatable is not None:
        tags += _tag(INFO_LOAD_BASE, struct.pack("<I", base))
    tags += _tag(INFO_END, b"")
    record = struct.pack("<II", 8 + len(tags), 0) + tags
    return job.put_low(record, "boot information", 8)
