"""A machine with what a test wants: expectations on its serial port, places to run to, the guest's assertions, a limit of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

from kvmpy.errors import ConfigError, MemoryAccessError
from kvmpy.machine import Machine
from kvmpy.regs import linear_rip
from kvmpy.testing.assemble import Program
from kvmpy.testing.channel import GuestAssertion, GuestChannel, Timestamp
from kvmpy.testing.console import Console, Expected, Pattern, compiled
from kvmpy.testing.screen import Screen
from kvmpy.verdicts import GuestExit, PowerOff, Stopped, Verdict

if TYPE_CHECKING:
    from kvmpy.trace import Event

TIMEOUT = 10.0
"""Seconds that the guest may run in one test when none are given."""
TAIL = 600
"""Bytes of output that a failed expectation shows."""
SILENCE = {"host": 50_000_000, "virtual": 1_000_000}
"""Nanoseconds of the machine's clock after which output counts as ended."""
RESET_VECTOR = 0xFFFFFFF0
OWN = {"serial", "console", "backend"}


class GuestError(AssertionError):
    """The guest did not do what the test expects of it."""


class GuestAssertionError(GuestError):
    """An assertion in the guest failed."""


class GuestMachine(Machine):
    """A Machine for tests. `timeout` is how many seconds of the host the guest may run in all; calls may set shorter limits."""

    def __init__(self, *, timeout: float = TIMEOUT, backend: Any = "auto", **options: Any) -> None:
        if wrong := OWN & options.keys():
            raise ConfigError(f"{', '.join(sorted(wrong))}: a machine under test has its own")
        if not isinstance(timeout, (int, float)) or not timeout > 0:
            raise ConfigError(f"timeout {timeout!r}: a number of seconds above 0 is wanted")
        self.output = Console()
        """COM1's output, all of it."""
        self.screen = Screen(self)
        self.channel = GuestChannel()
        self.timeout = timeout
        self.used = 0.0
        """Seconds that the guest ran."""
        self.verdict: Verdict | None = None
        """How the guest ended; None while it can go on."""
        self.last: Verdict | None = None
        """How the last run ended."""
        self._told = 0  # assertions looked at
        super().__init__(backend=backend, serial=self.output, console=self.channel, **options)
        self.channel.now = self.clock.now

    # Running.

    def load(self, path: str | PathLike[str] | None, boot: str | None = None, *arguments: Any, **named: Any) -> GuestMachine:
        """As Machine.load; a Program of `assemble` brings its boot protocol and its symbols."""
        program = path if isinstance(path, Program) else None
        super().load(path, boot or (program.boot if program else None), *arguments, **named)
        if program is not None and program.elf != program.path:
            self.symbols.add(program.elf)
        self.verdict = self.last = None
        self.output.skip()
        return self

    def reset(self) -> None:
        """As Machine.reset; the guest has not ended any more."""
        self.verdict = None
        super().reset()

    @property
    def left(self) -> float:
        """Seconds that the guest may still run."""
        return max(self.timeout - self.used, 0.0)

    def run(self, timeout: float | None = None, until: str | bytes | Callable[[], bool] | None = None) -> Verdict:
        """As Machine.run, within the time that is left. GuestAssertionError when an assertion of the guest fails."""
        __tracebackhide__ = True
        if self.debugger is not None:  # a person is at work: no limit but the one given
            return super().run(timeout, until)
        if self.last is None and self._boot is None:
            self._look_for_code()
        began = time.monotonic()
        try:
            self.last = super().run(self.left if timeout is None else min(timeout, self.left), until)
        finally:
            self.used += time.monotonic() - began
        if not isinstance(self.last, Stopped):
            self.verdict = self.last
        self.check_asserts()
        return self.last

    def _look_for_code(self) -> None:
        """ConfigError for a machine that nothing was put into: it would begin at the reset vector, where no memory is."""
        if linear_rip(self.cpu[0].vcpu.get_regs(), self.cpu[0].vcpu.get_sregs()) != RESET_VECTOR:
            return
        try:
            self.memory.read(RESET_VECTOR, 1)
        except MemoryAccessError:
            raise ConfigError('nothing is loaded: @pytest.mark.guest("kernel.elf") or machine.load("kernel.elf") does that') from None

    def check_asserts(self) -> None:
        """GuestAssertionError when an assertion failed that has not been told yet."""
        __tracebackhide__ = True
        fresh = self.channel.asserts[self._told :]
        self._told = len(self.channel.asserts)
        failed = [one for one in fresh if not one.passed]
        if failed:
            raise GuestAssertionError("\n".join(f"guest assertion failed: {one}" for one in failed))

    def expect(self, pattern: Pattern, timeout: float | None = None) -> Expected:
        """Runs the guest until COM1's output matches a regular expression behind the match before. Output that is there already
        counts. The guest stops at once behind the match; where more output could make that longer (a number at its end), when the
        output has gone on or was silent for a while. Raises GuestError with the end of the output when time is up or the guest ends.
        """
        __tracebackhide__ = True
        wanted = compiled(pattern)
        found = self.output.find(wanted, ended=self.verdict is not None)
        if found is not None:
            return found
        if self.verdict is None:
            waiting = [True]
            self.call(lambda: self.output.watch_for(wanted, lambda: self.stop(Stopped("until")), lambda: self._wait_for_more(waiting)))
            try:
                self.run(timeout)
            finally:
                waiting.clear()
                self.output.watch_for(None)
            found = self.output.find(wanted)
            if found is not None:
                return found
        unread = bytes(self.output.data[self.output.position :])
        text = unread[-TAIL:].decode("utf-8", "replace").rstrip("\n")
        line = self.output.begun_line() if b"^" in wanted.pattern else ""
        raise GuestError(
            f"no match for {wanted.pattern.decode('utf-8', 'replace')!r} on the serial port: {self.how_it_ended(timeout)}\n"
            + (f"output since the last match ends with:\n{text}" if unread else "there was no output since the last match")
            + (f"\n(for ^, its first line begins with what was matched before: {line!r})" if line and unread else "")
        )

    def how_it_ended(self, timeout: float | None = None) -> str:
        """The guest's end, or how its last run ended, as text. `timeout` is the limit that this run had."""
        return f"the guest ended ({self.verdict})" if self.verdict else f"{self.last}{self._after(timeout)}"

    def _wait_for_more(self, waiting: list[bool]) -> None:
        """Ends the run when nothing is written for a while."""
        size = len(self.output.data)

        def look() -> None:
            if waiting and len(self.output.data) == size:
                self.stop(Stopped("until"))

        self.clock.at(self.clock.now() + SILENCE[getattr(self.clock, "name", "host")], look)

    def _after(self, timeout: float | None) -> str:
        limit = self.timeout if timeout is None or timeout > self.timeout else timeout
        return f" after {limit:g} s" if self.last == Stopped("timeout") else ""

    def send(self, text: str | bytes) -> None:
        """Input for COM1; the guest gets it when it runs and reads."""
        if not isinstance(text, (str, bytes)):
            raise ConfigError(f"send: {text!r}: text or bytes are wanted")
        self.output.send(text)

    def run_until(
        self, place: str | int | None = None, *, exit: str | Callable[[Event], bool] | None = None, instructions: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Runs to a symbol or linear address (before its instruction), an exit (a filter as `trace` takes it: "io:0x3f8", "exception:14";
        an exit's reason; or a function of the Event), or for so many instructions of the first vCPU while the others stand still.

        A place where the guest stands counts only before it has run at all. GuestError when the guest ends or time is up before.
        """
        __tracebackhide__ = True
        from kvmpy.testing import until

        if sum(one is not None for one in (place, exit, instructions)) != 1:
            raise ConfigError("run_until wants one of a place, exit=, instructions=")
        if place is not None:
            reached, what = until.run_to(self, place, timeout), f"{place:#x}" if isinstance(place, int) else place
        elif exit is not None:
            reached, what = until.run_to_exit(self, exit, timeout), f"exit {exit}"
        else:
            assert instructions is not None
            reached, what = until.run_instructions(self, instructions, timeout), f"{instructions} instructions"
        if not reached:
            raise GuestError(f"{what} not reached: {self.verdict or self.last}{self._after(timeout)}; the guest is at {self.where()}")

    @property
    def exit_code(self) -> int:
        """What the guest wrote to the debug-exit port; 0 for power-off. A guest that has not ended is run first.
        Raises GuestError when it ends in another way, or not in time."""
        __tracebackhide__ = True
        verdict = self.verdict or self.run()
        if isinstance(verdict, GuestExit):
            return verdict.code
        if isinstance(verdict, PowerOff):
            return 0
        raise GuestError(f"the guest gave no exit code: {verdict}{self._after(None)}")

    # What the guest said by kvmpy.h.

    @property
    def guest_log(self) -> list[str]:
        """Lines written to the debug console."""
        return self.channel.lines()

    @property
    def asserts(self) -> list[GuestAssertion]:
        """The guest's assertions in order, also those that held."""
        return self.channel.asserts

    @property
    def timestamps(self) -> list[Timestamp]:
        """Moments that the guest named, in order."""
        return self.channel.timestamps

    def elapsed(self, first: str, last: str) -> int:
        """Nanoseconds of the machine's clock between the first moments of these names. GuestError where one is missing."""
        __tracebackhide__ = True
        times: dict[str, int] = {}
        for one in self.channel.timestamps:
            times.setdefault(one.name, one.time)
        if missing := [name for name in (first, last) if name not in times]:
            raise GuestError(f"the guest named no moment {missing[0]!r}; it named {', '.join(map(repr, times)) or 'none'}")
        return times[last] - times[first]
