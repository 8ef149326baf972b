"""Quantiles of durations that pass by, in bounded memory."""

from __future__ import annotations

from math import ceil

FINE = 5
"""Bits: 32 buckets for each doubling, so that a quantile is off by at most 1.6 %."""
_STEPS = 1 << FINE


def bucket_of(value: int) -> int:
    """Number of the bucket that a value falls in; values below 64 have one each."""
    shift = value.bit_length() - FINE - 1
    return value if shift <= 0 else (shift << FINE) + (value >> shift)


def bucket_range(bucket: int) -> tuple[int, int]:
    """Lowest value of a bucket, and the lowest of the next."""
    shift = max((bucket >> FINE) - 1, 0)
    low = bucket - (shift << FINE) << shift
    return low, low + (1 << shift)


class Histogram:
    """Counts by bucket; number, sum, least and greatest are exact. 64-bit values need at most 1920 buckets."""

    __slots__ = ("buckets", "count", "high", "low", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.low = 0
        self.high = 0
        self.buckets: dict[int, int] = {}

    def add(self, value: int) -> None:
        """One value, not negative."""
        if not self.count or value < self.low:
            self.low = value
        if value > self.high:
            self.high = value
        self.count += 1
        self.total += value
        shift = value.bit_length() - FINE - 1
        bucket = value if shift <= 0 else (shift << FINE) + (value >> shift)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Takes the other's values too."""
        if not other.count:
            return
        self.low = min(self.low, other.low) if self.count else other.low
        self.high = max(self.high, other.high)
        self.count += other.count
        self.total += other.total
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    def quantile(self, part: float) -> int:
        """The value that `part` of all do not exceed: 0.5 is the median. 0 where there are none."""
        wanted, seen = max(ceil(self.count * part), 1), 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                low, end = bucket_range(bucket)
                return min(max((low + end - 1) // 2, self.low), self.high)
        return 0
