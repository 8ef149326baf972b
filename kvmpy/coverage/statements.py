"""Pieces of code and the source lines that they come from: DWARF's line tables row by row."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from typing import Any, NamedTuple

from kvmpy.debug.damage import DAMAGE


class Row(NamedTuple):
    """Code from `start` up to `end`; both are the same where only a place in the source is told. `begins`: a statement begins here."""

    start: int
    end: int
    path: str
    line: int
    begins: bool


def rows_of(dwarf: Any) -> Iterator[Row]:
    """All rows of all units, with whole paths. What cannot be read is left out."""
    try:
        for unit in dwarf.iter_CUs():
            yield from _unit(dwarf, unit)
    except DAMAGE:
        return


def _unit(dwarf: Any, unit: Any) -> Iterator[Row]:
    try:
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            return
        attributes = unit.get_top_DIE().attributes
        home = _text(attributes["DW_AT_comp_dir"].value) if "DW_AT_comp_dir" in attributes else "/"
        paths = _paths(program, home)
        entries = program.get_entries()
    except DAMAGE:
        return
    first = 0 if program["version"] >= 5 else 1
    before: Any = None
    for entry in entries:
        state = entry.state
        if state is None:
            continue
        if before is not None and before.line:
            index = before.file - first
            if 0 <= index < len(paths):
                yield Row(before.address, max(state.address, before.address), paths[index], before.line, before.is_stmt)
        before = None if state.end_sequence else state


def _paths(program: Any, home: str) -> list[str]:
    """Of the file entries."""
    directories = [_text(one) for one in program["include_directory"]]
    if program["version"] < 5:
        directories.insert(0, home)
    found = []
    for entry in program["file_entry"]:
        directory = directories[entry.dir_index] if entry.dir_index < len(directories) else home
        found.append(os.path.normpath(os.path.join(home, directory, _text(entry.name))))
    return found


def _text(name: Any) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)
