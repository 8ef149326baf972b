"""How a run ended: plain values that compare equal when they say the same. A guest's end is never an exception."""

from __future__ import annotations

from typing import Any

from kvmpy.record import Record, field


class Verdict(Record, frozen=True):
    """Base of all verdicts; its text is one line fit for a user."""

    def __str__(self) -> str:
        return type(self).__name__.lower()


class Halted(Verdict, frozen=True):
    """Every vCPU waits in HLT and nothing can wake one."""

    def __str__(self) -> str:
        return "halted: every CPU is in HLT with interrupts off"


class Reset(Verdict, frozen=True):
    """The guest asked for a reset; `by` names the way it took ("i8042", "port 0x92", "port 0xcf9")."""

    by: str = ""

    def __str__(self) -> str:
        return f"reset by {self.by}" if self.by else "reset"


class PowerOff(Verdict, frozen=True):
    """The guest switched the machine off."""

    def __str__(self) -> str:
        return "powered off"


class GuestExit(Verdict, frozen=True):
    """The guest wrote `code` to the debug-exit port; a process can pass on its low 8 bits only."""

    code: int

    def __str__(self) -> str:
        return f"guest exit, status {self.code}"


class Crashed(Verdict, frozen=True):
    """The guest cannot go on (triple fault, an instruction the backend refuses): where and why."""

    rip: int
    why: str
    vcpu: int = 0
    details: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the exit said beyond that, as plain data for a report: instruction bytes, suberror, exit number."""

    def __str__(self) -> str:
        return f"crashed at rip {self.rip:#x}: {self.why}" + (f" (vCPU {self.vcpu})" if self.vcpu else "")


class Stopped(Verdict, frozen=True):
    """The host ended the run: `why` is "timeout", "until", "quit", "interrupt" or the caller's word."""

    why: str = ""

    def __str__(self) -> str:
        return f"stopped: {self.why}" if self.why else "stopped"
