"""MSR accesses that leave the guest: the filter and user-space MSRs (KVM API 4.97, 7.21)."""

from __future__ import annotations

from kvmpy.errors import ConfigError
from kvmpy.kvm.files import KvmFile
from kvmpy.native import ffi, lib

MSRS_IN_BITMAP = 0x600 * 8


class MsrPart(KvmFile):
    """VM calls about MSRs."""

    def set_user_msrs(self, reasons: int, ranges: list[tuple[int, int, int]]) -> None:
        """Denied and unknown MSRs exit by `reasons`; an empty list takes the filter away. x2APIC MSRs cannot be filtered."""
        pieces = []
        for first, count, flags in ranges:
            while count > 0:
                part = min(count, MSRS_IN_BITMAP)
                pieces.append((first, part, flags))
                first, count = first + part, count - part
        limit = lib.KVM_MSR_FILTER_MAX_RANGES
        if len(pieces) > limit:
            raise ConfigError(f"{len(pieces)} ranges of MSRs: KVM's filter has {limit}, of {MSRS_IN_BITMAP} MSRs each")
        cap = ffi.new("struct kvm_enable_cap *", {"cap": lib.KVM_CAP_X86_USER_SPACE_MSR, "args": [reasons]})
        self.ioctl_ptr("KVM_ENABLE_CAP", cap)
        table = ffi.new("struct kvm_msr_filter *", {"flags": lib.KVM_MSR_FILTER_DEFAULT_ALLOW})
        denied = ffi.new("uint8_t[]", MSRS_IN_BITMAP // 8)
        for entry, (first, count, flags) in zip(table.ranges, pieces, strict=False):
            entry.base, entry.nmsrs, entry.flags, entry.bitmap = first, count, flags, denied
        self.ioctl_ptr("KVM_X86_SET_MSR_FILTER", table)
