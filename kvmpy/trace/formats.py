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
    "binary": "quick and compact; can be read again",
}
_SUFFIXES = {
    ".trace": "binary", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".pftrace": "perfetto", ".perfetto-trace": "perfetto", ".perfetto": "perfetto",
}  # fmt: skip

MAGIC = b"kvmpyTRC"
"""What a binary trace begins with (kvmpy.trace.binary, which needs the native module)."""


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


def about_machine(machine: Any, clock: str) -> dict[str, Any]:
    """What a trace tells of the Machine that it is of: `ports` and `mmio` are (first, last, name) of who answers there."""
    return {
        "backend": machine.vm.name, "vcpus": len(machine.cpu), "clock": clock, "image": machine.image or "",
        "ports": [(entry.first, entry.end - 1, entry.name) for entry in machine.ports.entries],
        "mmio": [(entry.first, entry.end - 1, entry.name) for entry in machine.mmio.entries],
    }  # fmt: skip


def make_format(name: str, file: BinaryIO, symbols: Symbols | None, about: dict[str, Any] | None = None) -> Format:
    """A writer of that format into `file`, which stays the caller's."""
    if name == "text":
        from kvmpy.trace.text import TextFormat

        return TextFormat(lambda text: file.write(text.encode("utf-8", "replace")), symbols)
    if name == "jsonl":
        from kvmpy.trace.jsonl import JsonlFormat

        return JsonlFormat(file.write, symbols, about)
    if name == "binary":
        from kvmpy.trace.binary import BinaryWriter

        return BinaryWriter(file, about)
    from kvmpy.trace.perfetto import PerfettoFormat

    return PerfettoFormat(file.write, symbols, about)


def is_trace(path: str) -> bool:
    """Is the file a trace, for `open_trace` to read or to refuse? False also where it cannot be read at all."""
    try:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return _kind(file) is not None or format_of(path) == "perfetto"
    except OSError:
        pass
    return False


def _kind(file: BinaryIO) -> str | None:
    """By its first bytes."""
    from kvmpy.trace.jsonl import HEAD

    head = file.read(16)
    return "binary" if head.startswith(MAGIC) else "jsonl" if head.startswith(HEAD) else None


def open_trace(file: BinaryIO, path: str) -> Saved:
    """The trace in `file`, which stays the caller's. Raises TraceError."""
    kind = _kind(file)
    file.seek(0)
    if kind == "binary":
        from kvmpy.trace.binary import BinaryFile

        return BinaryFile(file, path)
    if kind is None and format_of(path) == "perfetto":
        raise TraceError(f"{path}: Perfetto's format is for ui.perfetto.dev; kvmpy reads what it writes to .trace and .jsonl")
    if kind is None:
        raise TraceError(f"{path}: not a trace (kvmpy trace -o FILE.trace writes one)")
    from kvmpy.trace.jsonl import JsonlFile

    return JsonlFile(file, path)
