"""Requests to a disk image that fail."""

from __future__ import annotations

import errno as numbers
import os
import threading
from typing import TYPE_CHECKING

from kvmpy.errors import ConfigError
from kvmpy.faults.rules import Counter, Journal, When, when
from kvmpy.record import Record

if TYPE_CHECKING:
    from kvmpy.host.images.image import Image

SECTOR = 512
KINDS = ("read", "write", "flush", "discard", "zero")


class DiskFault(Record, frozen=True):
    """A rule: requests of kind `op` ("any": of every kind) that touch `sector` (None: any) fail with `errno`."""

    disk: int
    op: str
    errno: int
    when: When
    sector: int | None = None


class DiskFaults:
    """The faults of one disk; all rules count every request that they are about."""

    def __init__(self, number: int, image: Image, journal: Journal) -> None:
        self._number = number
        self._image = image
        self._journal = journal
        self._rules: list[tuple[DiskFault, Counter]] = []
        self._lock = threading.Lock()  # requests may come from several threads of a device

    def fail(
        self, at: int | None = None, op: str = "any", errno: int = numbers.EIO, *, times: int | None = 1,
        probability: float | None = None, seed: int = 0, sector: int | None = None,
    ) -> DiskFault:
        """Request number `at` (by default the next) fails, and `times` in all; or each with a probability.

        `op` is read, write, flush, discard, zero or any. A request is what the device asks of the image: a guest's request in pieces
        on a page boundary is still one. ATA and the BIOS disk move large ones in several. With `sector` only those that touch it count.
        """
        if op not in (*KINDS, "any"):
            raise ConfigError(f"faults: op={op!r}: one of {', '.join(KINDS)}, any")
        if errno not in numbers.errorcode:
            raise ConfigError(f"faults: errno={errno} is no error number")
        rule = DiskFault(self._number, op, errno, when(at, times, probability, seed), sector)
        self._rules.append((rule, Counter(rule.when)))
        self._journal.rules.append(rule)
        self._image.on_request = self._on_request
        return rule

    def clear(self) -> None:
        """The disk works again."""
        self._rules.clear()
        self._image.on_request = None

    def _on_request(self, kind: str, offset: int, length: int) -> None:
        error = 0
        with self._lock:
            for rule, counter in tuple(self._rules):
                about = rule.op in (kind, "any") and (rule.sector is None or offset <= rule.sector * SECTOR < offset + length)
                if about and counter.strikes():
                    error = error or rule.errno
        if error:
            where = "" if kind == "flush" else f" of {length} bytes at {offset:#x}"
            self._journal.tell(f"disk {self._number}: {kind}{where} fails: {numbers.errorcode[error]}")
            raise OSError(error, os.strerror(error))
