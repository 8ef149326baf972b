"""Finishes on the software CPU one instruction that a KVM vCPU could not execute (KVM_EXIT_INTERNAL_ERROR, suberror 1).

The state goes over, the instruction runs with its faults through the guest's own tables and its device accesses through the
caller, and what has changed goes back. Interrupt chips stay KVM's: the software CPU has none here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from kvmpy import x86
from kvmpy.backend import CData, Vcpu
from kvmpy.errors import HostError
from kvmpy.native import ffi, lib
from kvmpy.soft.vcpu import SoftVcpu
from kvmpy.soft.vm import SoftVm

Serve = Callable[[SoftVcpu], object]

# Beside these, EFER, the segment bases and APIC_BASE go with sregs.
MSRS = [
    x86.MSR_STAR, x86.MSR_LSTAR, x86.MSR_CSTAR, x86.MSR_SFMASK, x86.MSR_KERNEL_GS_BASE, x86.MSR_TSC_AUX, x86.MSR_SYSENTER_CS,
    x86.MSR_SYSENTER_ESP, x86.MSR_SYSENTER_EIP, x86.MSR_PAT, x86.MSR_MISC_ENABLE, x86.MSR_XSS,
]
MOST_EXITS = 1 << 16
"""Of one instruction: a string instruction exits for each element."""

# The XSAVE area (SDM 1 13.4): components 0-2 are the software CPU's; all others stay as they were.
_LEGACY, _AVX_START, _AVX_END, _HEADER_BV = 416, 576, 832, 512
_OWN_COMPONENTS = 7
_MXCSR, _MXCSR_INITIAL, _SSE = 24, 0x1F80, 2


class _Assistant:
    """The software VM over one machine's memory."""

    def __init__(self) -> None:
        self.vm = SoftVm()
        self._slots: dict[int, tuple[int, int, int, bool]] = {}
        self._cpus: dict[int, tuple[SoftVcpu, Vcpu]] = {}

    def show_memory(self, memory: Any) -> None:
        """Makes the slots those of `memory` now."""
        wanted = {region.slot: (region.gpa, region.host, region.size, region.readonly) for region in memory.regions}
        if wanted == self._slots:
            return
        for slot in [slot for slot, region in self._slots.items() if wanted.get(slot) != region]:
            self.vm.set_memory(slot, self._slots.pop(slot)[0], 0, 0)
        for slot, region in wanted.items():
            if slot not in self._slots:
                gpa, host, size, readonly = region
                self.vm.set_memory(slot, gpa, host, size, readonly=readonly)
                self._slots[slot] = region

    def cpu_for(self, vcpu: Vcpu) -> SoftVcpu:
        """The software CPU with `vcpu`'s index and CPUID table."""
        known = self._cpus.get(vcpu.index)
        if known is not None and known[1] is vcpu:
            return known[0]
        soft = known[0] if known is not None else self.vm.create_vcpu(vcpu.index)
        soft.set_cpuid(vcpu.get_cpuid())
        self._cpus[vcpu.index] = soft, vcpu
        return soft


_assistants: WeakKeyDictionary[Any, _Assistant] = WeakKeyDictionary()


def _same(one: CData, other: CData) -> bool:
    return bytes(ffi.buffer(one)) == bytes(ffi.buffer(other))


def _own_part(image: bytes) -> bytes:
    """An XSAVE image with the components that the software CPU has."""
    part = bytearray(image[:_AVX_END].ljust(4096, b"\0"))
    part[_HEADER_BV : _HEADER_BV + 64] = bytes([image[_HEADER_BV] & _OWN_COMPONENTS]) + bytes(63)
    return bytes(part)


def _merged(image: bytes, own: bytes) -> bytes:
    """`image` with the software CPU's components replaced."""
    result = bytearray(image)
    result[:_LEGACY] = own[:_LEGACY]
    result[_HEADER_BV] = (image[_HEADER_BV] & ~_OWN_COMPONENTS) | (own[_HEADER_BV] & _OWN_COMPONENTS)
    result[_AVX_START:_AVX_END] = own[_AVX_START:_AVX_END]
    # Linux takes MXCSR from an image only along with the SSE component, marked as in use.
    if int.from_bytes(result[_MXCSR : _MXCSR + 4], "little") != _MXCSR_INITIAL:
        result[_HEADER_BV] |= _SSE
    return bytes(result)


class VcpuState:
    """The vCPU's state before the instruction, and how it goes over and back."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.regs, self.sregs = vcpu.get_regs(), vcpu.get_sregs()
        self.xsave, self.xcrs = bytes(vcpu.get_xsave()), vcpu.get_xcrs()
        self.debugregs, self.events = vcpu.get_debugregs(), vcpu.get_events()
        self.msrs = vcpu.get_msrs([*MSRS, x86.MSR_TSC])
        self.tsc = self.msrs.pop(x86.MSR_TSC, 0)

    def load(self, soft: SoftVcpu) -> None:
        """Onto the software CPU. Events that wait for delivery stay behind: they are KVM's."""
        soft.set_mp_state(0)
        sregs = ffi.new("struct kvm_sregs *", self.sregs[0])
        sregs.interrupt_bitmap = [0, 0, 0, 0]
        soft.set_sregs(sregs)
        soft.set_regs(self.regs)
        xcrs = ffi.new("struct kvm_xcrs *", self.xcrs[0])
        for n in range(xcrs.nr_xcrs):
            if xcrs.xcrs[n].xcr == 0:
                xcrs.xcrs[n].value &= _OWN_COMPONENTS
        try:
            soft.set_xcrs(xcrs)
        except HostError:  # a CPUID table without XSAVE
            pass
        soft.set_xsave(_own_part(self.xsave))
        soft.set_debugregs(self.debugregs)
        soft.set_msrs({**self.msrs, x86.MSR_TSC: self.tsc})
        events = ffi.new("struct kvm_vcpu_events *")
        events.interrupt.shadow = self.events.interrupt.shadow
        events.nmi.masked = self.events.nmi.masked
        events.flags = lib.KVM_VCPUEVENT_VALID_NMI_PENDING | lib.KVM_VCPUEVENT_VALID_SHADOW
        soft.set_events(events)
        # Memory has been written behind the software CPU's back: drops its decoded code and its TLB.
        soft.set_guest_debug(0)

    def store(self, soft: SoftVcpu) -> None:
        """Back to the vCPU: what has changed, and nothing else, so that a host's odd refusals do not matter."""
        vcpu = self.vcpu
        sregs = soft.get_sregs()
        sregs.interrupt_bitmap = list(self.sregs.interrupt_bitmap)
        sregs.apic_base = self.sregs.apic_base
        if not _same(sregs, self.sregs):
            vcpu.set_sregs(sregs)
        xsave = _merged(self.xsave, bytes(soft.get_xsave()))
        if xsave != self.xsave:
            vcpu.set_xsave(xsave)
        debugregs = soft.get_debugregs()
        if not _same(debugregs, self.debugregs):
            vcpu.set_debugregs(debugregs)
        msrs = {index: value for index, value in soft.get_msrs(list(self.msrs)).items() if value != self.msrs[index]}
        if msrs:
            vcpu.set_msrs(msrs)
        now = soft.get_events()
        if (now.interrupt.shadow, now.nmi.masked) != (self.events.interrupt.shadow, self.events.nmi.masked):
            events = ffi.new("struct kvm_vcpu_events *", self.events[0])
            events.interrupt.shadow, events.nmi.masked = now.interrupt.shadow, now.nmi.masked
            events.flags |= lib.KVM_VCPUEVENT_VALID_SHADOW
            vcpu.set_events(events)
        vcpu.set_regs(soft.get_regs())


def finish_instruction(memory: Any, vcpu: Vcpu, serve: Serve | None = None) -> bool:
    """Executes the instruction at `vcpu`'s RIP on the software CPU; false where that cannot execute it either.

    `memory` is the machine's GuestMemory. `serve` is called with the software vCPU for every exit that the instruction makes
    (its device accesses; SHUTDOWN for a triple fault) and answers it in the record, as after `Vcpu.run`.
    Callers hold the machine's lock. The state of `vcpu` is untouched where the answer is false.
    """
    assistant = _assistants.get(memory)
    if assistant is None:
        assistant = _assistants[memory] = _Assistant()
    assistant.show_memory(memory)
    soft = assistant.cpu_for(vcpu)
    state = VcpuState(vcpu)
    state.load(soft)
    for _ in range(MOST_EXITS):
        reason = soft.step(1)
        if reason == lib.KVM_EXIT_DEBUG:
            break
        if reason == lib.KVM_EXIT_INTR:
            continue
        if reason == lib.KVM_EXIT_INTERNAL_ERROR or serve is None:
            return _give_up(memory)
        serve(soft)
        if reason == lib.KVM_EXIT_SHUTDOWN:
            break
    else:
        return _give_up(memory)
    state.store(soft)
    return True


def _give_up(memory: Any) -> bool:
    """A software CPU in the middle of an instruction is of no more use."""
    _assistants.pop(memory).vm.close()
    return False
