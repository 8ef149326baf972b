"""Output to a file descriptor, gathered into lines."""

from __future__ import annotations

import atexit
import os
import select
import threading
from collections.abc import Callable

from kvmpy.threads import start_thread

LIMIT = 4096
"""Bytes gathered at most."""
PAUSE = 0.01
"""Seconds without a newline after which a started line is shown."""


class Output:
    """Writes at every newline, at LIMIT bytes, and PAUSE seconds after the first byte of an unfinished line.

    A descriptor that cannot be written (its reader has gone: EPIPE; the disk is full: ENOSPC) swallows the rest: `broken` tells so,
    and `on_broken` is called once with the errno, from the thread that writes. A slow reader slows the guest.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.broken = False
        self.on_broken: Callable[[int], None] | None = None
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._started = threading.Event()  # an unfinished line waits
        self._waiting = False  # the same for the writer, which asks for every byte
        self._closed = False
        self._ended = threading.Event()
        self._flusher: threading.Thread | None = None
        atexit.register(self.flush)

    def write(self, data: bytes) -> None:
        with self._lock:
            self._buffer += data
            if b"\n" in data or len(self._buffer) >= LIMIT:
                self._flush()
                return
        if not self._waiting:
            self._wait_for_pause()

    def _wait_for_pause(self) -> None:
        if self.broken or self._closed:
            return
        if self._flusher is None:
            self._flusher = start_thread(self._flush_pauses, f"output {self.fd}")
        self._waiting = True
        self._started.set()

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        while self._buffer and not (self.broken or self._closed):
            try:
                written = os.write(self.fd, self._buffer)
            except BlockingIOError:  # somebody else made the shared descriptor non-blocking
                select.select([], [self.fd], [], 1.0)
                continue
            except OSError as error:
                self.broken = True
                if self.on_broken is not None:
                    self.on_broken(error.errno or 0)
                break
            del self._buffer[:written]
        self._buffer.clear()

    def _flush_pauses(self) -> None:
        while not self._closed:
            self._started.wait()
            self._ended.wait(PAUSE)
            self._started.clear()
            self._waiting = False
            self.flush()

    def close(self) -> None:
        """Flushes and ends the thread; the descriptor stays open."""
        self.flush()
        self._closed = True
        self._ended.set()
        self._started.set()
        if self._flusher is not None:
            self._flusher.join(1.0)
        atexit.unregister(self.flush)
