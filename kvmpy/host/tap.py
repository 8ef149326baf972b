"""A character end around another one that watches the output for texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvmpy.host.chars import CharEnd, Receive

KEPT = 2000
"""Writes whose bytes are kept: a serial port writes them one by one."""


class Tap(CharEnd):
    """Passes everything on; `watch` calls back from the writing thread when a text has been written, also over several writes."""

    def __init__(self, end: CharEnd) -> None:
        self.end = end
        self.written = 0
        """Bytes of output so far."""
        self._last: deque[bytes] = deque(maxlen=KEPT)
        self._tail = b""
        self._watches: dict[bytes, Callable[[], None]] = {}

    def watch(self, text: bytes, call: Callable[[], None]) -> None:
        """Calls `call` every time the output to come holds `text`, until `unwatch`."""
        self._watches[text] = call

    def unwatch(self, text: bytes) -> None:
        """Harmless when it is not watched."""
        self._watches.pop(text, None)
        if not self._watches:
            self._tail = b""

    def last(self, size: int = KEPT) -> bytes:
        """The end of the output, up to so many bytes."""
        return b"".join(self._last)[-size:]

    def write(self, data: bytes) -> None:
        self.end.write(data)
        self.written += len(data)
        self._last.append(data)
        if self._watches:
            seen = self._tail + data
            for text, call in tuple(self._watches.items()):
                # A match that ended in the tail was reported with an earlier write.
                if seen.find(text, max(0, len(self._tail) - len(text) + 1)) >= 0:
                    call()
            longest = max(map(len, self._watches), default=1)
            self._tail = seen[-longest + 1 :] if longest > 1 else b""

    def attach(self, receive: Receive) -> None:
        self.end.attach(receive)

    def flush(self) -> None:
        self.end.flush()

    def close(self) -> None:
        self.end.close()
