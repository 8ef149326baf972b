"""The guest's channel: what `kvmpy.h` writes to the debug console, taken apart into log lines, assertions and moments."""

from __future__ import annotations

import re
from collections.abc import Callable

from kvmpy.host.chars import CharEnd
from kvmpy.record import Record

LONGEST_LINE = 4096
MOST_LINES = 100_000
"""Of each kind are kept; a guest must not fill the host's memory. What is beyond is counted in `lost`."""
_MESSAGE = 1
_ASSERTION = re.compile(r"(.*?):(\d+): (.*)", re.DOTALL)


class GuestAssertion(Record, frozen=True):
    """One assertion that the guest made."""

    passed: bool
    file: str
    line: int
    expression: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.expression}" + (f" ({self.details})" if self.details else "")


class Timestamp(Record, frozen=True):
    """A moment that the guest named; `time` is the machine's clock in ns."""

    name: str
    time: int


class GuestChannel(CharEnd):
    """Reads the byte stream; written to under the machine's lock."""

    def __init__(self) -> None:
        self.now: Callable[[], int] = lambda: 0
        """The machine's clock."""
        self.log: list[str] = []
        """Lines of text; the last one may still grow."""
        self.asserts: list[GuestAssertion] = []
        self.timestamps: list[Timestamp] = []
        self.lost = 0
        self._line = bytearray()
        self._begun = 0
        self._open = False  # the log's last line has no end yet

    def write(self, data: bytes) -> None:
        for byte in data:
            if byte == 0x0A:
                self._end_line()
                continue
            if byte == _MESSAGE and self._line[:1] != b"\x01":
                self._keep_text()  # a message in the middle of a line that another CPU, or the guest itself, had begun
                self._begun = self.now()
            if len(self._line) < LONGEST_LINE:
                self._line.append(byte)

    def _end_line(self) -> None:
        line = self._line
        self._line = bytearray()
        if line[:1] != b"\x01" or not self._take_message(bytes(line[1:2]), line[2:].decode("utf-8", "replace")):
            self._add_line(line, end=True)

    def _take_message(self, kind: bytes, text: str) -> bool:
        if kind == b"@":
            self._append(self.timestamps, Timestamp(text, self._begun))
            return True
        found = _ASSERTION.fullmatch(text)
        if kind not in (b"+", b"-") or found is None:
            return False
        expression, _, details = found[3].partition("\t")
        self._append(self.asserts, GuestAssertion(kind == b"+", found[1], int(found[2]), expression, details))
        return True

    def _append(self, kept: list, item: object) -> None:  # type: ignore[type-arg]
        if len(kept) < MOST_LINES:
            kept.append(item)
        else:
            self.lost += 1

    def _keep_text(self) -> None:
        """What stands in the line becomes a part of the log."""
        if self._line:
            line, self._line = self._line, bytearray()
            self._add_line(line, end=False)

    def _add_line(self, line: bytearray, end: bool) -> None:
        text = line.decode("utf-8", "replace").removesuffix("\r")
        if self._open and self.log:
            self.log[-1] += text
        else:
            self._append(self.log, text)
        self._open = not end

    def lines(self) -> list[str]:
        """The log with what has no newline yet."""
        rest = self._line.decode("utf-8", "replace") if self._line and self._line[0] != _MESSAGE else ""
        if not rest:
            return list(self.log)
        if self._open and self.log:
            return [*self.log[:-1], self.log[-1] + rest]
        return [*self.log, rest]
