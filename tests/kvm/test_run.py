"""KVM_RUN: exits of small guests, kicks, signals, deadlines."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from kvmpy.errors import HostError
from kvmpy.exits import (
    DebugExit,
    HltExit,
    InternalErrorExit,
    IntrExit,
    IoExit,
    MmioExit,
    MsrReadExit,
    MsrWriteExit,
    ShutdownExit,
    decode,
)
from kvmpy.kvm import probe
from kvmpy.native import lib
from kvmpy.watchdog import Watchdog
from tests.kvm.guest import CODE, HLT, INTR, IO, MMIO, SHUTDOWN

SPIN = b"\xeb\xfe"


@pytest.mark.parametrize(
    ("code", "size", "value"),
    [(b"\xe6\x80", 1, 0xAD), (b"\xe7\x80", 2, 0xBEAD), (b"\x66\xe7\x80", 4, 0xDEADBEAD)],
)
def test_out_of_every_size(guest, code, size, value) -> None:
    one = guest(code + b"\xf4")
    one.set(rax=0xDEADBEAD)
    assert one.run() == IO
    exit = decode(one.vcpu.record)
    assert exit == IoExit(0x80, size, 1, True, value.to_bytes(size, "little")) and exit.values == [value]
    assert one.run() == HLT and decode(one.vcpu.record) == HltExit()


@pytest.mark.parametrize(("code", "size"), [(b"\xe4\x60", 1), (b"\xe5\x60", 2), (b"\x66\xe5\x60", 4)])
def test_in_takes_its_answer_from_the_record(guest, code, size) -> None:
    one = guest(code + b"\xf4")
    one.set(rax=0x11111111)
    assert one.run() == IO
    exit = decode(one.vcpu.record)
    assert (exit.port, exit.size, exit.out) == (0x60, size, False)
    one.vcpu.io_data()[:] = (0x89ABCDEF & (1 << 8 * size) - 1).to_bytes(size, "little")
    assert one.run() == HLT
    mask = (1 << 8 * size) - 1
    assert one.vcpu.get_regs().rax & 0xFFFFFFFF == 0x11111111 & ~mask | 0x89ABCDEF & mask


def test_string_input_carries_a_count(guest) -> None:
    one = guest(b"\xf3\x6c\xf4")  # rep insb
    one.set(rcx=20, rdx=0x1F0, rdi=0x4000)
    got = b""
    while one.run() == IO:
        exit = decode(one.vcpu.record)
        assert exit.port == 0x1F0 and exit.size == 1 and not exit.out and len(exit.data) == exit.count
        answer = bytes(range(len(got), len(got) + exit.count))
        one.vcpu.io_data()[:] = answer
        got += answer
    assert one.memory[0x4000:0x4014] == bytes(range(20)) == got


def test_string_output(guest) -> None:
    one = guest(b"\xf3\x6e\xf4")  # rep outsb
    one.put(0x4000, b"Hello, port")
    one.set(rcx=11, rdx=0xE9, rsi=0x4000)
    text = b""
    while one.run() == IO:
        text += bytes(one.vcpu.io_data())
    assert text == b"Hello, port"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mmio_write_and_read(guest, size) -> None:
    store = {1: b"\x88\x03", 2: b"\x66\x89\x03", 4: b"\x89\x03", 8: b"\x48\x89\x03"}[size]
    load = {1: b"\x8a\x0b", 2: b"\x66\x8b\x0b", 4: b"\x8b\x0b", 8: b"\x48\x8b\x0b"}[size]
    one = guest(store + load + b"\xf4", "long")
    value = 0x1122334455667788
    one.set(rax=value, rbx=0x10000000, rcx=0)
    mask = (1 << 8 * size) - 1
    assert one.run() == MMIO
    assert decode(one.vcpu.record) == MmioExit(0x10000000, size, True, (value & mask).to_bytes(size, "little"))
    assert one.run() == MMIO
    exit = decode(one.vcpu.record)
    assert (exit.address, exit.size, exit.write) == (0x10000000, size, False)
    for i, byte in enumerate((0xA1A2A3A4A5A6A7A8 & mask).to_bytes(8, "little")):
        one.vcpu.record.mmio.data[i] = byte
    assert one.run() == HLT
    assert one.vcpu.get_regs().rcx == 0xA1A2A3A4A5A6A7A8 & mask


def test_triple_fault_is_shutdown(guest) -> None:
    one = guest(b"\x0f\x0b", "long")
    assert one.run() == SHUTDOWN and decode(one.vcpu.record) == ShutdownExit()


def test_refused_instruction_shows_its_bytes_and_can_be_passed(guest) -> None:
    if probe.ask("cpl0_on_hardware"):
        pytest.skip("this host's KVM runs every instruction on the processor")
    one = guest(b"\xf3\x0f\xb8\xc2\xf4", "long")
    assert one.run() == lib.KVM_EXIT_INTERNAL_ERROR
    exit = decode(one.vcpu.record)
    assert isinstance(exit, InternalErrorExit) and exit.emulation
    assert exit.instruction.startswith(b"\xf3\x0f\xb8\xc2\xf4") and len(exit.instruction) <= 15
    assert one.vcpu.get_regs().rip == CODE
    one.set(rip=CODE + 4)
    assert one.run() == HLT


def test_single_step_and_breakpoint(guest, need) -> None:
    need("singlestep_kernel")
    one = guest(b"\x90\x90\x90\xf4", "long")
    one.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
    for step in (1, 2):
        assert one.run() == lib.KVM_EXIT_DEBUG
        exit = decode(one.vcpu.record)
        assert isinstance(exit, DebugExit) and exit.single_step and exit.pc == CODE + step
    one.vcpu.set_guest_debug(0)
    assert one.run() == HLT


def test_hardware_breakpoint(guest, need) -> None:
    need("breakpoint_kernel")
    one = guest(b"\x90\x90\x90\xf4", "long")
    one.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP, (0, CODE + 2, 0, 0, 0, 0, 0, 0x404))
    assert one.run() == lib.KVM_EXIT_DEBUG
    exit = decode(one.vcpu.record)
    assert exit.pc == CODE + 2 and exit.breakpoints == (1,) and not exit.single_step


def test_watchpoint(guest, need) -> None:
    need("watchpoint_kernel")
    one = guest(b"\x89\x03\x90\xf4", "long")
    one.set(rbx=0x9000)
    one.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP, (0x9000, 0, 0, 0, 0, 0, 0, 0xD0401))
    assert one.run() == lib.KVM_EXIT_DEBUG and decode(one.vcpu.record).breakpoints == (0,)


def test_filtered_msrs_exit(guest, need) -> None:
    need("user_space_msr")
    need("msr_filter")
    one = guest(b"\x0f\x32\x0f\x30\x0f\x32\xf4", "long")  # rdmsr; wrmsr; rdmsr; hlt
    one.set(rcx=0x174)
    one.vm.set_user_msrs(lib.KVM_MSR_EXIT_REASON_FILTER, [(0x174, 1, lib.KVM_MSR_FILTER_READ | lib.KVM_MSR_FILTER_WRITE)])
    assert one.run() == lib.KVM_EXIT_X86_RDMSR
    assert decode(one.vcpu.record) == MsrReadExit(0x174, lib.KVM_MSR_EXIT_REASON_FILTER)
    one.vcpu.record.msr.data = 0x1234500000678
    one.vcpu.record.msr.error = 0
    assert one.run() == lib.KVM_EXIT_X86_WRMSR
    assert decode(one.vcpu.record) == MsrWriteExit(0x174, lib.KVM_MSR_EXIT_REASON_FILTER, 0x1234500000678)
    one.vcpu.record.msr.error = 0
    one.vm.set_user_msrs(lib.KVM_MSR_EXIT_REASON_FILTER, [])
    assert one.run() == HLT
    assert one.vcpu.get_regs().rax == 0  # the kernel's own, which the guest never reached


def test_unknown_msr_exits(guest, need) -> None:
    need("user_space_msr")
    one = guest(b"\x0f\x32\xf4", "long")
    one.set(rcx=0x12345678)
    one.vm.set_user_msrs(lib.KVM_MSR_EXIT_REASON_UNKNOWN | lib.KVM_MSR_EXIT_REASON_INVAL, [])
    assert one.run() == lib.KVM_EXIT_X86_RDMSR
    assert decode(one.vcpu.record).index == 0x12345678
    one.vcpu.record.msr.error = 1  # #GP, and no IDT
    assert one.run() == SHUTDOWN


def test_kick_from_another_thread_ends_a_spinning_guest(guest) -> None:
    one = guest(SPIN)
    timer = threading.Timer(0.05, one.vcpu.kick)
    timer.start()
    start = time.monotonic()
    assert one.vcpu.run() == INTR and decode(one.vcpu.record) == IntrExit()
    assert 0.02 < time.monotonic() - start < 5
    timer.join()
    assert one.vcpu.kicks == 1 and one.vcpu.record.immediate_exit == 0


def test_kick_before_the_run_ends_it_at_once(guest) -> None:
    one = guest(SPIN)
    one.vcpu.kick()
    assert one.vcpu.run() == INTR
    assert one.vcpu.kicks == 0


def test_kick_still_completes_the_port_access(guest) -> None:
    one = guest(b"\xe4\x60\xf4")
    assert one.run() == IO
    one.vcpu.io_data()[:] = b"\x42"
    one.vcpu.kick()
    assert one.vcpu.run() == INTR
    assert one.vcpu.get_regs().rax & 0xFF == 0x42
    assert one.run() == HLT


def test_many_kicks_none_lost(guest) -> None:
    one = guest(SPIN)
    rounds = 200
    with Watchdog(20, [one.vcpu]) as dog:
        go = threading.Semaphore(0)

        def kicker() -> None:
            for _ in range(rounds):
                go.acquire()
                one.vcpu.kick()

        thread = threading.Thread(target=kicker)
        thread.start()
        for _ in range(rounds):
            go.release()
            assert one.vcpu.run() == INTR
        thread.join()
    assert not dog.fired


def test_signals_of_python_work_beside_the_kick(guest) -> None:
    one = guest(SPIN)
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with Watchdog(5, [one.vcpu]):
            while not seen:
                assert one.vcpu.run() == INTR
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]


def test_kick_reaches_a_thread_that_blocks_all_signals(guest) -> None:
    one = guest(SPIN)
    result = []

    def body() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        result.append(one.vcpu.run())

    thread = threading.Thread(target=body)
    thread.start()
    time.sleep(0.05)
    one.vcpu.kick()
    thread.join(5)
    assert result == [INTR]


def test_watchdog_ends_a_hypercall_that_hangs(guest) -> None:
    one = guest(b"\x0f\x01\xc1\xf4", "long")
    one.set(rax=0xFFFF)
    with Watchdog(0.05, [one.vcpu]) as dog:
        reason = one.vcpu.run()
    assert (reason == INTR) == dog.fired
    assert reason == (HLT if probe.ask("hypercall") else INTR)


def test_watchdog_tells_its_firing_once() -> None:
    class Counter:
        kicks = 0

        def kick(self) -> None:
            self.kicks += 1

    counter, fired = Counter(), []
    with Watchdog(0.02, [counter], lambda: fired.append(1)) as dog:  # type: ignore[list-item]
        time.sleep(0.1)
    assert dog.fired and fired == [1] and counter.kicks >= 2
    with Watchdog(0.05, [counter]) as fed:  # type: ignore[list-item]
        fed.feed(60)
        time.sleep(0.1)
    assert not fed.fired
    with Watchdog(None, [counter]) as none:  # type: ignore[list-item]
        pass
    assert not none.fired


def test_record_outlives_the_vm(guest) -> None:
    one = guest(b"\xe6\x80\xf4")
    assert one.run() == IO
    record = one.vcpu.record
    one.vm.close()
    assert record.io.port == 0x80
    with pytest.raises(HostError, match="KVM_RUN: Bad file descriptor"):
        one.vcpu.run()


def test_sync_regs_spare_the_calls(guest, need) -> None:
    need("sync_regs")
    one = guest(b"\xe6\x80\x90\xe6\x81\xf4")
    one.set(rax=0x42)
    one.vcpu.sync_regs(lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS)
    assert one.run() == IO
    state = one.vcpu.record.s.regs
    assert state.regs.rax == 0x42 and state.sregs.cs.selector == 0
    state.regs.rax = 0x99
    one.vcpu.record.kvm_dirty_regs = lib.KVM_SYNC_X86_REGS
    assert one.run() == IO
    assert bytes(one.vcpu.io_data()) == b"\x99"
    with pytest.raises(HostError, match="synchronises"):
        one.vcpu.sync_regs(1 << 40)
