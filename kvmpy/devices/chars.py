"""What a character device asks of its host end; the ends themselves are in `kvmpy.host`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class CharEnd(Protocol):
    """The host side of a serial port or debug console."""

    def write(self, data: bytes) -> None:
        """Output of the guest. Never blocks for long, never raises for a lost reader."""

    def attach(self, receive: Callable[[bytes], None]) -> None:
        """`receive` is called from any thread with input for the guest."""

    def close(self) -> None:
        """Ends input, flushes output, gives back what was borrowed (a terminal's mode)."""


class NullEnd:
    """Swallows output, never gives input."""

    def write(self, data: bytes) -> None:
        pass

    def attach(self, receive: Callable[[bytes], None]) -> None:
        pass

    def close(self) -> None:
        pass
