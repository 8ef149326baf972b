"""/dev/kvm: what the host's KVM is able to do, and the way to make VMs (KVM API 4.1 to 4.4)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from kvmpy.errors import HostError, MissingCapability
from kvmpy.kvm.files import KvmFile
from kvmpy.kvm.vm import KvmVm
from kvmpy.native import CData, check, ffi, lib

API_VERSION = 12


def copy_entries(table: CData) -> list[CData]:
    """Owned copies of the entries of a `struct kvm_cpuid2`."""
    return [ffi.new("struct kvm_cpuid_entry2 *", table.entries[i]) for i in range(table.nent)]


def fetch_cpuid(request: Callable[[CData], int], call: str) -> list[CData]:
    """A CPUID table by a request that answers E2BIG while the room is too small."""
    room = 64
    while True:
        table = ffi.new("struct kvm_cpuid2 *", {"nent": room, "entries": room})
        code = request(table)
        if code != -errno.E2BIG or room > 4096:
            check(call, code)
            return copy_entries(table)
        room *= 2


class KvmBackend(KvmFile):
    """The host's KVM. Raises HostError with the remedy when /dev/kvm cannot be opened."""

    name = "kvm"

    def __init__(self, path: str = "/dev/kvm") -> None:
        fd = lib.kvm_open(path.encode())
        try:
            check("/dev/kvm", fd)
        except HostError as error:
            if path != "/dev/kvm":
                raise HostError(path, error.errno, error.remedy) from None
            raise
        super().__init__(fd)
        version = self.api_version()
        if version != API_VERSION:
            self.close()
            raise MissingCapability(f"{path} speaks KVM API version {version}: version {API_VERSION} is needed (Linux 2.6.22 or newer)")

    def __enter__(self) -> KvmBackend:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def api_version(self) -> int:
        """12 since Linux 2.6.22, for ever."""
        return self.ioctl("KVM_GET_API_VERSION")

    def vcpu_mmap_size(self) -> int:
        """Bytes of a vCPU's shared mapping: the record, the port I/O page, the coalesced ring."""
        return self.ioctl("KVM_GET_VCPU_MMAP_SIZE")

    def create_vm(self) -> KvmVm:
        """A VM without memory and vCPUs."""
        while True:
            fd = lib.kvm_ioctl(self._fd, lib.KVM_CREATE_VM, 0)
            if fd != -errno.EINTR:
                break
        return KvmVm(check("KVM_CREATE_VM", fd), self.vcpu_mmap_size())

    def supported_cpuid(self) -> list[CData]:
        """What the kernel and the processor can show to a guest together."""
        return self._cpuid("KVM_GET_SUPPORTED_CPUID")

    def emulated_cpuid(self) -> list[CData]:
        """Features that the kernel emulates in software, whatever the processor has."""
        return self._cpuid("KVM_GET_EMULATED_CPUID")

    def _cpuid(self, name: str) -> list[CData]:
        request = getattr(lib, name)
        return fetch_cpuid(lambda table: lib.kvm_ioctl_ptr(self._fd, request, table), name)

    def msr_indices(self) -> list[int]:
        """MSRs that this host can save and restore (KVM_GET_MSR_INDEX_LIST); not those that come with sregs."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST")

    def msr_feature_indices(self) -> list[int]:
        """MSRs that describe features and can be read from the system (KVM_GET_MSR_FEATURE_INDEX_LIST)."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def _msr_list(self, name: str) -> list[int]:
        room = 128
        while True:
            table = ffi.new("struct kvm_msr_list *", {"nmsrs": room, "indices": room})
            code = lib.kvm_ioctl_ptr(self._fd, getattr(lib, name), table)
            if code != -errno.E2BIG:
                check(name, code)
                return list(table.indices[0 : table.nmsrs])
            room = max(table.nmsrs, room + 1)

    def feature_msrs(self) -> dict[int, int]:
        """Values of the feature MSRs (KVM_GET_MSRS on /dev/kvm); those that the kernel refuses are absent."""
        found = {}
        for index in self.msr_feature_indices():
            table = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": [{"index": index}]})
            if lib.kvm_ioctl_ptr(self._fd, lib.KVM_GET_MSRS, table) == 1:
                found[index] = int(table.entries[0].data)
        return found
