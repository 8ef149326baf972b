"""A machine made of nothing but a clock: what a device needs to be driven by hand."""

from __future__ import annotations

import heapq
import itertools

import pytest

from kvmpy.irq import Line

START = 1_700_000_000  # 2023-11-14 22:13:20 UTC, a Tuesday


class FakeTimer:
    def __init__(self, call):
        self.call = call

    def cancel(self):
        self.call = None


class FakeClock:
    def __init__(self):
        self.time = 0
        self.start = START
        self._heap = []
        self._order = itertools.count()

    def now(self):
        return self.time

    def wall(self):
        return self.start + self.time / 1e9

    def at(self, when, call):
        timer = FakeTimer(call)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        return timer

    def pending(self):
        return sum(timer.call is not None for _, _, timer in self._heap)

    def advance(self, ns):
        """Runs every timer that falls due; none may be re-armed for the past more than a few times."""
        end = self.time + ns
        for _ in range(100_000):
            if not self._heap or self._heap[0][0] > end:
                break
            when, _, timer = heapq.heappop(self._heap)
            self.time = max(self.time, when)
            if timer.call is not None:
                timer.call()
        else:
            raise AssertionError("a timer storm")
        self.time = end


class FakePlatform:
    def __init__(self):
        self.clock = FakeClock()
        self.memory = None
        self.asynchronous = False
        self.resting = []
        self.verdicts = []
        self.events = []
        self.warnings = []
        self.messages = []

    def stop(self, verdict):
        self.verdicts.append(verdict)

    def event(self, device, what, **payload):
        self.events.append((what, payload))

    def warn(self, device, text):
        self.warnings.append(text)

    def signal_msi(self, address, data):
        self.messages.append((address, data))

    def doorbell(self, address, size, value, call):
        return None

    def at_rest(self, function):
        self.resting.append(function)

    def call(self, function):
        function()


class CountingLine(Line):
    """A line that remembers its rising edges."""

    def __init__(self, gsi=0):
        super().__init__(gsi)
        self.edges = 0
        self.bind(self._moved)

    def _moved(self, line, level):
        self.edges += level


@pytest.fixture
def platform():
    return FakePlatform()


@pytest.fixture
def clock(platform):
    return platform.clock


@pytest.fixture
def make_line():
    return CountingLine


@pytest.fixture
def make_platform():
    return FakePlatform
