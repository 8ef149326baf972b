"""Coverage by source line, in the format of lcov's tracefiles (geninfo(1), FILES)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from os import PathLike, fspath

from kvmpy.errors import HostError, ImageError
from kvmpy.record import Record

Branch = tuple[int, int, int]
"""Line, number of the jump in it, 0: it jumps, 1: it goes on."""


class Totals(Record, frozen=True):
    """How many there are, and how many of them were hit."""

    lines: int = 0
    lines_hit: int = 0
    functions: int = 0
    functions_hit: int = 0
    branches: int = 0
    branches_hit: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(mine + its for mine, its in zip(self.numbers, other.numbers, strict=True)))

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.lines, self.lines_hit, self.functions, self.functions_hit, self.branches, self.branches_hit


class SourceFile:
    """Counts of one source file; a count is in how many runs something was executed, as far as kvmpy has written it."""

    def __init__(self) -> None:
        self.lines: dict[int, int] = {}
        self.functions: dict[str, tuple[int, int]] = {}
        """Line and count by name."""
        self.branches: dict[Branch, int | None] = {}
        """None: the jump itself was never executed."""

    def merge(self, other: SourceFile) -> None:
        """Adds the counts of another one."""
        for line, count in other.lines.items():
            self.lines[line] = self.lines.get(line, 0) + count
        for name, (line, count) in other.functions.items():
            known = self.functions.get(name)
            self.functions[name] = (line, count) if known is None else (known[0], known[1] + count)
        for branch, taken in other.branches.items():
            before = self.branches.get(branch)
            self.branches[branch] = before if taken is None else (before or 0) + taken

    @property
    def totals(self) -> Totals:
        counts = [count for _, count in self.functions.values()]
        return Totals(
            len(self.lines), sum(1 for one in self.lines.values() if one), len(counts), sum(1 for one in counts if one),
            len(self.branches), sum(1 for one in self.branches.values() if one),
        )  # fmt: skip

    def records(self) -> Iterable[str]:
        """The lines of a tracefile between SF and end_of_record."""
        totals = self.totals
        functions = sorted(self.functions.items(), key=lambda one: (one[1][0], one[0]))
        yield from (f"FN:{line},{name}" for name, (line, _) in functions)
        yield from (f"FNDA:{count},{name}" for name, (_, count) in functions)
        yield from (f"FNF:{totals.functions}", f"FNH:{totals.functions_hit}")
        if self.branches:
            for (line, block, branch), taken in sorted(self.branches.items()):
                yield f"BRDA:{line},{block},{branch},{'-' if taken is None else taken}"
            yield from (f"BRF:{totals.branches}", f"BRH:{totals.branches_hit}")
        yield from (f"DA:{line},{count}" for line, count in sorted(self.lines.items()))
        yield from (f"LF:{totals.lines}", f"LH:{totals.lines_hit}")


class Tracefile:
    """Source files by path."""

    def __init__(self) -> None:
        self.files: dict[str, SourceFile] = {}

    def file(self, path: str) -> SourceFile:
        """The source file of that path, made where there is none."""
        return self.files.setdefault(path, SourceFile())

    def merge(self, other: Tracefile) -> Tracefile:
        """Adds the counts of another one; gives itself."""
        for path, file in other.files.items():
            self.file(path).merge(file)
        return self

    def only(self, sources: Iterable[str]) -> Tracefile:
        """The files at or below one of these paths; all where there are none."""
        wanted = [os.path.abspath(one).rstrip("/") for one in sources]
        part = Tracefile()
        part.files = {
            path: file for path, file in self.files.items()
            if not wanted or any(path == one or path.startswith(one + "/") for one in wanted)
        }  # fmt: skip
        return part

    def leave_out(self, name: str) -> None:
        """Forgets files whose paths end so, by whole parts."""
        for path in [path for path in self.files if path.endswith("/" + name)]:
            del self.files[path]

    def once(self) -> Tracefile:
        """The same with 1 for whatever was hit, however often; gives itself."""
        for file in self.files.values():
            file.lines = {line: min(count, 1) for line, count in file.lines.items()}
            file.functions = {name: (line, min(count, 1)) for name, (line, count) in file.functions.items()}
            file.branches = {branch: None if taken is None else min(taken, 1) for branch, taken in file.branches.items()}
        return self

    @property
    def totals(self) -> Totals:
        return sum((file.totals for file in self.files.values()), Totals())

    def text(self) -> str:
        """The whole tracefile."""
        found = ["TN:"]
        for path, file in sorted(self.files.items()):
            found += [f"SF:{path}", *file.records(), "end_of_record"]
        return "\n".join(found) + "\n"

    def save(self, path: str | PathLike[str]) -> None:
        """Raises HostError."""
        try:
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as out:
                out.write(self.text())
        except OSError as error:
            raise HostError(f"write {fspath(path)}", error.errno or 0) from None

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Tracefile:
        """A tracefile of kvmpy, lcov or gcov. Raises ImageError."""
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                return cls.parse(file.read(), fspath(path))
        except OSError as error:
            raise ImageError(f"{fspath(path)}: {error.strerror}") from None

    @classmethod
    def parse(cls, text: str, name: str = "tracefile") -> Tracefile:
        """Raises ImageError, with the number of the line that is none."""
        self, present = cls(), SourceFile()
        for number, line in enumerate(text.splitlines(), 1):
            kind, _, rest = line.partition(":")
            try:
                if kind == "SF":
                    present = SourceFile()
                    path = rest
                elif line == "end_of_record":
                    self.file(path).merge(present)
                elif kind in _READERS:
                    _READERS[kind](present, rest)
                elif kind not in _KNOWN and line and not line.startswith("#"):
                    raise ValueError
            except (ValueError, UnboundLocalError):
                raise ImageError(f"{name}:{number}: no line of an lcov tracefile: {line[:60]!r}") from None
        if text and not self.files and "TN:" not in text:
            raise ImageError(f"{name}: no lcov tracefile")
        return self


def _read_line(file: SourceFile, text: str) -> None:
    line, count, *_ = text.split(",")
    file.lines[int(line)] = file.lines.get(int(line), 0) + int(count)


def _read_function(file: SourceFile, text: str) -> None:
    fields = text.split(",")
    # lcov 2 may give the last line too
    line, name = fields[0], ",".join(fields[2:] if len(fields) > 2 and fields[1].isdigit() else fields[1:])
    file.functions[name] = int(line), file.functions.get(name, (0, 0))[1]


def _read_calls(file: SourceFile, text: str) -> None:
    count, _, name = text.partition(",")
    line, before = file.functions.get(name, (0, 0))
    file.functions[name] = line, before + int(count)


def _read_branch(file: SourceFile, text: str) -> None:
    line, block, branch, taken = text.split(",")
    key = int(line), int(block.lstrip("e")), int(branch)
    file.branches[key] = None if taken == "-" else int(taken)


_READERS: dict[str, Callable[[SourceFile, str], None]] = {
    "DA": _read_line, "FN": _read_function, "FNDA": _read_calls, "BRDA": _read_branch,
}  # fmt: skip
_KNOWN = {"TN", "FNF", "FNH", "BRF", "BRH", "LF", "LH", "VER"}
