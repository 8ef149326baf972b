"""An end in memory: keeps all output, finds text in it, sends input."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from kvmpy.host.chars import CharEnd, Receive

TAIL = 400
"""Bytes of output that a timeout's message shows."""


class Capture(CharEnd):
    """Keeps everything that was written in `data`.

    `wait` blocks the calling thread while the guest runs in another; `watch` calls back from the writing thread.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        self._consumed = 0  # everything before has been matched by a `wait`
        self._watches: list[tuple[bytes, Callable[[], None]]] = []
        self._receivers: list[Receive] = []

    @property
    def text(self) -> str:
        """The output as UTF-8; bytes that are none show as U+FFFD."""
        return self.data.decode("utf-8", "replace")

    def write(self, data: bytes) -> None:
        with self._lock:
            self.data += data
            if self._waiting:
                self._changed.notify_all()
        if self._watches:
            self._look(len(data))

    def _look(self, added: int) -> None:
        for watch in tuple(self._watches):
            needle, call = watch
            if self.data.find(needle, max(0, len(self.data) - added - len(needle) + 1)) >= 0:
                self._watches.remove(watch)
                call()

    def attach(self, receive: Receive) -> None:
        self._receivers.append(receive)

    def send(self, data: bytes | str) -> None:
        """Input for the guest."""
        for receive in self._receivers:
            receive(_bytes(data))

    def watch(self, text: bytes | str, call: Callable[[], None]) -> None:
        """Calls `call` once, as soon as the output holds `text`; at once if it does already."""
        needle = _bytes(text)
        if needle in self.data:
            call()
        else:
            self._watches.append((needle, call))

    def wait(self, text: bytes | str | re.Pattern[bytes], timeout: float = 10.0) -> bytes:
        """Output from the end of the previous match through the first match of `text`.

        Raises TimeoutError, whose text holds the end of the output, after `timeout` seconds.
        """
        pattern = text if isinstance(text, re.Pattern) else re.compile(re.escape(_bytes(text)))
        limit = time.monotonic() + timeout
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    match = pattern.search(self.data, self._consumed)
                    if match:
                        found = bytes(self.data[self._consumed : match.end()])
                        self._consumed = match.end()
                        return found
                    left = limit - time.monotonic()
                    if left <= 0:
                        raise TimeoutError(f"no {pattern.pattern!r} in {timeout} s; output ends with {bytes(self.data[-TAIL:])!r}")
                    match = None  # a match object pins the bytearray's size
                    self._changed.wait(left)
            finally:
                self._waiting -= 1


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)
