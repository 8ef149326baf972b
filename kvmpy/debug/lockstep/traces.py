"""Two saved traces event by event."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from kvmpy.debug.lockstep.compare import BEFORE
from kvmpy.trace.event import Event
from kvmpy.trace.words import describe


def _told(event: Event) -> dict[str, Any]:
    """What is compared: not the times, nor the name of who answered."""
    data = {name: value for name, value in event.data.items() if name not in ("device", "vm", "pid", "fd")}
    return {"what": event.what, "vcpu": event.vcpu, "rip": event.rip, "cpl": event.cpl, **data}


def compare_traces(left: Iterable[Event], right: Iterable[Event], names: tuple[str, str], *, rip: bool = True) -> tuple[int, list[str]]:
    """How many events are equal from the start, and the page about the first that is not (no lines: all are). Without `rip` the
    addresses of instructions are not compared. Raises TraceError of a broken file."""
    last: deque[tuple[int, Event]] = deque(maxlen=BEFORE)
    ones, others = iter(left), iter(right)
    count = 0
    while True:
        one, other = next(ones, None), next(others, None)
        if one is None and other is None:
            return count, []
        if one is None or other is None or _differ(one, other, rip):
            return count, _page(count, one, other, last, names)
        last.append((count, one))
        count += 1


def _differ(one: Event, other: Event, rip: bool) -> bool:
    mine, its = _told(one), _told(other)
    if not rip or one.rip is None or other.rip is None:
        mine["rip"] = its["rip"] = None
    if one.cpl is None or other.cpl is None:
        mine["cpl"] = its["cpl"] = None
    return mine != its


def _line(event: Event | None) -> str:
    if event is None:
        return "(the trace has ended)"
    where = "" if event.rip is None else f"{event.rip:#x}  "
    return f"cpu{event.vcpu}  {where}{describe(event)}"


def _page(count: int, one: Event | None, other: Event | None, last: Iterable[tuple[int, Event]], names: tuple[str, str]) -> list[str]:
    def values() -> Iterator[str]:
        if one is not None and other is not None:
            mine, its = _told(one), _told(other)
            for key in {**mine, **its} if one.what == other.what else ("what", "vcpu", "rip"):
                if mine.get(key) != its.get(key):
                    yield f"  {key}: {_value(mine.get(key))} against {_value(its.get(key))}"

    before = [f"  {number:8}  {_line(event)}" for number, event in last]
    return [
        f"difference in event {count}", f"{names[0]}: {_line(one)}", f"{names[1]}: {_line(other)}", *values(),
        *(["what came before (equal in both)", *before] if before else []),
    ]


def _value(value: Any) -> str:
    return "nothing" if value is None else f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
