"""Runs to a place, to an exit, for a number of instructions. Each tells whether it came there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmpy.errors import ConfigError
from kvmpy.exits import REASON_NAMES
from kvmpy.native import lib
from kvmpy.regs import linear_rip
from kvmpy.trace.event import KINDS
from kvmpy.verdicts import Stopped

if TYPE_CHECKING:
    from kvmpy.exit_handlers import Seat
    from kvmpy.testing.machine import GuestMachine
    from kvmpy.trace import Event

THERE = Stopped("until")
DEBUG = Stopped("debug")


def _refuse_debugger(machine: GuestMachine) -> None:
    if machine.loop.debugger is not None:
        raise ConfigError("run_until: a debugger has the machine")


def run_to(machine: GuestMachine, place: str | int, timeout: float | None) -> bool:
    """To a symbol or linear address, on any vCPU."""
    from kvmpy.debug.control import Control
    from kvmpy.debug.points import Point

    if isinstance(place, str):
        found = machine.symbols.address(place)
        if found is None:
            raise ConfigError(f"run_until: no symbol {place!r} in {machine.image or 'the machine'}")
        address = int(found)
    else:
        address = place
    _refuse_debugger(machine)
    vcpu = machine.cpu[0].vcpu
    here = linear_rip(vcpu.get_regs(), vcpu.get_sregs()) == address
    if here and machine.last is None:
        return True
    control = Control(machine)
    try:
        # A point at the present instruction would be met at once.
        if here and control.run(frozenset((0,)), timeout=timeout).verdict != DEBUG:
            return False
        point = Point("hardware", address)
        control.points.add(point)
        stop = control.run(timeout=timeout)
        return stop.hit is not None and stop.hit.address == address
    finally:
        control.release()


def run_to_exit(machine: GuestMachine, kind: str | Callable[[Event], bool], timeout: float | None) -> bool:
    """To an exit, by a filter's text, an exit's reason, or a function; the machine stands behind it, and the device has answered."""
    seen: list[Event] = []

    def listen(event: Event) -> None:
        if seen or event.what == "verdict":
            return
        if by_filter or (kind(event) if callable(kind) else kind.lower() == event.data.get("reason")):
            seen.append(event)
            machine.stop(THERE)

    by_filter = isinstance(kind, str) and re.split(r"\W", kind)[0] in KINDS
    if isinstance(kind, str) and not by_filter and kind.upper() not in REASON_NAMES.values():
        raise ConfigError(f"run_until: exit={kind!r} is no exit's reason and begins with no event: {', '.join(KINDS)}")
    end = machine.trace(kind, listen, observe=True) if by_filter else machine.trace(listen)
    try:
        machine.run(timeout)
    finally:
        end()
    return bool(seen)


class _Steps:
    """Counts KVM_EXIT_DEBUG in the place of a debugger."""

    def __init__(self, left: int) -> None:
        self.left = left

    def on_debug(self, seat: Seat) -> bool:
        self.left -= 1
        return self.left == 0

    def on_refused(self, seat: Seat, code: bytes) -> bool:
        return False

    def on_reset(self) -> None:
        pass


def run_instructions(machine: GuestMachine, count: int, timeout: float | None) -> bool:
    """Exactly so many instructions of the first vCPU. The software CPU counts them; KVM steps, some 5 us each."""
    if count < 1:
        raise ConfigError(f"run_until: {count} instructions")
    _refuse_debugger(machine)
    vcpu: Any = machine.cpu[0].vcpu
    loop = machine.loop
    if not machine.vm.threaded:

        def step() -> Any:
            vcpu.step(count)
            return vcpu

        loop.runner = step
        try:
            return machine.run(timeout) == DEBUG
        finally:
            loop.runner = None
    steps = _Steps(count)
    loop.debugger, loop.only = steps, frozenset((0,))
    vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
    try:
        machine.run(timeout)
    finally:
        loop.debugger = loop.only = None
        vcpu.set_guest_debug(0)
    return steps.left == 0
