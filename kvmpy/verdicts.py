"""How a run ended: plain values that compare equal when they say the same. A guest's end is never an exception."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """Base of all verdicts; its text is one line fit for a user."""

    def __str__(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Halted(Verdict):
    """Every vCPU waits in HLT and nothing can wake one."""

    def __str__(self) -> str:
        return "halted: every CPU is in HLT with interrupts off"


@dataclass(frozen=True)
class Reset(Verdict):
    """The guest asked for a reset; `by` names the way it took ("i8042", "port 0x92", "port 0xcf9")."""

    by: str = ""

    def __str__(self) -> str:
        return f"reset by {self.by}" if self.by else "reset"


@dataclass(frozen=True)
class PowerOff(Verdict):
    """The guest switched the machine off."""

    def __str__(self) -> str:
        return "powered off"


@dataclass(frozen=True)
class GuestExit(Verdict):
    """The guest wrote `code` to the debug-exit port; a process can pass on its low 8 bits only."""

    code: int

    def __str__(self) -> str:
        return f"guest exit, status {self.code}"


@dataclass(frozen=True)
class Crashed(Verdict):
    """The guest cannot go on (triple fault, an instruction the backend refuses): where and why."""

    rip: int
    why: str
    vcpu: int = 0
    details: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the exit said beyond that, as plain data for a report: instruction bytes, suberror, exit number."""

    def __str__(self) -> str:
        return f"crashed at rip {self.rip:#x}: {self.why}" + (f" (vCPU {self.vcpu})" if self.vcpu else "")


@dataclass(frozen=True)
class Stopped(Verdict):
    """The host ended the run: `why` is "timeout", "until", "quit", "interrupt" or the caller's word."""

    why: str = ""

    def __str__(self) -> str:
        return f"stopped: {self.why}" if self.why else "stopped"
