"""What a trace comes to: events by kind, by port or address, by instruction, with the time that each took. Memory is bounded
however long the trace is: durations are kept as histograms, and what comes after MOST_ROWS different rows is counted together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvmpy.trace.event import KINDS, Event
from kvmpy.trace.histogram import Histogram
from kvmpy.trace.words import Names, Symbols, place
from kvmpy.units import format_ns

MOST_ROWS = 1 << 14
OTHERS = "(others)"
PARTS = ("in the guest", "in devices", "in kvmpy")
TRACED = ("in the guest", "in the traced program and its tracing", "not running")
"""Of a program that kvmpy spy traced; `about` names it as "traced" then."""

Key = tuple[str, str, int | None]


class Row:
    """One kind of event at one place, by one instruction."""

    __slots__ = ("cost", "count", "guest")

    def __init__(self) -> None:
        self.count = 0
        self.guest = 0
        """ns in the guest before, all together."""
        self.cost = Histogram()
        """ns of the answers that were measured."""

    def merge(self, other: Row) -> None:
        self.count += other.count
        self.guest += other.guest
        self.cost.merge(other.cost)


class Span:
    """One vCPU's time from its first answered exit to its last, ns of the host's clock where events tell it, else of the machine's."""

    __slots__ = ("cost", "first", "guest", "last")

    def __init__(self, first: int) -> None:
        self.first = self.last = first
        self.guest = self.cost = 0


class Summary:
    """Takes events one by one, and can be asked at any time."""

    def __init__(self) -> None:
        self.events = 0
        self.rows: dict[Key, Row] = {}
        self.spans: dict[int, Span] = {}
        self._first: int | None = None
        self._last = 0

    def __call__(self, event: Event) -> None:
        """One more."""
        self.events += 1
        rip, cost, guest, vcpu = event.rip, event.cost, event.guest, event.vcpu
        key = (event.what, place(event), rip)
        row = self.rows.get(key)
        if row is None:
            row = self._new_row(key)
        row.count += 1
        row.guest += guest
        if cost:
            row.cost.add(cost)
        begin = event.host or event.time - cost
        end = begin + cost
        if self._first is None or begin < self._first:
            self._first = begin
        if end > self._last:
            self._last = end
        if vcpu >= 0 and (cost or guest):  # what the core alone has told says nothing of where time went
            span = self.spans.get(vcpu)
            if span is None:
                span = self.spans[vcpu] = Span(begin - guest)
            span.last = end
            span.guest += guest
            if event.what != "ioctl":  # a traced process makes its calls while it answers an exit
                span.cost += cost

    def close(self) -> None:
        """Nothing is open."""

    def _new_row(self, key: Key) -> Row:
        what, where, _ = key
        if len(self.rows) >= MOST_ROWS:
            key = (what, where, None)
            if key not in self.rows and len(self.rows) >= 2 * MOST_ROWS:
                key = (what if what in KINDS else OTHERS, OTHERS, None)
        return self.rows.setdefault(key, Row())

    def by(self, group: Callable[[Key], Any]) -> list[tuple[Any, Row]]:
        """The rows under the names that `group` gives them, None for none; those that took or were the most first."""
        found: dict[Any, Row] = {}
        for key, row in self.rows.items():
            name = group(key)
            if name is not None:
                found.setdefault(name, Row()).merge(row)
        return sorted(found.items(), key=lambda pair: (pair[1].cost.total, pair[1].count), reverse=True)

    def data(self, symbols: Symbols | None = None, most: int = 1000) -> dict[str, Any]:
        """Plain data, times in ns. At most so many rows of a table, the greatest first."""
        names = Names(symbols)
        places = self.by(lambda key: key[:2] if key[1] else None)[:most]
        return {
            "events": self.events,
            "ns": self._last - (self._first or 0),
            "vcpus": {str(index): _span(span) for index, span in sorted(self.spans.items())},
            "by_kind": [{"kind": name, **self._row(row)} for name, row in self.by(lambda key: key[0])],
            "by_place": [{"kind": what, "place": where, **self._row(row)} for (what, where), row in places],
            "by_rip": [{"rip": rip, "symbol": names(rip), **self._row(row)} for rip, row in self.by(lambda key: key[2])[:most]],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        cost = row.cost
        return {
            "count": row.count, "share": row.count / self.events if self.events else 0.0, "total_ns": cost.total, "min_ns": cost.low,
            "median_ns": cost.quantile(0.5), "p99_ns": cost.quantile(0.99), "max_ns": cost.high, "guest_ns": row.guest,
        }  # fmt: skip

    def lines(self, symbols: Symbols | None = None, most: int = 20, parts: Sequence[str] = PARTS) -> list[str]:
        """Tables for people; `parts` names where the vCPUs' time went."""
        data = self.data(symbols, most)
        lines = [f"{data['events']} events in {format_ns(data['ns'])}"]
        guest, device, other = (sum(span[name] for span in data["vcpus"].values()) for name in ("guest_ns", "device_ns", "kvmpy_ns"))
        if guest or device:
            whole = guest + device + other
            times = zip(parts, (guest, device, other), strict=False)
            shares = (f"{format_ns(time)} {name} ({100 * time / whole:.1f} %)" for name, time in times)
            lines.append(f"time of the vCPUs: {', '.join(shares)}")
        lines += _table("kind", [(row["kind"], row) for row in data["by_kind"]])
        lines += _table("kind and place", [(f"{row['kind']:9} {row['place']}", row) for row in data["by_place"]])
        lines += _table("instruction", [(row["symbol"], row) for row in data["by_rip"]])
        return lines


def _span(span: Span) -> dict[str, int]:
    whole = span.last - span.first
    return {"ns": whole, "guest_ns": span.guest, "device_ns": span.cost, "kvmpy_ns": max(whole - span.guest - span.cost, 0)}


def _table(title: str, rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    if not rows:
        return []
    head = f"{'count':>9} {'share':>7} {'total':>8} {'min':>8} {'median':>8} {'p99':>8} {'max':>8}  {title}"
    lines = ["", head, "-" * len(head)]
    for name, row in rows:
        times = [row[key] for key in ("total_ns", "min_ns", "median_ns", "p99_ns", "max_ns")]
        shown = " ".join(f"{format_ns(time) if times[0] else '-':>8}" for time in times)
        lines.append(f"{row['count']:>9} {100 * row['share']:>5.1f} % {shown}  {name}")
    return lines
