"""A small guest for the tests of the software CPU: memory, one VM, vCPUs in flat modes, code given as bytes."""

from __future__ import annotations

import mmap

from kvmpy.native import ffi, lib
from kvmpy.regs import identity_map, set_long_mode, set_protected_mode, set_real_mode
from kvmpy.soft import SoftBackend, SoftVcpu

TABLES, CODE, STACK, SIZE = 0x1000, 0x8000, 0x7000, 1 << 20


class Region:
    """What kvmpy.soft.assist reads of a GuestMemory's region."""

    slot, gpa, size, readonly = 0, 0, SIZE, False

    def __init__(self, host: int) -> None:
        self.host = host


class Guest:
    """`mode`: "real", "protected" or "long"; vCPU 0 stands at CODE with the code there."""

    def __init__(
        self, code: bytes = b"\xf4", mode: str = "real", *, clock: str = "virtual", chips: bool = False, cpus: int = 1,
        translate: int | str | None = None, code_cache: int = lib.KP_CODE_CACHE, parallel: bool = False,
        verify: bool | None = None,
    ) -> None:
        self.backend = SoftBackend(clock, translate=translate, code_cache=code_cache, parallel=parallel, verify_translator=verify)
        self.pages = mmap.mmap(-1, SIZE)
        view = ffi.from_buffer(self.pages)
        self.host = int(ffi.cast("uintptr_t", view))
        ffi.release(view)
        self.regions = [Region(self.host)]
        self.vm = self.backend.create_vm()
        if chips:
            self.vm.create_irqchip()
            self.vm.create_pit()
        self.vm.set_memory(0, 0, self.host, SIZE, log_dirty=True)
        self.vcpus = [self.vm.create_vcpu(index) for index in range(cpus)]
        self.vcpu: SoftVcpu = self.vcpus[0]
        sregs = self.vcpu.get_sregs()
        if mode == "real":
            set_real_mode(sregs)
        elif mode == "protected":
            set_protected_mode(sregs)
        else:
            self.put(TABLES, identity_map(TABLES, 1, user=True))
            set_long_mode(sregs, TABLES)
        self.vcpu.set_sregs(sregs)
        self.put(CODE, code)
        self.set(rip=CODE, rsp=STACK, rflags=2)

    def put(self, address: int, data: bytes) -> None:
        self.pages[address : address + len(data)] = data
        self.vm.memory_written(address, len(data))

    def get(self, address: int, size: int) -> bytes:
        return self.pages[address : address + size]

    def set(self, vcpu: SoftVcpu | None = None, **values: int) -> None:
        vcpu = vcpu or self.vcpu
        regs = vcpu.get_regs()
        for name, value in values.items():
            setattr(regs, name, value)
        vcpu.set_regs(regs)

    def close(self) -> None:
        self.vm.close()
