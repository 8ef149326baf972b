"""Names and source lines of guest addresses: ELF symbol tables, DWARF line tables, System.map."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kvmpy.debug.kallsyms import NoTable, kernel_symbols, unpack_kernel
from kvmpy.debug.symbol_elf import symbol_elf
from kvmpy.errors import HostError, ImageError
from kvmpy.memory import GuestMemory

_MAP_LINE = re.compile(rb"([0-9a-fA-F]{1,16}) ([A-Za-z?-]) (\S+)")
_CODE_TYPES = frozenset(("STT_FUNC", "STT_GNU_IFUNC", "STT_LOOS"))
_KINDS = frozenset(("STT_NOTYPE", "STT_OBJECT", *_CODE_TYPES))
_REACH = 1 << 20
"""An address so far behind the last symbol without a size belongs to none."""
_ALL = (1 << 64) - 1


@dataclass(frozen=True)
class Symbol:
    """A name in the guest; `size` is 0 where the file does not tell."""

    name: str
    address: int
    size: int = 0
    function: bool = True


@dataclass(frozen=True)
class Line:
    """A place in the source."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def _kernel_symbols(image: bytes) -> list[tuple[str, str, int]]:
    """Of an ELF file without a symbol table: perhaps a stripped kernel's own."""
    try:
        return kernel_symbols(image)
    except NoTable:
        return []


def has_symbols(path: str) -> bool:
    """True for a file that may tell symbols without being asked to by name: ELF, or a Linux kernel."""
    try:
        with open(path, "rb") as file:
            head = file.read(0x206)
    except OSError:
        return False
    return head[:4] == b"\x7fELF" or head[0x202:] == b"HdrS"


class SymbolFile:
    """What one file says, moved by `offset`."""

    def __init__(self, path: str, offset: int = 0) -> None:
        """Raises ImageError for a file that is neither ELF nor a System.map, or cannot be read."""
        self.path = path
        self.offset = offset
        self.symbols: list[Symbol] = []
        self._lines: tuple[list[int], list[Line | None]] | None = None
        try:
            with open(path, "rb") as file:
                head = file.read(0x206)
                file.seek(0)
                self.elf = head[:4] == b"\x7fELF"
                if self.elf:
                    self._read_elf(ELFFile(file))
                    if not self.symbols:
                        file.seek(0)
                        self._take(_kernel_symbols(file.read()))
                elif head[0x202:] == b"HdrS":
                    self._take(kernel_symbols(unpack_kernel(file.read())))
                else:
                    self._read_map(file.read())
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}") from None
        except (ELFError, ValueError, KeyError, OverflowError, AssertionError, IndexError, TypeError, MemoryError) as error:
            raise ImageError(f"{path}: its symbols cannot be read: {error}") from None

    def _move(self, address: int) -> int:
        return address + self.offset & _ALL

    def _read_elf(self, elf: ELFFile) -> None:
        for section in elf.iter_sections():
            if not isinstance(section, SymbolTableSection):
                continue
            for symbol in section.iter_symbols():
                kind = symbol["st_info"]["type"]
                if symbol.name and kind in _KINDS and symbol["st_shndx"] != "SHN_UNDEF":
                    self.symbols.append(Symbol(symbol.name, self._move(symbol["st_value"]), symbol["st_size"], kind in _CODE_TYPES))

    def _take(self, found: list[tuple[str, str, int]]) -> None:
        self.symbols += [Symbol(name, self._move(address), 0, kind in "tTwW") for name, kind, address in found if kind not in "aAUw"]

    def _read_map(self, data: bytes) -> None:
        for row in data.splitlines():
            match = _MAP_LINE.match(row)
            if match:
                address, kind, name = match.groups()
                self._take([(name.decode("ascii", "replace"), kind.decode(), int(address, 16))])
        if not self.symbols:
            raise ImageError(f"{self.path}: neither an ELF file nor a System.map")

    def line(self, address: int) -> Line | None:
        """The source line of an address, by DWARF; None where there is none. The tables are read at the first question."""
        if not self.elf:
            return None
        if self._lines is None:
            self._lines = self._read_lines()
        starts, lines = self._lines
        at = bisect_right(starts, address - self.offset & _ALL) - 1
        return lines[at] if at >= 0 else None

    def _read_lines(self) -> tuple[list[int], list[Line | None]]:
        rows: dict[int, Line | None] = {}
        try:
            with open(self.path, "rb") as file:
                elf = ELFFile(file)
                if elf.has_dwarf_info():
                    dwarf = elf.get_dwarf_info()
                    for unit in dwarf.iter_CUs():
                        _unit_lines(dwarf, unit, rows)
        except (OSError, ELFError, ValueError, KeyError, IndexError, AssertionError, NotImplementedError, AttributeError):
            pass  # debug information that cannot be read tells nothing; the symbols stand
        starts = sorted(rows)
        return starts, [rows[start] for start in starts]


def _unit_lines(dwarf: Any, unit: Any, rows: dict[int, Line | None]) -> None:
    """One compilation unit's rows; the end of a sequence has None, unless another sequence begins there."""
    program = dwarf.line_program_for_CU(unit)
    if program is None:
        return
    names = [_text(entry.name) for entry in program["file_entry"]]
    first = 0 if program["version"] >= 5 else 1
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if state.end_sequence:
            rows.setdefault(state.address, None)
        else:
            index = state.file - first
            rows[state.address] = Line(names[index] if 0 <= index < len(names) else "?", state.line)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


class Symbols:
    """All symbols known of a guest. Files are added in order; the first that knows an address or a name answers."""

    def __init__(self) -> None:
        self.files: list[SymbolFile] = []
        self._names: dict[str, int] = {}
        self._starts: list[int] = []
        self._sorted: list[Symbol] = []
        self._dirty = False

    def add(self, path: str | PathLike[str], offset: int = 0) -> SymbolFile:
        """Takes the symbols of an ELF file or System.map, moved by `offset` bytes (KASLR). Raises ImageError."""
        file = SymbolFile(fspath(path), offset)
        self.files.append(file)
        self._dirty = True
        return file

    def add_kernel(self, memory: GuestMemory) -> int:
        """Takes the symbol table of a Linux kernel that runs, wherever it lies in RAM (KASLR is in its addresses already); gives the
        number of symbols. Raises ImageError where none is found."""
        for gpa, size in memory.ram_ranges():
            for view in memory.views(gpa, size):
                found = _kernel_symbols(bytes(view))
                if found:
                    self.add_list("kernel in memory", found)
                    return len(found)
        raise ImageError("no Linux kernel's symbol table is in memory")

    def add_list(self, name: str, found: list[tuple[str, str, int]]) -> None:
        """Takes symbols by name, nm's type letter and address."""
        file = SymbolFile.__new__(SymbolFile)
        file.path, file.offset, file.elf, file.symbols, file._lines = name, 0, False, [], None
        file._take(found)
        self.files.append(file)
        self._dirty = True

    def save(self, path: str | PathLike[str]) -> None:
        """Writes all symbols as an ELF file without code, for a debugger's `symbol-file`. HostError where it cannot be written."""
        self._sort()
        try:
            with open(path, "wb") as out:
                out.write(symbol_elf(self._sorted))
        except OSError as error:
            raise HostError(f"write {fspath(path)}", error.errno or 0) from None

    def _sort(self) -> None:
        if not self._dirty:
            return
        self._dirty = False
        self._names = {}
        found: dict[int, Symbol] = {}
        for file in self.files:
            for symbol in file.symbols:
                self._names.setdefault(symbol.name, symbol.address)
                known = found.get(symbol.address)
                if known is None or (symbol.function, symbol.size) > (known.function, known.size):
                    found[symbol.address] = symbol
        self._sorted = [found[address] for address in sorted(found)]
        self._starts = [symbol.address for symbol in self._sorted]

    def __len__(self) -> int:
        self._sort()
        return len(self._sorted)

    def address(self, name: str) -> int | None:
        """Address of a symbol; None where nobody knows it."""
        self._sort()
        return self._names.get(name)

    def find(self, address: int) -> tuple[Symbol, int] | None:
        """The symbol that an address lies in, and how far; None where it lies in none."""
        self._sort()
        at = bisect_right(self._starts, address) - 1
        for back in range(at, max(at - 16, -1), -1):
            symbol = self._sorted[back]
            inside = address - symbol.address
            if inside < symbol.size or (not symbol.size and back == at and inside < _REACH):
                return symbol, inside
        return None

    def line(self, address: int) -> Line | None:
        """The source line of an address."""
        for file in self.files:
            found = file.line(address)
            if found is not None:
                return found
        return None

    def text(self, address: int) -> str:
        """ "start_kernel+0x1c", or nothing."""
        found = self.find(address)
        if found is None:
            return ""
        symbol, inside = found
        return f"{symbol.name}+{inside:#x}" if inside else symbol.name

    def where(self, address: int) -> str:
        """The same with the source line as far as known: "main+0x4 (hello.c:12)"; the bare address where nothing is."""
        name, line = self.text(address), self.line(address)
        return (name or f"{address:#x}") + (f" ({line})" if line else "")
