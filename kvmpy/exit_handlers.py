"""One handler per exit reason. Each runs under the loop's lock, with the record of the exit in `seat.record`.

A handler that ends the run calls `loop.stop` with a verdict; all others return, and the vCPU goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from kvmpy.native import CData, ffi, lib
from kvmpy.verdicts import Crashed, Halted, PowerOff, Reset, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.backend import Vcpu
    from kvmpy.exits import Exit, InternalErrorExit
    from kvmpy.loop import Loop

KNOWN = 64
"""Exit reasons from here on are all alike."""

# What to do for one kind of port access: the device's bound method, its offset, the size, where the data is, a mask; out or in.
Plan = tuple["Callable[..., Any]", int, int, CData, int, bool]
_POINTERS = {1: "uint8_t *", 2: "uint16_t *", 4: "uint32_t *", 8: "uint64_t *"}

MOST_MSRS = 1024
"""So many different unknown MSRs are counted; a guest that tries all four thousand million must not fill the host's memory."""
_U64 = (1 << 64) - 1
_ENOSYS = (1 << 64) - 1000  # KVM_ENOSYS of <linux/kvm_para.h>, negated


def decode(record: CData, reason: int | None = None) -> Exit:
    """`kvmpy.exits.decode`. Its classes are made when the first exit needs words: the hot ones, I/O and MMIO, do not."""
    from kvmpy.exits import decode

    return decode(record, reason)


class Seat:
    """A vCPU in the loop: its record's parts, fetched once, and its counters."""

    __slots__ = ("exits", "header", "index", "io", "io_data", "mmio", "mmio_data", "plans", "quiet_in", "record", "told", "vcpu")

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.index = vcpu.index
        self.record: CData = vcpu.record
        self.io: CData = self.record.io
        self.header: CData = ffi.cast("uint64_t *", ffi.addressof(self.io))
        """Direction, size, port and count of a port access as one number: the key of `plans`."""
        self.plans: dict[int, Plan] = {}
        self.told: dict[int, Any] = {}
        """Whom the tracer tells such a port access, by the same key."""
        self.io_data: Callable[[], CData] = vcpu.io_data
        self.mmio: CData = self.record.mmio
        self.mmio_data: dict[int, CData] = {size: ffi.cast(kind, self.mmio.data) for size, kind in _POINTERS.items()}
        """The data as a number, by the access's size."""
        self.exits = [0] * (KNOWN + 1)
        """Counts by exit reason; the last one is for every number from KNOWN on."""
        self.quiet_in = -1
        """Generation of the watchdog's tick in which the vCPU was last seen waiting for good."""

    def rip(self) -> int:
        return int(self.vcpu.get_regs().rip)


def _crash(loop: Loop, seat: Seat, why: str, **details: Any) -> None:
    loop.stop(Crashed(seat.rip(), why, seat.index, details))


def _trace(loop: Loop, seat: Seat) -> None:
    if loop.tracer is not None:
        reason = seat.record.exit_reason
        loop.tracer.emit("exit", seat, reason=exit_name(reason), text=str(decode(seat.record, reason)))


def on_io(loop: Loop, seat: Seat) -> None:
    plan = seat.plans.get(seat.header[0])
    if plan is None:
        _any_io(loop, seat)
    else:
        call, offset, size, data, mask, out = plan
        if out:
            call(offset, size, data[0])
        else:
            data[0] = call(offset, size) & mask


def _any_io(loop: Loop, seat: Seat) -> None:
    """String I/O, accesses that no device claims as a whole, and the first of each kind, for which a plan is made."""
    io = seat.io
    port, size, count, out = io.port, io.size, io.count, bool(io.direction)
    entry = loop.ports.find(port)
    if count == 1 and entry is not None and port + size <= entry.end and size in _POINTERS:
        where = ffi.cast(_POINTERS[size], ffi.cast("uint8_t *", seat.record) + io.data_offset)
        call = entry.write if out else entry.read
        seat.plans[seat.header[0]] = (call, port - entry.first + entry.base, size, where, (1 << 8 * size) - 1, out)
    data = seat.io_data()
    for at in range(0, size * count, size):
        if out:
            loop.ports.write(port, size, int.from_bytes(data[at : at + size], "little"))
        else:
            data[at : at + size] = loop.ports.read(port, size).to_bytes(size, "little")


def on_mmio(loop: Loop, seat: Seat) -> None:
    mmio = seat.mmio
    address, size = mmio.phys_addr, mmio.len
    data = seat.mmio_data.get(size)
    if data is None:  # part of an access that crosses a page: 3, 5, 6 or 7 bytes
        _odd_mmio(loop, seat, address, size)
    elif mmio.is_write:
        loop.mmio.write(address, size, data[0])
    else:
        data[0] = loop.mmio.read(address, size)


def _odd_mmio(loop: Loop, seat: Seat, address: int, size: int) -> None:
    data = ffi.buffer(seat.mmio.data, size)
    if seat.mmio.is_write:
        loop.mmio.write(address, size, int.from_bytes(data, "little"))
    else:
        data[:] = loop.mmio.read(address, size).to_bytes(size, "little")


def on_hlt(loop: Loop, seat: Seat) -> None:
    _trace(loop, seat)
    loop.stop(Halted())


def on_shutdown(loop: Loop, seat: Seat) -> None:
    _trace(loop, seat)
    _crash(loop, seat, "triple fault")


def on_debug(loop: Loop, seat: Seat) -> None:
    _trace(loop, seat)
    if loop.debugger is None or loop.debugger.on_debug(seat):
        loop.stop(Stopped("debug"))


def on_nothing(loop: Loop, seat: Seat) -> None:
    """IRQ_WINDOW_OPEN, SET_TPR, IOAPIC_EOI and the like: news that nobody here waits for."""
    _trace(loop, seat)


def on_internal_error(loop: Loop, seat: Seat) -> None:
    error = cast("InternalErrorExit", decode(seat.record, lib.KVM_EXIT_INTERNAL_ERROR))
    code = error.instruction.hex(" ")
    if error.emulation and loop.debugger is not None and loop.debugger.on_refused(seat, error.instruction):
        loop.stop(Stopped("debug"))
        return
    if error.emulation and loop.assist is not None:
        rip = seat.rip() if loop.tracer is not None else 0
        if loop.assist(seat.vcpu):
            loop.assisted += 1
            if loop.tracer is not None:
                loop.tracer.emit("assist", seat, rip=rip, instruction=code)
            return
    _trace(loop, seat)
    if error.emulation:
        shown = f" ({code})" if code else " (its bytes cannot be fetched)"
        _crash(loop, seat, f"KVM cannot emulate the instruction{shown}", suberror=error.suberror, instruction=code)
    else:
        _crash(loop, seat, str(error), suberror=error.suberror, data=list(error.data))


def on_system_event(loop: Loop, seat: Seat) -> None:
    _trace(loop, seat)
    kind = int(seat.record.system_event.type)
    if kind == lib.KVM_SYSTEM_EVENT_SHUTDOWN:
        loop.stop(PowerOff())
    elif kind == lib.KVM_SYSTEM_EVENT_RESET:
        loop.stop(Reset("system event"))
    else:
        _crash(loop, seat, str(decode(seat.record)), type=kind)


def on_hypercall(loop: Loop, seat: Seat) -> None:
    _trace(loop, seat)
    seat.record.hypercall.ret = _ENOSYS


def on_trace(loop: Loop, seat: Seat) -> None:
    """The software CPU's own: its trace has records for us, which the loop takes at every exit."""


def on_notify(loop: Loop, seat: Seat) -> None:
    _trace(loop, seat)
    if seat.record.notify.flags & lib.KVM_NOTIFY_CONTEXT_INVALID:
        _crash(loop, seat, "the processor lost the guest's context (NOTIFY)")


def on_msr(loop: Loop, seat: Seat) -> None:
    """An MSR that the backend does not know: a user's handler serves it, or the guest gets #GP."""
    msr = seat.record.msr
    index, write = int(msr.index), int(seat.record.exit_reason) == lib.KVM_EXIT_X86_WRMSR
    value = int(msr.data) if write else None
    answer = None if loop.on_msr is None else loop.on_msr(seat.index, index, value)
    msr.error = answer is None
    if not write:
        msr.data = (answer or 0) & _U64
    if answer is None and (index in loop.unknown_msrs or len(loop.unknown_msrs) < MOST_MSRS):
        loop.unknown_msrs[index] += 1


def on_difference(loop: Loop, seat: Seat) -> None:
    """The software CPU checks its translator, and found a fault of it."""
    raise cast("Any", loop.vm).difference()


def on_anything(loop: Loop, seat: Seat) -> None:
    """FAIL_ENTRY, memory faults, and reasons that are not known here."""
    _trace(loop, seat)
    reason = int(seat.record.exit_reason)
    _crash(loop, seat, f"exit {decode(seat.record, reason)}", exit_reason=reason)


_TABLE: dict[int, Callable[[Loop, Seat], None]] = {
    lib.KVM_EXIT_IO: on_io,
    lib.KVM_EXIT_MMIO: on_mmio,
    lib.KVM_EXIT_HLT: on_hlt,
    lib.KVM_EXIT_SHUTDOWN: on_shutdown,
    lib.KVM_EXIT_DEBUG: on_debug,
    lib.KVM_EXIT_IRQ_WINDOW_OPEN: on_nothing,
    lib.KVM_EXIT_SET_TPR: on_nothing,
    lib.KVM_EXIT_IOAPIC_EOI: on_nothing,
    lib.KVM_EXIT_NMI: on_nothing,
    lib.KVM_EXIT_X86_BUS_LOCK: on_nothing,
    lib.KVM_EXIT_INTERNAL_ERROR: on_internal_error,
    lib.KVM_EXIT_SYSTEM_EVENT: on_system_event,
    lib.KVM_EXIT_HYPERCALL: on_hypercall,
    lib.KVM_EXIT_NOTIFY: on_notify,
    lib.KVM_EXIT_X86_RDMSR: on_msr,
    lib.KVM_EXIT_X86_WRMSR: on_msr,
    lib.KP_EXIT_TRACE: on_trace,
    lib.KP_EXIT_DIFFERS: on_difference,
}

HANDLERS: tuple[Callable[[Loop, Seat], None], ...] = tuple(_TABLE.get(reason, on_anything) for reason in range(KNOWN + 1))
"""By exit reason; the last one is for every number from KNOWN on."""
EXIT_INTR = lib.KVM_EXIT_INTR


def exit_name(reason: int) -> str:
    """Name of an exit reason in small letters: "io", "hlt", "exit 99"."""
    from kvmpy.exits import reason_name  # as in `decode`

    return reason_name(reason).lower()
