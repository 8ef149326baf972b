"""The machine's time, in nanoseconds since the machine was made: the host's, or virtual time of the software CPU.

Timers run under the machine's lock. On the host clock a thread waits for the earliest one;
on virtual time the backend ends its run when that moment is reached, so that runs repeat exactly.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from typing import Any

from kvmpy.errors import ConfigError
from kvmpy.threads import start_thread

Call = Callable[[], None]
NEVER = (1 << 63) - 1


class ClockTimer:
    """A pending call; ordered by time, then by the order of asking."""

    __slots__ = ("call", "number", "when")

    def __init__(self, when: int, number: int, call: Call) -> None:
        self.when = when
        self.number = number
        self.call: Call | None = call

    def cancel(self) -> None:
        """The call will not happen. Harmless afterwards."""
        self.call = None

    def __lt__(self, other: ClockTimer) -> bool:
        return (self.when, self.number) < (other.when, other.number)


class TimerQueue:
    """What both clocks share: the heap of timers. Used under the machine's lock."""

    def __init__(self) -> None:
        self._heap: list[ClockTimer] = []
        self._number = 0

    def now(self) -> int:
        """Nanoseconds since the machine was made."""
        return 0

    def at(self, when: int, call: Call) -> ClockTimer:
        """Calls `call` under the machine's lock when `now()` has reached `when`."""
        self._number += 1
        timer = ClockTimer(when, self._number, call)
        heapq.heappush(self._heap, timer)
        if self._heap[0] is timer:
            self._deadline_moved()
        return timer

    def next_deadline(self) -> int | None:
        """Time of the earliest timer that is not cancelled."""
        heap = self._heap
        while heap and heap[0].call is None:
            heapq.heappop(heap)
        return heap[0].when if heap else None

    def run_due(self) -> None:
        """Runs every timer whose time has come, in order; a timer set meanwhile for the past runs too, after those."""
        limit = self._number
        later: list[ClockTimer] = []
        while self._heap and self._heap[0].when <= self.now():
            timer = heapq.heappop(self._heap)
            if timer.number > limit:
                later.append(timer)  # set by a timer of this round: next round, or a periodic one in arrears would never end
                continue
            call, timer.call = timer.call, None
            if call is not None:
                call()
        for timer in later:
            heapq.heappush(self._heap, timer)
        self._deadline_moved()

    def _deadline_moved(self) -> None:
        """The earliest timer is another one now."""

    def close(self) -> None:
        """No timer runs any more."""
        self._heap.clear()


class HostClock(TimerQueue):
    """Runs with the host's monotonic clock, also while the guest does not run."""

    name = "host"

    def __init__(self, post: Callable[[Call], None], began: int = 0) -> None:
        """`post` brings a function under the machine's lock, from any thread; `began`: so many ns have passed already."""
        super().__init__()
        self._post = post
        self._zero = time.monotonic_ns() - began
        self._ahead = 0
        self._condition = threading.Condition()
        self._wake_at = NEVER
        self._closed = False
        self._thread: threading.Thread | None = None

    def now(self) -> int:
        return time.monotonic_ns() - self._zero

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time() + self._ahead / 1e9

    def jump(self, ns: int) -> None:
        """So much time passes at once; timers that this makes due run late. Under the machine's lock."""
        self._zero -= ns
        self._ahead += ns
        self._wake_at = NEVER  # the thread waits for a moment that has moved
        self._deadline_moved()

    def _deadline_moved(self) -> None:
        deadline = self.next_deadline()
        wake_at = NEVER if deadline is None else deadline
        with self._condition:
            if wake_at == self._wake_at:
                return
            self._wake_at = wake_at
            if self._thread is None and wake_at != NEVER and not self._closed:
                self._thread = start_thread(self._wait, "kvmpy-clock")
            self._condition.notify()

    def _wait(self) -> None:
        while True:
            with self._condition:
                while not self._closed:
                    left = self._wake_at - self.now()
                    if left <= 0:
                        break
                    self._condition.wait(None if self._wake_at == NEVER else left / 1e9)
                if self._closed:
                    return
                self._wake_at = NEVER
            self._post(self.run_due)

    def close(self) -> None:
        super().close()
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)  # a timer that runs now still finds its machine


class VirtualClock(TimerQueue):
    """Time counted by the software CPU in instructions; every run of the same guest sees the same time."""

    name = "virtual"

    def __init__(self, vm: Any, epoch: float = 1577836800.0) -> None:
        """`epoch` is the wall-clock time at the start: by default 2020-01-01 as in kvmclock, so that runs repeat."""
        super().__init__()
        if not hasattr(vm, "now") or not hasattr(vm, "set_deadline"):
            raise ConfigError(f"clock virtual: the {vm.name} backend cannot count time in instructions; use the soft backend")
        self._vm = vm
        self._epoch = epoch

    def now(self) -> int:
        return int(self._vm.now())

    def wall(self) -> float:
        """Seconds since 1970, from the epoch given."""
        return self._epoch + self.now() / 1e9

    def _deadline_moved(self) -> None:
        deadline = self.next_deadline()
        self._vm.set_deadline(NEVER if deadline is None else deadline)
