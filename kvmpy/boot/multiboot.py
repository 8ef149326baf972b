"""What both multiboot versions share: the address fields of images that are not ELF, and ELF sections kept for the kernel."""

from __future__ import annotations

from kvmpy.boot.elf import SHF_ALLOC, SHT_NOBITS, Elf
from kvmpy.boot.image import Image
from kvmpy.boot.job import Job
from kvmpy.record import Record
from kvmpy.units import MIB

TEXT_MEMORY, TEXT_COLUMNS, TEXT_ROWS = 0xB8000, 80, 25


class AddressFields(Record, frozen=True):
    """The address tag: where the file's bytes go when it is no ELF file."""

    header: int
    load: int
    load_end: int
    bss_end: int

    def place(self, job: Job, found_at: int, shift: int = 0) -> tuple[int, int]:
        """Loads the image; `found_at` is the header's offset in the file. Returns (first address, end)."""
        image = job.image
        start = 0 if self.load == 0xFFFFFFFF else found_at - (self.header - self.load)
        load = self.header - found_at if self.load == 0xFFFFFFFF else self.load
        if load > self.header or load < 0 or start < 0:
            raise image.error(f"multiboot address fields do not agree: header at {self.header:#x}, load address {self.load:#x}")
        if self.load_end and self.load_end < load:
            raise image.error(f"multiboot load_end_addr {self.load_end:#x} is below load_addr {load:#x}")
        size = self.load_end - load if self.load_end else len(image) - start
        data = image.bytes(start, size, "the multiboot load range")
        end = load + size
        if self.bss_end and self.bss_end < end:
            raise image.error(f"multiboot bss_end_addr {self.bss_end:#x} is below the end of the data {end:#x}")
        bss = self.bss_end - end if self.bss_end else 0
        if size + bss == 0:
            raise image.error("the multiboot address fields describe an empty image")
        job.layout.take(image, load + shift, size + bss, "the multiboot image")
        job.layout.memory.write(load + shift, data)
        job.layout.memory.fill(end + shift, bss)
        return load + shift, end + bss + shift


def place_sections(job: Job, elf: Elf, shift: int = 0) -> bytes:
    """The section header table with addresses filled in; symbol and debug sections are loaded where they fit."""
    table = bytearray(elf.section_table())
    at, width = (12, 4) if elf.bits == 32 else (16, 8)
    for index, section in enumerate(elf.sections()):
        where = index * elf.shentsize + at
        if section.flags & SHF_ALLOC:
            if shift and section.addr:
                mask = (1 << 8 * width) - 1
                table[where : where + width] = ((section.addr + shift) & mask).to_bytes(width, "little")
            continue
        if section.type in (0, SHT_NOBITS) or not section.size or section.addr:
            continue
        data = _section_bytes(elf.image, section.offset, section.size)
        base = job.layout.find(len(data), align=16, low=MIB) if data else None
        if base is not None:
            job.layout.put(data, "ELF section", align=16, low=MIB)
            table[where : where + width] = base.to_bytes(width, "little")
    return bytes(table)


def _section_bytes(image: Image, offset: int, size: int) -> bytes:
    return image.data[offset : offset + size] if offset + size <= len(image) else b""
