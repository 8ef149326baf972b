"""Source lines of addresses and addresses of source lines, by DWARF's line tables; a unit's table is read when it is needed."""

from __future__ import annotations

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
        for unit in self._all_units():
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
        """A unit's rows; the end of a sequence has None, unless another sequence begins there."""
        program = self._dwarf.line_program_for_CU(unit)
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
