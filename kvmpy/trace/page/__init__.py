"""A trace as one HTML page: timeline, durations, hottest instructions, a table of everything. It asks for no other file."""

from __future__ import annotations

import heapq
import html
import json
from collections import deque
from importlib.resources import files
from typing import Any

from kvmpy.trace.event import Event
from kvmpy.trace.histogram import Histogram, bucket_range
from kvmpy.trace.summary import Summary
from kvmpy.trace.text import TextFormat
from kvmpy.trace.timeline import Timeline
from kvmpy.trace.words import Names, Symbols, describe

MOST_ROWS = 4000
"""Rows of the table, the greatest first; a page with more is slow to open."""
MOST_RIPS = 60
SLOWEST = 60
FIRST_AND_LAST = 100
MOST_TEXT = 300
"""Characters of an event's words."""

# Nothing but what stands in the page itself: a trace's words are data, and cannot ask for anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Report:
    """Takes events one by one; `page` is the page of those taken so far."""

    def __init__(self) -> None:
        self.summary = Summary()
        self.timeline = Timeline()
        self._slowest: list[tuple[int, int, Event]] = []
        self._first: list[Event] = []
        self._last: deque[Event] = deque(maxlen=FIRST_AND_LAST)

    def __call__(self, event: Event) -> None:
        """One more."""
        summary, timeline, cost, vcpu = self.summary, self.timeline, event.cost, event.vcpu
        summary(event)
        number = summary.events
        begin = event.host or event.time - cost
        step = timeline.step_of(begin)
        timeline.add(f"n {event.what}", step, 1)
        if cost:
            timeline.add(f"t {event.what}", step, cost)
        if vcpu >= 0 and (cost or event.guest):
            timeline.spread(f"d {vcpu}", begin, begin + cost)
            timeline.spread(f"g {vcpu}", begin - event.guest, begin)
        if cost and (len(self._slowest) < SLOWEST or cost > self._slowest[0][0]):
            (heapq.heappush if len(self._slowest) < SLOWEST else heapq.heapreplace)(self._slowest, (cost, -number, event))
        if len(self._first) < FIRST_AND_LAST:
            self._first.append(event)
        else:
            self._last.append(event)

    def data(self, about: dict[str, Any], symbols: Symbols | None) -> dict[str, Any]:
        """What the page shows, as plain data; times in ns."""
        names, summary = Names(symbols), self.summary
        found = summary.data(symbols, MOST_RIPS)
        rows = summary.by(lambda key: key)
        steps = self.timeline.used()
        series = {name: sums[:steps] for name, sums in self.timeline.series.items()}
        return {
            "about": {key: str(value)[:MOST_TEXT] for key, value in about.items() if value != "" and isinstance(value, (str, int))},
            "events": summary.events,
            "ns": found["ns"],
            "vcpus": found["vcpus"],
            "kinds": found["by_kind"],
            "rips": [
                {"rip": f"{row['rip']:#x}", "name": row["symbol"], "count": row["count"], "total": row["total_ns"]}
                for row in found["by_rip"]
            ],
            "histograms": {kind: _octaves(row.cost.buckets) for kind, row in summary.by(lambda key: key[0]) if row.cost.count},
            "timeline": {"width": self.timeline.width, "steps": steps, "series": series},
            "all_rows": len(rows),
            "rows": [
                [what, where, names(rip), row.count, *_times(row.cost), row.guest]
                for (what, where, rip), row in rows[:MOST_ROWS]
            ],
            "slowest": [
                [event.cost, event.time, event.vcpu, names(event.rip), describe(event)[:MOST_TEXT]]
                for _, _, event in sorted(self._slowest, reverse=True)
            ],
            "first": _lines(self._first, symbols),
            "last": _lines(self._last, symbols),
        }  # fmt: skip

    def page(self, about: dict[str, Any] | None = None, symbols: Symbols | None = None) -> str:
        """The whole page."""
        data = self.data(about or {}, symbols)
        here = files(__package__)
        title = html.escape(f"{data['about'].get('image', 'trace').rpartition('/')[2]} - kvmpy trace")
        return PAGE.format(
            policy=POLICY, title=title,
            style=here.joinpath("page.css").read_text("utf-8"), script=here.joinpath("page.js").read_text("utf-8"),
            # No < can begin a tag in the data, whatever the guest's words are.
            data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        )  # fmt: skip


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main id="main"><noscript>This page shows its trace by JavaScript, which is switched off here.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def _times(cost: Histogram) -> tuple[int, int, int, int]:
    return cost.total, cost.quantile(0.5), cost.quantile(0.99), cost.high


def _octaves(buckets: dict[int, int]) -> list[list[int]]:
    """Buckets joined to four in each doubling: [lowest value, lowest of the next, count], those between with a count of 0."""
    found: dict[int, int] = {}
    for bucket, count in buckets.items():
        low, _ = bucket_range(bucket)
        found[_quarter(low)] = found.get(_quarter(low), 0) + count
    return [[_start(at), _start(at + 1), found.get(at, 0)] for at in range(min(found), max(found) + 1)]


def _quarter(value: int) -> int:
    """Number of the quarter of a doubling that a value lies in; below 4, its own."""
    shift = value.bit_length() - 3
    return value if shift < 0 else (shift + 1) * 4 + (value >> shift) - 4


def _start(quarter: int) -> int:
    return quarter if quarter < 4 else (quarter % 4 + 4) << (quarter // 4 - 1)


def _lines(events: Any, symbols: Symbols | None) -> list[str]:
    lines: list[str] = []
    out = TextFormat(lines.append, symbols)
    for event in events:
        out(event)
    return [line.rstrip()[: 2 * MOST_TEXT] for line in lines]
