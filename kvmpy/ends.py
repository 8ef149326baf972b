"""The character ends of a machine: its serial ports and its debug console."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvmpy.errors import ConfigError
from kvmpy.host.chars import CharEnd, Null

End = CharEnd | str

MOST_PORTS = 4


class Ends:
    """Opens ends that are given as texts. What closes them is added to `closers`; `on_quit` is called when a terminal's user quits."""

    def __init__(self, closers: list[Callable[[], None]], on_quit: Callable[[], None]) -> None:
        self._closers = closers
        self._on_quit = on_quit

    def of_serial_ports(self, serial: End | Sequence[End] | None) -> list[CharEnd]:
        """Two to four ends, COM1's first; where nothing is given COM1's keeps its output. ConfigError, HostError."""
        given: list[End | None]
        if serial is None or isinstance(serial, (str, CharEnd)):
            given = [serial]
        else:
            given = list(serial)
        if not 1 <= len(given) <= MOST_PORTS:
            raise ConfigError(f"{len(given)} serial ports: a machine has 1 to {MOST_PORTS}")
        ends = [self._capture() if end is None else self.open(end) for end in given]
        return ends + [Null() for _ in range(2 - len(ends))]

    def _capture(self) -> CharEnd:
        from kvmpy.host.capture import Capture

        return Capture()

    def open(self, end: End) -> CharEnd:
        """The end that a text describes; one that is open already is given back as it is. ConfigError, HostError."""
        if not isinstance(end, str):
            return end
        if end == "none":
            return Null()
        from kvmpy.host.ends import open_end
        from kvmpy.host.terminal import Terminal

        opened = open_end(end)
        if isinstance(opened, Terminal):
            opened.on_quit = self._on_quit
        self._closers.append(opened.close)
        return opened
