"""ELF executables as a boot loader reads them: header, segments, sections, notes (System V ABI, gABI chapters 4 and 5).

The reader is strict and small because images may be hostile: every offset is checked against the file.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmpy.boot.image import Image
from kvmpy.boot.layout import Layout
from kvmpy.record import Record

PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
SHT_NOBITS = 8
SHF_ALLOC = 2
EM_386, EM_X86_64 = 3, 62
ET_NAMES = {0: "without a type", 1: "a relocatable object, link it first", 4: "a core dump"}
EM_NAMES = {
    2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S/390", 40: "ARM", 42: "SuperH", 43: "SPARC V9",
    50: "Itanium", 183: "AArch64", 243: "RISC-V", 247: "BPF", 258: "LoongArch",
}
MOST_SEGMENTS = 4096


class Program(Record, frozen=True):
    """A program header."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class Section(Record, frozen=True):
    """A section header, with the position of its raw bytes in the table."""

    type: int
    flags: int
    addr: int
    offset: int
    size: int


class Elf:
    """A parsed ELF file. ImageError when it is not an x86 executable or ends too soon."""

    def __init__(self, image: Image) -> None:
        self.image = image
        ident = image.bytes(0, 16, "the ELF header")
        if ident[4] not in (1, 2):
            raise image.error(f"not a valid ELF file: class {ident[4]}")
        if ident[5] != 1:
            raise image.error("wrong architecture: a big-endian ELF file")
        self.bits = 32 if ident[4] == 1 else 64
        word = "I" if self.bits == 32 else "Q"
        (
            self.type, self.machine, _, self.entry, self.phoff, self.shoff, _, _,
            self.phentsize, self.phnum, self.shentsize, self.shnum, self.shstrndx,
        ) = image.unpack(f"<HHI{word}{word}{word}IHHHHHH", 16, "the ELF header")
        if self.machine not in (EM_386, EM_X86_64):
            name = EM_NAMES.get(self.machine, f"machine {self.machine}")
            raise image.error(f"wrong architecture: an ELF file for {name}, not x86")
        if self.bits == 64 and self.machine == EM_386:
            raise image.error("not a valid ELF file: 64-bit class with machine 80386")
        if self.type not in (2, 3):
            raise image.error(f"not an executable: an ELF file that is {ET_NAMES.get(self.type, f'of type {self.type}')}")
        self.programs = list(self._programs())
        if any(p.type == PT_INTERP for p in self.programs):
            raise image.error("a dynamically linked program, not a kernel: link it with -static -no-pie")

    def _programs(self) -> Iterator[Program]:
        least = 32 if self.bits == 32 else 56
        if self.phnum == 0:
            raise self.image.error("the ELF file has no program headers, so nothing to load")
        if self.phentsize < least:
            raise self.image.error(f"not a valid ELF file: program headers of {self.phentsize} bytes")
        if self.phnum > MOST_SEGMENTS:
            raise self.image.error(f"not a valid ELF file: {self.phnum} program headers")
        for index in range(self.phnum):
            at = self.phoff + index * self.phentsize
            if self.bits == 32:
                kind, offset, vaddr, paddr, filesz, memsz, _, _ = self.image.unpack("<8I", at, "a program header")
            else:
                kind, _, offset, vaddr, paddr, filesz, memsz, _ = self.image.unpack("<IIQQQQQQ", at, "a program header")
            yield Program(kind, offset, vaddr, paddr, filesz, memsz)

    @property
    def segments(self) -> list[Program]:
        """The segments that occupy memory."""
        return [p for p in self.programs if p.type == PT_LOAD and p.memsz]

    def section_table(self) -> bytes:
        """The raw section headers; empty when there are none or they lie outside the file."""
        least = 40 if self.bits == 32 else 64
        size = self.shnum * self.shentsize
        if not self.shoff or not self.shnum or self.shentsize < least or self.shoff + size > len(self.image):
            return b""
        return self.image.data[self.shoff : self.shoff + size]

    def sections(self) -> list[Section]:
        """The section headers, or none when the table is missing or damaged."""
        found = []
        for index in range(self.shnum if self.section_table() else 0):
            at = self.shoff + index * self.shentsize
            layout = "<10I" if self.bits == 32 else "<IIQQQQIIQQ"
            _, kind, flags, addr, offset, size, *_ = self.image.unpack(layout, at, "a section header")
            found.append(Section(kind, flags, addr, offset, size))
        return found

    def notes(self) -> Iterator[tuple[bytes, int, bytes]]:
        """(name, type, descriptor) of every note; a damaged note ends its segment silently."""
        for program in self.programs:
            if program.type != PT_NOTE:
                continue
            data = self.image.data[program.offset : program.offset + program.filesz]
            at = 0
            while at + 12 <= len(data):
                namesz, descsz, kind = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4, 8))
                desc = at + 12 + (namesz + 3 & ~3)
                if desc + descsz > len(data):
                    break
                yield data[at + 12 : at + 12 + namesz].rstrip(b"\0"), kind, data[desc : desc + descsz]
                at = desc + (descsz + 3 & ~3)

    def physical_entry(self, segments: list[Program] | None = None) -> int:
        """The entry point as a physical address: a virtual one is translated by the segment that holds it."""
        for p in segments or self.segments:
            if p.paddr <= self.entry < p.paddr + p.memsz:
                return self.entry
        for p in segments or self.segments:
            if p.vaddr <= self.entry < p.vaddr + p.memsz:
                return self.entry - p.vaddr + p.paddr
        raise self.image.error(f"the entry point {self.entry:#x} lies in no segment")

    def load(self, layout: Layout, shift: int = 0) -> list[Program]:
        """Puts the segments at their physical addresses plus `shift`; returns them as placed."""
        segments = self.segments
        if not segments:
            raise self.image.error("the ELF file has no segments to load")
        placed = []
        for number, p in enumerate(segments):
            if p.filesz > p.memsz:
                raise self.image.error(f"segment {number} is larger in the file ({p.filesz:#x}) than in memory ({p.memsz:#x})")
            self.image.bytes(p.offset, p.filesz, f"segment {number}")
            moved = Program(p.type, p.offset, p.vaddr, p.paddr + shift, p.filesz, p.memsz)
            layout.take(self.image, moved.paddr, p.memsz, f"segment {number}")
            placed.append(moved)
        # Written only after all of them were accepted: a refused image leaves memory as it was.
        for p in placed:
            layout.memory.write(p.paddr, self.image.data[p.offset : p.offset + p.filesz])
            layout.memory.fill(p.paddr + p.filesz, p.memsz - p.filesz)
        return placed


def is_elf(image: Image) -> bool:
    return image.data[:4] == b"\x7fELF"
