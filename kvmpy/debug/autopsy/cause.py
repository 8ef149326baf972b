"""From the events that a vCPU tried to deliver to a sentence: how a triple fault came about (SDM 3A 6.15, interrupt 8)."""

from __future__ import annotations

from itertools import pairwise

from kvmpy.debug.autopsy.tables import Tables
from kvmpy.history import Delivery
from kvmpy.x86 import EXCEPTIONS

_DOUBLE = 8
_PAGE_FAULT = 14
_NEAR = 256
"""Bytes that a delivery pushes at most, rounded up."""


def name(vector: int) -> str:
    """ "#PF", or the vector where it has no name."""
    return EXCEPTIONS.get(vector, f"vector {vector:#x}")


def chain(deliveries: list[Delivery]) -> list[Delivery]:
    """Those at the end whose delivery failed, the cause first."""
    start = len(deliveries)
    while start and deliveries[start - 1].outcome != "taken":
        start -= 1
    return deliveries[start:]


def words(one: Delivery) -> str:
    """An event: "#PF at 0xdead000 (write, not mapped)"."""
    if one.vector == _PAGE_FAULT and one.error is not None:
        error = one.error
        kind = "fetch" if error & 16 else "write" if error & 2 else "read"
        who = "user " if error & 4 else ""
        why = "reserved bit set" if error & 8 else "protection" if error & 1 else "not mapped"
        return f"#PF at {one.cr2:#x} ({who}{kind}, {why})"
    if one.source in ("interrupt", "software"):
        return f"{'INT' if one.source == 'software' else 'interrupt'} {one.vector:#x}"
    return name(one.vector) + (f" (error {one.error:#x})" if one.error else "")


def failure(one: Delivery, met: Delivery, tables: Tables) -> str:
    """Why `one` could not be delivered: what `met`, the fault of its delivery, says."""
    if met.vector == _PAGE_FAULT:
        return _page_fault(met.cr2, tables)
    problem = tables.gate_problem(one.vector)
    return problem or f"its delivery raised {words(met)}"


def _page_fault(address: int, tables: Tables) -> str:
    s = tables.sregs
    for what, table in (("IDT", s.idt), ("GDT", s.gdt), ("TSS", s.tr)):
        if 0 <= address - int(table.base) <= int(table.limit):
            return f"the {what} at {int(table.base):#x} is not mapped ({address:#x})"
    stack = tables.stack_pointer()
    if -_NEAR <= address - stack < 16:
        return f"the stack cannot be written ({address:#x})"
    for number in (0, *range(4, 11)):
        found = tables.ist(number) if tables.long else None
        if found and -_NEAR <= address - found < 0:
            return f"the stack {f'IST{number - 3}' if number else 'RSP0'} cannot be written ({address:#x})"
    return f"its delivery raised #PF at {address:#x}"


def triple_fault(found: list[Delivery], tables: Tables) -> str:
    """The whole chain in a line; `found` as `chain` gives it, and not empty."""
    parts = [f"{words(found[0])} at {tables.place(found[0].rip)}"]
    told = ""
    for one, met in pairwise(found):
        if one.outcome != "failed":
            continue
        why = failure(one, met, tables)
        if why != told:
            parts.append(f"then {why}" if one is found[0] else f"then {words(one)}: {why}")
            told = why
    return f"triple fault: {', '.join(parts)}"


def steps(found: list[Delivery], tables: Tables) -> list[str]:
    """The same line by line."""
    lines = []
    for one, met in zip(found, [*found[1:], None], strict=True):
        if one.outcome == "met":
            last = met is None
            lines.append(f"  met {words(one)}" + ("; shutdown" if last else f", which makes it {name(_DOUBLE)}"))
        else:
            why = f": {failure(one, met, tables)}" if met is not None else ""
            lines.append(f"{words(one)} at {tables.place(one.rip)}, not delivered{why}")
    return lines
