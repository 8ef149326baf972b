"""Doing something at a moment of the machine's time, or after a number of instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmpy.errors import ConfigError

if TYPE_CHECKING:
    from kvmpy.machine import Machine


class Moments:
    """Calls that wait; all run under the machine's lock."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._generation = 0

    def at(self, time: int | None, instructions: int | None, call: Callable[[], None]) -> None:
        """Now; when the clock shows `time` ns; or when all vCPUs together have executed so many instructions (virtual time only)."""
        machine, generation = self._machine, self._generation

        def guarded() -> None:
            if generation == self._generation:
                call()

        if instructions is not None:
            if time is not None:
                raise ConfigError("faults: at= or instructions=, not both")
            if getattr(machine.clock, "name", "") != "virtual":
                raise ConfigError("faults: instructions are counted with clock='virtual'; else use run_until(instructions=n)")
            wanted = instructions
            machine.call(lambda: self._look(wanted, guarded))
        elif time is not None:
            moment = time
            machine.call(lambda: _set_timer(machine, moment, guarded))
        else:
            machine.call(guarded)

    def _look(self, wanted: int, call: Callable[[], None]) -> None:
        """An instruction takes a nanosecond; time that was slept through is made up for by looking again."""
        done = sum(cpu.vcpu.statistics()["instructions"] for cpu in self._machine.cpu)
        if done >= wanted:
            call()
        else:
            _set_timer(self._machine, self._machine.clock.now() + wanted - done, lambda: self._look(wanted, call))

    def clear(self) -> None:
        """None of the calls that wait will come."""
        self._generation += 1


def _set_timer(machine: Machine, moment: int, call: Callable[[], None]) -> None:
    machine.clock.at(moment, call)
