"""Events as a trace for ui.perfetto.dev: Perfetto's protobuf format (trace_packet.proto, track_event.proto), written by hand.

Each vCPU has a track with slices "guest" and, one after each, the exit that ended it; interrupts, exceptions and what else has no
duration stand there as instants. Each device has a track of what it said. Counters tell events in each millisecond by kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from kvmpy.trace.event import Event
from kvmpy.trace.words import MOST_KEPT, Names, Symbols, describe, place

SLICE_BEGIN, SLICE_END, INSTANT, COUNTER = 1, 2, 3, 4
SEQUENCE = 1
CLEARED, NEEDS_STATE = 1, 2
ROOT, VCPUS, COUNTERS, DEVICES = 1, 0x1000, 0x2000, 0x3000
"""Numbers of tracks: the process; then those of a kind from the number on."""
MOST_DEVICES = 256
REST = "other devices"
WINDOW = 1_000_000
"""ns that a counter counts over."""


_SHORT = [bytes((value,)) for value in range(0x80)]


def varint(value: int) -> bytes:
    """A number, 7 bits a byte, lowest first."""
    if value < 0x80:
        return _SHORT[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field with a number."""
    return varint(field << 3) + varint(value)


def chunk(field: int, content: bytes) -> bytes:
    """A field with bytes, a text or a message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return chunk(field, text.encode("utf-8", "replace"))


# Fields of DebugAnnotation, with their own names interned below.
_TEXT_OF, _RIP_OF = 1, 2
_ANNOTATIONS = {_TEXT_OF: "what", _RIP_OF: "instruction"}
_SEQUENCE = number(10, SEQUENCE)
_TIME = varint(8 << 3)
_KINDS = {kind: number(9, kind) + varint(11 << 3) for kind in (SLICE_BEGIN, SLICE_END, INSTANT, COUNTER)}
_TAIL = _SEQUENCE + number(13, NEEDS_STATE)


class PerfettoFormat:
    """Writes packets with `write`. `close` ends what is open."""

    def __init__(self, write: Callable[[bytes], object], symbols: Symbols | None = None, about: dict[str, Any] | None = None) -> None:
        self._write = write
        self._names = Names(symbols)
        self._interned: dict[str, bytes] = {}
        self._ends: dict[int, int] = {}
        """By vCPU: where its last slice ended."""
        self._devices: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._shown: dict[str, int] = {}
        self._counters: dict[str, int] = {}
        self._window = 0
        image = str((about or {}).get("image", ""))
        title = f"kvmpy {os.path.basename(image)}".rstrip()
        process = number(1, 1) + _text(6, title)
        annotations = b"".join(chunk(3, number(1, iid) + _text(2, name)) for iid, name in _ANNOTATIONS.items())
        self._packet(_SEQUENCE + number(13, CLEARED) + chunk(12, annotations))
        self._packet(_SEQUENCE + chunk(60, number(1, ROOT) + chunk(3, process)))

    def _packet(self, content: bytes) -> None:
        self._write(b"\x0a" + varint(len(content)) + content)

    def _event(self, time: int, track: int, kind: int, extra: bytes = b"") -> None:
        body = _KINDS[kind] + varint(track) + extra
        self._packet(_TIME + varint(time) + _TAIL + b"\x5a" + varint(len(body)) + body)

    def _name(self, name: str) -> bytes:
        """The field that names an event; a new name is told first."""
        field = self._interned.get(name)
        if field is None:
            if len(self._interned) >= MOST_KEPT:
                return _text(23, name)
            iid = len(self._interned) + 1
            field = self._interned[name] = number(10, iid)
            self._packet(_TAIL + chunk(12, chunk(2, number(1, iid) + _text(2, name))))
        return field

    def __call__(self, event: Event) -> None:
        begin = max(event.host or event.time - event.cost, 0)
        window = begin // WINDOW
        if window != self._window:
            self._show_counts(window)
        self._counts[event.what] = self._counts.get(event.what, 0) + 1
        name = place(event) or event.what
        if event.what not in ("io", "mmio", "msr"):
            name = f"{event.what} {name}" if name != event.what else name
        note = chunk(4, number(1, _TEXT_OF) + _text(6, describe(event)))
        if event.rip is not None:
            note += chunk(4, number(1, _RIP_OF) + _text(6, self._names(event.rip)))
        if event.vcpu < 0:
            self._event(begin, self._device_track(str(event.data.get("device") or event.what)), INSTANT, self._name(name) + note)
            return
        track = VCPUS + event.vcpu
        end = self._ends.get(event.vcpu)
        if end is None:
            thread = number(1, 1) + number(2, event.vcpu + 2) + _text(5, f"vCPU {event.vcpu}")
            self._packet(_SEQUENCE + chunk(60, number(1, track) + number(5, ROOT) + chunk(4, thread)))
            end = 0
        if not event.cost and not event.guest:
            self._event(max(begin, end), track, INSTANT, self._name(name) + note)
            self._ends[event.vcpu] = max(begin, end)
            return
        # Slices of a track do not overlap: what began before the last one's end begins there.
        guest, after = max(begin - event.guest, end), max(begin + event.cost, end)
        begin = max(begin, end)
        if begin > guest:
            self._event(guest, track, SLICE_BEGIN, self._name("guest"))
            self._event(begin, track, SLICE_END)
        self._event(begin, track, SLICE_BEGIN, self._name(name) + note)
        self._event(after, track, SLICE_END)
        self._ends[event.vcpu] = after

    def _device_track(self, name: str) -> int:
        track = self._devices.get(name)
        if track is None:
            if len(self._devices) >= MOST_DEVICES and name != REST:
                return self._device_track(REST)
            track = self._devices[name] = DEVICES + 1 + len(self._devices)
            self._packet(_SEQUENCE + chunk(60, number(1, track) + number(5, ROOT) + _text(2, name)))
        return track

    def _show_counts(self, window: int) -> None:
        """The counters of the window that is over, and zeros for the time until the present one."""
        start = self._window * WINDOW
        for what in {**self._shown, **self._counts}:
            count = self._counts.get(what, 0)
            if self._shown.get(what) != count:
                self._event(start, self._counter_track(what), COUNTER, number(30, count))
            if count and window > self._window + 1:
                self._event(start + WINDOW, self._counter_track(what), COUNTER, number(30, 0))
                count = 0
            self._shown[what] = count
        self._counts.clear()
        self._window = window

    def _counter_track(self, what: str) -> int:
        track = self._counters.get(what)
        if track is None:
            track = self._counters[what] = COUNTERS + len(self._counters)
            unit = number(3, 2) + _text(6, "events/ms")
            self._packet(_SEQUENCE + chunk(60, number(1, track) + number(5, ROOT) + _text(2, f"{what} each ms") + chunk(8, unit)))
        return track

    def close(self) -> None:
        """The last counters. The file is the caller's."""
        self._show_counts(self._window + 2)
