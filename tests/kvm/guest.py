"""A small guest for the KVM tests: memory, one VM, vCPUs in flat modes, code given as bytes."""

from __future__ import annotations

import mmap

import pytest

from kvmpy.kvm import KvmBackend, KvmVcpu, KvmVm
from kvmpy.native import ffi, lib
from kvmpy.regs import identity_map, set_long_mode, set_protected_mode, set_real_mode
from kvmpy.watchdog import Watchdog

TABLES, CODE, STACK, SIZE = 0x1000, 0x8000, 0x1F000, 1 << 20

HLT, SHUTDOWN, INTR = lib.KVM_EXIT_HLT, lib.KVM_EXIT_SHUTDOWN, lib.KVM_EXIT_INTR
IO, MMIO = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO


class Guest:
    """`mode`: "real", "protected" or "long"; the vCPU stands at CODE with the code there."""

    def __init__(self, kvm: KvmBackend, code=b"\xf4", mode="real", *, irqchip="", before_vcpu=None, **memory) -> None:
        self.kvm = kvm
        self.mode = mode
        self.memory = mmap.mmap(-1, SIZE)
        view = ffi.from_buffer(self.memory)
        self.host = int(ffi.cast("uintptr_t", view))
        ffi.release(view)
        self.vm: KvmVm = kvm.create_vm()
        if irqchip == "full":
            self.vm.create_irqchip()
        elif irqchip == "split":
            self.vm.create_split_irqchip()
        if before_vcpu is not None:
            before_vcpu(self.vm)
        self.vm.set_memory(0, 0, self.host, SIZE, **memory)
        self.put(CODE, code)
        self.vcpu = self.add_vcpu(0)

    def add_vcpu(self, index: int) -> KvmVcpu:
        vcpu = self.vm.create_vcpu(index)
        vcpu.set_cpuid(self.kvm.supported_cpuid())
        if index == 0:
            self.place(vcpu)
        return vcpu

    def place(self, vcpu: KvmVcpu, rip: int = CODE) -> None:
        sregs = vcpu.get_sregs()
        if self.mode == "real":
            set_real_mode(sregs)
        elif self.mode == "protected":
            set_protected_mode(sregs)
        else:
            self.put(TABLES, identity_map(TABLES, 4, user=True))
            set_long_mode(sregs, TABLES)
        vcpu.set_sregs(sregs)
        self.set(vcpu, rip=rip, rsp=STACK, rflags=2)

    def set(self, vcpu: KvmVcpu | None = None, **values: int) -> None:
        vcpu = vcpu or self.vcpu
        regs = vcpu.get_regs()
        for name, value in values.items():
            setattr(regs, name, value)
        vcpu.set_regs(regs)

    def put(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    def run(self, seconds: float = 5.0) -> int:
        """One exit; a run that does not end fails the test."""
        with Watchdog(seconds, [self.vcpu]) as dog:
            reason = self.vcpu.run()
        if dog.fired:
            pytest.fail(f"KVM_RUN did not end within {seconds} s at rip {self.vcpu.get_regs().rip:#x}")
        return reason

    def run_to(self, wanted: int, limit: int = 1000) -> int:
        """Runs until an exit of that reason; gives the number of other exits."""
        for count in range(limit):
            if self.run() == wanted:
                return count
        pytest.fail(f"no exit {wanted} within {limit} exits")

    def close(self) -> None:
        self.vm.close()
        self.memory.close()
