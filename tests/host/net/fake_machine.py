"""A machine of nothing but its lock, for ends to be driven without a VM."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from kvmpy.frames import Offload


class Bench:
    """One end and what it delivered; posted calls run under a lock, their exceptions are kept."""

    def __init__(self, end: Any) -> None:
        self.end = end
        self.lock = threading.RLock()
        self.frames: list[tuple[bytes, Offload | None]] = []
        self.errors: list[BaseException] = []
        self._came = threading.Condition(self.lock)
        end.attach(self._receive, self._post)

    def _post(self, call: Callable[[], None]) -> None:
        with self.lock:
            try:
                call()
            except Exception as error:
                self.errors.append(error)

    def _receive(self, frame: Any, offload: Offload | None) -> None:
        self.frames.append((bytes(frame), offload))
        self._came.notify_all()

    def send(self, *pieces: bytes, offload: Offload | None = None) -> None:
        with self.lock:
            self.end.send(pieces, offload)

    def expect(self, wanted: Callable[[bytes], Any], timeout: float = 5.0) -> Any:
        """The first answer of `wanted` that is true, of the frames in order; those before are thrown away."""
        limit = time.monotonic() + timeout
        with self.lock:
            while True:
                while self.frames:
                    found = wanted(self.frames.pop(0)[0])
                    if found:
                        return found
                left = limit - time.monotonic()
                assert left > 0 and not self.errors, f"no such frame within {timeout} s {self.errors}"
                self._came.wait(left)

    def until(self, count: int, timeout: float = 5.0) -> list[bytes]:
        """Waits for `count` frames."""
        with self.lock:
            assert self._came.wait_for(lambda: len(self.frames) >= count or self.errors, timeout), f"{len(self.frames)} of {count} frames"
            assert not self.errors, self.errors
            return [frame for frame, _ in self.frames]
