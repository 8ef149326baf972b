"""Events one by one, the machine standing still between them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from typing import Any

from kvmpy.trace.event import Event
from kvmpy.trace.filters import Filter
from kvmpy.trace.tracer import PAUSE, Sink
from kvmpy.trace.watch import Watcher
from kvmpy.verdicts import Stopped, Verdict


def events_of(machine: Any, watcher: Watcher, chosen: Filter | None, timeout: float | None) -> Generator[Event, None, Verdict]:
    """`Machine.events`."""
    waiting: deque[Event] = deque()

    # It answers nothing, yet where it only observed, the core would go on behind an event.
    sink = Sink(waiting.append, chosen, observe=False)
    end = None if timeout is None else time.monotonic() + timeout
    watcher.add(sink)
    watcher.tracer.pausing += 1
    try:
        while True:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return Stopped("timeout")
            verdict: Verdict = machine.run(left, lambda: bool(waiting))
            while waiting:
                yield waiting.popleft()
            if verdict != PAUSE:
                return verdict
    finally:
        watcher.tracer.pausing -= 1
        watcher.remove(sink)
