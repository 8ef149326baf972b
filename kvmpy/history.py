"""What a vCPU did last, as both backends note it at all times: its exits, and on the software CPU the events it took or failed to take."""

from __future__ import annotations

from collections.abc import Iterator

from kvmpy.native import CData, lib
from kvmpy.record import Record

OUTCOMES = ("taken", "failed", "met")
"""By KP_DELIVERY_*: delivered; its delivery faulted; a fault of the delivery before it that became a double fault or the shutdown."""
SOURCES = ("exception", "software", "icebp", "interrupt", "nmi")
"""By KP_BY_*."""


class ExitNote(Record, frozen=True):
    """One exit to user space. `subject` is a port, a guest physical address, an MSR, a hypercall's number or a suberror."""

    reason: int
    rip: int
    subject: int
    size: int
    count: int
    write: bool
    value: int | None
    """The first 8 bytes; None where a read was not answered."""


class Delivery(Record, frozen=True):
    """An exception or interrupt on its way through the IDT: `source` is one of SOURCES, `outcome` of OUTCOMES, `retired` the
    instructions of the vCPU before it, `cr2` a page fault's address."""

    vector: int
    source: str
    outcome: str
    rip: int
    error: int | None
    cr2: int
    retired: int


def _entries(ring: CData, size: int) -> Iterator[CData]:
    for number in range(max(int(ring.count) - size, 0), int(ring.count)):
        yield ring.entry[number % size]


def exit_notes(ring: CData) -> list[ExitNote]:
    """Of a `struct kp_exits`, oldest first."""
    return [
        ExitNote(
            int(one.reason), int(one.rip), int(one.subject), int(one.size), int(one.count), bool(one.write),
            None if one.waits else int(one.value),
        )
        for one in _entries(ring, lib.KP_EXITS)
    ]


def deliveries(ring: CData) -> list[Delivery]:
    """Of a `struct kp_deliveries`, oldest first."""
    return [
        Delivery(
            int(one.vector), SOURCES[one.kind], OUTCOMES[one.outcome], int(one.rip), int(one.error) if one.has_error else None,
            int(one.cr2), int(one.retired),
        )
        for one in _entries(ring, lib.KP_DELIVERIES)
    ]
