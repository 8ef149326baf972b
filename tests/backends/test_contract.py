"""What the protocol promises beyond exits: kicks, injected events, MSR exits, single-stepping, state, on each backend."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator

import pytest

from kvmpy.backends import open_backend
from kvmpy.exits import decode
from kvmpy.native import ffi, lib
from kvmpy.regs import identity_map, set_long_mode
from kvmpy.watchdog import Watchdog
from kvmpy.x86 import MSR_LSTAR, MSR_STAR
from tests.backends.harness import CODE, SIZE, STACK, TABLES, assemble, backend_missing

INTR, IO, HLT = lib.KVM_EXIT_INTR, lib.KVM_EXIT_IO, lib.KVM_EXIT_HLT


class Guest:
    """A vCPU in 64-bit mode at a program, driven through the protocol alone."""

    def __init__(self, backend: str, text: str) -> None:
        self.memory = mmap.mmap(-1, SIZE)
        self.view = ffi.from_buffer(self.memory)
        maker = open_backend(backend)
        self.vm = maker.create_vm()
        code = assemble(text)
        self.memory[CODE : CODE + len(code)] = code
        self.memory[TABLES : TABLES + 6 * 4096] = identity_map(TABLES, 4, user=True)
        self.vm.set_memory(0, 0, int(ffi.cast("uintptr_t", self.view)), SIZE)
        self.vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid(maker.supported_cpuid())
        sregs = self.vcpu.get_sregs()
        set_long_mode(sregs, TABLES)
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(ffi.new("struct kvm_regs *", {"rip": CODE, "rsp": STACK, "rflags": 2}))

    def run(self) -> int:
        if self.vm.threaded:
            return self.vcpu.run()
        self.vm.run()
        return int(self.vcpu.record.exit_reason)

    def bounded(self, seconds: float = 10) -> int:
        with Watchdog(seconds, [self.vcpu]) as dog:
            reason = self.run()
        assert not dog.fired
        return reason

    def close(self) -> None:
        self.vm.close()
        ffi.release(self.view)
        self.memory.close()


@pytest.fixture(params=["kvm", "soft"])
def guest(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Guest]]:
    if why := backend_missing(request.param):
        pytest.skip(f"{request.param}: {why}")
    made: list[Guest] = []

    def make(text: str) -> Guest:
        made.append(Guest(request.param, text))
        return made[-1]

    yield make
    for one in made:
        one.close()


IDT = """
    lea rax, [rip + handler]
    mov word ptr [0x3000 + 16 * {v}], ax
    mov word ptr [0x3000 + 16 * {v} + 2], 8
    mov word ptr [0x3000 + 16 * {v} + 4], 0x8e00
    lidt [rip + idtr]
    lgdt [rip + gdtr]
    jmp start
    .balign 8
gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr: .word 23
    .quad gdt
idtr: .word 0xfff
    .quad 0x3000
handler: out 0x99, al
    iretq
start:
"""


def test_kick_ends_a_spinning_guest(guest) -> None:
    one = guest("1: jmp 1b")
    timer = threading.Timer(0.05, one.vcpu.kick)
    timer.start()
    assert one.bounded() == INTR and one.vcpu.record.exit_reason == INTR
    timer.join()


def test_kick_before_a_run_ends_it_and_only_it(guest) -> None:
    one = guest("1: out 0x10, al\n jmp 1b")
    one.vcpu.kick()
    assert one.bounded() == INTR
    assert one.bounded() == IO


def test_a_kick_does_not_lose_the_answer_to_in(guest) -> None:
    one = guest("in al, 0x60\n hlt")
    assert one.bounded() == IO
    one.vcpu.io_data()[0:1] = b"\x42"
    one.vcpu.kick()
    assert one.bounded() == INTR
    assert one.bounded() == HLT
    assert one.vcpu.get_regs().rax & 0xFF == 0x42


def test_injected_interrupt_and_window(guest) -> None:
    one = guest(IDT.format(v=0x40) + "cli\n out 0x10, al\n sti\n1: jmp 1b")
    assert one.bounded() == IO
    record = one.vcpu.record
    assert not record.if_flag and not record.ready_for_interrupt_injection
    record.request_interrupt_window = 1
    assert one.bounded() == lib.KVM_EXIT_IRQ_WINDOW_OPEN
    assert record.ready_for_interrupt_injection and record.if_flag
    record.request_interrupt_window = 0
    one.vcpu.interrupt(0x40)
    assert one.bounded() == IO and record.io.port == 0x99


def test_nmi(guest) -> None:
    one = guest(IDT.format(v=2) + "out 0x10, al\n1: jmp 1b")
    assert one.bounded() == IO
    one.vcpu.nmi()
    assert one.bounded() == IO and one.vcpu.record.io.port == 0x99


def test_filtered_msr(guest) -> None:
    one = guest("mov ecx, 0x174\n rdmsr\n inc eax\n wrmsr\n hlt")
    one.vm.set_user_msrs(lib.KVM_MSR_EXIT_REASON_FILTER, [(0x174, 1, lib.KVM_MSR_FILTER_READ | lib.KVM_MSR_FILTER_WRITE)])
    record = one.vcpu.record
    assert one.bounded() == lib.KVM_EXIT_X86_RDMSR and str(decode(record)) == "RDMSR SYSENTER_CS (filtered)"
    record.msr.data, record.msr.error = 0x700000041, 0
    assert one.bounded() == lib.KVM_EXIT_X86_WRMSR and decode(record).value == 0x700000042
    record.msr.error = 0
    assert one.bounded() == HLT
    assert one.vcpu.get_msrs([0x174]) == {0x174: 0}


def test_single_step(guest) -> None:
    one = guest("nop\n inc eax\n nop\n hlt")
    one.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
    for at in (1, 3, 4):
        assert one.bounded() == lib.KVM_EXIT_DEBUG
        exit = decode(one.vcpu.record)
        assert exit.single_step and exit.pc == CODE + at
    one.vcpu.set_guest_debug(0)
    assert one.bounded() == HLT


def test_state_goes_in_and_comes_out(guest) -> None:
    one = guest("hlt")
    vcpu = one.vcpu
    assert vcpu.set_msrs({MSR_STAR: 0x23001000000000, MSR_LSTAR: 0xFFFFFFFF81000000, 0x12345678: 1}) == [0x12345678]
    assert vcpu.get_msrs([0x12345678, MSR_LSTAR]) == {MSR_LSTAR: 0xFFFFFFFF81000000}
    image = vcpu.get_xsave()
    image[160:176] = bytes(range(16))
    image[512] |= 3
    vcpu.set_xsave(bytes(image))
    assert vcpu.get_xsave()[160:176] == bytes(range(16)) and len(image) >= 4096
    debug = vcpu.get_debugregs()
    debug.db[1] = 0x1234
    vcpu.set_debugregs(debug)
    assert vcpu.get_debugregs().db[1] == 0x1234
    assert vcpu.translate(0x8123).physical_address == 0x8123 and not vcpu.translate(1 << 40).valid
    assert vcpu.get_mp_state() == lib.KVM_MP_STATE_RUNNABLE and vcpu.get_tsc_khz() > 1000
    assert {entry.function for entry in vcpu.get_cpuid()} >= {0, 1}
    assert one.bounded() == HLT


def test_dirty_log_and_host_writes(guest) -> None:
    one = guest("mov byte ptr [0x5000], 1\n hlt")
    one.vm.set_memory(0, 0, int(ffi.cast("uintptr_t", one.view)), SIZE, log_dirty=True)
    one.vm.dirty_log(0)
    assert one.bounded() == HLT
    one.vm.memory_written(0x7FFF, 2)
    log = one.vm.dirty_log(0)
    pages = {8 * i + bit for i, byte in enumerate(log) for bit in range(8) if byte >> bit & 1}
    # The tables' accessed bits are written by a processor that walks them itself, not by one with shadow pages.
    assert {page for page in pages if page < 0x100} == {5, 7, 8}
    assert not any(one.vm.dirty_log(0)[:32])


def test_closing_twice(guest) -> None:
    one = guest("hlt")
    one.vm.close()
    one.vm.close()


@pytest.mark.parametrize("source", ["kvm", "soft"])
def test_a_run_moves_to_the_other_backend(source: str) -> None:
    target = "soft" if source == "kvm" else "kvm"
    for name in (source, target):
        if why := backend_missing(name):
            pytest.skip(f"{name}: {why}")
    program = "mov rax, 0x1234567890\n inc rax\n mov [0x5000], rax\n out 0x10, al\n add rax, [0x5000]\n mov rbx, cr3\n hlt"
    one, two = Guest(source, program), Guest(target, "hlt")
    try:
        assert one.bounded() == IO
        one.vcpu.kick()  # finishes the OUT
        assert one.bounded() == INTR
        two.memory[:] = one.memory[:]
        two.vm.memory_written(0, SIZE)
        a, b = one.vcpu, two.vcpu
        b.set_sregs(a.get_sregs())
        b.set_regs(a.get_regs())
        b.set_xcrs(a.get_xcrs())
        b.set_xsave(bytes(a.get_xsave()))
        assert b.set_msrs(a.get_msrs([MSR_STAR, MSR_LSTAR])) == []
        b.set_debugregs(a.get_debugregs())
        b.set_events(a.get_events())
        assert two.bounded() == HLT
        regs = b.get_regs()
        assert (regs.rax, regs.rbx) == (2 * 0x1234567891, TABLES)
    finally:
        one.close()
        two.close()
