"""Frames that are lost, doubled or damaged between a NIC and its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvmpy.errors import ConfigError
from kvmpy.faults.rules import Counter, Journal, When, when
from kvmpy.record import Record

if TYPE_CHECKING:
    from kvmpy.host.net.end import End

DIRECTIONS = ("out", "in", "both")


class NetFault(Record, frozen=True):
    """A rule: what happens (`kind` is drop, duplicate or corrupt) to frames out of the guest or into it."""

    nic: int
    kind: str
    direction: str
    when: When
    byte: int | None = None


class NetFaults:
    """The faults of one NIC's network end."""

    def __init__(self, number: int, end: End, journal: Journal) -> None:
        self._number = number
        self._end = end
        self._journal = journal
        self._rules: list[tuple[NetFault, Counter]] = []

    def drop(
        self, at: int | None = None, direction: str = "both", *, times: int | None = 1, probability: float | None = None, seed: int = 0
    ) -> NetFault:
        """Frame number `at` (by default the next) is lost, `times` in all; or each with a probability."""
        return self._add("drop", direction, when(at, times, probability, seed))

    def duplicate(
        self, at: int | None = None, direction: str = "both", *, times: int | None = 1, probability: float | None = None, seed: int = 0
    ) -> NetFault:
        """The frame comes twice."""
        return self._add("duplicate", direction, when(at, times, probability, seed))

    def corrupt(
        self, at: int | None = None, direction: str = "both", *, byte: int | None = None, times: int | None = 1,
        probability: float | None = None, seed: int = 0,
    ) -> NetFault:
        """One bit of the frame is flipped: of the byte at this offset, or of any behind the addresses, by the seed."""
        return self._add("corrupt", direction, when(at, times, probability, seed), byte)

    def clear(self) -> None:
        """The network works again."""
        self._rules.clear()
        self._end.tamper = None

    def _add(self, kind: str, direction: str, which: When, byte: int | None = None) -> NetFault:
        if direction not in DIRECTIONS:
            raise ConfigError(f"faults: direction={direction!r}: one of {', '.join(DIRECTIONS)}")
        rule = NetFault(self._number, kind, direction, which, byte)
        self._rules.append((rule, Counter(which)))
        self._journal.rules.append(rule)
        self._end.tamper = self._tamper
        return rule

    def _tamper(self, direction: str, frame: bytes) -> Sequence[bytes]:
        frames = [frame]
        for rule, counter in tuple(self._rules):
            if rule.direction in (direction, "both") and counter.strikes():
                self._journal.tell(f"NIC {self._number}: {rule.kind} frame {direction}, {len(frame)} bytes")
                if rule.kind == "drop":
                    frames = []
                elif rule.kind == "duplicate":
                    frames = frames * 2
                else:
                    frames = [_flip(one, counter, rule.byte) for one in frames]
        return frames


def _flip(frame: bytes, counter: Counter, byte: int | None) -> bytes:
    addresses = min(12, len(frame) - 1)
    at = counter.random.randrange(addresses, len(frame)) if byte is None else min(byte, len(frame) - 1)
    damaged = bytearray(frame)
    damaged[at] ^= 1 << counter.random.randrange(8)
    return bytes(damaged)
