"""The declarations of kvmpy/abi, as compiled: sizes the KVM API fixes by the request numbers of its ioctls."""

import pytest

from kvmpy.native import ffi, lib

_IOC_STRUCTS = {
    "KVM_GET_REGS": "kvm_regs", "KVM_GET_SREGS": "kvm_sregs", "KVM_GET_SREGS2": "kvm_sregs2", "KVM_GET_FPU": "kvm_fpu",
    "KVM_GET_XSAVE": "kvm_xsave", "KVM_GET_XCRS": "kvm_xcrs", "KVM_GET_DEBUGREGS": "kvm_debugregs",
    "KVM_GET_VCPU_EVENTS": "kvm_vcpu_events", "KVM_GET_LAPIC": "kvm_lapic_state", "KVM_GET_MP_STATE": "kvm_mp_state",
    "KVM_TRANSLATE": "kvm_translation", "KVM_SET_GUEST_DEBUG": "kvm_guest_debug", "KVM_GET_IRQCHIP": "kvm_irqchip",
    "KVM_GET_PIT2": "kvm_pit_state2", "KVM_GET_CLOCK": "kvm_clock_data", "KVM_SET_USER_MEMORY_REGION": "kvm_userspace_memory_region",
    "KVM_GET_DIRTY_LOG": "kvm_dirty_log", "KVM_CLEAR_DIRTY_LOG": "kvm_clear_dirty_log", "KVM_IRQFD": "kvm_irqfd",
    "KVM_IOEVENTFD": "kvm_ioeventfd", "KVM_SIGNAL_MSI": "kvm_msi", "KVM_ENABLE_CAP": "kvm_enable_cap",
    "KVM_X86_SET_MSR_FILTER": "kvm_msr_filter", "KVM_CREATE_PIT2": "kvm_pit_config", "KVM_IRQ_LINE": "kvm_irq_level",
}  # fmt: skip


@pytest.mark.parametrize("request_name", sorted(_IOC_STRUCTS))
def test_size_is_the_one_in_the_request_number(request_name: str) -> None:
    assert (getattr(lib, request_name) >> 16) & 0x3FFF == ffi.sizeof(f"struct {_IOC_STRUCTS[request_name]}")


def test_record_is_laid_out_as_documented() -> None:
    offset = lambda *path: ffi.offsetof("struct kvm_run", *path)  # noqa: E731
    assert offset("exit_reason") == 8
    assert offset("io") == offset("mmio") == offset("internal") == 32
    assert offset("io", "data_offset") == 40
    assert offset("mmio", "is_write") == 52
    assert offset("kvm_valid_regs") == 32 + 256
    assert ffi.sizeof("struct kvm_run") == 32 + 256 + 16 + 2048
