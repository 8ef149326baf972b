"""Trace files: a header, then records of 80 bytes, which the core writes as they are.

    header    8 bytes MAGIC, u32 version, u32 bytes of JSON that follow, the JSON, zeros up to a multiple of 80
    record    struct kp_trace_record (abi/core.inc), little endian
    data      KP_RECORD_BYTES and KP_RECORD_JSON: data[1] bytes behind their record, zeros up to a multiple of 80
    end       END, where the writer was not stopped before

The JSON of the header tells `kinds` (numbers of kinds by name), `ports` and `mmio` (first, last, name: who answers there), and what
the writer knew of the machine.
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from kvmpy.errors import HostError, TraceError
from kvmpy.native import lib
from kvmpy.trace.event import NUMBERS, Event
from kvmpy.trace.filters import Filter, parse
from kvmpy.trace.formats import MAGIC, about_machine
from kvmpy.trace.records import RECORD, SIZE, BrokenRecord, chip_name, event_of, payload_size, record_of, slots
from kvmpy.trace.tracer import PLAIN, SERVED, Sink
from kvmpy.trace.watch import Watcher, rule_of

VERSION = 1
END = b"kvmpy: end of trace".ljust(SIZE, b"\0")
"""In place of a last record: of kind 0, which none has."""
_HEAD = struct.Struct("<8sII")
MOST_PAYLOAD = 1 << 20
LONGEST = (1 << 32) - 1
"""ns in the guest that a record can tell; whoever reads on knows of more by the clock."""
CHUNK = 1024 * SIZE
BUFFER = 1 << 16


def header(about: dict[str, Any]) -> bytes:
    """The beginning of a file."""
    text = json.dumps({"kinds": NUMBERS, **about}, separators=(",", ":")).encode()
    head = _HEAD.pack(MAGIC, VERSION, len(text)) + text
    return head.ljust(slots(len(head)) * SIZE, b"\0")


class BinaryWriter:
    """Takes events one by one, into `file`, which stays the caller's."""

    def __init__(self, file: BinaryIO, about: dict[str, Any] | None = None) -> None:
        self._write = file.write
        self._write(header(about or {}))

    def __call__(self, event: Event) -> None:
        self._write(record_of(event))

    def close(self) -> None:
        """The trace is whole with this."""
        self._write(END)


class BinaryFile:
    """The events of a file. `about` is the header's JSON."""

    def __init__(self, file: BinaryIO, path: str = "trace") -> None:
        """Reads the header. Raises TraceError."""
        self._file, self.path = file, path
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or head[:8] != MAGIC:
            raise TraceError(f"{path}: not a binary trace of kvmpy")
        _, version, size = _HEAD.unpack(head)
        if version != VERSION:
            raise TraceError(f"{path}: a trace of version {version}; this kvmpy reads version {VERSION}")
        text = file.read(slots(_HEAD.size + size) * SIZE - _HEAD.size) if size <= MOST_PAYLOAD else b""
        try:
            about = json.loads(text[:size])
        except ValueError:
            about = None
        if len(text) < size or not isinstance(about, dict):
            raise TraceError(f"{path}: the header of the trace is broken or cut off")
        self.about: dict[str, Any] = about
        kinds = about.get("kinds")
        if not isinstance(kinds, dict) or any(NUMBERS.get(kind) != number for kind, number in kinds.items()):
            raise TraceError(f"{path}: the trace has kinds of events that this kvmpy does not know")
        self._ports, self._mmio = self._places("ports"), self._places("mmio")

    def _places(self, key: str) -> list[tuple[int, int, str]]:
        found = self.about.get(key, [])
        try:
            return [(int(first), int(last), str(name)) for first, last, name in found]
        except (TypeError, ValueError):
            raise TraceError(f"{self.path}: the header of the trace is broken: {key}") from None

    def where(self, address: int) -> str:
        """The file holds no names."""
        return f"{address:#x}"

    def __iter__(self) -> Iterator[Event]:
        """Raises TraceError behind the last whole event where the file is cut off, broken or without an end."""
        number = 0
        answered: dict[int, int] = {}
        while data := self._file.read(SIZE):
            number += 1
            if len(data) < SIZE:
                raise TraceError(f"{self.path}: cut off inside event {number}")
            if data == END:
                return
            fields = RECORD.unpack(data)
            size = payload_size(fields)
            if size > MOST_PAYLOAD:
                raise TraceError(f"{self.path}: event {number} is broken: {size} bytes of data")
            payload = self._file.read(slots(size) * SIZE)
            if len(payload) < size:
                raise TraceError(f"{self.path}: cut off inside event {number}")
            try:
                event = event_of(fields, payload[:size])
            except BrokenRecord as error:
                raise TraceError(f"{self.path}: event {number} is broken: {error}") from None
            if event.what in ("io", "mmio") and "device" not in event.data:
                name = self._device(event)
                if name is not None:
                    event.data["device"] = name
            if event.guest == LONGEST:
                event = event._replace(guest=max(event.host - answered.get(event.vcpu, event.host), LONGEST))
            if event.cost or event.guest:
                answered[event.vcpu] = event.host + event.cost
            yield event
        raise TraceError(f"{self.path}: the trace has no end, its writer was stopped behind event {number}")

    def _device(self, event: Event) -> str | None:
        places, at = (self._ports, event.data["port"]) if event.what == "io" else (self._mmio, event.data["address"])
        for first, last, name in places:
            if first <= at <= last:
                return name
        return chip_name(event.what, event.data)


class TraceWriter:
    """Writes what a machine does into a file, until it is closed; a context manager."""

    def __init__(self, watcher: Watcher, path: str, chosen: Filter | None, about: dict[str, Any]) -> None:
        """Without a filter: what exits anyway, and what devices say."""
        self.path = path
        self._watcher = watcher
        self._channel: int | None = None
        self._error: HostError | None = None
        plain = chosen is None
        if chosen is None:
            chosen = parse(",".join(sorted(PLAIN)))
        watcher.check(chosen)
        self._buffer = bytearray(header(about))
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise HostError(f"open {path}", error.errno or errno.EIO) from None
        threaded = watcher.vm.threaded  # Python serves and tells their exits; the core tells what nobody else sees
        in_core = frozenset() if plain and threaded else chosen.kinds & watcher.core_kinds
        if in_core and chosen.exact(in_core) and watcher.channels:
            self._channel = watcher.channels.pop()
            self._sink = Sink(self._take, chosen, kinds=chosen.kinds & SERVED - (frozenset() if threaded else in_core))
        else:
            self._sink = Sink(self._take, None if plain else chosen)
        self._closed = False

        def set_rules() -> None:
            if self._channel is not None:
                assert self._sink.filter is not None
                flags = 0 if threaded else lib.KP_RULE_SERVED | (lib.KP_RULE_EXITS if plain else 0)
                rules = [rule_of(rule, 0, flags) for rule in self._sink.filter.rules(in_core)]
                watcher.vm.set_trace(self._channel, rules, host=not watcher.virtual, fd=self._fd)

        self._sink.refiltered = set_rules

        def begin() -> None:
            if self._channel is not None:
                self._flush()
            set_rules()
            watcher.tracer.add(self._sink)

        try:
            watcher.locked(begin)
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self, event: Event) -> None:
        if self._watcher.virtual:
            event = event._replace(host=0, guest=0, cost=0)
        if self._channel is not None:
            self._core_flush(last=event.what == "verdict")
        self._buffer += record_of(event)
        if len(self._buffer) > BUFFER or self._channel is not None:
            self._flush()

    def _flush(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        try:
            while data and self._error is None:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self._error = HostError(f"write {self.path}", error.errno or errno.EIO)

    def _core_flush(self, *, last: bool) -> None:
        try:
            self._watcher.vm.trace_flush(self._channel, last=last)
        except HostError as error:
            self._error = self._error or HostError(f"write {self.path}", error.errno)

    def close(self) -> None:
        """The file is whole after this. Raises HostError where something could not be written; harmless when called again."""
        if self._closed:
            return
        self._closed = True
        watcher = self._watcher

        def end() -> None:
            watcher.tracer.remove(self._sink)
            if self._channel is not None:
                self._core_flush(last=True)
                watcher.vm.set_trace(self._channel, [], host=False)
                watcher.channels.add(self._channel)
            self._buffer += END
            self._flush()
            os.close(self._fd)

        watcher.locked(end, wait=True)
        if self._error is not None:
            raise self._error

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def write_trace(machine: Any, watcher: Watcher, path: str, chosen: Filter | None) -> TraceWriter:
    """`Machine.trace_file`."""
    return TraceWriter(watcher, path, chosen, about_machine(machine, "virtual" if watcher.virtual else "host"))
