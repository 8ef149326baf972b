"""When a fault strikes, and the journal of what did."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from kvmpy.errors import ConfigError
from kvmpy.record import Record

MOST_HAPPENED = 10_000
"""Kept; a guest that retries for ever must not fill the host's memory."""


class Happened(Record, frozen=True):
    """One fault that struck; `time` is the machine's clock in ns."""

    time: int
    what: str


class Journal:
    """Shared by all faults of a machine."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.rules: list[Record] = []
        self.happened: list[Happened] = []

    def tell(self, what: str) -> None:
        """A fault struck now."""
        if len(self.happened) < MOST_HAPPENED:
            self.happened.append(Happened(self.now(), what))


class When(Record, frozen=True):
    """Which of the events that a rule is asked about it strikes: the one numbered `at` (the first is 1, counted from the moment
    when the rule was made) and those after it, `times` in all (None: for ever); or each with a probability, by a seed."""

    at: int | None = None
    times: int | None = 1
    probability: float | None = None
    seed: int = 0


def when(at: int | None, times: int | None, probability: float | None, seed: int) -> When:
    """Checks what a caller asks for. ConfigError for what makes no sense."""
    if at is not None and probability is not None:
        raise ConfigError("faults: at= or probability=, not both")
    if at is not None and at < 1:
        raise ConfigError(f"faults: at={at}: the first is 1")
    if times is not None and times < 1:
        raise ConfigError(f"faults: times={times}: 1 or more, or None for ever")
    if probability is not None and not 0 <= probability <= 1:
        raise ConfigError(f"faults: probability={probability}: from 0 to 1")
    return When(1 if at is None and probability is None else at, times, probability, seed)


class Counter:
    """A rule's count. Questions may come from several threads."""

    def __init__(self, when: When) -> None:
        self.when = when
        self.random = random.Random(when.seed)
        self._asked = 0
        self._struck = 0
        self._lock = threading.Lock()

    def strikes(self) -> bool:
        """One more event: true when the fault hits it."""
        with self._lock:
            self._asked += 1
            if self.when.at is None:
                hit = self.random.random() < (self.when.probability or 0)
            else:
                hit = self._asked >= self.when.at
            if not hit or (self.when.times is not None and self._struck >= self.when.times):
                return False
            self._struck += 1
            return True
