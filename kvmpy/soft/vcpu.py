"""A virtual CPU of the software CPU: its record, its run, and its state in KVM's structs."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvmpy.errors import HostError
from kvmpy.native import CData, check, ffi, lib

if TYPE_CHECKING:
    from kvmpy.history import Delivery, ExitNote
    from kvmpy.soft.vm import SoftVm

RECORD_BYTES = 3 * 4096
MOST_ENTRIES = 256


def _statistic_names() -> list[str]:
    names: list[str] = []
    while True:
        name = lib.kp_statistic_name(len(names))
        if not name:
            return names
        names.append(ffi.string(name).decode())


class SoftVcpu:
    """One vCPU of a VM. Made by SoftVm.create_vcpu, which it keeps alive."""

    def __init__(self, vm: SoftVm, pointer: CData, index: int) -> None:
        self.vm = vm
        self.index = index
        self._cpu: CData = pointer
        self.record: CData = lib.kp_vcpu_record(pointer)
        self._cpl: CData = ffi.new("uint32_t *")
        self._bytes: CData = ffi.cast("uint8_t *", self.record)

    def _pointer(self) -> CData:
        if not self._cpu:
            raise HostError("vCPU of the software CPU", errno.EBADF, "its VM is closed")
        return self._cpu

    def detach(self) -> None:
        """The VM ends: what the record holds last is kept, everything else is gone."""
        copy = ffi.new("uint8_t[]", RECORD_BYTES)
        ffi.memmove(copy, self._bytes, RECORD_BYTES)
        self._cpu = None
        self._bytes = copy
        self.record = ffi.cast("struct kvm_run *", copy)

    # Running.

    def run(self) -> int:
        """Runs this vCPU alone until it exits; KVM_EXIT_INTR after a kick or a deadline of the VM."""
        pointer = self._pointer()
        while True:
            code = lib.kp_vcpu_run(pointer)
            if code != -errno.EAGAIN:
                break
        if code != -errno.EINTR:
            check("kp_vcpu_run", code)
        return int(self.record.exit_reason)

    def step(self, count: int = 1) -> int:
        """Runs up to `count` instructions: KVM_EXIT_DEBUG when so many have retired. After any other exit, calling it again
        goes on with what is left of the same count."""
        code = lib.kp_vcpu_step(self._pointer(), count)
        if code != -errno.EINTR:
            check("kp_vcpu_step", code)
        return int(self.record.exit_reason)

    def kick(self) -> None:
        if self._cpu:
            lib.kp_vcpu_kick(self._cpu)

    def io_data(self) -> CData:
        io = self.record.io
        return ffi.buffer(self._bytes + io.data_offset, io.size * io.count)

    # Registers.

    def _get(self, name: str) -> CData:
        state = ffi.new(f"struct kvm_{name} *")
        check(f"kp_vcpu_get_{name}", getattr(lib, f"kp_vcpu_get_{name}")(self._pointer(), state))
        return state

    def _set(self, name: str, state: CData) -> None:
        check(f"kp_vcpu_set_{name}", getattr(lib, f"kp_vcpu_set_{name}")(self._pointer(), state))

    def get_regs(self) -> CData:
        regs = ffi.new("struct kvm_regs *")
        check("kp_vcpu_get_regs", lib.kp_vcpu_get_regs(self._pointer(), regs))
        return regs

    def set_regs(self, regs: CData) -> None:
        self._set("regs", regs)

    def get_sregs(self) -> CData:
        return self._get("sregs")

    def set_sregs(self, sregs: CData) -> None:
        self._set("sregs", sregs)

    def get_fpu(self) -> CData:
        return self._get("fpu")

    def set_fpu(self, fpu: CData) -> None:
        self._set("fpu", fpu)

    def get_xsave(self) -> bytearray:
        """The XSAVE area in the standard format: 4096 bytes."""
        return bytearray(ffi.buffer(self._get("xsave")))

    def set_xsave(self, image: bytes) -> None:
        """Bytes beyond 4096 are of components that this CPU has not, and are left out."""
        state = ffi.new("struct kvm_xsave *")
        size = min(len(image), ffi.sizeof("struct kvm_xsave"))
        ffi.buffer(state)[0:size] = bytes(image[:size])
        self._set("xsave", state)

    def get_xcrs(self) -> CData:
        return self._get("xcrs")

    def set_xcrs(self, xcrs: CData) -> None:
        self._set("xcrs", xcrs)

    def get_debugregs(self) -> CData:
        return self._get("debugregs")

    def set_debugregs(self, debugregs: CData) -> None:
        self._set("debugregs", debugregs)

    def get_msrs(self, indices: list[int]) -> dict[int, int]:
        pointer, value = self._pointer(), ffi.new("uint64_t *")
        return {index: int(value[0]) for index in indices if lib.kp_vcpu_get_msr(pointer, index, value) >= 0}

    def set_msrs(self, values: dict[int, int]) -> list[int]:
        pointer = self._pointer()
        return [index for index, value in values.items() if lib.kp_vcpu_set_msr(pointer, index, value) < 0]

    def get_cpuid(self) -> list[CData]:
        table = ffi.new("struct kvm_cpuid_entry2[]", MOST_ENTRIES)
        count = check("kp_vcpu_get_cpuid", lib.kp_vcpu_get_cpuid(self._pointer(), table, MOST_ENTRIES))
        return [ffi.new("struct kvm_cpuid_entry2 *", table[n]) for n in range(count)]

    def set_cpuid(self, entries: list[CData]) -> None:
        table = ffi.new("struct kvm_cpuid_entry2[]", max(len(entries), 1))
        for n, entry in enumerate(entries):
            table[n] = entry[0]
        check("kp_vcpu_set_cpuid", lib.kp_vcpu_set_cpuid(self._pointer(), table, len(entries)))

    def get_lapic(self) -> CData:
        state = ffi.new("struct kvm_lapic_state *")
        check("kp_vcpu_get_lapic", lib.kp_vcpu_get_lapic(self._pointer(), state))
        return state

    def set_lapic(self, lapic: CData) -> None:
        self._set("lapic", lapic)

    def get_events(self) -> CData:
        events = ffi.new("struct kvm_vcpu_events *")
        check("kp_vcpu_get_events", lib.kp_vcpu_get_events(self._pointer(), events))
        return events

    def set_events(self, events: CData) -> None:
        self._set("events", events)

    def get_mp_state(self) -> int:
        return int(self._get("mp_state").mp_state)

    def set_mp_state(self, state: int) -> None:
        self._set("mp_state", ffi.new("struct kvm_mp_state *", {"mp_state": state}))

    # Events and debugging.

    def interrupt(self, vector: int) -> None:
        check("kp_vcpu_interrupt", lib.kp_vcpu_interrupt(self._pointer(), vector))

    def nmi(self) -> None:
        check("kp_vcpu_nmi", lib.kp_vcpu_nmi(self._pointer()))

    def translate(self, linear: int) -> CData:
        translation = ffi.new("struct kvm_translation *", {"linear_address": linear})
        check("kp_vcpu_translate", lib.kp_vcpu_translate(self._pointer(), translation))
        return translation

    def set_guest_debug(self, control: int, debug_registers: tuple[int, ...] = ()) -> None:
        """`debug_registers` are DR0, DR1, ... up to DR7, used with KVM_GUESTDBG_USE_HW_BP."""
        debug = ffi.new("struct kvm_guest_debug *", {"control": control})
        for n, value in enumerate(debug_registers):
            debug.arch.debugreg[n] = value
        self._set("guest_debug", debug)

    def debug_hit(self) -> tuple[int, int, int] | None:
        """What the present KVM_EXIT_DEBUG met of the VM's debug points: address and size of the access, its KP_POINT_* kind."""
        hit = ffi.new("struct kp_debug_point *")
        if not lib.kp_vcpu_debug_hit(self._pointer(), hit):
            return None
        return int(hit.linear), int(hit.size), int(hit.kind)

    # Tracing.

    def position(self) -> tuple[int, int]:
        """Linear address and privilege level of the instruction that the present exit is about."""
        cpl = self._cpl
        return int(lib.kp_vcpu_position(self._pointer(), cpl)), int(cpl[0])

    def fault(self, vector: int, error: int | None) -> None:
        check("kp_vcpu_fault", lib.kp_vcpu_fault(self._pointer(), vector, error is not None, error or 0))

    def answer(self, values: list[int]) -> None:
        """What the access that a rule has stopped reads or writes: in place of the record's data from the second on."""
        check("kp_vcpu_trace_answer", lib.kp_vcpu_trace_answer(self._pointer(), values, len(values)))

    # What it did last.

    def exits(self) -> list[ExitNote]:
        from kvmpy.history import exit_notes

        ring = ffi.new("struct kp_exits *")
        lib.kp_vcpu_exits(self._pointer(), ring)
        return exit_notes(ring)

    def deliveries(self) -> list[Delivery]:
        from kvmpy.history import deliveries

        ring = ffi.new("struct kp_deliveries *")
        lib.kp_vcpu_deliveries(self._pointer(), ring)
        return deliveries(ring)

    # Time and counters.

    def get_tsc_khz(self) -> int:
        return int(lib.kp_vm_get_tsc_khz(self.vm._pointer()))

    def set_tsc_khz(self, khz: int) -> None:
        """The TSC of the whole VM goes on from its present value at another frequency."""
        check("kp_vm_set_tsc_khz", lib.kp_vm_set_tsc_khz(self.vm._pointer(), khz))

    def statistics(self) -> dict[str, int]:
        pointer = self._pointer()
        return {name: int(lib.kp_vcpu_statistic(pointer, n)) for n, name in enumerate(_statistic_names())}
