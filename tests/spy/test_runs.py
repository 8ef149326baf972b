"""Exits and answers from a vCPU's record; the traced process is this one."""

from __future__ import annotations

import errno
import os

import pytest

from kvmpy.native import ffi, lib
from kvmpy.regs import set_real_mode
from kvmpy.spy.fds import FdTable, Vcpu, Vm
from kvmpy.spy.memory import GuestMemory, ProcessMemory
from kvmpy.spy.runs import Pending, RecordReader

PAGES = 3 * 4096


class Traced:
    """A record in this process, seen through /proc."""

    def __init__(self, *, addresses: bool = False, registers: bool = False) -> None:
        self.buffer = ffi.new("uint8_t[]", PAGES)
        self.record = ffi.cast("struct kvm_run *", self.buffer)
        self.memory = ProcessMemory(os.getpid())
        self.fds = FdTable(os.getpid(), self.memory)
        self.vcpu = Vcpu(0, Vm(0, self.memory))
        self.vcpu.record, self.vcpu.record_size = int(ffi.cast("uintptr_t", self.buffer)), PAGES
        self.reader = RecordReader(self.memory, addresses=addresses, registers=registers)

    def leave(self, result: int = 0) -> Pending | None:
        self.vcpu.pending = self.reader.leave(self.vcpu, result, 1000, 100)
        return self.vcpu.pending

    def enter(self) -> None:
        self.reader.enter(self.vcpu, self.fds)


@pytest.fixture
def traced():
    made: list[Traced] = []

    def make(**options: bool) -> Traced:
        made.append(Traced(**options))
        return made[-1]

    yield make
    for one in made:
        one.memory.close()


def _io(one: Traced, direction: int, size: int, count: int, offset: int = 4096) -> None:
    one.record.exit_reason = lib.KVM_EXIT_IO
    io = one.record.io
    io.direction, io.size, io.port, io.count, io.data_offset = direction, size, 0x1F0, count, offset


def test_out_and_in(traced) -> None:
    one = traced()
    _io(one, lib.KVM_EXIT_IO_OUT, 2, 3)
    ffi.memmove(one.buffer + 4096, b"\x01\x02\x03\x04\x05\x06", 6)
    found = one.leave()
    assert (found.what, found.data["value"], found.data["count"]) == ("io", 0x060504030201, 3)
    _io(one, lib.KVM_EXIT_IO_IN, 2, 2)
    found = one.leave()
    assert found.data["value"] is None
    ffi.memmove(one.buffer + 4096, b"\xaa\xbb\xcc\xdd", 4)
    one.enter()
    assert found.data["value"] == 0xDDCCBBAA
    event = found.event(0, 400, 50)
    assert (event.time, event.host, event.guest, event.cost) == (650, 1000, 100, 50)


@pytest.mark.parametrize("size, count, offset", [(4, 0xFFFFFFFF, 4096), (1, 1, 1 << 40), (255, 255, PAGES - 8), (1, 1, PAGES)])
def test_port_data_outside_the_record(traced, size: int, count: int, offset: int) -> None:
    one = traced()
    _io(one, lib.KVM_EXIT_IO_OUT, size, count, offset)
    found = one.leave()
    assert (found.what, found.data) == ("exit", {"reason": "io", "text": "port 0x1f0, data outside the record"})


def test_mmio_read_and_its_answer(traced) -> None:
    one = traced()
    one.record.exit_reason = lib.KVM_EXIT_MMIO
    one.record.mmio.phys_addr, one.record.mmio.len = 0xFEE00020, 4
    found = one.leave()
    assert found.data == {"address": 0xFEE00020, "size": 4, "write": False, "value": None}
    one.record.mmio.data[0:4] = b"\x78\x56\x34\x12"
    one.enter()
    assert found.data["value"] == 0x12345678


def test_msr_refused_and_served(traced) -> None:
    one = traced()
    one.record.exit_reason = lib.KVM_EXIT_X86_RDMSR
    one.record.msr.index = 0x10
    found = one.leave()
    one.record.msr.error = 1
    one.enter()
    assert found.what == "msr" and found.data["name"] == "TSC" and found.data["served"] is False


def test_results_of_the_call(traced) -> None:
    one = traced()
    one.record.exit_reason = lib.KVM_EXIT_HLT
    assert one.leave().data == {"reason": "hlt", "text": "HLT"}
    assert one.leave(-errno.EINTR).data == {"reason": "intr", "text": "INTR"}
    assert one.leave(-errno.EAGAIN) is None
    one.record.exit_reason = lib.KVM_EXIT_MEMORY_FAULT
    assert one.leave(-errno.EFAULT).data["reason"] == "memory_fault"
    one.vcpu.record = 8
    assert one.leave() is None


def test_registers_are_asked_for_and_the_record_restored(traced) -> None:
    one = traced(registers=True)
    one.record.kvm_valid_regs = lib.KVM_SYNC_X86_EVENTS | lib.KVM_SYNC_X86_REGS
    one.enter()
    assert one.record.kvm_valid_regs == lib.KVM_SYNC_X86_VALID_FIELDS
    state = one.record.s.regs
    set_real_mode(state.sregs, cs=0xF000)
    state.regs.rip, state.regs.rax = 0x1234, 77
    one.record.exit_reason = lib.KVM_EXIT_HLT
    found = one.leave()
    assert (found.rip, found.cpl, found.data["registers"]["rax"]) == (0xF1234, 0, 77)
    assert "code" not in found.data
    one.reader.restore(one.vcpu)
    assert one.record.kvm_valid_regs == lib.KVM_SYNC_X86_EVENTS | lib.KVM_SYNC_X86_REGS


def test_the_address_alone(traced) -> None:
    one = traced(addresses=True)
    one.enter()
    assert one.record.kvm_valid_regs == lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS
    set_real_mode(one.record.s.regs.sregs, cs=0x100)
    one.record.exit_reason = lib.KVM_EXIT_HLT
    found = one.leave()
    assert found.rip == 0x1000 and "registers" not in found.data


def test_registers_that_the_process_has_anyway_give_the_address(traced) -> None:
    one = traced()
    one.record.kvm_valid_regs = lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS
    set_real_mode(one.record.s.regs.sregs, cs=0x100)
    one.record.exit_reason = lib.KVM_EXIT_HLT
    found = one.leave()
    assert found.rip == 0x1000 and "registers" not in found.data


def test_guest_memory_by_slots() -> None:
    memory = ProcessMemory(os.getpid())
    ram = ffi.new("uint8_t[]", bytes(range(64)))
    guest = GuestMemory(memory)
    guest.set_slot(0, 0x1000, 64, int(ffi.cast("uintptr_t", ram)))
    assert guest.read_u32(0x1004) == 0x07060504 and guest.read_u64(0x1038) == int.from_bytes(bytes(range(56, 64)), "little")
    for address in (0xFFF, 0x103D):
        with pytest.raises(Exception, match="is not RAM"):
            guest.read(address, 4)
    guest.set_slot(0, 0x1000, 0, 0)
    with pytest.raises(Exception, match="is not RAM"):
        guest.read(0x1000, 1)
    memory.close()
