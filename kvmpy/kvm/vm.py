"""A KVM virtual machine: memory slots, vCPUs, capabilities; the rest of its calls come from the parts it inherits."""

from __future__ import annotations

import contextlib

from kvmpy.errors import HostError, KvmpyError
from kvmpy.kvm.dirty import DirtyPart
from kvmpy.kvm.events import EventPart
from kvmpy.kvm.irqchip import IrqchipPart
from kvmpy.kvm.msrs import MsrPart
from kvmpy.kvm.stats import StatisticsFile
from kvmpy.kvm.vcpu import KvmVcpu
from kvmpy.native import CData, ffi, lib

# Three pages for VMX's real mode TSS and one for its identity page table (KVM API 4.35, 4.41): below the firmware's 16 MiB,
# above the APICs' pages, where no guest RAM lies.
IDENTITY_MAP_ADDRESS = 0xFEFFC000
TSS_ADDRESS = 0xFEFFD000


class KvmVm(IrqchipPart, EventPart, DirtyPart, MsrPart):
    """One VM of the kernel. Made by KvmBackend.create_vm."""

    name = "kvm"
    threaded = True
    traceable = frozenset(("msr",))
    answerable = traceable

    def __init__(self, fd: int, record_size: int) -> None:
        super().__init__(fd)
        self._record_size = record_size
        self.vcpus: dict[int, KvmVcpu] = {}
        self._statistics = StatisticsFile()
        # Hosts without VMX refuse or ignore these; where they matter, KVM_RUN says so.
        with contextlib.suppress(HostError):
            self.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        with contextlib.suppress(HostError):
            self.set_tss_address(TSS_ADDRESS)
        self.xsave_size = max(self.check_extension(lib.KVM_CAP_XSAVE2), 4096)

    def __enter__(self) -> KvmVm:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def run(self) -> KvmVcpu:
        """Not for KVM: every vCPU runs in a thread of its own."""
        raise KvmpyError("vCPUs of KVM run each in a thread of its own: call Vcpu.run")

    def close(self) -> None:
        """Ends the VM: vCPUs, statistics, event descriptors' bindings and the descriptor itself."""
        for vcpu in list(getattr(self, "vcpus", {}).values()):
            vcpu.close()
        if hasattr(self, "_statistics"):
            self._statistics.close()
        super().close()

    # vCPUs.

    def create_vcpu(self, index: int) -> KvmVcpu:
        """KVM_CREATE_VCPU; `index` is the local APIC's id."""
        vcpu = KvmVcpu(self, self.ioctl("KVM_CREATE_VCPU", index), index, self._record_size)
        self.vcpus[index] = vcpu
        if self.apic_in_kernel:
            # A local APIC can be the destination of an IPI only once its state has been written.
            vcpu.set_lapic(vcpu.get_lapic())
        return vcpu

    def set_boot_cpu(self, index: int) -> None:
        """KVM_SET_BOOT_CPU_ID: which vCPU starts as the bootstrap processor; before any is created."""
        self.ioctl("KVM_SET_BOOT_CPU_ID", index)

    # Memory.

    def set_memory(self, slot: int, gpa: int, host: int, size: int, *, readonly: bool = False, log_dirty: bool = False) -> None:
        """KVM_SET_USER_MEMORY_REGION. A slot that has another size already must be deleted first."""
        flags = (lib.KVM_MEM_READONLY if readonly else 0) | (lib.KVM_MEM_LOG_DIRTY_PAGES if log_dirty else 0)
        region = ffi.new(
            "struct kvm_userspace_memory_region *",
            {"slot": slot, "flags": flags, "guest_phys_addr": gpa, "memory_size": size, "userspace_addr": host},
        )
        self.ioctl_ptr("KVM_SET_USER_MEMORY_REGION", region)
        self._note_slot(slot, gpa, size, log_dirty)

    def memory_written(self, gpa: int, size: int) -> None:
        """Marks the pages in the host's share of the dirty log; the processor keeps its own caches coherent."""
        self._mark_written(gpa, size)

    def ranges_written(self, ranges: CData, count: int, size: int) -> None:
        """The same of the first `size` bytes of ranges that stand one behind the other."""
        if self._logged:
            for at in range(count):
                part = min(ranges[at].size, size)
                self._mark_written(ranges[at].gpa, part)
                size -= part

    # Capabilities and addresses.

    def enable_cap(self, capability: int, *arguments: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP on the VM, with up to four arguments."""
        cap = ffi.new("struct kvm_enable_cap *", {"cap": capability, "flags": flags, "args": list(arguments)})
        self.ioctl_ptr("KVM_ENABLE_CAP", cap)

    def set_tss_address(self, address: int) -> None:
        """KVM_SET_TSS_ADDR: three pages below 4 GiB without RAM or MMIO; VMX without unrestricted guest needs them."""
        self.ioctl("KVM_SET_TSS_ADDR", address)

    def set_identity_map_address(self, address: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one page, before the first vCPU."""
        self.ioctl_ptr("KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", address))

    def set_tsc_khz(self, khz: int) -> None:
        """Default TSC frequency of vCPUs yet to be created (KVM_CAP_VM_TSC_CONTROL)."""
        self.ioctl("KVM_SET_TSC_KHZ", khz)

    def get_tsc_khz(self) -> int:
        return self.ioctl("KVM_GET_TSC_KHZ")

    def statistics(self) -> dict[str, int]:
        """Counters of the VM by name (KVM_GET_STATS_FD); empty where the kernel has none."""
        return self._statistics.read(self)
