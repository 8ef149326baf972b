"""The forms that a trace is written in, and files that hold one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from kvmpy.errors import TraceError
from kvmpy.trace.event import Event
from kvmpy.trace.words import Symbols

FORMATS = {
    "text": "a line for each event",
    "jsonl": "a JSON object on each line; can be read again",
    "perfetto": "for ui.perfetto.dev",
}
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".pftrace": "perfetto", ".perfetto-trace": "perfetto", ".perfetto": "perfetto"}


class Format(Protocol):
    """Takes events one by one."""

    def __call__(self, event: Event) -> object: ...
    def close(self) -> None: ...


class Saved(Protocol):
    """A trace in a file. `about` is what its writer told of it; `where` knows names that it holds."""

    about: dict[str, Any]

    def where(self, address: int) -> str: ...
    def __iter__(self) -> Iterator[Event]: ...


def format_of(path: str) -> str:
    """The format that a file's name asks for; text where it asks for none."""
    return _SUFFIXES.get(os.path.splitext(path)[1].lower(), "text")


def make_format(name: str, file: BinaryIO, symbols: Symbols | None, about: dict[str, Any] | None = None) -> Format:
    """A writer of that format into `file`, which stays the caller's."""
    if name == "text":
        from kvmpy.trace.text import TextFormat

        return TextFormat(lambda text: file.write(text.encode("utf-8", "replace")), symbols)
    if name == "jsonl":
        from kvmpy.trace.jsonl import JsonlFormat

        return JsonlFormat(file.write, symbols, about)
    from kvmpy.trace.perfetto import PerfettoFormat

    return PerfettoFormat(file.write, symbols, about)


def is_trace(path: str) -> bool:
    """Does the file hold a trace that `open_trace` reads? False also where it cannot be read at all."""
    from kvmpy.trace.jsonl import HEAD

    try:
        with open(path, "rb") as file:
            return file.read(len(HEAD)) == HEAD
    except OSError:
        return False


def open_trace(file: BinaryIO, path: str) -> Saved:
    """The trace in `file`, which stays the caller's. Raises TraceError."""
    from kvmpy.trace.jsonl import HEAD, JsonlFile

    head = file.read(len(HEAD))
    file.seek(0)
    if head != HEAD:
        raise TraceError(f"{path}: not a trace (kvmpy trace -o FILE.jsonl writes one)")
    return JsonlFile(file, path)
