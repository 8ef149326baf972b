"""Events as JSON, one object a line: for jq, pandas and whoever else reads lines.

The first line tells of the trace: {"kvmpy_trace": 1, ...}. Every other line is an event with the keys

    what     its kind, of kvmpy.trace.KINDS
    vcpu     index, -1 for none
    time     the machine's clock, ns
    data     the payload, as KINDS lists it; bytes are text in hexadecimal
    rip, host, guest, cost, ...    as in Event, where they are known
    symbol   the name of RIP, where symbols are known: "main+0x4 (hello.c:12)"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from kvmpy.errors import TraceError
from kvmpy.trace.event import Event
from kvmpy.trace.words import Names, Symbols

VERSION = 1
HEAD = b'{"kvmpy_trace":'
MOST_LINE = 1 << 20
"""Bytes; no event is so long."""
MOST_VCPUS = 4096

_ALWAYS = ("what", "vcpu", "time", "data")
_OPTIONAL = [(name, Event._field_defaults[name]) for name in Event._fields if name not in _ALWAYS]
_INTEGERS = [
    (name, -1 if name == "vcpu" else 0, MOST_VCPUS - 1 if name == "vcpu" else (1 << 64) - 1, Event._field_defaults.get(name, 0) is None)
    for name in Event._fields
    if name not in ("what", "data")
]
"""Name, least and greatest value, and whether there may be none."""


def _plain(value: object) -> Any:
    return bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else str(value)


class JsonlFormat:
    """Writes a line for each event with `write`; `about` is told in the first one."""

    def __init__(self, write: Callable[[bytes], object], symbols: Symbols | None = None, about: dict[str, Any] | None = None) -> None:
        self._write = write
        self._encode = json.JSONEncoder(separators=(",", ":"), default=_plain).encode
        self._names = Names(symbols) if symbols is not None else None
        write(f"{self._encode({'kvmpy_trace': VERSION, **(about or {})})}\n".encode())

    def __call__(self, event: Event) -> None:
        line: dict[str, Any] = {"what": event.what, "vcpu": event.vcpu, "time": event.time, "data": event.data}
        for name, default in _OPTIONAL:
            value = getattr(event, name)
            if value != default:
                line[name] = value
        if self._names is not None and event.rip is not None:
            line["symbol"] = self._names(event.rip)
        self._write(f"{self._encode(line)}\n".encode())

    def close(self) -> None:
        """The file is the caller's."""


class JsonlFile:
    """A trace of that form. Names of instructions that its lines tell are learned as it is read."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        """Raises TraceError where the first line is none of a trace."""
        self._file = file
        self._path = path
        self.names: dict[int, str] = {}
        try:
            self.about: dict[str, Any] = json.loads(file.readline(MOST_LINE))
            version = self.about.pop("kvmpy_trace")
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise TraceError(f"{path}: not a trace: its first line is not {HEAD.decode()}...}}") from None
        if version != VERSION:
            raise TraceError(f"{path}: a trace of version {version}, version {VERSION} is known here")

    def where(self, rip: int) -> str:
        """Its name as the lines read so far tell it; the bare address where they do not."""
        return self.names.get(rip, f"{rip:#x}")

    def __iter__(self) -> Iterator[Event]:
        """The events in order. A last line that is cut off is left out; any other that is none raises TraceError."""
        decode, names, optional = json.loads, self.names, [name for name, _ in _OPTIONAL]
        number = 1
        while line := self._file.readline(MOST_LINE):
            number += 1
            try:
                found = decode(line)
                event = Event(*(found[name] for name in _ALWAYS), **{name: found[name] for name in optional if name in found})
                _check(event)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if not line.endswith(b"\n") and not self._file.readline(1):
                    return  # whoever wrote it was ended in the middle
                raise TraceError(f"{self._path}: line {number} is no event: {_why(error)}") from None
            symbol = found.get("symbol")
            if isinstance(symbol, str) and event.rip is not None:
                names[event.rip] = symbol
            yield event


def _check(event: Event) -> None:
    if not isinstance(event.what, str) or not isinstance(event.data, dict):
        raise TypeError("what is a text, data an object")
    for name, least, most, optional in _INTEGERS:
        value = getattr(event, name)
        if value is None and optional:
            continue
        if type(value) is not int or not least <= value <= most:
            raise TypeError(f"{name} is a whole number from {least} to {most}")


def _why(error: Exception) -> str:
    return f"key {error} is missing" if isinstance(error, KeyError) else str(error)
