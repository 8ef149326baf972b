"""What a listener may give back in place of None: how the machine goes on after the event."""

from __future__ import annotations

from kvmpy.record import Record


class Answer(Record, frozen=True):
    """Base of the answers that are no values."""


class Fault(Answer, frozen=True):
    """The instruction raises exception `vector` (13 is #GP), with an error code where `error` is given. An access that reads faults
    before the instruction; a write to a device has left the instruction behind, and the fault comes after it."""

    vector: int
    error: int | None = None


class Interrupt(Answer, frozen=True):
    """An external interrupt of `vector` for the vCPU, by a message to its local APIC; where that is off, straight to the vCPU."""

    vector: int


class Nmi(Answer, frozen=True):
    """A non-maskable interrupt for the vCPU."""


class Stop(Answer, frozen=True):
    """The run ends with Stopped(why)."""

    why: str = "trace"


class Step(Answer, frozen=True):
    """The listener gets an event of kind "instruction" for each of the next `count` instructions of the vCPU, before it is executed."""

    count: int = 1
