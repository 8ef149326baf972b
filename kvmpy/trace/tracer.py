"""The listeners of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmpy.trace.event import Event, Listener


class Tracer:
    """Gives events to listeners. One that raises is removed and reported once; the guest runs on."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._listeners: tuple[Listener, ...] = ()

    def __len__(self) -> int:
        return len(self._listeners)

    def add(self, listener: Listener) -> None:
        """From now on `listener` is called with every event, under the machine's lock."""
        self._listeners = (*self._listeners, listener)

    def remove(self, listener: Listener) -> None:
        """Harmless when it is not there."""
        self._listeners = tuple(other for other in self._listeners if other is not listener)

    def emit(self, what: str, vcpu: int, **data: Any) -> None:
        """Tells all listeners."""
        event = Event(what, vcpu, self._now(), data)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                import logging  # a machine that nobody watches, or nobody badly, needs none of it

                self.remove(listener)
                logging.getLogger("kvmpy.trace").exception("a trace listener raised and is removed: %r", listener)
