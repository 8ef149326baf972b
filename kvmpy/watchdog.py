"""A deadline for runs: a KVM_RUN can spin in the kernel for ever, and a guest can loop; a kick ends both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from kvmpy.backend import Vcpu
from kvmpy.threads import start_thread

_AGAIN = 0.01


class Watchdog:
    """Kicks vCPUs once `seconds` have passed, and again every 10 ms until stopped, as a kick may meet another exit.

    A context manager; `None` for no deadline. `fired` tells whether the deadline came; `on_fire` is called once, before the kicks,
    in the watchdog's thread.
    """

    def __init__(self, seconds: float | None, vcpus: Iterable[Vcpu], on_fire: Callable[[], None] | None = None) -> None:
        self.seconds = seconds
        self.fired = False
        self._vcpus = list(vcpus)
        self._on_fire = on_fire
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._stopped = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the clock; without a deadline there is no thread."""
        if self.seconds is not None and self._thread is None:
            self._deadline = time.monotonic() + self.seconds
            self._thread = start_thread(self._watch, "kvmpy-watchdog")

    def feed(self, seconds: float | None = None) -> None:
        """Moves the deadline to `seconds` (by default the first ones) from now."""
        with self._changed:
            if self._deadline is not None and not self.fired:
                self._deadline = time.monotonic() + (seconds if seconds is not None else self.seconds or 0)
                self._changed.notify()

    def stop(self) -> None:
        """Ends the watching; no kick comes after it returns."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                left = (self._deadline or 0) - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                first, self.fired = not self.fired, True
            if first and self._on_fire is not None:
                self._on_fire()
            for vcpu in self._vcpus:
                vcpu.kick()
            with self._changed:
                if not self._stopped:
                    self._changed.wait(_AGAIN)
