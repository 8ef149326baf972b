"""A measured value with its spread, over rounds of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

NOISY = 0.15
"""Half of the values lie within so much of the median on a quiet host."""


@dataclass(frozen=True)
class Figure:
    """The median of `count` values, the quartiles to either side, and the best value: what the host disturbs is only ever worse."""

    median: float
    low: float
    high: float
    best: float
    count: int

    @property
    def spread(self) -> float:
        return (self.high - self.low) / self.median if self.median else 0.0

    def as_json(self) -> dict[str, Any]:
        return {"median": self.median, "low": self.low, "high": self.high, "best": self.best, "runs": self.count}


def figure(values: Sequence[float], best: float | None = None) -> Figure | None:
    """Of times; of ratios, whose best value is told apart: that of the best times."""
    if not values:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return Figure(median(values), low, high, min(values) if best is None else best, len(values))


def geometric(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@dataclass
class Series:
    """One benchmark by one runner: its times, as lists of one round each; the amount of work; what it has computed."""

    rounds: dict[int, list[float]]
    work: int = 0

    @property
    def times(self) -> list[float]:
        return [value for values in self.rounds.values() for value in values]

    def at(self, n: int) -> float:
        return median(self.rounds[n])


def ratio(above: Sequence[Series], below: Sequence[Series]) -> Figure | None:
    """Geometric mean of above/below. The median is over rounds, each of which compares what ran next to one another; the best value
    compares the best times."""
    if not above or len(above) != len(below):
        return None
    shared = set.intersection(*(set(s.rounds) for s in (*above, *below)))
    values = [geometric([a.at(n) / b.at(n) for a, b in zip(above, below, strict=True)]) for n in sorted(shared)]
    if not values:
        return None
    return figure(values, geometric([min(a.times) / min(b.times) for a, b in zip(above, below, strict=True)]))
