"""The text screen of a machine under test: what kernels and the BIOS write to text memory at B8000h.

There is no display adapter: text memory is RAM, its first page is shown, and the mode is 80x25 whatever a guest programs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kvmpy.debug.textscreen import rows
from kvmpy.errors import ConfigError
from kvmpy.verdicts import Stopped

if TYPE_CHECKING:
    from kvmpy.testing.machine import GuestMachine

PERIOD = {"host": 10_000_000, "virtual": 1_000_000}
"""Nanoseconds of the machine's clock between two looks of one who waits for text."""


class Screen:
    """Text memory as text. It may be read at any time, also while the guest runs."""

    def __init__(self, machine: GuestMachine) -> None:
        self._machine = machine

    @property
    def rows(self) -> list[str]:
        """The 25 rows, without the spaces at their ends."""
        return rows(self._machine.memory)

    @property
    def text(self) -> str:
        """The rows as lines, without empty ones at the end."""
        return "\n".join(self.rows).rstrip("\n")

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Screen {self.text!r}>"

    def wait_for_text(self, pattern: str | re.Pattern[str], timeout: float | None = None) -> re.Match[str]:
        """Runs the guest until a regular expression matches the screen's text, ^ and $ at its lines; gives the match.

        What stands there already counts. The screen is looked at every 10 ms (1 ms of virtual time): text that is gone sooner may be
        missed, and the guest stops that much after it. Raises GuestError with the screen when time is up or the guest ends.
        """
        __tracebackhide__ = True
        wanted = _compiled(pattern)
        machine = self._machine
        waiting = [True]
        clock = machine.clock

        def look() -> None:
            if not waiting:
                return
            if wanted.search(self.text):
                machine.stop(Stopped("until"))
            else:
                clock.at(clock.now() + PERIOD[getattr(clock, "name", "host")], look)

        found = wanted.search(self.text)
        if found is None and machine.verdict is None:
            machine.call(look)
            try:
                machine.run(timeout)
            finally:
                waiting.clear()
            found = wanted.search(self.text)
        if found is None:
            shown = self.text
            from kvmpy.testing.machine import GuestError

            raise GuestError(
                f"no match for {wanted.pattern!r} on the screen: {machine.how_it_ended(timeout)}\n"
                + (f"it shows:\n{shown}" if shown else "it is empty: nothing is written to text memory at 0xb8000")
            )
        return found


def _compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        return pattern if isinstance(pattern, re.Pattern) else re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"wait_for_text: {pattern!r} is no regular expression: {error}") from None
