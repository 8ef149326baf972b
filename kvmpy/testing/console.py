"""COM1 of a machine under test: keeps all output, and stops the run where an expression matches what was written."""

from __future__ import annotations

import re
from collections.abc import Callable

from kvmpy.errors import ConfigError
from kvmpy.host.capture import Capture

WINDOW = 4096
"""Bytes that are searched at every write; a match that began earlier is found as the output grows."""
CONTEXT = 64
"""Bytes before the place of a search that ^ and look-behinds can see."""

Pattern = str | bytes | re.Pattern[str] | re.Pattern[bytes]


def compiled(pattern: Pattern) -> re.Pattern[bytes]:
    """The expression over bytes. A text is taken as UTF-8, with ^ and $ at lines. ConfigError for what is none."""
    if isinstance(pattern, re.Pattern):
        if isinstance(pattern.pattern, bytes):
            return pattern  # type: ignore[return-value]
        return re.compile(pattern.pattern.encode(), pattern.flags & ~re.UNICODE)
    try:
        return re.compile(pattern.encode() if isinstance(pattern, str) else pattern, re.MULTILINE)
    except TypeError:
        raise ConfigError(f"expect: {pattern!r} is no regular expression: text or bytes are wanted") from None
    except re.error as error:
        raise ConfigError(f"expect: {pattern!r} is no regular expression: {error} (re.escape makes one of plain text)") from None


class Expected:
    """What an expectation found: `[0]` is the matched text, `[1]` and `["name"]` its groups, `before` the output up to it."""

    def __init__(self, match: re.Match[bytes], before: bytes) -> None:
        self._groups = (match[0], *match.groups())
        self._names = match.groupdict()
        self.before = before.decode("utf-8", "replace")

    def __getitem__(self, group: int | str) -> str | None:
        found = self._names[group] if isinstance(group, str) else self._groups[group]
        return None if found is None else found.decode("utf-8", "replace")

    def __str__(self) -> str:
        return str(self[0])

    def __repr__(self) -> str:
        return f"<Expected {self[0]!r}>"


class Console(Capture):
    r"""Output is read in order: each expectation begins where the one before ended.

    A match that ends where the output ends and could be longer with one more byte ("sum 4" for r"sum (\d+)") is open: it counts once
    the output has gone on, or the machine has been silent for a while.
    """

    def __init__(self) -> None:
        super().__init__()
        self.position = 0
        """Everything before has been matched."""
        self._pattern: re.Pattern[bytes] | None = None
        self._found: Callable[[], None] = lambda: None
        self._if_open: Callable[[], None] = lambda: None
        self._searched = 0  # size of the output at the last search of all of it

    def find(self, pattern: re.Pattern[bytes], *, ended: bool = True) -> Expected | None:
        """The first match in what has not been read yet, which is read by that. An open one only where the output has `ended`."""
        data = bytes(self.data)
        match = pattern.search(data, self.position)
        if match is None or (not ended and is_open(match)):
            return None
        found = Expected(match, data[self.position : match.start()])
        self.position = match.end()
        return found

    def begun_line(self) -> str:
        """What has been read of the line in which the last match ended; empty when that ended with it."""
        return self.data[self.data.rfind(b"\n", 0, self.position) + 1 : self.position].decode("utf-8", "replace")

    def skip(self) -> None:
        """What was written so far counts as read."""
        self.position = len(self.data)

    def watch_for(
        self, pattern: re.Pattern[bytes] | None, found: Callable[[], None] = lambda: None, open: Callable[[], None] = lambda: None
    ) -> None:
        """`found` is called while the output holds an unread match, `open` while that match is open; no pattern ends that."""
        self._found, self._if_open = found, open
        self._searched = len(self.data)
        self._pattern = pattern
        if pattern is not None:
            self._seek(pattern, self.position)

    def write(self, data: bytes) -> None:
        super().write(data)
        if self._pattern is None:
            return
        size = len(self.data)
        start = max(self.position, size - WINDOW)
        # All of it again whenever it has grown by a quarter: the cost stays linear.
        if start > self.position and (size - self.position) * 4 >= (self._searched - self.position) * 5:
            self._searched, start = size, self.position
        self._seek(self._pattern, start)

    def _seek(self, pattern: re.Pattern[bytes], start: int) -> None:
        base = max(0, start - CONTEXT)
        match = pattern.search(bytes(self.data[base:]), start - base)
        if match is not None:
            (self._if_open if is_open(match) else self._found)()


def is_open(match: re.Match[bytes]) -> bool:
    """True for a match at the end of its text that one more byte could make longer."""
    if match.end() < len(match.string):
        return False
    base = max(0, match.start() - CONTEXT)
    text = match.string[base:]
    for byte in range(256):
        longer = match.re.match(text + bytes((byte,)), match.start() - base)
        if longer is not None and longer.end() > len(text):
            return True
    return False
