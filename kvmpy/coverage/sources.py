"""From executed addresses to source lines, functions and branches, and to symbols where no lines are known."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from kvmpy.coverage.data import Coverage
from kvmpy.coverage.jumps import Code
from kvmpy.coverage.statements import Row, rows_of
from kvmpy.coverage.tracefile import Tracefile
from kvmpy.debug.symbol_file import SymbolFile

_REACH = 1 << 16
"""Most bytes that a symbol without a size is taken to have."""


class _Executed:
    """Instructions by the addresses of a file."""

    def __init__(self, coverage: Coverage, file: SymbolFile) -> None:
        self.addresses = sorted(file.unmoved(address) for address in coverage.addresses())
        self.jumps = {file.unmoved(address): ways for address, ways in coverage.jumps().items()}

    def within(self, start: int, end: int) -> bool:
        """Was any of this executed? Of an empty piece: the instruction that it stands before."""
        at = bisect_left(self.addresses, start)
        return at < len(self.addresses) and self.addresses[at] < max(end, start + 1)


def tracefile(coverage: Coverage, files: Iterable[SymbolFile]) -> Tracefile:
    """Counts are 1 for what was executed and 0 for what was not. Files without DWARF have nothing to tell."""
    found = Tracefile()
    for file in files:
        if file.lines is not None:
            _add(found, coverage, file)
    return found


def _add(found: Tracefile, coverage: Coverage, file: SymbolFile) -> None:
    executed = _Executed(coverage, file)
    rows = list(rows_of(file.dwarf))
    part = Tracefile()
    for row in rows:
        if row.begins:
            part.file(row.path).lines.setdefault(row.line, 0)
    for row in rows:
        if executed.within(row.start, row.end) and row.path in part.files and row.line in part.files[row.path].lines:
            part.files[row.path].lines[row.line] = 1
    _add_functions(part, executed, file, rows)
    if coverage.branches and file.elf is not None:
        _add_branches(part, executed, Code(file.elf), rows)
    found.merge(part)


def _add_functions(part: Tracefile, executed: _Executed, file: SymbolFile, rows: list[Row]) -> None:
    places: dict[int, Row] = {}
    for row in rows:
        if row.begins:
            places.setdefault(row.start, row)
    for symbol in file.symbols:
        place = places.get(symbol.address)
        if symbol.function and symbol.size and place is not None:
            count = int(executed.within(symbol.address, symbol.address + symbol.size))
            functions = part.file(place.path).functions
            line, before = functions.get(symbol.name, (place.line, 0))
            functions[symbol.name] = line, max(before, count)


def _add_branches(part: Tracefile, executed: _Executed, code: Code, rows: list[Row]) -> None:
    seen: set[int] = set()
    numbers: dict[tuple[str, int], int] = {}
    for row in sorted(rows):
        if row.end == row.start or row.line not in part.file(row.path).lines:
            continue
        at = bisect_left(executed.addresses, row.start)
        ran = executed.addresses[at : bisect_left(executed.addresses, row.end)]
        for jump in sorted({*code.jumps(row.start, row.end), *(address for address in ran if address in executed.jumps)} - seen):
            seen.add(jump)
            number = numbers.get((row.path, row.line), 0)
            numbers[row.path, row.line] = number + 1
            ways = executed.jumps.get(jump)
            for way in (0, 1):
                part.file(row.path).branches[row.line, number, way] = None if ways is None else int(ways[way])


class Function(NamedTuple):
    """A function and how many of its bytes belong to instructions that were executed."""

    name: str
    address: int
    size: int
    hit: int


def functions(coverage: Coverage, files: Iterable[SymbolFile]) -> list[Function]:
    """All functions of symbol tables by address; one without a size reaches to the next symbol."""
    blocks = coverage.blocks()
    starts = [start for start, _ in blocks]
    found: dict[int, Function] = {}
    for file in files:
        symbols = sorted(file.listing(), key=lambda one: one.address)
        addresses = [one.address for one in symbols]
        for symbol in symbols:
            if not symbol.function:
                continue
            size = symbol.size
            if not size:
                after = bisect_right(addresses, symbol.address)
                size = min(addresses[after] - symbol.address if after < len(addresses) else _REACH, _REACH)
            known = found.get(symbol.address)
            if known is None or known.size < size:
                hit = _overlap(blocks, starts, symbol.address, symbol.address + size)
                found[symbol.address] = Function(symbol.name, symbol.address, size, hit)
    return [found[address] for address in sorted(found)]


def _overlap(blocks: list[tuple[int, int]], starts: list[int], start: int, end: int) -> int:
    total = 0
    for begin, size in blocks[max(bisect_right(starts, start) - 1, 0) : bisect_left(starts, end)]:
        total += max(min(begin + size, end) - max(begin, start), 0)
    return total
