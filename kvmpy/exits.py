"""Why a run ended: `struct kvm_run` read into small typed values. A pure reader, the same for both backends.

`decode(record)` gives one of the classes below; a reason without a class gives UnknownExit with its number.
The hot path (port I/O, MMIO) reads the record's fields itself and needs nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from kvmpy.native import CData, ffi, lib
from kvmpy.record import Record
from kvmpy.x86 import EXCEPTIONS, msr_name

REASON_NAMES: dict[int, str] = {
    getattr(lib, name): name[len("KVM_EXIT_") :]
    for name in dir(lib)
    if name.startswith("KVM_EXIT_") and not name.startswith(("KVM_EXIT_IO_", "KVM_EXIT_HYPERV_", "KVM_EXIT_HYPERCALL_"))
}
"""Exit numbers to names, architectures that are not x86 included."""


def reason_name(reason: int) -> str:
    """Name of an exit number without KVM_EXIT_; "exit N" for one that has none here."""
    return REASON_NAMES.get(reason, f"exit {reason}")


class Exit(Record, frozen=True):
    """Base of all exits; its text is one line."""

    REASON: ClassVar[int] = -1

    def __str__(self) -> str:
        return reason_name(self.REASON)


class IoExit(Exit, frozen=True):
    """`count` accesses of `size` bytes to a port; `data` is what OUT wrote, or room that IN's answer goes into."""

    REASON: ClassVar[int] = lib.KVM_EXIT_IO
    port: int
    size: int
    count: int
    out: bool
    data: bytes

    @property
    def values(self) -> list[int]:
        """The data as numbers, one per access."""
        return [int.from_bytes(self.data[i : i + self.size], "little") for i in range(0, len(self.data), self.size)]

    def __str__(self) -> str:
        text = " ".join(f"{value:#x}" for value in self.values[:8]) + (" ..." if self.count > 8 else "")
        times = f" x{self.count}" if self.count != 1 else ""
        return f"OUT {self.port:#x}.{self.size}{times} = {text}" if self.out else f"IN {self.port:#x}.{self.size}{times}"


class MmioExit(Exit, frozen=True):
    """One access of 1 to 8 bytes to a guest physical address without memory."""

    REASON: ClassVar[int] = lib.KVM_EXIT_MMIO
    address: int
    size: int
    write: bool
    data: bytes

    @property
    def value(self) -> int:
        return int.from_bytes(self.data, "little")

    def __str__(self) -> str:
        if self.write:
            return f"MMIO write {self.address:#x}.{self.size} = {self.value:#x}"
        return f"MMIO read {self.address:#x}.{self.size}"


class HltExit(Exit, frozen=True):
    """HLT, where the local APIC is not in the backend."""

    REASON: ClassVar[int] = lib.KVM_EXIT_HLT


class ShutdownExit(Exit, frozen=True):
    """A triple fault, or another way to the shutdown state."""

    REASON: ClassVar[int] = lib.KVM_EXIT_SHUTDOWN


class IntrExit(Exit, frozen=True):
    """A signal or a kick ended the run."""

    REASON: ClassVar[int] = lib.KVM_EXIT_INTR


class NmiExit(Exit, frozen=True):
    """The host took an NMI; nothing to do for the guest."""

    REASON: ClassVar[int] = lib.KVM_EXIT_NMI


class IrqWindowExit(Exit, frozen=True):
    """The guest can take an external interrupt now (asked for with request_interrupt_window)."""

    REASON: ClassVar[int] = lib.KVM_EXIT_IRQ_WINDOW_OPEN


class SetTprExit(Exit, frozen=True):
    """The guest lowered CR8 below a waiting interrupt's priority."""

    REASON: ClassVar[int] = lib.KVM_EXIT_SET_TPR
    cr8: int

    def __str__(self) -> str:
        return f"SET_TPR cr8={self.cr8:#x}"


class TprAccessExit(Exit, frozen=True):
    """An access to the APIC's task priority (KVM_TPR_ACCESS_REPORTING)."""

    REASON: ClassVar[int] = lib.KVM_EXIT_TPR_ACCESS
    rip: int
    write: bool

    def __str__(self) -> str:
        return f"TPR_ACCESS {'write' if self.write else 'read'} at rip {self.rip:#x}"


INTERNAL_ERRORS = {
    lib.KVM_INTERNAL_ERROR_EMULATION: "instruction emulation failed",
    lib.KVM_INTERNAL_ERROR_SIMUL_EX: "simultaneous exceptions",
    lib.KVM_INTERNAL_ERROR_DELIVERY_EV: "exit while an event was being delivered",
    lib.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "unexpected hardware exit reason",
}


class InternalErrorExit(Exit, frozen=True):
    """KVM gave up. With suberror 1, `instruction` has the bytes fetched at RIP (up to 15, more than the instruction's own)."""

    REASON: ClassVar[int] = lib.KVM_EXIT_INTERNAL_ERROR
    suberror: int
    data: tuple[int, ...]
    instruction: bytes

    @property
    def emulation(self) -> bool:
        """True when one instruction was refused and the vCPU can go on after it."""
        return self.suberror == lib.KVM_INTERNAL_ERROR_EMULATION

    def __str__(self) -> str:
        text = f"INTERNAL_ERROR {self.suberror} ({INTERNAL_ERRORS.get(self.suberror, 'unknown suberror')})"
        if self.instruction:
            return f"{text}: {self.instruction.hex(' ')}"
        return f"{text}: {' '.join(f'{word:#x}' for word in self.data)}" if self.data else text


class FailEntryExit(Exit, frozen=True):
    """The processor refused the guest's state; `hardware_reason` is its own word for it."""

    REASON: ClassVar[int] = lib.KVM_EXIT_FAIL_ENTRY
    hardware_reason: int
    cpu: int

    def __str__(self) -> str:
        return f"FAIL_ENTRY hardware reason {self.hardware_reason:#x} on host CPU {self.cpu}"


class HardwareExit(Exit, frozen=True):
    """KVM_EXIT_UNKNOWN: the processor's exit reason is one that KVM does not know."""

    REASON: ClassVar[int] = lib.KVM_EXIT_UNKNOWN
    hardware_reason: int

    def __str__(self) -> str:
        return f"UNKNOWN hardware reason {self.hardware_reason:#x}"


class ExceptionExit(Exit, frozen=True):
    """KVM_EXIT_EXCEPTION (old kernels)."""

    REASON: ClassVar[int] = lib.KVM_EXIT_EXCEPTION
    exception: int
    error_code: int

    def __str__(self) -> str:
        return f"EXCEPTION {EXCEPTIONS.get(self.exception, self.exception)} error code {self.error_code:#x}"


class DebugExit(Exit, frozen=True):
    """Guest debugging stopped the vCPU: `exception` 1 with DR6 telling why, or 3 for a breakpoint instruction at `pc`."""

    REASON: ClassVar[int] = lib.KVM_EXIT_DEBUG
    exception: int
    pc: int
    dr6: int
    dr7: int

    @property
    def single_step(self) -> bool:
        return self.exception == 1 and bool(self.dr6 & 1 << 14)

    @property
    def breakpoints(self) -> tuple[int, ...]:
        """Numbers of the debug registers that matched."""
        return tuple(n for n in range(4) if self.exception == 1 and self.dr6 >> n & 1)

    def __str__(self) -> str:
        return f"DEBUG {EXCEPTIONS.get(self.exception, self.exception)} pc={self.pc:#x} dr6={self.dr6:#x} dr7={self.dr7:#x}"


MSR_REASONS = {
    lib.KVM_MSR_EXIT_REASON_INVAL: "invalid",
    lib.KVM_MSR_EXIT_REASON_UNKNOWN: "unknown",
    lib.KVM_MSR_EXIT_REASON_FILTER: "filtered",
}


class MsrReadExit(Exit, frozen=True):
    """RDMSR for the host to answer: the value into record.msr.data, or 1 into record.msr.error for #GP."""

    REASON: ClassVar[int] = lib.KVM_EXIT_X86_RDMSR
    index: int
    why: int

    def __str__(self) -> str:
        return f"RDMSR {msr_name(self.index)} ({MSR_REASONS.get(self.why, self.why)})"


class MsrWriteExit(Exit, frozen=True):
    """WRMSR for the host to take: 1 into record.msr.error gives #GP."""

    REASON: ClassVar[int] = lib.KVM_EXIT_X86_WRMSR
    index: int
    why: int
    value: int

    def __str__(self) -> str:
        return f"WRMSR {msr_name(self.index)} = {self.value:#x} ({MSR_REASONS.get(self.why, self.why)})"


SYSTEM_EVENTS = {
    lib.KVM_SYSTEM_EVENT_SHUTDOWN: "shutdown",
    lib.KVM_SYSTEM_EVENT_RESET: "reset",
    lib.KVM_SYSTEM_EVENT_CRASH: "crash",
    lib.KVM_SYSTEM_EVENT_WAKEUP: "wake-up",
    lib.KVM_SYSTEM_EVENT_SUSPEND: "suspend",
    lib.KVM_SYSTEM_EVENT_SEV_TERM: "SEV termination",
    lib.KVM_SYSTEM_EVENT_TDX_FATAL: "TDX fatal error",
}


class SystemEventExit(Exit, frozen=True):
    """The guest asked the hypervisor for a system-wide event."""

    REASON: ClassVar[int] = lib.KVM_EXIT_SYSTEM_EVENT
    type: int
    data: tuple[int, ...]

    def __str__(self) -> str:
        return f"SYSTEM_EVENT {SYSTEM_EVENTS.get(self.type, self.type)}"


class HypercallExit(Exit, frozen=True):
    """VMCALL for the host to answer in record.hypercall.ret."""

    REASON: ClassVar[int] = lib.KVM_EXIT_HYPERCALL
    number: int
    arguments: tuple[int, ...]
    long_mode: bool

    def __str__(self) -> str:
        return f"HYPERCALL {self.number:#x}({', '.join(f'{a:#x}' for a in self.arguments)})"


class IoapicEoiExit(Exit, frozen=True):
    """EOI of a level-triggered vector whose I/O APIC the host has (split irqchip)."""

    REASON: ClassVar[int] = lib.KVM_EXIT_IOAPIC_EOI
    vector: int

    def __str__(self) -> str:
        return f"IOAPIC_EOI vector {self.vector:#x}"


class HypervExit(Exit, frozen=True):
    """A Hyper-V synthetic controller call; `type` is KVM_EXIT_HYPERV_*."""

    REASON: ClassVar[int] = lib.KVM_EXIT_HYPERV
    type: int

    def __str__(self) -> str:
        return f"HYPERV type {self.type}"


class DirtyRingFullExit(Exit, frozen=True):
    """The vCPU's dirty ring must be harvested and reset."""

    REASON: ClassVar[int] = lib.KVM_EXIT_DIRTY_RING_FULL


class ApResetHoldExit(Exit, frozen=True):
    """An SEV-ES guest's AP waits for its start."""

    REASON: ClassVar[int] = lib.KVM_EXIT_AP_RESET_HOLD


class BusLockExit(Exit, frozen=True):
    """A split lock or a locked access to uncached memory (KVM_CAP_X86_BUS_LOCK_EXIT)."""

    REASON: ClassVar[int] = lib.KVM_EXIT_X86_BUS_LOCK


class NotifyExit(Exit, frozen=True):
    """No interrupt window for too long (KVM_CAP_X86_NOTIFY_VMEXIT); with a lost context the guest cannot go on."""

    REASON: ClassVar[int] = lib.KVM_EXIT_NOTIFY
    context_invalid: bool

    def __str__(self) -> str:
        return "NOTIFY, context invalid" if self.context_invalid else "NOTIFY"


class MemoryFaultExit(Exit, frozen=True):
    """An access that the host's memory behind the slot cannot serve."""

    REASON: ClassVar[int] = lib.KVM_EXIT_MEMORY_FAULT
    address: int
    size: int
    private: bool

    def __str__(self) -> str:
        return f"MEMORY_FAULT {self.address:#x}.{self.size:#x}{' private' if self.private else ''}"


class UnknownExit(Exit, frozen=True):
    """A reason that has no class here."""

    reason: int

    def __str__(self) -> str:
        return f"{reason_name(self.reason)} (not known on x86)" if self.reason in REASON_NAMES else f"unknown exit reason {self.reason}"


def _io(record: CData) -> IoExit:
    io = record.io
    size, count = int(io.size), int(io.count)
    data = bytes(ffi.buffer(ffi.cast("uint8_t *", record) + io.data_offset, size * count))
    return IoExit(int(io.port), size, count, io.direction == lib.KVM_EXIT_IO_OUT, data)


def _mmio(record: CData) -> MmioExit:
    mmio = record.mmio
    size = min(int(mmio.len), 8)
    return MmioExit(int(mmio.phys_addr), size, bool(mmio.is_write), bytes(mmio.data)[:size])


def _internal(record: CData) -> InternalErrorExit:
    internal = record.internal
    count = min(int(internal.ndata), 16)
    instruction = b""
    if internal.suberror == lib.KVM_INTERNAL_ERROR_EMULATION and count >= 3:
        failure = record.emulation_failure
        if failure.flags & lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
            instruction = bytes(failure.insn_bytes)[: min(failure.insn_size, 15)]
    return InternalErrorExit(int(internal.suberror), tuple(internal.data[0:count]), instruction)


def _debug(record: CData) -> DebugExit:
    arch = record.debug.arch
    return DebugExit(int(arch.exception), int(arch.pc), int(arch.dr6), int(arch.dr7))


def _system_event(record: CData) -> SystemEventExit:
    event = record.system_event
    return SystemEventExit(int(event.type), tuple(event.data[0 : min(int(event.ndata), 16)]))


def _hypercall(record: CData) -> HypercallExit:
    call = record.hypercall
    return HypercallExit(int(call.nr), tuple(call.args), bool(call.longmode & 1))


def _memory_fault(record: CData) -> MemoryFaultExit:
    fault = record.memory_fault
    return MemoryFaultExit(int(fault.gpa), int(fault.size), bool(fault.flags & lib.KVM_MEMORY_EXIT_FLAG_PRIVATE))


def _constant(value: Exit) -> Callable[[CData], Exit]:
    return lambda _: value


_READERS: dict[int, Callable[[CData], Exit]] = {
    IoExit.REASON: _io,
    MmioExit.REASON: _mmio,
    InternalErrorExit.REASON: _internal,
    DebugExit.REASON: _debug,
    SystemEventExit.REASON: _system_event,
    HypercallExit.REASON: _hypercall,
    MemoryFaultExit.REASON: _memory_fault,
    HardwareExit.REASON: lambda r: HardwareExit(int(r.hw.hardware_exit_reason)),
    ExceptionExit.REASON: lambda r: ExceptionExit(int(r.ex.exception), int(r.ex.error_code)),
    FailEntryExit.REASON: lambda r: FailEntryExit(int(r.fail_entry.hardware_entry_failure_reason), int(r.fail_entry.cpu)),
    SetTprExit.REASON: lambda r: SetTprExit(int(r.cr8)),
    TprAccessExit.REASON: lambda r: TprAccessExit(int(r.tpr_access.rip), bool(r.tpr_access.is_write)),
    MsrReadExit.REASON: lambda r: MsrReadExit(int(r.msr.index), int(r.msr.reason)),
    MsrWriteExit.REASON: lambda r: MsrWriteExit(int(r.msr.index), int(r.msr.reason), int(r.msr.data)),
    IoapicEoiExit.REASON: lambda r: IoapicEoiExit(int(r.eoi.vector)),
    HypervExit.REASON: lambda r: HypervExit(int(r.hyperv.type)),
    NotifyExit.REASON: lambda r: NotifyExit(bool(r.notify.flags & lib.KVM_NOTIFY_CONTEXT_INVALID)),
} | {
    plain.REASON: _constant(plain())
    for plain in (HltExit, ShutdownExit, IntrExit, NmiExit, IrqWindowExit, DirtyRingFullExit, ApResetHoldExit, BusLockExit)
}

DECODED = frozenset(_READERS)
"""Exit numbers that `decode` gives a class of their own."""


def decode(record: CData, reason: int | None = None) -> Exit:
    """The exit that a `struct kvm_run *` holds; `reason` where the caller knows it from Vcpu.run."""
    number = int(record.exit_reason) if reason is None else reason
    reader = _READERS.get(number)
    return reader(record) if reader is not None else UnknownExit(number)
