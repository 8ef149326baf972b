"""Counts over time in a fixed number of steps, for a trace whose end is not known: when it gets longer, the steps do."""

from __future__ import annotations

STEPS = 1024
FIRST_WIDTH = 1000
"""ns of a step at first."""
MOST_SERIES = 256


class Timeline:
    """Sums by step and series."""

    def __init__(self) -> None:
        self.start = 0
        self.width = FIRST_WIDTH
        self.series: dict[str, list[int]] = {}
        self._any = False

    def step_of(self, time: int) -> int:
        """The step that a time (ns) falls in. Makes room for it; what came before the first event falls in the first step."""
        if not self._any:
            self._any, self.start = True, time
        step = (time - self.start) // self.width
        while step >= STEPS:
            self._fold()
            step = (time - self.start) // self.width
        return max(step, 0)

    def _fold(self) -> None:
        self.width *= 2
        for sums in self.series.values():
            half = [one + other for one, other in zip(sums[::2], sums[1::2], strict=True)]
            sums[:] = half + [0] * (STEPS // 2)

    def add(self, name: str, step: int, amount: int) -> None:
        """Beyond MOST_SERIES names, new ones are not counted."""
        sums = self.series.get(name)
        if sums is None:
            if len(self.series) >= MOST_SERIES:
                return
            sums = self.series[name] = [0] * STEPS
        sums[step] += amount

    def spread(self, name: str, begin: int, end: int) -> None:
        """Adds the ns from `begin` to `end` to the steps that they lie in; what lies before the first event is left out."""
        step = self.step_of(end - 1)
        begin = max(begin, self.start)
        while begin < end:
            low = self.start + step * self.width
            self.add(name, step, end - max(low, begin))
            end, step = low, step - 1

    def used(self) -> int:
        """Steps up to the last one with anything in it."""
        return max((step + 1 for sums in self.series.values() for step in range(STEPS) if sums[step]), default=0)
