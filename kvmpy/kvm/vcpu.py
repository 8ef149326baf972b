"""A KVM virtual CPU: its record, KVM_RUN and kick, and its state (KVM API 4.10 and on)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvmpy.errors import ConfigError, HostError
from kvmpy.kvm.events import CoalescedWrite
from kvmpy.kvm.files import PAGE, KvmFile, Mapping
from kvmpy.kvm.stats import StatisticsFile
from kvmpy.native import CData, check, ffi, lib

if TYPE_CHECKING:
    from kvmpy.history import Delivery, ExitNote
    from kvmpy.kvm.vm import KvmVm

MOST_PARTS = 64
"""Exits of one instruction that accesses a device."""

_RUN = lib.kvm_vcpu_run
_KICK = lib.kvm_vcpu_kick


class KvmVcpu(KvmFile):
    """One vCPU of a VM. Made by KvmVm.create_vcpu."""

    def __init__(self, vm: KvmVm, fd: int, index: int, record_size: int) -> None:
        super().__init__(fd)
        self.index = index
        self._vm_fd_size = vm.xsave_size
        self._vm_check = vm.check_extension
        check("sigaction", lib.kvm_kick_signal())
        self._mapping = Mapping("mmap of the vCPU", fd, 0, record_size, "struct kvm_run *")
        self.record: CData = self._mapping.pointer
        self._bytes = ffi.cast("uint8_t *", self.record)
        self._runner = ffi.new("struct kvm_runner *")
        # Every exit is noted with its RIP; this spares the call for it.
        self.record.kvm_valid_regs = vm.check_extension(lib.KVM_CAP_SYNC_REGS) & lib.KVM_SYNC_X86_REGS
        self._statistics = StatisticsFile()
        self._dirty_ring: Mapping | None = None
        self._dirty_next = ffi.new("uint32_t *")
        self._dirty_entries = vm.dirty_ring_entries
        if self._dirty_entries:
            size = self._dirty_entries * ffi.sizeof("struct kvm_dirty_gfn")
            offset = lib.KVM_DIRTY_LOG_PAGE_OFFSET * PAGE
            self._dirty_ring = Mapping("mmap of the dirty ring", fd, offset, size, "struct kvm_dirty_gfn *")

    # Running.

    def run(self) -> int:
        """KVM_RUN with the GIL released. A start that waits for its SIPI is tried again until a kick."""
        code: int = _RUN(self._fd, self.record, self._runner)
        if code < 0:
            check("KVM_RUN", code)
        return code

    def kick(self) -> None:
        """immediate_exit and, where a thread is inside KVM_RUN, a signal to that thread."""
        _KICK(self.record, self._runner)

    @property
    def kicks(self) -> int:
        """Signals that kicks have sent so far."""
        return int(self._runner.kicks)

    def io_data(self) -> CData:
        io = self.record.io
        return ffi.buffer(self._bytes + io.data_offset, io.size * io.count)

    def sync_regs(self, valid: int) -> None:
        """Which register sets (KVM_SYNC_X86_*) every run stores into record.s.regs; loads are asked for in kvm_dirty_regs."""
        supported = self._vm_check(lib.KVM_CAP_SYNC_REGS)
        if valid & ~supported:
            raise HostError("KVM_CAP_SYNC_REGS", errno.EINVAL, f"this KVM synchronises {supported:#x} only")
        self.record.kvm_valid_regs = valid

    # Registers.

    def get_regs(self) -> CData:
        return self.fetch("KVM_GET_REGS", "kvm_regs")

    def set_regs(self, regs: CData) -> None:
        self.ioctl_ptr("KVM_SET_REGS", regs)

    def get_sregs(self) -> CData:
        return self.fetch("KVM_GET_SREGS", "kvm_sregs")

    def set_sregs(self, sregs: CData) -> None:
        self.ioctl_ptr("KVM_SET_SREGS", sregs)

    def get_sregs2(self) -> CData:
        """As get_sregs, with the PDPTRs and without a pending interrupt (KVM_CAP_SREGS2)."""
        return self.fetch("KVM_GET_SREGS2", "kvm_sregs2")

    def set_sregs2(self, sregs: CData) -> None:
        self.ioctl_ptr("KVM_SET_SREGS2", sregs)

    def get_fpu(self) -> CData:
        """KVM_GET_FPU. Some hosts leave MXCSR out: get_xsave has everything."""
        return self.fetch("KVM_GET_FPU", "kvm_fpu")

    def set_fpu(self, fpu: CData) -> None:
        self.ioctl_ptr("KVM_SET_FPU", fpu)

    def get_xsave(self) -> bytearray:
        """The XSAVE area in the host's standard format, of the VM's `xsave_size` bytes (4096 at least)."""
        image = bytearray(self._vm_fd_size)
        buffer = ffi.from_buffer(image)
        large = self._vm_fd_size > ffi.sizeof("struct kvm_xsave")
        self.ioctl_ptr("KVM_GET_XSAVE2" if large else "KVM_GET_XSAVE", buffer)
        ffi.release(buffer)
        return image

    def set_xsave(self, image: bytes) -> None:
        """KVM_SET_XSAVE; a shorter image is filled up with zeros, a longer one must hold zeros beyond this host's size."""
        size = self._vm_fd_size
        if any(image[size:]):
            raise ConfigError(f"the XSAVE image has {len(image)} bytes in use, this host's area has {size}")
        self.ioctl_ptr("KVM_SET_XSAVE", ffi.new("uint8_t[]", bytes(image[:size]).ljust(size, b"\0")))

    def get_xcrs(self) -> CData:
        return self.fetch("KVM_GET_XCRS", "kvm_xcrs")

    def set_xcrs(self, xcrs: CData) -> None:
        self.ioctl_ptr("KVM_SET_XCRS", xcrs)

    def get_debugregs(self) -> CData:
        return self.fetch("KVM_GET_DEBUGREGS", "kvm_debugregs")

    def set_debugregs(self, debugregs: CData) -> None:
        self.ioctl_ptr("KVM_SET_DEBUGREGS", debugregs)

    def get_msrs(self, indices: list[int]) -> dict[int, int]:
        found: dict[int, int] = {}
        rest = list(indices)
        while rest:
            table = ffi.new("struct kvm_msrs *", {"nmsrs": len(rest), "entries": [{"index": i} for i in rest]})
            done = self.ioctl_ptr("KVM_GET_MSRS", table)
            for i in range(done):
                found[table.entries[i].index] = int(table.entries[i].data)
            rest = rest[done + 1 :]
        return found

    def set_msrs(self, values: dict[int, int]) -> list[int]:
        refused: list[int] = []
        rest = list(values.items())
        while rest:
            entries = [{"index": index, "data": value} for index, value in rest]
            done = self.ioctl_ptr("KVM_SET_MSRS", ffi.new("struct kvm_msrs *", {"nmsrs": len(rest), "entries": entries}))
            refused += [index for index, _ in rest[done : done + 1]]
            rest = rest[done + 1 :]
        return refused

    def get_cpuid(self) -> list[CData]:
        room = 64
        while True:
            table = ffi.new("struct kvm_cpuid2 *", {"nent": room, "entries": room})
            code = lib.kvm_ioctl_ptr(self._fd, lib.KVM_GET_CPUID2, table)
            if code != -errno.E2BIG or room > 4096:
                check("KVM_GET_CPUID2", code)
                return [ffi.new("struct kvm_cpuid_entry2 *", table.entries[i]) for i in range(table.nent)]
            room *= 2

    def set_cpuid(self, entries: list[CData]) -> None:
        """KVM_SET_CPUID2. KVM may edit the table: get_cpuid tells what holds."""
        table = ffi.new("struct kvm_cpuid2 *", {"nent": len(entries), "entries": len(entries)})
        for i, entry in enumerate(entries):
            table.entries[i] = entry[0]
        self.ioctl_ptr("KVM_SET_CPUID2", table)

    def get_lapic(self) -> CData:
        return self.fetch("KVM_GET_LAPIC", "kvm_lapic_state")

    def set_lapic(self, lapic: CData) -> None:
        self.ioctl_ptr("KVM_SET_LAPIC", lapic)

    def get_events(self) -> CData:
        return self.fetch("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events")

    def set_events(self, events: CData) -> None:
        self.ioctl_ptr("KVM_SET_VCPU_EVENTS", events)

    def get_mp_state(self) -> int:
        return int(self.fetch("KVM_GET_MP_STATE", "kvm_mp_state").mp_state)

    def set_mp_state(self, state: int) -> None:
        self.ioctl_ptr("KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", {"mp_state": state}))

    # Events and debugging.

    def interrupt(self, vector: int) -> None:
        self.ioctl_ptr("KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", {"irq": vector}))

    def nmi(self) -> None:
        self.ioctl("KVM_NMI")

    def smi(self) -> None:
        """KVM_SMI: a system management interrupt (KVM_CAP_X86_SMM)."""
        self.ioctl("KVM_SMI")

    def translate(self, linear: int) -> CData:
        translation = ffi.new("struct kvm_translation *", {"linear_address": linear})
        self.ioctl_ptr("KVM_TRANSLATE", translation)
        return translation

    def set_guest_debug(self, control: int, debug_registers: tuple[int, ...] = ()) -> None:
        """KVM_SET_GUEST_DEBUG; `debug_registers` are DR0, DR1, ... up to DR7, used with KVM_GUESTDBG_USE_HW_BP."""
        debug = ffi.new("struct kvm_guest_debug *", {"control": control})
        for i, value in enumerate(debug_registers):
            debug.arch.debugreg[i] = value
        self.ioctl_ptr("KVM_SET_GUEST_DEBUG", debug)

    def report_tpr_access(self, enabled: bool) -> None:
        """KVM_TPR_ACCESS_REPORTING: accesses to the TPR exit with KVM_EXIT_TPR_ACCESS (in-kernel local APIC)."""
        self.ioctl_ptr("KVM_TPR_ACCESS_REPORTING", ffi.new("struct kvm_tpr_access_ctl *", {"enabled": int(enabled)}))

    def enable_cap(self, capability: int, *arguments: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP on the vCPU, with up to four arguments."""
        self.ioctl_ptr("KVM_ENABLE_CAP", ffi.new("struct kvm_enable_cap *", {"cap": capability, "flags": flags, "args": list(arguments)}))

    # Tracing.

    def position(self) -> tuple[int, int]:
        """Linear RIP and CPL. From the first call on every run stores the registers where KVM can do that (KVM_CAP_SYNC_REGS): later
        calls need no ioctl."""
        from kvmpy.regs import cpl, linear_rip

        wanted = lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS
        if self.record.kvm_valid_regs & wanted == wanted:
            regs, sregs = self.record.s.regs.regs, self.record.s.regs.sregs
        else:
            regs, sregs = self.get_regs(), self.get_sregs()
            if self._vm_check(lib.KVM_CAP_SYNC_REGS) & wanted == wanted:
                self.record.kvm_valid_regs |= wanted
        return linear_rip(regs, sregs), cpl(sregs, regs.rflags)

    def fault(self, vector: int, error: int | None) -> None:
        """KVM finishes an access only when it is run again (KVM API 5, note on KVM_EXIT_IO): it does, then a read is taken back."""
        before = self.get_regs()
        record, reason = self.record, int(self.record.exit_reason)
        done = (reason == lib.KVM_EXIT_IO and record.io.direction == lib.KVM_EXIT_IO_OUT) or (
            reason == lib.KVM_EXIT_MMIO and record.mmio.is_write
        )
        for _ in range(MOST_PARTS):
            record.immediate_exit = 1
            if self.run() == lib.KVM_EXIT_INTR:
                break
        if not done:
            self.set_regs(before)
        events = self.get_events()
        events.exception.injected, events.exception.pending, events.exception.nr = 1, 0, vector
        events.exception.has_error_code, events.exception.error_code = int(error is not None), error or 0
        self.set_events(events)

    # What it did last.

    def exits(self) -> list[ExitNote]:
        from kvmpy.history import exit_notes

        ring = ffi.new("struct kp_exits *")
        lib.kvm_vcpu_exits(self.record, self._runner, ring)
        return exit_notes(ring)

    def deliveries(self) -> list[Delivery]:
        """KVM delivers events by itself and tells nobody."""
        return []

    # Time.

    def get_tsc_khz(self) -> int:
        return self.ioctl("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        self.ioctl("KVM_SET_TSC_KHZ", khz)

    def clock_was_stopped(self) -> None:
        """KVM_KVMCLOCK_CTRL: tells a guest with kvmclock that it was paused, so that its watchdogs stay calm."""
        self.ioctl("KVM_KVMCLOCK_CTRL")

    # What the kernel leaves in shared memory.

    def coalesced_writes(self) -> list[CoalescedWrite]:
        """Takes the coalesced writes of the whole VM out of the ring that this vCPU's mapping shows, oldest first."""
        page = self._vm_check(lib.KVM_CAP_COALESCED_MMIO)
        if not page:
            return []
        ring = ffi.cast("struct kvm_coalesced_mmio_ring *", self._bytes + page * PAGE)
        slots = (PAGE - ffi.sizeof("struct kvm_coalesced_mmio_ring")) // ffi.sizeof("struct kvm_coalesced_mmio")
        out = ffi.new("struct kvm_coalesced_mmio[]", slots)
        count = check("coalesced ring", lib.kvm_coalesced_take(ring, slots, out, slots))
        return [CoalescedWrite(int(w.phys_addr), bytes(w.data)[: min(w.len, 8)], bool(w.pio)) for w in out[0:count]]

    def dirty_pages(self) -> list[tuple[int, int]]:
        """Takes (slot, page in the slot) of pages written since the last call out of the dirty ring; reset_dirty_rings ends the harvest."""
        if self._dirty_ring is None:
            return []
        room = self._dirty_entries
        out = ffi.new("struct kvm_dirty_gfn[]", room)
        count = check("dirty ring", lib.kvm_dirty_take(self._dirty_ring.pointer, room, self._dirty_next, out, room))
        return [(int(entry.slot), int(entry.offset)) for entry in out[0:count]]

    def statistics(self) -> dict[str, int]:
        """Counters of the vCPU by name (KVM_GET_STATS_FD); empty where the kernel has none."""
        return self._statistics.read(self)

    def close(self) -> None:
        """Lets the kernel's vCPU go. The record stays readable."""
        if self._fd >= 0:
            self._mapping.detach()
            if self._dirty_ring is not None:
                self._dirty_ring.detach()
            self._statistics.close()
        super().close()
