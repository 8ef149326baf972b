"""What `make fuzz` found, each as a guest that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kvmpy.native import ffi, lib
from tests.soft.soft_guest import CODE, STACK, Guest

IO, MMIO, HLT, DEBUG, SHUTDOWN = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO, lib.KVM_EXIT_HLT, lib.KVM_EXIT_DEBUG, lib.KVM_EXIT_SHUTDOWN
GDT, IDT, DEVICE, HANDLER = 0x2000, 0x3000, 0x200000, 0x9000
GATE = (HANDLER | 8 << 16 | 0x8E << 40).to_bytes(8, "little")
Make = Callable[..., Guest]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Guest] = []

    def build(code: bytes, idt: int = DEVICE, handler: bytes = b"\xf4") -> Guest:
        guest = Guest(code, "protected")
        made.append(guest)
        sregs = guest.vcpu.get_sregs()
        sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit = GDT, 0x1F, idt, 0x7FF
        guest.vcpu.set_sregs(sregs)
        guest.put(GDT, bytes(8) + (0x00CF9B000000FFFF).to_bytes(8, "little") + (0x00CF93000000FFFF).to_bytes(8, "little"))
        guest.put(IDT, GATE * 256)
        guest.put(HANDLER, handler)
        return guest

    yield build
    for guest in made:
        guest.close()


def gate_read(guest: Guest, vector: int) -> None:
    """The run stops for the gate of this vector, which a device gives."""
    assert guest.vcpu.run() == MMIO
    access = guest.vcpu.record.mmio
    assert (access.phys_addr, access.len, access.is_write) == (DEVICE + 8 * vector, 8, 0)
    ffi.buffer(access.data)[0:8] = GATE


def test_an_exception_waits_for_a_table_that_is_a_device(make: Make) -> None:
    guest = make(b"\x40\x40\x0f\x0b", handler=b"\x43\x0f\x0b")  # inc eax; inc eax; ud2. inc ebx; ud2
    for count in range(1, 4):  # the second and third come out of the handler: none is a double fault
        gate_read(guest, 6)
        events = guest.vcpu.get_events()
        assert (events.exception.injected, events.exception.nr) == (1, 6)
        regs = guest.vcpu.get_regs()
        assert (regs.rax, regs.rbx, regs.rip) == (2, count - 1, CODE + 2 if count == 1 else HANDLER + 1)
    assert guest.get(STACK - 12, 4) == (CODE + 2).to_bytes(4, "little")


def test_a_general_protection_fault_keeps_its_error_code_while_it_waits(make: Make) -> None:
    guest = make(b"\xb8\x40\x00\x00\x00\x8e\xd8")  # mov eax, 40h; mov ds, ax: outside the GDT
    gate_read(guest, 13)
    assert guest.vcpu.run() == HLT
    assert guest.get(STACK - 16, 8) == (0x40).to_bytes(4, "little") + (CODE + 5).to_bytes(4, "little")


@pytest.mark.parametrize("kind", ["interrupt", "nmi"])
def test_an_interrupt_waits_for_a_table_that_is_a_device(make: Make, kind: str) -> None:
    guest = make(b"\x90\xeb\xfd")
    guest.set(rflags=0x202)
    if kind == "nmi":
        guest.vcpu.nmi()
    else:
        guest.vcpu.interrupt(0x30)
    gate_read(guest, 2 if kind == "nmi" else 0x30)
    assert guest.vcpu.run() == HLT
    assert guest.vcpu.get_regs().rip == HANDLER + 1
    assert guest.vcpu.get_events().nmi.masked == (kind == "nmi")


def test_an_event_taken_away_while_it_waits_is_not_delivered(make: Make) -> None:
    guest = make(b"\x0f\x0b\xf4")
    gate_read(guest, 6)
    events = guest.vcpu.get_events()
    events.exception.injected = 0
    guest.vcpu.set_events(events)
    guest.set(rip=CODE + 2)
    assert guest.vcpu.run() == HLT and guest.vcpu.get_regs().rip == CODE + 3


def test_a_trap_behind_hlt_wakes_wherever_the_run_was_cut(make: Make) -> None:
    for steps in (0, 1):
        guest = make(b"\xf4\x90\xeb\xfd", IDT, b"\xe6\x10\xf4")  # out 10h, al
        guest.set(rflags=0x102)  # TF
        if steps:
            assert guest.vcpu.step(1) == DEBUG
        assert guest.vcpu.run() == IO
        assert guest.get(STACK - 12, 4) == (CODE + 1).to_bytes(4, "little")


@pytest.mark.parametrize("limit", [CODE + 7, 0xFFFFF, (16 << 20) - 1])
def test_code_is_not_run_beyond_a_limit_that_came_later(make: Make, limit: int) -> None:
    guest = make(b"\x40" * 12 + b"\xf4", IDT, b"\xe6\x10\xf4")
    for limits in (0xFFFFFFFF, limit, 0xFFFFFFFF):
        sregs = guest.vcpu.get_sregs()
        sregs.cs.limit, sregs.cs.g = limits, int(limits > 0xFFFFF)
        guest.vcpu.set_sregs(sregs)
        guest.set(rax=0, rip=CODE)
        cut = limits < CODE + 12
        assert guest.vcpu.run() == (IO if cut else HLT)
        assert guest.vcpu.get_regs().rax == (8 if cut else 12)


def test_reserved_bits_of_the_x87_words_do_not_come_in_by_set_fpu(make: Make) -> None:
    guest = make(b"\xf4")
    fpu = guest.vcpu.get_fpu()
    fpu.fcw, fpu.fsw = 0xFFBF, 0x0001  # an invalid operation that is masked: no summary
    guest.vcpu.set_fpu(fpu)
    image = guest.vcpu.get_xsave()
    assert image[0:4] == bytes.fromhex("7f1f 0100")
    fpu.fcw = 0
    guest.vcpu.set_fpu(fpu)
    image = guest.vcpu.get_xsave()
    assert image[0:4] == bytes.fromhex("4000 8180")  # unmasked: summary and busy
    guest.vcpu.set_xsave(image)
    assert guest.vcpu.get_xsave() == image


def test_the_second_encoding_of_byte_arithmetic_translated(make: Make) -> None:
    """82h, which 64-bit mode has not: translated code must not have it either."""
    guest = make(b"\x40\x82\xc3\x07\x82\xe9\x01\x82\x35\x00\x50\x00\x00\xff\x79\xf0\xf4")
    # inc eax; add bl, 7; sub cl, 1; xor byte [5000h], ffh; jns back: done twice
    if not guest.vm.translate(1):
        pytest.skip("this host lets no program make code")
    guest.put(0x5000, b"\xff")
    assert guest.vcpu.run() == HLT
    regs = guest.vcpu.get_regs()
    assert (regs.rax, regs.rbx & 0xFF, regs.rcx & 0xFF, guest.get(0x5000, 1)) == (2, 14, 0xFE, b"\xff")


def test_lma_cannot_be_written_by_user_space() -> None:
    guest = Guest(b"\xf4", "long")
    assert not guest.vcpu.set_msrs({0xC0000080: 0x101})
    assert guest.vcpu.get_msrs([0xC0000080]) == {0xC0000080: 0x501}
    guest.vcpu.set_sregs(guest.vcpu.get_sregs())
    guest.close()
