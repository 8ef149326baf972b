"""One instruction finished by the software CPU for another backend's vCPU: here a second software CPU, and KVM where it is."""

from __future__ import annotations

import struct

import pytest

from kvmpy.kvm.probe import unavailable
from kvmpy.machine import Machine
from kvmpy.native import lib
from kvmpy.regs import identity_map, set_long_mode
from kvmpy.soft.assist import finish_instruction
from kvmpy.verdicts import Halted
from kvmpy.x86 import CR4_OSFXSR, CR4_OSXMMEXCPT
from tests.soft.soft_guest import CODE, STACK, Guest


def test_state_goes_over_and_back() -> None:
    guest = Guest(b"\xf3\x0f\xb8\xc3\x66\x0f\xef\xc0\xf4", "long")  # popcnt eax, ebx; pxor xmm0, xmm0; hlt
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT
    guest.vcpu.set_sregs(sregs)
    image = guest.vcpu.get_xsave()
    image[160:192] = bytes(range(1, 33))
    image[512] |= 2
    guest.vcpu.set_xsave(bytes(image))
    guest.set(rbx=0xF0F0, rax=99)
    assert finish_instruction(guest, guest.vcpu)
    regs = guest.vcpu.get_regs()
    assert (regs.rax, regs.rip) == (8, CODE + 4)
    assert finish_instruction(guest, guest.vcpu)
    assert guest.vcpu.get_xsave()[160:192] == bytes(16) + bytes(range(17, 33))
    assert guest.vcpu.run() == lib.KVM_EXIT_HLT
    guest.close()


def test_changed_code_is_seen() -> None:
    guest = Guest(b"\xb0\x11", "long")
    assert finish_instruction(guest, guest.vcpu)
    guest.pages[CODE + 1 : CODE + 2] = b"\x22"
    guest.set(rip=CODE)
    assert finish_instruction(guest, guest.vcpu)
    assert guest.vcpu.get_regs().rax & 0xFF == 0x22
    guest.close()


def test_device_access_is_served() -> None:
    guest = Guest(b"\xe4\x40", "long")
    seen = []

    def serve(vcpu) -> None:
        seen.append((vcpu.record.exit_reason, vcpu.record.io.port))
        vcpu.io_data()[0:1] = b"\x5a"

    assert not finish_instruction(guest, guest.vcpu)
    assert guest.vcpu.get_regs().rip == CODE
    assert finish_instruction(guest, guest.vcpu, serve)
    assert seen == [(lib.KVM_EXIT_IO, 0x40)]
    regs = guest.vcpu.get_regs()
    assert (regs.rax & 0xFF, regs.rip) == (0x5A, CODE + 2)
    guest.close()


def gate(selector: int, offset: int) -> bytes:
    """A 64-bit interrupt gate of DPL 3 (SDM 3A 6.14.1)."""
    return struct.pack("<HHBBHII", offset & 0xFFFF, selector, 0, 0xEE, offset >> 16 & 0xFFFF, offset >> 32, 0)


@pytest.mark.parametrize(("code", "vector", "back"), [(b"\xcc", 3, 1), (b"\x0f\x0b", 6, 0), (b"\xcd\x21", 0x21, 2)])
def test_events_go_through_the_guests_table(code: bytes, vector: int, back: int) -> None:
    guest = Guest(code, "long")
    sregs = guest.vcpu.get_sregs()
    selector = int(sregs.cs.selector)
    guest.put(0xC000 + selector, struct.pack("<Q", 0x00AF9B000000FFFF))
    guest.put(0xB000 + 16 * vector, gate(selector, 0xA000))
    guest.put(0xA000, b"\x90\x90")
    sregs.idt.base, sregs.idt.limit = 0xB000, 0xFFF
    sregs.gdt.base, sregs.gdt.limit = 0xC000, 0xFF
    guest.vcpu.set_sregs(sregs)
    assert finish_instruction(guest, guest.vcpu)
    regs = guest.vcpu.get_regs()
    assert regs.rip == 0xA000
    frame = struct.unpack("<QQQQQ", guest.get(regs.rsp, 40))
    assert frame[:2] == (CODE + back, selector) and frame[3] == STACK
    guest.close()


def test_triple_fault_is_told() -> None:
    guest = Guest(b"\x0f\x0b", "long")
    seen = []
    assert finish_instruction(guest, guest.vcpu, lambda vcpu: seen.append(vcpu.record.exit_reason))
    assert seen == [lib.KVM_EXIT_SHUTDOWN]
    guest.close()


@pytest.mark.skipif(bool(unavailable()), reason=f"no KVM: {unavailable()}")
def test_kvm_goes_on() -> None:
    # popcnt, movd, paddd, movd back, add: refused by KVMs that emulate CPL 0, executed by all others.
    code = bytes.fromhex("f30fb8c3 660f6ec0 660ffec0 660f7ec1 01c8 f4")
    machine = Machine("1M", backend="kvm")
    try:
        machine.memory.write(CODE, code)
        machine.memory.write(0x1000, identity_map(0x1000, 1))
        vcpu = machine.cpu[0].vcpu
        sregs = vcpu.get_sregs()
        set_long_mode(sregs, 0x1000)
        sregs.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT
        vcpu.set_sregs(sregs)
        registers = machine.cpu[0].registers
        registers.rip, registers.rsp, registers.rflags, registers.rbx = CODE, 0x7000, 2, 0xFF
        assert machine.run(timeout=20) == Halted()
        assert registers.rax == 24 and registers.rcx == 16
    finally:
        machine.close()
