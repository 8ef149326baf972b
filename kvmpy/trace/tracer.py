"""The listeners of a run."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from kvmpy.errors import ConfigError
from kvmpy.trace.answers import Answer, Fault, Interrupt, Nmi, Step, Stop
from kvmpy.trace.event import KINDS, Event, Listener
from kvmpy.verdicts import Stopped, Verdict
from kvmpy.x86 import RFLAGS_IF

if TYPE_CHECKING:
    from kvmpy.exit_handlers import Seat
    from kvmpy.loop import Loop
    from kvmpy.trace.filters import Filter

SERVED = frozenset(("io", "mmio", "msr", "line", "exit", "assist", "unclaimed", "device", "verdict"))
"""Kinds that come to user space whether or not anybody listens."""
PLAIN = SERVED - {"line"}
"""What a listener without a filter gets."""
PAUSE = Stopped("until")
"""The end of a run that `Machine.events` goes on with."""
MOST_CHOICES = 4096
"""Kinds of port accesses whose listeners are kept; a guest that tries all must not fill the host's memory."""

MSI = 0xFEE00000
Replace = Callable[[Any], None]


class Sink:
    """A listener and what it wants."""

    __slots__ = ("filter", "in_core", "kinds", "listener", "observe", "refiltered")

    def __init__(
        self, listener: Listener, chosen: Filter | None = None, *, observe: bool = True, kinds: frozenset[str] | None = None,
    ) -> None:
        """`kinds`: fewer than the filter's, from user space alone."""
        self.listener = listener
        self.filter = chosen
        """None: whatever comes to user space."""
        self.observe = observe
        """Its answers do not count: it is called when all is done, with the cost."""
        self.kinds = kinds if kinds is not None else PLAIN if chosen is None else chosen.kinds & SERVED
        """Those that user space tells it; the core's own come by the filter's rules."""
        self.in_core = chosen is not None and kinds is None
        self.refiltered: Callable[[], None] = lambda: None
        """Called when the filter has become another one of the same kinds."""


class Tracer:
    """Gives events to listeners, under the machine's lock. One that raises is removed and reported once; the guest runs on."""

    def __init__(self, loop: Loop, now: Callable[[], int], names: Callable[[], Any] | None = None) -> None:
        self.loop = loop
        self._now = now
        self._names = names
        self._sinks: tuple[Sink, ...] = ()
        self._by_kind: dict[str, tuple[Sink, ...]] = {}
        self.resumed: dict[int, int] = {}
        """By vCPU: the host's time when its last exit was answered."""
        self.steps: dict[int, tuple[Sink, int]] = {}
        """By vCPU: who gets the instructions that it steps through, and how many are left."""
        self.holder = 0
        """The thread that has the machine's lock, while it serves an exit or calls a listener."""
        self.pausing = 0
        """How many give events one by one: their pauses are no ends."""
        self.changed: Callable[[], None] | None = None
        """Called when there are other listeners than before."""

    def __len__(self) -> int:
        return len(self._sinks)

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """All of them."""
        return self._sinks

    def add(self, sink: Sink) -> None:
        """From now on it is told."""
        before = self._sinks
        try:
            self._set((*before, sink))
        except BaseException:
            self._set(before)
            raise

    def remove(self, sink: Sink) -> None:
        """Harmless when it is not there."""
        if sink in self._sinks:
            self._set(tuple(other for other in self._sinks if other is not sink))

    def refresh(self) -> None:
        """Filters have changed."""
        self._set(self._sinks)

    def _set(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks
        self._by_kind = {kind: tuple(sink for sink in sinks if kind in sink.kinds) for kind in KINDS}
        if sinks:
            self.loop.tracer = self
        else:
            self.loop.tracer = None
        for seat in (*self.loop.seats, *self.loop.guests.values()):
            seat.told.clear()
        from kvmpy.trace.exits import install

        install(self.loop, set().union(*(sink.kinds for sink in sinks)) if sinks else None)
        if self.changed is not None:
            self.changed()

    # From the loop.

    def choose(self, kind: str, vcpu: int, subject: int, size: int, write: bool) -> tuple[Sink, ...]:
        """Those of them whose filters may choose such an access."""
        sinks = self._by_kind.get(kind, ())
        return tuple(sink for sink in sinks if sink.filter is None or sink.filter.may(kind, vcpu, subject, size, write))

    def event(self, what: str, seat: Seat | None, data: dict[str, Any], host: int) -> Event:
        """An event of now; `host` is the time of the exit, 0 where there is none."""
        if seat is None:
            return Event(what, -1, self._now(), data, None, host or monotonic_ns())
        rip, cpl = seat.vcpu.position()
        resumed = self.resumed.get(seat.index, 0)
        return Event(what, seat.index, self._now(), data, rip, host, host - resumed if resumed and host else 0, 0, cpl)

    def emit(self, what: str, seat: Seat | None, **data: Any) -> None:
        """Tells an event without a value; `seat` is the vCPU's."""
        sinks = self._by_kind.get(what, ())
        if sinks:
            self.ask(sinks, self.event(what, seat, data, monotonic_ns() if seat is not None else 0), seat, None)

    def end(self, verdict: Verdict) -> None:
        """The run has ended."""
        self.resumed.clear()
        if not self.pausing or verdict != PAUSE:
            self.emit("verdict", None, verdict=str(verdict))

    def ask(self, sinks: tuple[Sink, ...], event: Event, seat: Seat | None, replace: Replace | None, observers: bool | None = None) -> bool:
        """Calls those that the event is for and does what they answer. True: the instruction faults in place of the effect.
        `observers`: those alone that observe, or that do not."""
        for sink in sinks:
            if observers is not None and sink.observe is not observers:
                continue
            chosen = sink.filter
            if chosen is not None and not chosen.matches(event):
                continue
            if self.tell(sink, event, seat, replace):
                return True
        return False

    def tell(self, sink: Sink, event: Event, seat: Seat | None, replace: Replace | None) -> bool:
        """Calls one, whatever its filter says."""
        holder, self.holder = self.holder, get_ident()
        event.names = self._names
        try:
            answer = sink.listener(event)
            if answer is None or sink.observe:
                return False
            return self._obey(answer, sink, event, seat, replace)
        except Exception:
            import logging  # a machine that nobody watches, or nobody badly, needs none of it

            self.remove(sink)
            logging.getLogger("kvmpy.trace").exception("a trace listener raised and is removed: %r", sink.listener)
            return False
        finally:
            self.holder = holder

    def _obey(self, answer: Any, sink: Sink, event: Event, seat: Seat | None, replace: Replace | None) -> bool:
        if isinstance(answer, Stop):
            self.loop.stop(Stopped(answer.why))
            return False
        if not isinstance(answer, Answer):
            if isinstance(answer, bool) or not isinstance(answer, (int, dict)):
                raise ConfigError(f"a listener's answer {answer!r}: None, a number or one of Fault, Interrupt, Nmi, Stop, Step")
            if replace is None:
                raise ConfigError(f"an event of kind {event.what} has no value that {answer!r} could replace")
            replace(answer)
            return False
        if seat is None:
            raise ConfigError(f"{answer!r}: an event of kind {event.what} belongs to no vCPU")
        if isinstance(answer, Fault):
            if not 0 <= answer.vector < 32 or answer.vector == 2:
                raise ConfigError(f"{answer!r}: exceptions are 0 to 31, but for 2")
            seat.vcpu.fault(answer.vector, answer.error)
            return True
        if isinstance(answer, Nmi):
            seat.vcpu.nmi()
        elif isinstance(answer, Interrupt):
            self._interrupt(seat, answer.vector)
        elif isinstance(answer, Step):
            self._step(seat, sink, answer.count)
        return False

    def _interrupt(self, seat: Seat, vector: int) -> None:
        if not 16 <= vector <= 255:
            raise ConfigError(f"Interrupt({vector}): external interrupts are 16 to 255")
        if self.loop.vm.signal_msi(MSI | seat.index << 12, vector) > 0:
            return
        if not seat.vcpu.get_regs().rflags & RFLAGS_IF:
            raise ConfigError(f"Interrupt({vector}): the local APIC is off, and so are interrupts")
        events = seat.vcpu.get_events()
        events.interrupt.injected, events.interrupt.nr, events.interrupt.soft = 1, vector, 0
        seat.vcpu.set_events(events)

    # Single steps.

    def _step(self, seat: Seat, sink: Sink, count: int) -> None:
        if self.loop.debugger is not None:
            raise ConfigError("Step: a debugger has the machine's single steps")
        if count < 1:
            raise ConfigError(f"Step({count}): one instruction at least")
        from kvmpy.trace.exits import step

        self.steps[seat.index] = sink, count
        step(seat, True)

    def stepped(self, seat: Seat, address: int) -> None:
        """A vCPU has come to an instruction that it was to step to."""
        from kvmpy.trace.exits import step

        sink, left = self.steps.pop(seat.index)
        if left > 1 and sink in self._sinks:
            self.steps[seat.index] = sink, left - 1
        else:
            step(seat, False)
        self.tell(sink, self.event("instruction", seat, {"address": address}, monotonic_ns()), seat, None)
