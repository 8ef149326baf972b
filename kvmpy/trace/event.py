"""One thing that happened in a run, and what each kind of it tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

KINDS = {
    "io": "port access: port, size, count, write, value; device: who answered",
    "mmio": "access to device memory: address, size, write, value; device: who answered",
    "msr": "RDMSR or WRMSR: index, name, write, value, served",
    "cpuid": "CPUID: leaf, subleaf, eax, ebx, ecx, edx",
    "irq": "an interrupt that a vCPU takes: vector",
    "exception": "an exception that a vCPU takes: vector, name, error, address (of a page fault)",
    "hypercall": "VMCALL or VMMCALL: number, arguments",
    "line": "a device moves an interrupt line: gsi, level; or sends a message: address, data",
    "exit": "any other exit: reason, text",
    "assist": "an instruction that the software CPU finished for KVM: rip, instruction",
    "unclaimed": "an access that no device answers: port or address, size, write",
    "device": "what a device has to say: device, event",
    "block": "a block of guest code is entered: address, count (of instructions)",
    "instruction": "an instruction begins: address",
    "memory": "an access to memory: address (linear), size, write, value",
    "ioctl": "a KVM call of a traced process: fd, name, arguments, result; error: its name",
    "verdict": "how the run ended: verdict",
}
"""Every `Event.what`, with the keys of its `data`. Of a traced process any may have, too: vm and pid, where there are several;
registers and code, where they are asked for."""

NUMBERS = {kind: number for number, kind in enumerate(KINDS, 1)}
"""Kinds as rules and trace files write them: KP_TRACE_* of the core."""


class EventFields(NamedTuple):
    """What an Event has."""

    what: str
    """One of KINDS."""
    vcpu: int
    """Index; -1 where none is meant."""
    time: int
    """The machine's clock, ns: virtual time where that is the clock."""
    data: dict[str, Any]
    """Plain data, for instance {"port": 0x3f8, "size": 1, "write": True, "value": 0x41}."""
    rip: int | None = None
    """Linear address of the instruction, where it is known."""
    host: int = 0
    """The host's monotonic clock when it happened, before it was answered, ns; 0 where nobody asked for it."""
    guest: int = 0
    """ns that the vCPU spent in the guest since its exit before, where it was measured."""
    cost: int = 0
    """ns that the answer took, where it was measured."""
    cpl: int | None = None
    """Privilege level of the instruction, where it is known."""


class Event(EventFields):
    """One thing that happened. str() is its line of a trace."""

    names: Callable[[], Any] | None = None
    """Gives the symbols of the machine whose listener got it."""

    @property
    def symbol(self) -> str:
        """The instruction as "print+0xdf (console.c:40)"; its bare address where no symbol is known, nothing where it has none."""
        if self.rip is None:
            return ""
        return f"{self.rip:#x}" if self.names is None else str(self.names().where(self.rip))

    def __str__(self) -> str:
        from kvmpy.trace.text import line

        return line(self)


Listener = Callable[[Event], Any]
