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
from kvmpy.trace.event import KINDS, Event
from kvmpy.trace.words import Names, Symbols

VERSION = 1
HEAD = b'{"kvmpy_trace":'
MOST_LINE = 1 << 20
"""Bytes; no event is so long."""
MOST_VCPUS = 4096

_U64 = (1 << 64) - 1
_INT = {int}
_ALWAYS = ("what", "vcpu", "time", "data")
_OPTIONAL = [(name, Event._field_defaults[name]) for name in Event._fields if name not in _ALWAYS]
_INTEGERS = [
    (name, -1 if name == "vcpu" else 0, MOST_VCPUS - 1 if name == "vcpu" else _U64, Event._field_defaults.get(name, 0) is None)
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
        encode, what, rip = self._encode, event.what, event.rip
        shown = f'"{what}"' if what in KINDS else encode(what)
        parts = [f'{{"what":{shown},"vcpu":{event.vcpu},"time":{event.time},"data":{encode(event.data)}']
        for name, default in _OPTIONAL:
            value = getattr(event, name)
            if value != default:
                parts.append(f'"{name}":{value}')
        if self._names is not None and rip is not None:
            parts.append(f'"symbol":{encode(self._names(rip))}')
        self._write((",".join(parts) + "}\n").encode())

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
        decode, names = json.loads, self.names
        number = 1
        while line := self._file.readline(MOST_LINE):
            number += 1
            try:
                found = decode(line)
                event = _event(found)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if not line.endswith(b"\n") and not self._file.readline(1):
                    return  # whoever wrote it was ended in the middle
                raise TraceError(f"{self._path}: line {number} is no event: {_why(error)}") from None
            symbol = found.get("symbol")
            if isinstance(symbol, str) and event.rip is not None:
                names[event.rip] = symbol
            yield event


def _event(found: Any) -> Event:
    """Of a line that was read; KeyError, TypeError where it is none."""
    if type(found) is not dict:
        raise TypeError("not an object")
    get = found.get
    event = Event._make([*(found[name] for name in _ALWAYS), *(get(name, default) for name, default in _OPTIONAL)])
    numbers = [event.vcpu, event.time, event.host, event.guest, event.cost]
    numbers += [value for value in (event.rip, event.cpl) if value is not None]
    # What is usual is seen at a glance; all else is looked at one by one.
    usual = type(event.what) is str and type(event.data) is dict and set(map(type, numbers)) == _INT
    if not usual or min(numbers) < 0 or max(numbers) > _U64 or event.vcpu >= MOST_VCPUS:
        _check(event)
    return event


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
