"""One handler per exit reason. Each runs under the loop's lock, with the record of the exit in `seat.record`.

A handler that ends the run calls `loop.stop` with a verdict; all others return, and the vCPU goes on.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from kvmpy.backend import CData, Vcpu
from kvmpy.native import ffi, lib
from kvmpy.verdicts import Crashed, Halted, PowerOff, Reset, Stopped
from kvmpy.x86 import msr_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.loop import Loop

NAMES = {
    lib.KVM_EXIT_IO: "io",
    lib.KVM_EXIT_HYPERCALL: "hypercall",
    lib.KVM_EXIT_DEBUG: "debug",
    lib.KVM_EXIT_HLT: "hlt",
    lib.KVM_EXIT_MMIO: "mmio",
    lib.KVM_EXIT_IRQ_WINDOW_OPEN: "irq_window",
    lib.KVM_EXIT_SHUTDOWN: "shutdown",
    lib.KVM_EXIT_FAIL_ENTRY: "fail_entry",
    lib.KVM_EXIT_SET_TPR: "set_tpr",
    lib.KVM_EXIT_INTERNAL_ERROR: "internal_error",
    lib.KVM_EXIT_SYSTEM_EVENT: "system_event",
    lib.KVM_EXIT_IOAPIC_EOI: "ioapic_eoi",
    lib.KVM_EXIT_X86_RDMSR: "rdmsr",
    lib.KVM_EXIT_X86_WRMSR: "wrmsr",
    lib.KVM_EXIT_MEMORY_FAULT: "memory_fault",
}

_ENOSYS = (1 << 64) - 1000  # KVM_ENOSYS of <linux/kvm_para.h>, negated


class Seat:
    """A vCPU in the loop: its record's parts, fetched once, and its counters."""

    __slots__ = ("exits", "index", "io", "io_data", "mmio", "mmio_data", "quiet_in", "record", "vcpu")

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.index = vcpu.index
        self.record: CData = vcpu.record
        self.io: CData = self.record.io
        self.io_data: Callable[[], CData] = vcpu.io_data
        self.mmio: CData = self.record.mmio
        self.mmio_data: Any = ffi.buffer(self.mmio.data)
        self.exits: defaultdict[int, int] = defaultdict(int)
        self.quiet_in = -1
        """Generation of the watchdog's tick in which the vCPU was last seen waiting for good."""

    def rip(self) -> int:
        return int(self.vcpu.get_regs().rip)


def _crash(loop: Loop, seat: Seat, why: str, **details: Any) -> None:
    loop.stop(Crashed(seat.rip(), why, seat.index, details))


def on_io(loop: Loop, seat: Seat) -> None:
    io = seat.io
    port, size, count = io.port, io.size, io.count
    data = seat.io_data()
    if count == 1:
        if io.direction:
            value = int.from_bytes(data[0:size], "little")
            loop.ports.write(port, size, value)
        else:
            value = loop.ports.read(port, size)
            data[0:size] = value.to_bytes(size, "little")
    elif io.direction:
        for at in range(0, size * count, size):
            loop.ports.write(port, size, int.from_bytes(data[at : at + size], "little"))
    else:
        for at in range(0, size * count, size):
            data[at : at + size] = loop.ports.read(port, size).to_bytes(size, "little")
    tracer = loop.tracer
    if tracer is not None:
        content = int.from_bytes(data[0 : size * count], "little")
        tracer.emit("io", seat.index, port=port, size=size, count=count, write=bool(io.direction), value=content)


def on_mmio(loop: Loop, seat: Seat) -> None:
    mmio = seat.mmio
    address, size = mmio.phys_addr, mmio.len
    if mmio.is_write:
        value = int.from_bytes(seat.mmio_data[0:size], "little")
        loop.mmio.write(address, size, value)
    else:
        value = loop.mmio.read(address, size)
        seat.mmio_data[0:size] = value.to_bytes(size, "little")
    tracer = loop.tracer
    if tracer is not None:
        tracer.emit("mmio", seat.index, address=address, size=size, write=bool(mmio.is_write), value=value)


def _traced(loop: Loop, seat: Seat, what: str, **data: Any) -> None:
    if loop.tracer is not None:
        loop.tracer.emit("exit", seat.index, reason=what, **data)


def on_hlt(loop: Loop, seat: Seat) -> None:
    _traced(loop, seat, "hlt")
    loop.stop(Halted())


def on_shutdown(loop: Loop, seat: Seat) -> None:
    _traced(loop, seat, "shutdown")
    _crash(loop, seat, "triple fault")


def on_debug(loop: Loop, seat: Seat) -> None:
    arch = seat.record.debug.arch
    _traced(loop, seat, "debug", pc=arch.pc, dr6=arch.dr6)
    loop.stop(Stopped("debug"))


def on_nothing(loop: Loop, seat: Seat) -> None:
    """IRQ_WINDOW_OPEN, SET_TPR, IOAPIC_EOI: news that nobody here waits for."""
    _traced(loop, seat, NAMES.get(seat.record.exit_reason, ""))


def on_fail_entry(loop: Loop, seat: Seat) -> None:
    reason = int(seat.record.fail_entry.hardware_entry_failure_reason)
    _traced(loop, seat, "fail_entry", hardware_reason=reason)
    _crash(loop, seat, f"the processor refused to enter the guest (hardware reason {reason:#x})", hardware_reason=reason)


def on_internal_error(loop: Loop, seat: Seat) -> None:
    record = seat.record
    suberror = int(record.internal.suberror)
    if suberror != lib.KVM_INTERNAL_ERROR_EMULATION:
        words = [int(record.internal.data[i]) for i in range(min(record.internal.ndata, 16))]
        _traced(loop, seat, "internal_error", suberror=suberror)
        _crash(loop, seat, f"internal error of KVM, suberror {suberror}", suberror=suberror, data=words)
        return
    failure = record.emulation_failure
    code = b""
    if failure.ndata >= 3 and failure.flags & 1:
        code = bytes(ffi.buffer(failure.insn_bytes))[: min(int(failure.insn_size), 15)]
    if loop.assist is not None and loop.assist(seat.vcpu):
        loop.assisted += 1
        if loop.tracer is not None:
            loop.tracer.emit("assist", seat.index, rip=seat.rip(), instruction=code.hex(" "))
        return
    _traced(loop, seat, "internal_error", suberror=suberror, instruction=code.hex(" "))
    shown = f" ({code.hex(' ')})" if code else " (its bytes cannot be fetched)"
    _crash(loop, seat, f"KVM cannot emulate this instruction{shown}", suberror=suberror, instruction=code.hex(" "))


def on_system_event(loop: Loop, seat: Seat) -> None:
    kind = int(seat.record.system_event.type)
    _traced(loop, seat, "system_event", type=kind)
    if kind == lib.KVM_SYSTEM_EVENT_SHUTDOWN:
        loop.stop(PowerOff())
    elif kind == lib.KVM_SYSTEM_EVENT_RESET:
        loop.stop(Reset("system event"))
    else:
        _crash(loop, seat, f"system event {kind}", type=kind)


def on_hypercall(loop: Loop, seat: Seat) -> None:
    call = seat.record.hypercall
    _traced(loop, seat, "hypercall", number=int(call.nr))
    call.ret = _ENOSYS


def on_msr(loop: Loop, seat: Seat) -> None:
    msr = seat.record.msr
    index, write = int(msr.index), seat.record.exit_reason == lib.KVM_EXIT_X86_WRMSR
    _traced(loop, seat, "wrmsr" if write else "rdmsr", index=index, value=int(msr.data) if write else 0)
    what = f"wrmsr {msr_name(index)} = {int(msr.data):#x}" if write else f"rdmsr {msr_name(index)}"
    _crash(loop, seat, f"{what}: nobody serves this register", index=index)


def on_memory_fault(loop: Loop, seat: Seat) -> None:
    fault = seat.record.memory_fault
    address = int(fault.gpa)
    _traced(loop, seat, "memory_fault", address=address)
    _crash(loop, seat, f"memory at {address:#x} cannot be given to the guest", address=address, size=int(fault.size))


def on_unknown(loop: Loop, seat: Seat) -> None:
    reason = int(seat.record.exit_reason)
    _traced(loop, seat, str(reason))
    hardware = int(seat.record.hw.hardware_exit_reason)
    more = f" (hardware reason {hardware:#x})" if reason == lib.KVM_EXIT_UNKNOWN else ""
    _crash(loop, seat, f"exit reason {reason} is unknown{more}", exit_reason=reason)


_TABLE: dict[int, Callable[[Loop, Seat], None]] = {
    lib.KVM_EXIT_IO: on_io,
    lib.KVM_EXIT_MMIO: on_mmio,
    lib.KVM_EXIT_HLT: on_hlt,
    lib.KVM_EXIT_SHUTDOWN: on_shutdown,
    lib.KVM_EXIT_DEBUG: on_debug,
    lib.KVM_EXIT_IRQ_WINDOW_OPEN: on_nothing,
    lib.KVM_EXIT_SET_TPR: on_nothing,
    lib.KVM_EXIT_IOAPIC_EOI: on_nothing,
    lib.KVM_EXIT_FAIL_ENTRY: on_fail_entry,
    lib.KVM_EXIT_INTERNAL_ERROR: on_internal_error,
    lib.KVM_EXIT_SYSTEM_EVENT: on_system_event,
    lib.KVM_EXIT_HYPERCALL: on_hypercall,
    lib.KVM_EXIT_X86_RDMSR: on_msr,
    lib.KVM_EXIT_X86_WRMSR: on_msr,
    lib.KVM_EXIT_MEMORY_FAULT: on_memory_fault,
}

HANDLERS: tuple[Callable[[Loop, Seat], None], ...] = tuple(_TABLE.get(reason, on_unknown) for reason in range(256))
EXIT_INTR = lib.KVM_EXIT_INTR


def exit_name(reason: int) -> str:
    """Short name of an exit reason; "exit 35" for one without a handler."""
    return NAMES.get(reason, f"exit {reason}")
