"""decode() on records filled by hand: every exit reason of x86, and numbers it does not know."""

from __future__ import annotations

import pytest

from kvmpy import exits
from kvmpy.exits import decode, reason_name
from kvmpy.native import ffi, lib


@pytest.fixture
def record():
    """A record with a data page behind it."""
    memory = ffi.new("uint8_t[8192]")
    record = ffi.cast("struct kvm_run *", memory)
    yield record
    del memory


def test_port_accesses(record) -> None:
    record.exit_reason = lib.KVM_EXIT_IO
    record.io.direction, record.io.size, record.io.port, record.io.count, record.io.data_offset = 1, 2, 0x1CE, 3, 4096
    ffi.memmove(ffi.cast("uint8_t *", record) + 4096, b"\x01\x02\x03\x04\x05\x06", 6)
    exit = decode(record)
    assert exit == exits.IoExit(0x1CE, 2, 3, True, b"\1\2\3\4\5\6")
    assert exit.values == [0x201, 0x403, 0x605]
    assert str(exit) == "OUT 0x1ce.2 x3 = 0x201 0x403 0x605"
    record.io.direction, record.io.count = 0, 1
    assert str(decode(record)) == "IN 0x1ce.2"


def test_mmio(record) -> None:
    record.exit_reason = lib.KVM_EXIT_MMIO
    record.mmio.phys_addr, record.mmio.len, record.mmio.is_write = 0xFED00000, 4, 1
    record.mmio.data = list(b"\xef\xbe\xad\xde\0\0\0\0")
    assert decode(record).value == 0xDEADBEEF
    assert str(decode(record)) == "MMIO write 0xfed00000.4 = 0xdeadbeef"
    record.mmio.is_write = 0
    assert str(decode(record)) == "MMIO read 0xfed00000.4"


@pytest.mark.parametrize(
    ("reason", "cls", "text"),
    [
        (lib.KVM_EXIT_HLT, exits.HltExit, "HLT"),
        (lib.KVM_EXIT_SHUTDOWN, exits.ShutdownExit, "SHUTDOWN"),
        (lib.KVM_EXIT_INTR, exits.IntrExit, "INTR"),
        (lib.KVM_EXIT_NMI, exits.NmiExit, "NMI"),
        (lib.KVM_EXIT_IRQ_WINDOW_OPEN, exits.IrqWindowExit, "IRQ_WINDOW_OPEN"),
        (lib.KVM_EXIT_DIRTY_RING_FULL, exits.DirtyRingFullExit, "DIRTY_RING_FULL"),
        (lib.KVM_EXIT_AP_RESET_HOLD, exits.ApResetHoldExit, "AP_RESET_HOLD"),
        (lib.KVM_EXIT_X86_BUS_LOCK, exits.BusLockExit, "X86_BUS_LOCK"),
    ],
)
def test_exits_without_data(record, reason, cls, text) -> None:
    record.exit_reason = reason
    assert decode(record) == cls() and str(decode(record)) == text and reason == cls.REASON


def test_emulation_failure_shows_instruction_bytes(record) -> None:
    record.exit_reason = lib.KVM_EXIT_INTERNAL_ERROR
    failure = record.emulation_failure
    failure.suberror, failure.ndata, failure.flags, failure.insn_size = 1, 8, 1, 15
    failure.insn_bytes = list(b"\xf3\x0f\xb8\xc2" + b"\x90" * 11)
    exit = decode(record)
    assert exit.emulation and exit.instruction == b"\xf3\x0f\xb8\xc2" + b"\x90" * 11
    assert str(exit).startswith("INTERNAL_ERROR 1 (instruction emulation failed): f3 0f b8 c2 90")
    failure.insn_size = 200  # a size that cannot be
    assert len(decode(record).instruction) == 15
    failure.flags, failure.ndata = 0, 6
    assert decode(record).instruction == b"" and len(decode(record).data) == 6
    record.internal.suberror, record.internal.ndata = 3, 99
    assert len(decode(record).data) == 16 and "event was being delivered" in str(decode(record))
    record.internal.suberror, record.internal.ndata = 77, 0
    assert str(decode(record)) == "INTERNAL_ERROR 77 (unknown suberror)"


def test_entry_and_hardware_failures(record) -> None:
    record.exit_reason = lib.KVM_EXIT_FAIL_ENTRY
    record.fail_entry.hardware_entry_failure_reason, record.fail_entry.cpu = 0x80000021, 3
    assert str(decode(record)) == "FAIL_ENTRY hardware reason 0x80000021 on host CPU 3"
    record.exit_reason = lib.KVM_EXIT_UNKNOWN
    assert str(decode(record)) == "UNKNOWN hardware reason 0x80000021"
    record.exit_reason = lib.KVM_EXIT_EXCEPTION
    record.ex.exception, record.ex.error_code = 14, 2
    assert str(decode(record)) == "EXCEPTION #PF error code 0x2"


def test_debug(record) -> None:
    record.exit_reason = lib.KVM_EXIT_DEBUG
    arch = record.debug.arch
    arch.exception, arch.pc, arch.dr6, arch.dr7 = 1, 0x1234, 0xFFFF4FF0, 0x400
    exit = decode(record)
    assert exit.single_step and exit.breakpoints == () and "pc=0x1234" in str(exit)
    arch.dr6 = 0xFFFF0FF5
    assert decode(record).breakpoints == (0, 2) and not decode(record).single_step
    arch.exception = 3
    assert decode(record).breakpoints == () and "#BP" in str(decode(record))


def test_msrs(record) -> None:
    record.exit_reason = lib.KVM_EXIT_X86_RDMSR
    record.msr.index, record.msr.reason, record.msr.data = 0xC0000080, 4, 0xD01
    assert str(decode(record)) == "RDMSR EFER (filtered)"
    record.exit_reason = lib.KVM_EXIT_X86_WRMSR
    assert str(decode(record)) == "WRMSR EFER = 0xd01 (filtered)" and decode(record).value == 0xD01


def test_tpr(record) -> None:
    record.exit_reason, record.cr8 = lib.KVM_EXIT_SET_TPR, 7
    assert str(decode(record)) == "SET_TPR cr8=0x7"
    record.exit_reason = lib.KVM_EXIT_TPR_ACCESS
    record.tpr_access.rip, record.tpr_access.is_write = 0x1000, 1
    assert str(decode(record)) == "TPR_ACCESS write at rip 0x1000"


def test_system_event_hypercall_eoi_notify_memory_fault_hyperv(record) -> None:
    record.exit_reason = lib.KVM_EXIT_SYSTEM_EVENT
    record.system_event.type, record.system_event.ndata, record.system_event.data[0] = 3, 1, 0x55
    assert decode(record) == exits.SystemEventExit(3, (0x55,)) and str(decode(record)) == "SYSTEM_EVENT crash"
    record.exit_reason = lib.KVM_EXIT_HYPERCALL
    record.hypercall.nr, record.hypercall.longmode = 12, 1
    record.hypercall.args = [1, 2, 3, 4, 5, 6]
    assert decode(record) == exits.HypercallExit(12, (1, 2, 3, 4, 5, 6), True)
    record.exit_reason, record.eoi.vector = lib.KVM_EXIT_IOAPIC_EOI, 0x31
    assert str(decode(record)) == "IOAPIC_EOI vector 0x31"
    record.exit_reason, record.notify.flags = lib.KVM_EXIT_NOTIFY, 1
    assert decode(record) == exits.NotifyExit(True)
    record.exit_reason = lib.KVM_EXIT_MEMORY_FAULT
    record.memory_fault.flags, record.memory_fault.gpa, record.memory_fault.size = 8, 0x100000, 0x1000
    assert str(decode(record)) == "MEMORY_FAULT 0x100000.0x1000 private"
    record.exit_reason, record.hyperv.type = lib.KVM_EXIT_HYPERV, 2
    assert str(decode(record)) == "HYPERV type 2"


def test_unknown_reasons_keep_their_number(record) -> None:
    record.exit_reason = 12345
    assert decode(record) == exits.UnknownExit(12345) and str(decode(record)) == "unknown exit reason 12345"
    assert str(decode(record, lib.KVM_EXIT_HLT)) == "HLT"
    record.exit_reason = lib.KVM_EXIT_S390_SIEIC
    assert str(decode(record)) == "S390_SIEIC (not known on x86)"
    assert reason_name(2) == "IO" and reason_name(999) == "exit 999"


def test_every_x86_reason_is_decoded() -> None:
    foreign = {"DCR", "OSI", "PAPR_HCALL", "EPR", "WATCHDOG", "XEN", "TDX"}
    x86 = {n for n, name in exits.REASON_NAMES.items() if name not in foreign and not name.startswith(("S390", "ARM", "RISCV"))}
    assert x86 == exits.DECODED
