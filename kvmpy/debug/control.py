"""Running a machine under a debugger: resume, step, stop, and why it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvmpy.debug.guest_memory import AddressSpace
from kvmpy.debug.points import Hit, KvmPoints, Points, SoftPoints
from kvmpy.exit_handlers import Seat
from kvmpy.verdicts import Stopped, Verdict

if TYPE_CHECKING:
    from kvmpy.machine import Machine

DEBUG = Stopped("debug")
KERNEL = Stopped("kernel")
_KERNEL_CODE = "0xffffffff80000000-0xffffffffffffffff"


@dataclass(frozen=True)
class Stop:
    """A run under the debugger has ended: a vCPU met something (`hit`), or the run's `verdict` says why."""

    verdict: Verdict
    vcpu: int = 0
    hit: Hit | None = None


class Control:
    """The debugger's hold on a machine; one at a time. Its points and steps hold until `release`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.current = 0
        """Index of the vCPU whose page tables count."""
        vcpus = [cpu.vcpu for cpu in machine.cpu]
        self._vcpus = vcpus
        self.points: Points
        if hasattr(machine.vm, "set_debug_points"):
            self.points = SoftPoints(machine.vm, vcpus)
        else:
            self.points = KvmPoints(machine.vm, vcpus, self.space)
        self._hits: list[tuple[int, Hit]] = []
        machine.loop.debugger = self

    def release(self) -> None:
        """Points and steps are gone; the machine runs as if nobody had looked."""
        self.points.clear()
        self.points.apply(frozenset())
        self._hits.clear()
        self.machine.loop.only = None
        if self.machine.loop.debugger is self:
            self.machine.loop.debugger = None

    def space(self, vcpu: int | None = None) -> AddressSpace:
        """Memory as a vCPU sees it, by default the current one."""
        chosen = self._vcpus[self.current if vcpu is None else vcpu]
        return AddressSpace(self.machine.memory, chosen.get_sregs)

    # Called by the loop, under its lock.

    def on_debug(self, seat: Seat) -> bool:
        """KVM_EXIT_DEBUG: true when the run is to end."""
        hit = self.points.hit(seat.vcpu)
        if hit is None:
            if isinstance(self.points, KvmPoints) and seat.record.debug.arch.exception == 3:
                self.points.pass_on(seat.vcpu)
            return False
        self._hits.append((seat.index, hit))
        return True

    def on_refused(self, seat: Seat, code: bytes) -> bool:
        """An instruction that the backend could not execute: true when it is a breakpoint of ours and the run is to end."""
        hit = self.points.refused(seat.vcpu, code)
        if hit is None:
            return False
        self._hits.append((seat.index, hit))
        return True

    def on_reset(self) -> None:
        """Memory is new, the image loaded again."""
        self.points.reinsert()

    # Called at rest.

    def run(
        self, steps: frozenset[int] = frozenset(), only: frozenset[int] | None = None, *,
        timeout: float | None = None, until: Any = None,
    ) -> Stop:
        """Runs the machine, or the vCPUs `only`; those in `steps` for one instruction, interrupts held back.

        A stop of another vCPU that came at the same moment as the one told last is told first."""
        while self._hits:
            vcpu, hit = self._hits.pop(0)
            if hit.kind not in ("software", "hardware", "step"):  # those are met again
                return Stop(DEBUG, vcpu, hit)
        loop = self.machine.loop
        self.points.apply(steps)
        loop.only = only
        try:
            verdict = self.machine.run(timeout, until)
        finally:
            loop.only = None
            self._settle()
        if verdict == DEBUG and self._hits:
            vcpu, hit = self._hits.pop(0)
            return Stop(verdict, vcpu, hit)
        return Stop(verdict, getattr(verdict, "vcpu", self.current))

    def run_to_kernel(self, timeout: float | None = None) -> Stop:
        """Runs until code in the last 2 GiB of addresses is about to be executed: Linux has unpacked itself and has its place (KASLR).
        The vCPU stands there then, with KERNEL as the verdict. Raises MissingCapability on KVM, which cannot tell."""
        from kvmpy.trace.answers import Stop as Answer

        watch = self.machine.trace("block", lambda event: Answer(KERNEL.why), rip=_KERNEL_CODE)
        try:
            return self.run(timeout=timeout)
        finally:
            watch()

    def _settle(self) -> None:
        """KVM finishes an access to a device when the vCPU is entered again: registers are right after that only."""
        if self.machine.vm.threaded:
            for cpu in self.machine.cpu:
                if cpu.vcpu.record.exit_reason in _UNFINISHED:
                    cpu.settle()

    def run_while(
        self, vcpu: int, inside: Callable[[], bool], *, only: frozenset[int] | None, timeout: float | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Stop:
        """Steps one vCPU as long as `inside` holds after a step."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if end is None else max(end - time.monotonic(), 0.0)
            stop = self.run(frozenset((vcpu,)), only, timeout=left)
            if stop.hit is None or stop.hit.kind != "step" or not inside() or stopped():
                return stop

    def reset(self) -> None:
        """The machine at its power-on state, the image loaded again."""
        self._hits.clear()
        self.machine.reset()


_UNFINISHED = frozenset((2, 6))  # KVM_EXIT_IO, KVM_EXIT_MMIO
