"""Lists that read as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
Column = tuple[str, Callable[[T], object]]


class Table(list[T], Generic[T]):
    """A list whose text has a line for each entry under a line of titles; a title that begins with ">" has its column to the right."""

    def __init__(self, entries: Iterable[T], columns: Sequence[Column[T]], empty: str = "none") -> None:
        super().__init__(entries)
        self._columns = columns
        self._empty = empty

    def __str__(self) -> str:
        if not self:
            return self._empty
        rows = [[title.removeprefix(">") for title, _ in self._columns]]
        rows += [[str(show(entry)) for _, show in self._columns] for entry in self]
        widths = [max(len(row[index]) for row in rows) for index in range(len(self._columns))]
        right = [title.startswith(">") for title, _ in self._columns]
        lines = []
        for row in rows:
            cells = (cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right, strict=True))
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    __repr__ = __str__
