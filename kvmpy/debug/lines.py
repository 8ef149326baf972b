"""Source lines of addresses and addresses of source lines, by DWARF's line tables; a unit's table is read when it is needed."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

from kvmpy.debug.damage import DAMAGE


class Line(NamedTuple):
    """A place in the source."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


_HEAD = 256
"""A unit says within so many bytes where its table is."""

Rows = dict[int, Line | None]


class Lines:
    """The line tables of one file, by the addresses in it. Debug information that cannot be read tells nothing."""

    def __init__(self, dwarf: Any) -> None:
        self._dwarf = dwarf
        self._tables: dict[int, tuple[list[int], list[Line | None]]] = {}
        self._units: list[Any] | None = None
        self._spans: tuple[list[int], list[tuple[int, Any]]] | None = None
        self._unplaced: list[Any] = []

    def line(self, address: int) -> Line | None:
        """The line that the instruction at an address comes from."""
        starts, ends = self._find_spans()
        at = bisect_right(starts, address) - 1
        if at >= 0 and address < ends[at][0]:
            found = self._line_in(ends[at][1], address)
            if found is not None:
                return found
        for unit in self._unplaced:
            found = self._line_in(unit, address)
            if found is not None:
                return found
        return None

    def addresses(self, file: str, line: int) -> list[int]:
        """Where the code of a line begins, once for each place that it was put; of the next line with code where it has none.
        `file` is a name or the end of a path."""
        best: dict[int, list[int]] = {}
        for unit in self._units_with(file):
            starts, lines = self._table(unit)
            before: Line | None = None
            for start, one in zip(starts, lines, strict=True):
                if one is not None and one != before and one.line >= line and _same_file(one.file, file):
                    best.setdefault(one.line, []).append(start)
                before = one
        if not best:
            return []
        return sorted(best[min(best)])

    def _line_in(self, unit: Any, address: int) -> Line | None:
        starts, lines = self._table(unit)
        at = bisect_right(starts, address) - 1
        return lines[at] if at >= 0 else None

    def _all_units(self) -> list[Any]:
        if self._units is None:
            self._units = list(self._read_units())
        return self._units

    def _read_units(self) -> Iterator[Any]:
        try:
            yield from self._dwarf.iter_CUs()
        except DAMAGE:
            return

    def _find_spans(self) -> tuple[list[int], list[tuple[int, Any]]]:
        """Which unit has an address: .debug_aranges where the compiler wrote it, else what each unit says of itself."""
        if self._spans is None:
            found: list[tuple[int, int, Any]] = []
            covered: set[int] = set()
            try:
                aranges = self._dwarf.get_aranges()
                for entry in aranges.entries if aranges is not None else ():
                    if entry.length:
                        unit = self._dwarf.get_CU_at(entry.info_offset)
                        covered.add(entry.info_offset)
                        found.append((entry.begin_addr, entry.begin_addr + entry.length, unit))
            except DAMAGE:
                pass
            if not covered:
                for unit in self._all_units():
                    low_high = _bounds(unit)
                    if low_high is None:
                        self._unplaced.append(unit)
                    else:
                        found.append((*low_high, unit))
            found.sort(key=lambda one: one[:2])
            self._spans = [start for start, _, _ in found], [(end, unit) for _, end, unit in found]
        return self._spans

    def _units_with(self, file: str) -> list[Any]:
        """The units whose tables may name a file, found by its bytes: to read each unit of a Linux kernel would take half a minute."""
        try:
            text = file.rpartition("/")[2].encode() + b"\0"
            names = [re.escape(text)]
            for section in (self._dwarf.debug_line_str_sec, self._dwarf.debug_str_sec):
                if section is not None:
                    names += [_word(place) for place in _places(section, b"(?=%s)" % re.escape(text))]
            tables = self._table_starts()
            at = {bisect_right(tables, place) - 1 for place in _places(self._dwarf.debug_line_sec, b"|".join(names))} - {-1}
            wanted = {tables[index] for index in at}
            if not wanted:
                return []
            units = self._all_units()
            starts = [unit.cu_offset for unit in units]
            found = {}
            for place in _places(self._dwarf.debug_info_sec, b"|".join(map(_word, wanted))):
                index = bisect_right(starts, place) - 1
                if index >= 0 and place - starts[index] < _HEAD and index not in found:
                    stands = units[index].get_top_DIE().attributes.get("DW_AT_stmt_list")
                    found[index] = stands is not None and stands.value in wanted
            return [units[index] for index in sorted(found) if found[index]]
        except DAMAGE:
            return self._all_units()

    def _table_starts(self) -> list[int]:
        """Where the line tables begin in .debug_line."""
        starts, place = [], 0
        with self._dwarf.debug_line_sec.stream.getbuffer() as data:
            while place + 12 <= len(data):
                starts.append(place)
                length = int.from_bytes(data[place : place + 4], "little")
                place += 12 + int.from_bytes(data[place + 4 : place + 12], "little") if length == 0xFFFFFFFF else 4 + length
        return starts

    def _table(self, unit: Any) -> tuple[list[int], list[Line | None]]:
        table = self._tables.get(unit.cu_offset)
        if table is None:
            rows: Rows = {}
            try:
                self._read(unit, rows)
            except DAMAGE:
                pass
            starts = sorted(rows)
            table = self._tables[unit.cu_offset] = starts, [rows[start] for start in starts]
        return table

    def _read(self, unit: Any, rows: Rows) -> None:
        """A unit's rows; the end of a sequence has None, unless another sequence begins there. Of several rows at one address the last
        that begins a statement holds, or the last."""
        program = self._dwarf.line_program_for_CU(unit)
        if program is None:
            return
        names = _file_names(program, unit)
        first = 0 if program["version"] >= 5 else 1
        statements: set[int] = set()
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            if state.end_sequence:
                rows.setdefault(state.address, None)
            elif state.is_stmt or state.address not in statements:
                if state.is_stmt:
                    statements.add(state.address)
                index = state.file - first
                rows[state.address] = Line(names[index] if 0 <= index < len(names) else "?", state.line)


def _word(number: int) -> bytes:
    """As a pattern: 32 bits, little-endian."""
    return re.escape(number.to_bytes(4, "little"))


def _places(section: Any, pattern: bytes) -> list[int]:
    with section.stream.getbuffer() as data:
        return [match.start() for match in re.finditer(pattern, data, re.DOTALL)]


def _file_names(program: Any, unit: Any) -> list[str]:
    """The files of a line table, with their directories below the one that was compiled in (DWARF 5, 6.2.4)."""
    folders = [_text(one) for one in program["include_directory"]]
    if program["version"] < 5:
        compiled_in = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
        folders.insert(0, "" if compiled_in is None else _text(compiled_in.value))
    names = []
    for entry in program["file_entry"]:
        name = _text(entry.name)
        folder = folders[entry.dir_index] if entry.dir_index < len(folders) else ""
        if folder == folders[0]:
            folder = ""
        elif folders[0] and folder.startswith(folders[0].rstrip("/") + "/"):
            folder = folder[len(folders[0].rstrip("/")) + 1 :]
        names.append(name if not folder or folder.startswith("/") or name.startswith("/") else f"{folder}/{name}")
    return names


def _bounds(unit: Any) -> tuple[int, int] | None:
    """Addresses of a unit in one piece; None where it does not say, or lies in several."""
    try:
        attributes = unit.get_top_DIE().attributes
        low, high = attributes["DW_AT_low_pc"].value, attributes["DW_AT_high_pc"]
        return low, high.value if high.form == "DW_FORM_addr" else low + high.value
    except DAMAGE:
        return None


def _same_file(known: str, wanted: str) -> bool:
    """One of the two is the other's end, by whole names."""
    return ("/" + known).endswith("/" + wanted) or ("/" + wanted).endswith("/" + known)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
