"""The machine loop: runs vCPUs, serves their exits, and ends with a verdict.

Where the backend is threaded (KVM, the software CPU with vCPUs in parallel) every vCPU has a thread; elsewhere one thread takes what
`Vm.run` gives.
Devices, timers and posted calls all run under one lock.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from kvmpy.backend import Vcpu, Vm
from kvmpy.bus import MmioBus, PortBus
from kvmpy.exit_handlers import EXIT_INTR, HANDLERS, KNOWN, Seat, exit_name
from kvmpy.native import lib
from kvmpy.threads import start_thread
from kvmpy.verdicts import Halted, Stopped, Verdict
from kvmpy.x86 import RFLAGS_IF

if TYPE_CHECKING:
    from kvmpy.trace import Tracer

MP_STATE_RUNNABLE = 0
MP_STATE_UNINITIALIZED = 1
MP_STATE_INIT_RECEIVED = 2
MP_STATE_HALTED = 3

FIRST_TICK = 0.02
TICK = 0.1

Assist = Callable[[Vcpu], bool]
MsrHandler = Callable[[int, int, int | None], int | None]


class Debugger(Protocol):
    """What a debugger is asked, under the lock. True: the run ends with Stopped("debug")."""

    def on_debug(self, seat: Seat) -> bool:
        """KVM_EXIT_DEBUG."""

    def on_refused(self, seat: Seat, code: bytes) -> bool:
        """The backend could not execute an instruction, which begins with `code`."""

    def on_reset(self) -> None:
        """The machine has been reset, and its image loaded again."""


class Loop:
    """Runs one VM. `run` may be called again after every verdict."""

    def __init__(self, vm: Vm, vcpus: list[Vcpu], ports: PortBus, mmio: MmioBus, *, assist: Assist | None = None) -> None:
        """`assist` finishes one instruction that the backend cannot execute; false when it cannot either."""
        self.vm = vm
        self.ports = ports
        self.mmio = mmio
        self.assist = assist
        self.assisted = 0
        self.lock = threading.Lock()
        self.tracer: Tracer | None = None
        self.handlers = list(HANDLERS)
        """By exit reason, as HANDLERS; the tracer puts in others while somebody listens."""
        self.drains: list[Callable[[], None]] = []
        """Who takes what the backend's own trace holds, before an exit is looked at. A list, always the same: its being empty is asked
        at each exit, and is ten times as quick to ask as an attribute."""
        self.debugger: Debugger | None = None
        self.only: frozenset[int] | None = None
        """The vCPUs that run, by index; None for all. Of several but not all, a backend that is not threaded runs all."""
        self.runner: Callable[[], Vcpu] | None = None
        """Runs instead of `Vm.run` where that takes the vCPUs in turns; gives the one that exited."""
        self.verdict: Verdict | None = None
        self.on_msr: MsrHandler | None = None
        self.unknown_msrs: Counter[int] = Counter()
        """Accesses to MSRs that neither the backend nor `on_msr` knows, by index."""
        self.timers_due: Callable[[], None] | None = None
        """Called after every interrupted run where time is the backend's own (virtual clock)."""
        self.rung: Callable[[], None] | None = None
        """Called after every interrupted run where the backend ends runs for doorbells."""
        self.at_rest: list[Callable[[], None]] = []
        """Called under the lock when the vCPUs have stopped at the end of a run."""
        self.seats = [Seat(vcpu) for vcpu in vcpus]
        ports.caches += [seat.plans for seat in self.seats]
        self.guests: dict[int, Seat] = {}
        """The assist's vCPUs that had exits."""
        self._error: BaseException | None = None
        self._posted: deque[Callable[[], None]] = deque()
        self._end = threading.Event()
        self._generation = 0
        self._quiet_rounds = 0
        self._interrupts = 0

    # From any thread.

    def stop(self, verdict: Verdict) -> None:
        """Ends the run with a verdict after the present exit; the first one counts."""
        if self.verdict is None:
            self.verdict = verdict
        self._end.set()
        self._kick()

    def fail(self, error: BaseException) -> None:
        """Ends the run; `run` raises `error`."""
        if self._error is None:
            self._error = error
        self.stop(Stopped("error"))

    def post(self, call: Callable[[], None]) -> None:
        """Runs `call` under the lock soon: here and now, when the present holder lets go, or between two runs of the one thread."""
        self._posted.append(call)
        self._drain()
        if self._posted and not self.vm.threaded:
            self._kick()  # the one thread has the lock while it runs

    def _kick(self) -> None:
        for seat in self.seats:
            seat.vcpu.kick()
            if not self.vm.threaded:
                break

    def _drain(self) -> None:
        # A holder of the lock looks at the queue again after letting go, so nothing is left behind when acquire fails.
        while self._posted and self.lock.acquire(False):
            try:
                self._call_posted()
            finally:
                self.lock.release()

    def _call_posted(self) -> None:
        try:
            while self._posted:
                self._posted.popleft()()
        except Exception as error:
            self.fail(error)

    def serve(self, vcpu: Vcpu) -> None:
        """Answers the present exit of a vCPU that is not of this loop (the assist's), under the lock that the caller has."""
        seat = self.guests.get(vcpu.index)
        if seat is None or seat.vcpu is not vcpu:
            seat = self.guests[vcpu.index] = Seat(vcpu)
            self.ports.caches.append(seat.plans)
        reason = seat.record.exit_reason
        self.handlers[reason if reason < KNOWN else KNOWN](self, seat)

    # The run.

    def run(self, timeout: float | None = None, until: Callable[[], bool] | None = None, *, fresh: bool = True) -> Verdict:
        """Runs until a verdict. `until` is asked after every exit. Ctrl-C raises KeyboardInterrupt with the machine still usable;
        an exception of a device is raised here, after all vCPUs have stopped. A `fresh` run forgets a `stop` that came before it."""
        if fresh:
            self.verdict = None
        self._raise_kept()  # of a timer or a host end since the last run
        self._end.clear()
        self._quiet_rounds = 0
        self._interrupts = 0
        restore = self._take_sigint()
        watch: threading.Thread | None = None
        try:
            self._drain()
            watch = start_thread(self._watch, "kvmpy-watch", timeout)
            if self.vm.threaded:
                self._run_threads(until)
            else:
                self._run_turns(until)
        finally:
            if self.verdict is None:
                self.stop(Stopped("error"))
            self._end.set()
            if watch is not None:
                watch.join()
            try:
                self._come_to_rest()
            finally:
                restore()
        self._drain()
        self._raise_kept()
        if self._interrupts:
            raise KeyboardInterrupt
        verdict, self.verdict = self.verdict, None
        assert verdict is not None
        if self.tracer is not None:
            self.tracer.end(verdict)
        return verdict

    def _take_records(self) -> None:
        if self.drains:
            self.drains[0]()

    def _come_to_rest(self) -> None:
        with self.lock:
            try:
                self._take_records()
                for call in self.at_rest:
                    call()
            except Exception as error:
                self.fail(error)

    def _raise_kept(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            self.verdict = None
            raise error

    def _take_sigint(self) -> Callable[[], None]:
        """Ctrl-C must not strike in the middle of a device: it stops the run, and becomes an exception after it."""
        if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return lambda: None

        def interrupted(number: int, frame: Any) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt  # a device that does not come back
            self.stop(Stopped("interrupt"))

        signal.signal(signal.SIGINT, interrupted)

        def restore() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

        return restore

    def _running(self) -> list[Seat]:
        only = self.only
        return self.seats if only is None else [seat for seat in self.seats if seat.index in only]

    def _run_threads(self, until: Callable[[], bool] | None) -> None:
        seats = self._running()
        threads: list[threading.Thread] = []
        try:
            for seat in seats[1:]:
                threads.append(start_thread(self._run_seat, f"kvmpy-vcpu{seat.vcpu.index}", seat, until))
            self._run_seat(seats[0], until)
        finally:
            if self.verdict is None:
                self.stop(Stopped("error"))
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.05)
                    self._kick()

    def _run_seat(self, seat: Seat, until: Callable[[], bool] | None) -> None:
        """The thread of one vCPU."""
        try:
            run, acquire, release, posted = seat.vcpu.run, self.lock.acquire, self.lock.release, self._posted
            handlers, drains = self.handlers, self.drains
            while True:  # as in _run_turns
                if self.verdict is not None:
                    break
                reason = run()
                if reason == EXIT_INTR:
                    if drains:
                        with self.lock:
                            self._take_records()
                    if self.rung is not None:
                        with self.lock:
                            self.rung()
                        if posted:
                            self._drain()
                    self.look_for_halt(seat)
                    continue
                acquire()
                try:
                    if drains:
                        drains[0]()
                    slot = reason if reason < KNOWN else KNOWN
                    seat.exits[slot] += 1
                    handlers[slot](self, seat)
                finally:
                    release()
                if posted:
                    self._drain()
                if until is not None and until():
                    self.stop(Stopped("until"))
        except Exception as error:
            self.fail(error)

    def _run_turns(self, until: Callable[[], bool] | None) -> None:
        """The one thread of a backend that takes its vCPUs in turns. It has the lock throughout: nobody touches chips while they run."""
        with self.lock:
            try:
                run, posted, handlers, drains = self.runner or self.vm.run, self._posted, self.handlers, self.drains
                seats = {seat.vcpu.index: seat for seat in self.seats}
                chosen = self._running()
                seat = chosen[0]
                if self.runner is None and len(chosen) == 1 and len(self.seats) > 1:
                    run = _alone(seat.vcpu)
                while True:  # a jump back makes Python 3.11 specialise a function (PEP 659) that is called once, a condition does not
                    if self.verdict is not None:
                        break
                    vcpu = run()
                    if vcpu is not seat.vcpu:
                        seat = seats[vcpu.index]
                    if drains:
                        drains[0]()
                    reason = seat.record.exit_reason
                    if reason != EXIT_INTR:
                        slot = reason if reason < KNOWN else KNOWN
                        seat.exits[slot] += 1
                        handlers[slot](self, seat)
                    else:
                        if self.timers_due is not None:
                            self.timers_due()
                        if self.rung is not None:
                            self.rung()
                    if posted:
                        self._call_posted()
                    if until is not None and until():
                        self.stop(Stopped("until"))
            except Exception as error:
                self.fail(error)

    # The watchdog: time limit, Ctrl-C, halted machines.

    def _watch(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        tick = FIRST_TICK
        while not self._end.is_set():
            wait = tick if end is None else min(tick, max(end - time.monotonic(), 0))
            if self._end.wait(wait):
                return
            if end is not None and time.monotonic() >= end:
                self.stop(Stopped("timeout"))
                return
            # An interrupted run lets Python deliver signals, and shows which vCPUs wait in HLT.
            self._check_quiet()
            self._generation += 1
            self._kick()
            tick = TICK

    def _check_quiet(self) -> None:
        """All vCPUs were seen waiting with interrupts off in the last round: nothing can wake them but each other."""
        if self.vm.threaded and all(seat.quiet_in == self._generation for seat in self._running()) and self._generation:
            self._quiet_rounds += 1
            # One vCPU may have woken another by NMI or INIT after that one was looked at; not twice in a row.
            if self._quiet_rounds >= (1 if len(self.seats) == 1 else 2):
                self.stop(Halted())
        else:
            self._quiet_rounds = 0

    def look_for_halt(self, seat: Seat) -> None:
        """After an interrupted KVM_RUN: HLT never exits where the interrupt chip is in the kernel, so its state is asked for."""
        state = seat.vcpu.get_mp_state()
        waiting = state in (MP_STATE_UNINITIALIZED, MP_STATE_INIT_RECEIVED)
        if state == MP_STATE_HALTED:
            waiting = not seat.vcpu.get_regs().rflags & RFLAGS_IF
        if waiting:
            seat.quiet_in = self._generation
            if len(self.seats) == 1:
                self.stop(Halted())

    def statistics(self) -> dict[str, int]:
        """Exits by name, and instructions finished by the assist."""
        result: dict[str, int] = {}
        for seat in self.seats:
            for reason, count in enumerate(seat.exits):
                if count and reason != lib.KP_EXIT_TRACE:  # no exit of the guest's
                    name = exit_name(reason) if reason < KNOWN else "others"
                    result[name] = result.get(name, 0) + count
        if self.assisted:
            result["assisted"] = self.assisted
        return result


def _alone(vcpu: Vcpu) -> Callable[[], Vcpu]:
    """Runs one vCPU where `Vm.run` would let all take turns."""

    def run() -> Vcpu:
        vcpu.run()
        return vcpu

    return run
