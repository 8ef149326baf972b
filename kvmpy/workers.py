"""A few threads for calls that wait for the host, so that nobody else has to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from kvmpy.threads import start_thread

MOST = 4


class Workers:
    """Runs calls in threads, which are started as calls come in, at most `most` of them. Calls are begun in order; they must not raise."""

    def __init__(self, name: str, most: int = MOST) -> None:
        self.name = name
        self.most = most
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)
        self._none = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._waiting = 0
        self._unfinished = 0
        self._closed = False

    def submit(self, call: Callable[[], None]) -> None:
        """Has `call` run soon."""
        with self._lock:
            assert not self._closed
            self._calls.append(call)
            self._unfinished += 1
            if self._waiting >= len(self._calls) or len(self._threads) == self.most:
                self._more.notify()
            else:
                self._threads.append(start_thread(self._run, self.name))

    def wait(self) -> None:
        """Until every call that was submitted has ended."""
        with self._lock:
            while self._unfinished:
                self._none.wait()

    def close(self) -> None:
        """Waits for all calls and ends the threads. Twice is harmless."""
        self.wait()
        with self._lock:
            self._closed = True
            self._more.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._calls:
                    if self._closed:
                        return
                    self._waiting += 1
                    self._more.wait()
                    self._waiting -= 1
                call = self._calls.popleft()
            try:
                call()
            finally:
                del call  # what it refers to need not outlive it
                with self._lock:
                    self._unfinished -= 1
                    if not self._unfinished:
                        self._none.notify_all()
