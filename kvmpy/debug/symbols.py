"""All that is known of a guest by name: addresses, functions, source lines, types and the values of variables."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from kvmpy.debug.kallsyms import NoTable, kernel_symbols
from kvmpy.debug.lines import Line
from kvmpy.debug.symbol_elf import symbol_elf
from kvmpy.debug.symbol_file import KERNEL_HALF, Symbol, SymbolFile, has_symbols
from kvmpy.debug.types.model import CType, Struct, TypeSource, Void
from kvmpy.debug.types.value import PathError, Value, follow, split_path
from kvmpy.errors import HostError, ImageError
from kvmpy.memory import GuestMemory

if TYPE_CHECKING:
    from kvmpy.machine import Machine

__all__ = ["Address", "Line", "Place", "Symbol", "SymbolFile", "Symbols", "has_symbols"]

_CHANGED = re.compile(r"(.+?)(?:\.(?:isra|constprop|part)\.\d+)+")
"""Names that GCC gives to what it has made of a function; where there are several, any of them."""
_REACH = 1 << 20
"""An address so far behind the last symbol without a size belongs to none."""


class Address(int):
    """A guest address that knows its `symbol` and source line: a number in every respect, in hexadecimal as text."""

    symbol: Symbol
    line: Line | None

    def __new__(cls, symbol: Symbol, line: Line | None = None) -> Address:
        self = super().__new__(cls, symbol.address)
        self.symbol, self.line = symbol, line
        return self

    def __str__(self) -> str:
        return f"{int(self):#x}"

    def __repr__(self) -> str:
        return f"<{self.symbol.name} = {self}" + (f" ({self.line})>" if self.line else ">")


@dataclass(frozen=True)
class Place:
    """An address with what is known of it; str() is "start_kernel+0x5 (main.c:936)", or the bare address where nothing is."""

    address: int
    symbol: str = ""
    offset: int = 0
    line: Line | None = None

    @property
    def name(self) -> str:
        """ "start_kernel+0x5", or nothing."""
        return f"{self.symbol}+{self.offset:#x}" if self.symbol and self.offset else self.symbol

    def __str__(self) -> str:
        return (self.name or f"{self.address:#x}") + (f" ({self.line})" if self.line else "")


class Symbols:
    """All symbols known of a guest. Files are added in order; the first that knows an address or a name answers."""

    def __init__(self, machine: Machine | None = None) -> None:
        """`machine` is where values are read, and a kernel's place is looked for."""
        self.files: list[SymbolFile] = []
        self._machine = machine
        self._names: dict[str, Symbol] = {}
        self._starts: list[int] = []
        self._sorted: list[Symbol] = []
        self._dirty = False
        self._more_types: list[TypeSource] = []
        self._placed: int | None = None
        self.memo: dict[Any, Any] = {}
        """What unwinding has made of the files; gone when they change."""

    def add(self, path: str | PathLike[str], offset: int | None = None) -> SymbolFile:
        """Takes an ELF file or System.map, whose addresses are moved by `offset` bytes. Without an offset a Linux kernel that moves
        itself (KASLR) is looked for in the guest, and everything else stays where it says. Raises ImageError."""
        file = SymbolFile(fspath(path), offset)
        if offset is None and not _is_kernel(file):
            file.automatic = False
        self.files.append(file)
        self._dirty = True
        self._placed = None
        return file

    def add_kernel(self, memory: GuestMemory) -> int:
        """Takes the symbol table of a Linux kernel that runs, wherever it lies in RAM (KASLR is in its addresses already); gives the
        number of symbols. Raises ImageError where none is found."""
        for gpa, size in memory.ram_ranges():
            for view in memory.views(gpa, size):
                try:
                    found = kernel_symbols(bytes(view))
                except NoTable:
                    continue
                self.add_list("kernel in memory", found)
                return len(found)
        raise ImageError("no Linux kernel's symbol table is in memory")

    def add_list(self, name: str, found: list[tuple[str, str, int]]) -> None:
        """Takes symbols by name, nm's type letter and address. A list of the same name goes."""
        self.drop(name)
        self.files.append(SymbolFile(name, 0, found))
        self._dirty = True

    def drop(self, name: str) -> None:
        """Forgets the file or list of that name."""
        self.files = [file for file in self.files if file.path != name]
        self._dirty = True

    def add_types(self, source: TypeSource) -> None:
        """Takes types that no file has: BTF out of the guest's memory."""
        self._more_types.append(source)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes all symbols as an ELF file without code, for a debugger's `symbol-file`. HostError where it cannot be written."""
        self._sort()
        try:
            with open(path, "wb") as out:
                out.write(symbol_elf(self._sorted))
        except OSError as error:
            raise HostError(f"write {fspath(path)}", error.errno or 0) from None

    def _sort(self) -> None:
        self._place_kernel()
        if not self._dirty:
            return
        self._dirty = False
        self.memo.clear()
        self._names = {}
        found: dict[int, Symbol] = {}
        for file in self.files:
            for symbol in file.listing():
                self._names.setdefault(symbol.name, symbol)
                known = found.get(symbol.address)
                if known is None or (symbol.function, symbol.size) > (known.function, known.size):
                    found[symbol.address] = symbol
        self._sorted = [found[address] for address in sorted(found)]
        self._starts = [symbol.address for symbol in self._sorted]

    def _place_kernel(self) -> None:
        """Finds how far a kernel has moved itself; asked again after a reset, and until it is known."""
        machine = self._machine
        if machine is None or self._placed == machine.resets or not any(file.automatic for file in self.files):
            return
        from kvmpy.debug.kaslr import find_offset

        for file in self.files:
            if file.automatic:
                offset = find_offset(machine, file)
                if offset is not None:
                    self._placed = machine.resets
                if file.offset != (offset or 0):
                    file.offset, self._dirty = offset or 0, True

    @property
    def moving(self) -> bool:
        """There is a kernel that may have moved itself, or will; its addresses change then."""
        return self._machine is not None and any(file.automatic for file in self.files)

    @property
    def kernel_offset(self) -> int | None:
        """How far a kernel that moves itself has moved; None while that is not known, or where no file is such a kernel's."""
        self._place_kernel()
        if self._machine is None or self._placed != self._machine.resets:
            return None
        return next((file.offset for file in self.files if file.automatic), None)

    @property
    def kernel_moves(self) -> bool:
        """A file of a kernel that moves itself is here, and where it goes is not known yet: its addresses are the file's."""
        return any(file.automatic for file in self.files) and self.kernel_offset is None

    def __len__(self) -> int:
        self._sort()
        return len(self._sorted)

    def __iter__(self) -> Iterator[Symbol]:
        self._sort()
        return iter(self._sorted)

    def symbol(self, name: str) -> Symbol | None:
        """A symbol by name; also of a function that the compiler has changed (work.isra.0). None where nobody knows it."""
        self._sort()
        found = self._names.get(name)
        if found is None and name:
            if _CHANGED not in self.memo:
                changed = (match for match in map(_CHANGED.fullmatch, self._names) if match is not None)
                self.memo[_CHANGED] = {match[1]: match[0] for match in changed}
            found = self._names.get(self.memo[_CHANGED].get(name, ""))
        return found

    def address(self, name: str) -> int | None:
        """Address of a symbol; None where nobody knows it."""
        found = self.symbol(name)
        return None if found is None else found.address

    def named(self, name: str) -> list[int]:
        """Every address with that name: a kernel has static functions of one name in several files."""
        first = self.address(name)
        return [] if first is None else sorted({first, *(symbol.address for symbol in self._sorted if symbol.name == name)})

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

    def addresses(self, file: str, line: int) -> list[int]:
        """Addresses where the code of a source line begins; of the next line that has code."""
        self._sort()
        for one in self.files:
            found = one.addresses(file, line)
            if found:
                return found
        return []

    def text(self, address: int) -> str:
        """ "start_kernel+0x1c", or nothing."""
        found = self.find(address)
        if found is None:
            return ""
        symbol, inside = found
        return f"{symbol.name}+{inside:#x}" if inside else symbol.name

    def where(self, address: int) -> str:
        """The same with the source line as far as known: "main+0x4 (hello.c:12)"; the bare address where nothing is."""
        return str(self.place(address))

    def place(self, address: int) -> Place:
        """The symbol and the source line of an address, as far as they are known."""
        found, line = self.find(address), self.line(address)
        if found is None:
            return Place(address, line=line)
        return Place(address, found[0].name, found[1], line)

    # Types and values.

    def sources(self) -> list[TypeSource]:
        """Where types come from, in order."""
        return [source for file in self.files for source in file.types] + self._more_types

    def type(self, name: str) -> CType:
        """A type by its C name: "struct task_struct", "u32", "struct list_head *". PathError where nobody knows it."""
        from functools import partial

        from kvmpy.debug.types.model import Pointer

        words = " ".join(name.replace("*", " * ").split())
        stars = words.count("*")
        words = words.replace("*", "").strip()
        for source in self.sources():
            found = source.named(words) or (Void() if words == "void" else None)
            if found is not None and not (isinstance(found, Struct) and not found.size and not found.members):
                for _ in range(stars):
                    found = Pointer(partial(_same, found))
                return found
        raise PathError(f"no type {words!r} is known" + ("" if self.sources() else ": a file with DWARF or BTF is wanted"))

    def variable_type(self, name: str) -> CType | None:
        """The type of a global variable; None where nobody knows it."""
        for source in self.sources():
            found = source.variable(name)
            if found is not None:
                return found
        return None

    def value(self, path: str, cpu: int = 0) -> Value | Address | int:
        """A variable, or what a path from it leads to: "init_task.comm", "table[3]->next", "*pointer", "{struct task_struct}ADDRESS.pid".

        Read from the memory that the vCPU sees, when the value is used. "&" gives an address. PathError says what a path lacks."""
        if self._machine is None:
            raise PathError("these symbols belong to no machine")
        prefix, type_name, base, steps = split_path(path)
        if base[0].isdigit():
            address: int = int(base, 0)
        else:
            symbol = self.symbol(base)
            if symbol is None:
                raise PathError(f"no symbol {base!r} is known")
            address = symbol.address
        found = self.type(type_name) if type_name else self.variable_type(base)
        if found is None:
            raise PathError(f"the type of {base} is not known: {{TYPE}}{base} names one")
        from kvmpy.debug.spaces import space_of

        return follow(Value(space_of(self._machine, cpu), found, address), prefix, steps)


def _same(type: CType) -> CType:
    return type


def _is_kernel(file: SymbolFile) -> bool:
    """A Linux kernel for x86-64."""
    return any(symbol.name == "linux_banner" and symbol.address >= KERNEL_HALF for symbol in file.symbols)
