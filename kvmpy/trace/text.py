"""Events as lines of text, one each, in the manner of strace:

    time         vCPU  instruction                        what happened                    <time of the answer>
    0.004081233  cpu0  serial8250_console_putchar+0x2f    outb 0x3f8 <- 0x41 'A' (serial)  <1.9 us>
"""

from __future__ import annotations

from collections.abc import Callable

from kvmpy.trace.event import Event
from kvmpy.trace.words import Names, Symbols, describe
from kvmpy.units import format_ns

DIM, BOLD, RED, YELLOW, CYAN, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[36m", "\x1b[0m"
_COLOURS = {
    "exception": RED, "unclaimed": YELLOW, "assist": YELLOW, "device": CYAN, "line": CYAN, "irq": CYAN, "exit": BOLD, "verdict": BOLD,
}  # fmt: skip
RIP_WIDTH = 38


class TextFormat:
    """Writes a line for each event with `write`; with `colour` for a terminal."""

    def __init__(self, write: Callable[[str], object], symbols: Symbols | None = None, *, colour: bool = False) -> None:
        self.write = write
        self._names = Names(symbols)
        self._colour = colour

    def __call__(self, event: Event) -> None:
        what, vcpu, time, rip, cost = event.what, event.vcpu, event.time, event.rip, event.cost
        seconds, rest = divmod(time, 1_000_000_000)
        who = f"cpu{vcpu}" if vcpu >= 0 else "-"
        data = event.data
        if "vm" in data:
            who = f"vm{data['vm']}/{who}"
        if "pid" in data:
            who = f"{data['pid']}/{who}"
        text = describe(event)
        tail = f"  <{format_ns(cost)}>" if cost else ""
        if self._colour:
            text = f"{_COLOURS.get(what, '')}{text}{PLAIN}"
            self.write(f"{DIM}{seconds:3}.{rest:09}{PLAIN} {who:5} {DIM}{self._names(rip):{RIP_WIDTH}}{PLAIN} {text}{DIM}{tail}{PLAIN}\n")
        else:
            self.write(f"{seconds:3}.{rest:09} {who:5} {self._names(rip):{RIP_WIDTH}} {text}{tail}\n")

    def close(self) -> None:
        """The file is the caller's."""


def line(event: Event) -> str:
    """One event as such a line, without its end."""
    lines: list[str] = []
    TextFormat(lines.append, None if event.names is None else event.names())(event)
    return lines[0].strip()
