"""What one file says of a guest: its symbols, source lines, types, and how its functions are unwound."""

from __future__ import annotations

import mmap
import re
import struct
from functools import cached_property
from typing import Any, NamedTuple

from elftools.common.exceptions import DWARFError, ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kvmpy.debug.kallsyms import NoTable, kernel_symbols, unpack_kernel
from kvmpy.debug.lines import Line, Lines
from kvmpy.debug.types.btf import BadBtf, Btf
from kvmpy.debug.types.model import TypeSource
from kvmpy.errors import ImageError

_MAP_LINE = re.compile(rb"^([0-9a-fA-F]{1,16}) ([A-Za-z?-]) (\S+)", re.MULTILINE)
_NOTYPE, _OBJECT, _FUNC, _LOOS = 0, 1, 2, 10
_KINDS = frozenset((_NOTYPE, _OBJECT, _FUNC, _LOOS))
_UNDEFINED, _ABSOLUTE = 0, 0xFFF1
_ALL = (1 << 64) - 1
KERNEL_HALF = 0xFFFFFFFF80000000
"""Linux for x86-64 puts its image into the last 2 GiB."""
_BAD = (
    ELFError, DWARFError, ValueError, KeyError, OverflowError, AssertionError, IndexError, TypeError, MemoryError, struct.error,
    AttributeError,
)  # fmt: skip


class Symbol(NamedTuple):
    """A name in the guest; `size` is 0 where the file does not tell."""

    name: str
    address: int
    size: int = 0
    function: bool = True


def has_symbols(path: str) -> bool:
    """True for a file that may tell symbols without being asked to by name: ELF, or a Linux kernel."""
    try:
        with open(path, "rb") as file:
            head = file.read(0x206)
    except OSError:
        return False
    return head[:4] == b"\x7fELF" or head[0x202:] == b"HdrS"


class SymbolFile:
    """`offset` is where the guest has the file's contents, less where the file says; None: 0, or found out (a Linux kernel with KASLR)."""

    def __init__(self, path: str, offset: int | None = 0, found: list[tuple[str, str, int]] | None = None) -> None:
        """Symbols by name, nm's type letter and address may be given as `found`: no file is read then.
        Raises ImageError for a file that is neither ELF nor a System.map, or cannot be read."""
        self.path = path
        self.automatic = offset is None
        self.offset = offset or 0
        self.symbols: list[Symbol] = []
        """By the addresses in the file."""
        self.fixed: set[str] = set()
        """Names whose addresses do not move: absolute ones."""
        self.elf: ELFFile | None = None
        try:
            if found is not None:
                self._take(found)
            else:
                self._read()
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}") from None
        except _BAD as error:
            raise ImageError(f"{path}: its symbols cannot be read: {error}") from None

    def _read(self) -> None:
        with open(self.path, "rb") as file:
            head = file.read(0x206)
            if head[:4] == b"\x7fELF":
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.elf = ELFFile(self._data)  # type: ignore[arg-type]
                self._read_elf(self.elf)
                if not self.symbols:
                    try:
                        self._take(kernel_symbols(self._data[:]))
                    except NoTable:
                        pass
                return
            file.seek(0)
            if head[0x202:] == b"HdrS":
                self._take(kernel_symbols(unpack_kernel(file.read())))
            else:
                self._read_map(file.read())

    def _read_elf(self, elf: ELFFile) -> None:
        # Straight from the bytes: pyelftools makes an object of each symbol, which takes seconds for a kernel's.
        form = struct.Struct(("<" if elf.little_endian else ">") + ("IBBHQQ" if elf.elfclass == 64 else "IIIBBH"))
        seen: set[tuple[str, int]] = set()
        for section in elf.iter_sections():
            if not isinstance(section, SymbolTableSection):
                continue
            strings = elf.get_section(section["sh_link"]).data()
            data = section.data()
            for entry in form.iter_unpack(data[: len(data) // form.size * form.size]):
                if elf.elfclass == 64:
                    name_at, info, _, index, value, size = entry
                else:
                    name_at, value, size, info, _, index = entry
                if not name_at or index == _UNDEFINED or info & 15 not in _KINDS:
                    continue
                name = strings[name_at : strings.find(b"\0", name_at)].decode("utf-8", "replace")
                if name and (name, value) not in seen:
                    seen.add((name, value))
                    self.symbols.append(Symbol(name, value, size, info & 15 in (_FUNC, _LOOS)))
                    if index == _ABSOLUTE:
                        self.fixed.add(name)

    def _take(self, found: list[tuple[str, str, int]]) -> None:
        self.symbols += [Symbol(name, address, 0, kind in "tTwW") for name, kind, address in found if kind not in "aAUw"]

    def _read_map(self, data: bytes) -> None:
        self._take([(name.decode("ascii", "replace"), kind.decode(), int(address, 16)) for address, kind, name in _MAP_LINE.findall(data)])
        if not self.symbols:
            raise ImageError(f"{self.path}: neither an ELF file nor a System.map")

    # Moved by the offset.

    def moved(self, address: int) -> int:
        """Where the guest has an address of the file. What a kernel has below its image (per-CPU offsets) does not move with it."""
        if self.automatic and address < KERNEL_HALF:
            return address
        return address + self.offset & _ALL

    def unmoved(self, address: int) -> int:
        """The file's address for one of the guest."""
        return address - self.offset & _ALL

    def listing(self) -> list[Symbol]:
        """The symbols by the guest's addresses."""
        if not self.offset:
            return self.symbols
        fixed, moved = self.fixed, self.moved
        return [one if one.name in fixed else one._replace(address=moved(one.address)) for one in self.symbols]

    @cached_property
    def dwarf(self) -> Any:
        """pyelftools' DWARFInfo, or None."""
        if self.elf is None:
            return None
        try:
            # Relocations that a linked file still shows (ld --emit-relocs: a Linux kernel's) are applied already.
            loose = self.elf.header["e_type"] == "ET_REL"
            return self.elf.get_dwarf_info(relocate_dwarf_sections=loose) if self.elf.has_dwarf_info() else None
        except _BAD:
            return None

    @cached_property
    def lines(self) -> Lines | None:
        """Line tables; None where the file has none."""
        return Lines(self.dwarf) if self.dwarf is not None and self.dwarf.has_debug_info else None

    @cached_property
    def types(self) -> list[TypeSource]:
        """Its types: by BTF, which is read at once, and by DWARF, which knows more variables."""
        found: list[TypeSource] = []
        data = self.section(".BTF")
        if data:
            try:
                found.append(Btf(data))
            except BadBtf:
                pass
        if self.dwarf is not None and self.dwarf.has_debug_info:
            from kvmpy.debug.types.dwarf import DwarfTypes

            found.append(DwarfTypes(self.dwarf, self._address))
        return found

    def _address(self, name: str) -> int | None:
        """By the file; None where it has no such symbol."""
        return next((symbol.address for symbol in self.symbols if symbol.name == name), None)

    def section(self, name: str) -> bytes:
        """Contents of a section; empty where there is none."""
        if self.elf is None:
            return b""
        try:
            section = self.elf.get_section_by_name(name)
            return bytes(section.data()) if section is not None else b""
        except _BAD:
            return b""

    def line(self, address: int) -> Line | None:
        """The source line of a guest address, by DWARF."""
        return None if self.lines is None else self.lines.line(self.unmoved(address))

    def addresses(self, file: str, line: int) -> list[int]:
        """Guest addresses of a source line."""
        return [] if self.lines is None else [self.moved(address) for address in self.lines.addresses(file, line)]
