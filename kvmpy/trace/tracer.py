"""Events of a run and their listeners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Event(NamedTuple):
    """One thing that happened.

    `what` is "io", "mmio", "msr" (one that the backend does not know), "exit" (any other exit), "assist", "unclaimed", "device" or
    "verdict"; `vcpu` is -1 where none is meant;
    `time` is the machine's clock in ns; `data` is plain data, for instance {"port": 0x3f8, "size": 1, "write": True, "value": 0x41}.
    """

    what: str
    vcpu: int
    time: int
    data: dict[str, Any]


Listener = Callable[[Event], None]


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
