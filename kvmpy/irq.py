"""Interrupt lines between devices and the interrupt chips of the backend."""

from __future__ import annotations

from collections.abc import Callable


class Line:
    """One interrupt input of the machine, by GSI (ISA IRQ numbers 0-15 are GSIs 0-15).

    A device gets its line as a constructor argument; the machine binds it when the device is placed.
    Several devices may share a GSI: it is high while any of their lines is.
    """

    def __init__(self, gsi: int) -> None:
        self.gsi = gsi
        self.level = 0
        self.stuck = False
        """True: the level does not change any more."""
        self._drive: Callable[[Line, int], None] | None = None

    def bind(self, drive: Callable[[Line, int], None]) -> None:
        """Called by the machine; a level set earlier is driven at once."""
        self._drive = drive
        if self.level:
            drive(self, self.level)

    def set(self, level: int) -> None:
        """Drives the line high (1) or low (0); no effect when it has that level already."""
        level = 1 if level else 0
        if level != self.level and not self.stuck:
            self.level = level
            if self._drive is not None:
                self._drive(self, level)

    def pulse(self) -> None:
        """An edge: low, high, low."""
        self.set(0)
        self.set(1)
        self.set(0)


class Inputs:
    """The machine's interrupt inputs, each of which is high while any line on it is. `change` is called with GSI and level."""

    def __init__(self, change: Callable[[int, int], None]) -> None:
        self._change = change
        self._high: dict[int, set[Line]] = {}

    def high(self, gsi: int) -> set[Line]:
        """The lines that hold an input high."""
        return self._high.get(gsi, set())

    def drive(self, line: Line, level: int) -> None:
        """A line's new level."""
        high = self._high.setdefault(line.gsi, set())
        before = bool(high)
        (high.add if level else high.discard)(line)
        if bool(high) != before:
            self._change(line.gsi, int(bool(high)))


def lines_of(device: object) -> list[Line]:
    """Interrupt lines among the attributes of a device, also in lists and tuples."""
    found: list[Line] = []
    for value in vars(device).values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Line) and item not in found:
                found.append(item)
    return found
