"""A copy of a machine on the software CPU, to see what it would do next: its vCPUs and chips, its memory copied on write.
The machine itself is only read, and its devices are not asked: they answer what they answered last."""

from __future__ import annotations

import contextlib
import mmap
import time
from typing import TYPE_CHECKING, Any

from kvmpy.errors import HostError, KvmpyError
from kvmpy.history import Delivery
from kvmpy.native import CData, ffi, lib
from kvmpy.regs import linear_rip
from kvmpy.soft.assist import VcpuState
from kvmpy.soft.vm import SoftVm

if TYPE_CHECKING:
    from kvmpy.machine import Machine

BURST = 499
"""Instructions between two samples; a prime, so that a loop is met everywhere."""
BURSTS = 400
SECONDS = 1.0
MOST_EXITS = 2000
"""Of one burst."""
_HALTED = 3
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class StandIn:
    """A context manager: the copy lives inside."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._maps: list[mmap.mmap] = []
        self._answers: dict[tuple[int, int], int] = {}
        self.vm = SoftVm(virtual_clock=True)
        try:
            self._copy(machine)
        except BaseException:
            self.close()
            raise

    def _copy(self, machine: Machine) -> None:
        self.vm.create_irqchip()
        self.vm.create_pit()
        for slot, region in enumerate(machine.memory.regions):
            flags = mmap.MAP_PRIVATE | _NORESERVE
            view = mmap.mmap(region.backing.fd, region.size, flags, mmap.PROT_READ | mmap.PROT_WRITE, offset=region.offset)
            self._maps.append(view)
            with ffi.from_buffer(view) as start:
                self.vm.set_memory(slot, region.gpa, int(ffi.cast("uintptr_t", start)), region.size, readonly=region.readonly)
        for cpu in machine.cpu:
            soft = self.vm.create_vcpu(cpu.index)
            soft.set_cpuid(cpu.vcpu.get_cpuid())
            VcpuState(cpu.vcpu).load(soft)
            soft.set_lapic(cpu.vcpu.get_lapic())
            soft.set_mp_state(cpu.vcpu.get_mp_state())
            for note in cpu.vcpu.exits():
                if note.value is not None and not note.write:
                    self._answers[note.reason, note.subject] = note.value
        for chip in range(3):
            self.vm.set_irqchip(machine.vm.get_irqchip(chip))
        self.vm.set_pit(machine.vm.get_pit())

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the copy."""
        self.vm.close()
        while self._maps:
            self._maps.pop().close()

    def _serve(self, record: CData) -> bool:
        """Answers a device's read with what it gave last; false where the exit is an end."""
        reason = int(record.exit_reason)
        if reason == lib.KVM_EXIT_IO:
            io = record.io
            if io.direction == lib.KVM_EXIT_IO_IN:
                value = self._answers.get((reason, int(io.port)))
                one = b"\xff" * io.size if value is None else value.to_bytes(8, "little")[: io.size]
                ffi.memmove(ffi.cast("uint8_t *", record) + io.data_offset, one * io.count, io.size * io.count)
            return True
        if reason == lib.KVM_EXIT_MMIO:
            if not record.mmio.is_write:
                value = self._answers.get((reason, int(record.mmio.phys_addr)), (1 << 64) - 1)
                ffi.memmove(record.mmio.data, value.to_bytes(8, "little"), record.mmio.len)
            return True
        return reason in (lib.KVM_EXIT_HYPERCALL, lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR)

    def _burst(self, end: float) -> bool:
        self.vm.set_deadline(self.vm.now() + BURST)
        for _ in range(MOST_EXITS):
            record = self.vm.run().record
            if record.exit_reason == lib.KVM_EXIT_INTR:
                return True
            if not self._serve(record) or time.monotonic() > end:
                return False
        return False

    def sample(self) -> dict[int, list[int | None]]:
        """Where each vCPU is after each of many short bursts: linear addresses, None while it waits in HLT or for its start."""
        end = time.monotonic() + SECONDS
        found: dict[int, list[int | None]] = {index: [] for index in self.vm.vcpus}
        with contextlib.suppress(HostError):
            for _ in range(BURSTS):
                if not self._burst(end) or time.monotonic() > end:
                    break
                for index, vcpu in self.vm.vcpus.items():
                    waits = vcpu.get_mp_state() != 0
                    found[index].append(None if waits else linear_rip(vcpu.get_regs(), vcpu.get_sregs()))
        return found

    def deliveries_to_shutdown(self, index: int) -> list[Delivery]:
        """Lets a vCPU that shut down do it again; what it then tried to deliver. Empty where it gets further."""
        vcpu = self.vm.vcpus[index]
        for _ in range(MOST_EXITS):
            reason = vcpu.step(1)
            if reason == lib.KVM_EXIT_SHUTDOWN:
                return vcpu.deliveries()
            if reason == lib.KVM_EXIT_DEBUG or not self._serve(vcpu.record):
                break
        return []


def stand_in(machine: Machine) -> Any:
    """A StandIn, or None where this installation has no software CPU or cannot copy the machine."""
    if not hasattr(lib, "kp_vm_create"):
        return None
    try:
        return StandIn(machine)
    except (KvmpyError, OSError):
        return None
