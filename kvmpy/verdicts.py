"""How a run ended: plain values that compare equal when they say the same. A guest's end is never an exception."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Base of all verdicts."""


@dataclass(frozen=True)
class Halted(Verdict):
    """Every vCPU waits in HLT and nothing can wake one."""


@dataclass(frozen=True)
class Reset(Verdict):
    """The guest asked for a reset; `by` names the way it took ("i8042", "port 0x92", "port 0xcf9")."""

    by: str = ""


@dataclass(frozen=True)
class PowerOff(Verdict):
    """The guest switched the machine off."""


@dataclass(frozen=True)
class GuestExit(Verdict):
    """The guest wrote `code` to the debug-exit port; a process can pass on its low 8 bits only."""

    code: int


@dataclass(frozen=True)
class Crashed(Verdict):
    """The guest cannot go on (triple fault, an instruction the backend refuses): where and why."""

    rip: int
    why: str


@dataclass(frozen=True)
class Stopped(Verdict):
    """The host ended the run: `why` is "timeout", "until", "quit", "interrupt" or the caller's word."""

    why: str = ""
