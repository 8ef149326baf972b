"""Exit handlers that tell: they stand in the loop's table while somebody listens, and only then."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from kvmpy import exit_handlers as plain
from kvmpy.native import ffi, lib
from kvmpy.trace.tracer import MOST_CHOICES, Tracer
from kvmpy.x86 import msr_name

if TYPE_CHECKING:
    from kvmpy.exit_handlers import Seat
    from kvmpy.loop import Loop

_U64 = (1 << 64) - 1
SINGLESTEP = 1 << 14  # of DR6


def on_io(loop: Loop, seat: Seat) -> None:
    tracer = loop.tracer
    key = seat.header[0]
    sinks = seat.told.get(key)
    if sinks is None and tracer is not None:
        if len(seat.told) >= MOST_CHOICES:
            seat.told.clear()
        io = seat.io
        sinks = seat.told[key] = tracer.choose("io", seat.index, io.port, io.size, bool(io.direction))
    if not sinks or tracer is None:
        plain.on_io(loop, seat)
        if tracer is not None:
            tracer.resumed[seat.index] = 0
        return
    io = seat.io
    port, size, count, write = io.port, io.size, io.count, bool(io.direction)
    buffer = seat.io_data()
    data = {"port": port, "size": size, "count": count, "write": write, "value": int.from_bytes(buffer[:], "little")}
    entry = loop.ports.find(port)
    if entry is not None:
        data["device"] = entry.name

    def replace(value: Any) -> None:
        data["value"] = _number(value) & ((1 << 8 * size * count) - 1)
        buffer[:] = data["value"].to_bytes(size * count, "little")

    def serve() -> None:
        plain.on_io(loop, seat)
        if not write:
            data["value"] = int.from_bytes(buffer[:], "little")

    _told(tracer, sinks, "io", seat, data, serve, replace, write)


def on_mmio(loop: Loop, seat: Seat) -> None:
    tracer = loop.tracer
    mmio = seat.mmio
    address, size, write = mmio.phys_addr, mmio.len, bool(mmio.is_write)
    sinks = () if tracer is None else tracer.choose("mmio", seat.index, address, size, write)
    if not sinks or tracer is None:
        plain.on_mmio(loop, seat)
        if tracer is not None:
            tracer.resumed[seat.index] = 0
        return
    buffer = ffi.buffer(mmio.data, size)
    data = {"address": address, "size": size, "write": write, "value": int.from_bytes(buffer[:], "little")}
    entry = loop.mmio.find(address)
    if entry is not None:
        data["device"] = entry.name

    def replace(value: Any) -> None:
        data["value"] = _number(value) & ((1 << 8 * size) - 1)
        buffer[:] = data["value"].to_bytes(size, "little")

    def serve() -> None:
        plain.on_mmio(loop, seat)
        if not write:
            data["value"] = int.from_bytes(buffer[:], "little")

    _told(tracer, sinks, "mmio", seat, data, serve, replace, write)


def on_msr(loop: Loop, seat: Seat) -> None:
    """An MSR that the backend does not know, or one that a filter made KVM hand out."""
    tracer = loop.tracer
    msr = seat.record.msr
    index, write = int(msr.index), int(seat.record.exit_reason) == lib.KVM_EXIT_X86_WRMSR
    known = int(msr.reason) == lib.KVM_MSR_EXIT_REASON_FILTER
    sinks = () if tracer is None else tracer.choose("msr", seat.index, index, 8, write)
    if not sinks or tracer is None:
        _serve_msr(loop, seat, index, write, known)
        return
    data: dict[str, Any] = {"index": index, "name": msr_name(index), "write": write, "value": int(msr.data) if write else None}
    data["served"] = write and known

    def replace(value: Any) -> None:
        msr.data = data["value"] = _number(value) & _U64
        msr.error = 0
        data["served"] = True

    def serve() -> None:
        _serve_msr(loop, seat, index, write, known)
        data["served"] = not msr.error
        if not write:
            data["value"] = int(msr.data) if not msr.error else None

    _told(tracer, sinks, "msr", seat, data, serve, replace, write)


def _serve_msr(loop: Loop, seat: Seat, index: int, write: bool, known: bool) -> None:
    msr = seat.record.msr
    if known:
        if write:
            msr.error = bool(seat.vcpu.set_msrs({index: int(msr.data)}))
            return
        values = seat.vcpu.get_msrs([index])
        if index in values:
            msr.data, msr.error = values[index], 0
            return
    plain.on_msr(loop, seat)


def _told(
    tracer: Tracer, sinks: tuple[Any, ...], what: str, seat: Seat, data: dict[str, Any], serve: Callable[[], None],
    replace: Callable[[Any], None], write: bool,
) -> None:
    """An access with those who may change it before a write takes effect and behind a read, and those who look on behind it."""
    start = monotonic_ns()
    try:
        _serve(tracer, sinks, what, seat, data, serve, replace, write, start)
    finally:
        tracer.resumed[seat.index] = monotonic_ns()


def _serve(
    tracer: Tracer, sinks: tuple[Any, ...], what: str, seat: Seat, data: dict[str, Any], serve: Callable[[], None],
    replace: Callable[[Any], None], write: bool, start: int,
) -> None:
    event = tracer.event(what, seat, data, start)
    if write:
        if tracer.ask(sinks, event, seat, replace, False):
            return
        serve()
        cost = monotonic_ns() - start
    else:
        serve()
        cost = monotonic_ns() - start
        if tracer.ask(sinks, event._replace(cost=cost), seat, replace, False):
            return
    tracer.ask(sinks, event._replace(cost=cost), seat, None, True)


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no value: a port, an address and an MSR have numbers")
    return value


def on_debug(loop: Loop, seat: Seat) -> None:
    arch = seat.record.debug.arch
    tracer = loop.tracer
    if tracer is not None and seat.index in tracer.steps and arch.exception == 1:
        tracer.stepped(seat, int(arch.pc))
    else:
        plain.on_debug(loop, seat)


def step(seat: Seat, on: bool) -> None:
    """Single-stepping of a vCPU."""
    seat.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP if on else 0)


def _timed(handler: Callable[[Loop, Seat], None]) -> Callable[[Loop, Seat], None]:
    def timed(loop: Loop, seat: Seat) -> None:
        tracer = loop.tracer
        if tracer is None:
            handler(loop, seat)
            return
        tracer.holder = get_ident()
        try:
            handler(loop, seat)
        finally:
            tracer.holder = 0
        tracer.resumed[seat.index] = monotonic_ns()

    return timed


_ACCESSES = {
    lib.KVM_EXIT_IO: on_io, lib.KVM_EXIT_MMIO: on_mmio, lib.KVM_EXIT_X86_RDMSR: on_msr, lib.KVM_EXIT_X86_WRMSR: on_msr,
}  # fmt: skip
_OTHERS = {lib.KVM_EXIT_DEBUG: on_debug}
TELLING = tuple(_ACCESSES.get(reason) or _timed(_OTHERS.get(reason, handler)) for reason, handler in enumerate(plain.HANDLERS))
NO_ACCESSES = tuple(plain.HANDLERS[reason] if reason in _ACCESSES else handler for reason, handler in enumerate(TELLING))


def install(loop: Loop, kinds: set[str] | None) -> None:
    """Handlers that tell those kinds, from the next exit on; None: nobody listens."""
    loop.handlers[:] = plain.HANDLERS if kinds is None else TELLING if kinds & {"io", "mmio", "msr"} else NO_ACCESSES
