"""Programs run interpreted and translated, and everything that they leave behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kvmpy.regs import dump
from kvmpy.soft import SoftBackend
from tests.soft.soft_guest import Guest

GDT, IDT, HANDLER = 0x10000, 0x11000, 0x9000


def forbidden() -> bool:
    with SoftBackend(translate=1).create_vm() as vm:
        return not vm.translating


needs_code = pytest.mark.skipif(forbidden(), reason="this host lets no program make code")


def with_gates(guest: Guest) -> Guest:
    """64-bit gates to a HLT for every exception."""
    sregs = guest.vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit = GDT, 0x1F, IDT, 0xFFF
    guest.vcpu.set_sregs(sregs)
    guest.put(GDT, bytes(8) + (0x00AF9B000000FFFF).to_bytes(8, "little") + (0x00CF93000000FFFF).to_bytes(8, "little"))
    selector = sregs.cs.selector
    gate = HANDLER & 0xFFFF | selector << 16 | 0x8E << 40 | HANDLER >> 16 << 48
    guest.put(IDT, gate.to_bytes(16, "little") * 256)
    guest.put(HANDLER, b"\xf4")
    return guest


def state(guest: Guest) -> tuple[object, ...]:
    """Everything that a program can leave behind, and how many instructions it took."""
    vcpu = guest.vcpu
    return (
        dump(vcpu.get_regs(), vcpu.get_sregs()), vcpu.get_sregs().cr2, bytes(vcpu.get_xsave()).hex(),
        hashlib.sha256(guest.pages).hexdigest(), vcpu.statistics()["instructions"],
    )


@contextmanager
def alike(
    code: bytes, reason: int, prepare: Callable[[Guest], object] = lambda guest: None, mode: str = "long", threshold: int = 1,
    **options: object,
) -> Iterator[Guest]:
    """Runs it interpreted, and translated after `threshold` runs of a block; the states must be one. Gives the translated guest."""
    states, guests = [], []
    try:
        for translate in (0, threshold):
            guest = Guest(code, mode, translate=translate, **options)  # type: ignore[arg-type]
            guests.append(guest)
            guest.set(rax=0, rbx=0, rcx=0, rdx=0)
            prepare(guest)
            assert guest.vcpu.run() == reason
            states.append(state(guest))
        assert states[0] == states[1]
        yield guests[1]
    finally:
        for guest in guests:
            guest.close()
