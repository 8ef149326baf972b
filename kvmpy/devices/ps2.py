"""What PS/2 keyboard and mouse have in common: replies, queued sequences, commands with arguments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

ACK = 0xFA
RESEND = 0xFE
BAT_PASSED = 0xAA  # basic assurance test, after power-on and reset
QUEUE = 16
"""Sequences kept; further ones are dropped."""


class Ps2Device:
    """A device on one of the controller's ports: `send` takes a byte from the host, `take` gives the next byte for it.

    Replies go before queued sequences, but never into the middle of one. `notify` is called when a byte becomes available.
    """

    def __init__(self) -> None:
        self.notify: Callable[[], None] = lambda: None
        self._sending: deque[int] = deque()
        self._replies: deque[int] = deque(maxlen=QUEUE)
        self._queue: deque[bytes] = deque()
        self._command: int | None = None  # waits for its argument
        self._last = 0

    def pending(self) -> bool:
        return bool(self._sending or self._replies or self._queue)

    def take(self) -> int:
        """The next byte; there must be one."""
        if not self._sending:
            if self._replies:
                self._last = self._replies.popleft()
                return self._last
            self._sending.extend(self._queue.popleft())
        self._last = self._sending.popleft()
        if not self._sending and not self._queue:
            self.drained()
        return self._last

    def drained(self) -> None:
        """Everything queued has gone out."""

    def send(self, byte: int) -> None:
        raise AssertionError("a PS/2 device takes commands")

    def reply(self, *values: int) -> None:
        self._replies.extend(values)
        self.notify()

    def queue(self, sequence: bytes) -> bool:
        """False when the sequence was dropped for lack of room."""
        if len(self._queue) >= QUEUE:
            return False
        self._queue.append(sequence)
        self.notify()
        return True

    def clear_queue(self) -> None:
        self._sending.clear()
        self._queue.clear()

    def power_on(self) -> None:
        self.clear_queue()
        self._replies.clear()
        self._command = None

    def state(self) -> dict[str, Any]:
        return {
            "sending": list(self._sending), "replies": list(self._replies), "queue": list(self._queue),
            "command": self._command, "last": self._last,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._sending = deque(state["sending"])
        self._replies = deque(state["replies"], QUEUE)
        self._queue = deque(state["queue"])
        self._command, self._last = state["command"], state["last"]
