"""Event descriptors and coalesced writes: exits and interrupts that need no exit (KVM API 4.59, 4.75, 4.116)."""

from __future__ import annotations

from dataclasses import dataclass

from kvmpy.kvm.files import KvmFile
from kvmpy.native import ffi, lib


@dataclass(frozen=True)
class CoalescedWrite:
    """A write that the kernel kept in the ring in place of an exit."""

    address: int
    data: bytes
    port: bool


class EventPart(KvmFile):
    """VM calls about event descriptors."""

    def irqfd(self, fd: int, gsi: int, *, resample: int | None = None) -> None:
        """KVM_IRQFD: a write to eventfd `fd` raises the GSI; with `resample` it is a level, and its EOI signals that eventfd."""
        flags = lib.KVM_IRQFD_FLAG_RESAMPLE if resample is not None else 0
        self.ioctl_ptr("KVM_IRQFD", ffi.new("struct kvm_irqfd *", {"fd": fd, "gsi": gsi, "flags": flags, "resamplefd": resample or 0}))

    def irqfd_remove(self, fd: int, gsi: int) -> None:
        """Ends the binding; interrupts written before are delivered."""
        self.ioctl_ptr("KVM_IRQFD", ffi.new("struct kvm_irqfd *", {"fd": fd, "gsi": gsi, "flags": lib.KVM_IRQFD_FLAG_DEASSIGN}))

    def ioeventfd(self, fd: int, address: int, size: int, *, port: bool = False, match: int | None = None, remove: bool = False) -> None:
        """KVM_IOEVENTFD: writes of `size` bytes (0: any) to the address, with value `match` if given, signal `fd` and do not exit.

        Removing takes the same arguments with `remove`.
        """
        flags = lib.KVM_IOEVENTFD_FLAG_PIO if port else 0
        if match is not None:
            flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        if remove:
            flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        event = ffi.new("struct kvm_ioeventfd *", {"datamatch": match or 0, "addr": address, "len": size, "fd": fd, "flags": flags})
        self.ioctl_ptr("KVM_IOEVENTFD", event)

    def coalesce(self, address: int, size: int, *, port: bool = False) -> None:
        """Writes there go into the ring (see KvmVcpu.coalesced_writes) and exit only when it is full."""
        zone = ffi.new("struct kvm_coalesced_mmio_zone *", {"addr": address, "size": size, "pio": int(port)})
        self.ioctl_ptr("KVM_REGISTER_COALESCED_MMIO", zone)

    def uncoalesce(self, address: int, size: int, *, port: bool = False) -> None:
        """Ends every coalesced zone inside the range."""
        zone = ffi.new("struct kvm_coalesced_mmio_zone *", {"addr": address, "size": size, "pio": int(port)})
        self.ioctl_ptr("KVM_UNREGISTER_COALESCED_MMIO", zone)
