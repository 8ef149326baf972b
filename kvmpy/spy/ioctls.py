"""The calls of the KVM interface: names by request number, what their third argument is, and the argument as plain data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmpy.errors import MemoryAccessError
from kvmpy.native import ffi, lib
from kvmpy.spy.structs import decode, flexible
from kvmpy.x86 import bit_names, msr_name

KVMIO = 0xAE
"""The type byte of every request (bits 15:8)."""
MOST_TAIL = 1 << 16
"""Bytes of a flexible array that are read at most; the count comes from the traced process."""

_CONSTANTS: dict[str, int] = {name: getattr(lib, name) for name in dir(lib) if name.startswith("KVM_")}
NAMES: dict[int, str] = {value: name for name, value in _CONSTANTS.items() if value >> 8 & 0xFF == KVMIO}
CAPABILITIES: dict[int, str] = {value: name for name, value in _CONSTANTS.items() if name.startswith("KVM_CAP_")}
MP_STATES: dict[int, str] = {value: name[len("KVM_MP_STATE_") :] for name, value in _CONSTANTS.items() if name.startswith("KVM_MP_STATE_")}

RUN = lib.KVM_RUN
CREATE_VM = lib.KVM_CREATE_VM
CREATE_VCPU = lib.KVM_CREATE_VCPU
MEMORY_REGIONS = (lib.KVM_SET_USER_MEMORY_REGION, lib.KVM_SET_USER_MEMORY_REGION2)

STRUCTS: dict[str, str] = {
    "KVM_GET_REGS": "kvm_regs", "KVM_SET_REGS": "kvm_regs", "KVM_GET_SREGS": "kvm_sregs", "KVM_SET_SREGS": "kvm_sregs",
    "KVM_GET_SREGS2": "kvm_sregs2", "KVM_SET_SREGS2": "kvm_sregs2", "KVM_GET_FPU": "kvm_fpu", "KVM_SET_FPU": "kvm_fpu",
    "KVM_GET_XSAVE": "kvm_xsave", "KVM_GET_XSAVE2": "kvm_xsave", "KVM_SET_XSAVE": "kvm_xsave",
    "KVM_GET_XCRS": "kvm_xcrs", "KVM_SET_XCRS": "kvm_xcrs", "KVM_GET_DEBUGREGS": "kvm_debugregs", "KVM_SET_DEBUGREGS": "kvm_debugregs",
    "KVM_GET_VCPU_EVENTS": "kvm_vcpu_events", "KVM_SET_VCPU_EVENTS": "kvm_vcpu_events",
    "KVM_GET_LAPIC": "kvm_lapic_state", "KVM_SET_LAPIC": "kvm_lapic_state",
    "KVM_GET_MP_STATE": "kvm_mp_state", "KVM_SET_MP_STATE": "kvm_mp_state",
    "KVM_GET_MSRS": "kvm_msrs", "KVM_SET_MSRS": "kvm_msrs",
    "KVM_GET_MSR_INDEX_LIST": "kvm_msr_list", "KVM_GET_MSR_FEATURE_INDEX_LIST": "kvm_msr_list",
    "KVM_GET_CPUID2": "kvm_cpuid2", "KVM_SET_CPUID2": "kvm_cpuid2", "KVM_GET_SUPPORTED_CPUID": "kvm_cpuid2",
    "KVM_GET_EMULATED_CPUID": "kvm_cpuid2", "KVM_GET_SUPPORTED_HV_CPUID": "kvm_cpuid2",
    "KVM_TRANSLATE": "kvm_translation", "KVM_INTERRUPT": "kvm_interrupt", "KVM_SET_GUEST_DEBUG": "kvm_guest_debug",
    "KVM_TPR_ACCESS_REPORTING": "kvm_tpr_access_ctl", "KVM_SET_VAPIC_ADDR": "kvm_vapic_addr", "KVM_SET_SIGNAL_MASK": "kvm_signal_mask",
    "KVM_X86_SET_MCE": "kvm_x86_mce",
    "KVM_SET_USER_MEMORY_REGION": "kvm_userspace_memory_region", "KVM_SET_USER_MEMORY_REGION2": "kvm_userspace_memory_region2",
    "KVM_GET_DIRTY_LOG": "kvm_dirty_log", "KVM_CLEAR_DIRTY_LOG": "kvm_clear_dirty_log",
    "KVM_SET_MEMORY_ATTRIBUTES": "kvm_memory_attributes", "KVM_CREATE_GUEST_MEMFD": "kvm_create_guest_memfd",
    "KVM_PRE_FAULT_MEMORY": "kvm_pre_fault_memory",
    "KVM_GET_IRQCHIP": "kvm_irqchip", "KVM_SET_IRQCHIP": "kvm_irqchip", "KVM_IRQ_LINE": "kvm_irq_level",
    "KVM_IRQ_LINE_STATUS": "kvm_irq_level", "KVM_SET_GSI_ROUTING": "kvm_irq_routing", "KVM_SIGNAL_MSI": "kvm_msi",
    "KVM_IRQFD": "kvm_irqfd", "KVM_IOEVENTFD": "kvm_ioeventfd",
    "KVM_REGISTER_COALESCED_MMIO": "kvm_coalesced_mmio_zone", "KVM_UNREGISTER_COALESCED_MMIO": "kvm_coalesced_mmio_zone",
    "KVM_CREATE_PIT2": "kvm_pit_config", "KVM_GET_PIT2": "kvm_pit_state2", "KVM_SET_PIT2": "kvm_pit_state2",
    "KVM_REINJECT_CONTROL": "kvm_reinject_control", "KVM_GET_CLOCK": "kvm_clock_data", "KVM_SET_CLOCK": "kvm_clock_data",
    "KVM_ENABLE_CAP": "kvm_enable_cap", "KVM_X86_SET_MSR_FILTER": "kvm_msr_filter", "KVM_SET_PMU_EVENT_FILTER": "kvm_pmu_event_filter",
    "KVM_CREATE_DEVICE": "kvm_create_device", "KVM_GET_DEVICE_ATTR": "kvm_device_attr", "KVM_SET_DEVICE_ATTR": "kvm_device_attr",
    "KVM_HAS_DEVICE_ATTR": "kvm_device_attr", "KVM_GET_ONE_REG": "kvm_one_reg", "KVM_SET_ONE_REG": "kvm_one_reg",
    "KVM_MEMORY_ENCRYPT_REG_REGION": "kvm_enc_region", "KVM_MEMORY_ENCRYPT_UNREG_REGION": "kvm_enc_region",
    "KVM_HYPERV_EVENTFD": "kvm_hyperv_eventfd",
}  # fmt: skip
"""Calls whose argument is the address of a struct that kvmpy/abi declares."""

NUMBERS = {
    "KVM_CREATE_VM": "type", "KVM_CHECK_EXTENSION": "cap", "KVM_CREATE_VCPU": "id", "KVM_SET_TSS_ADDR": "address",
    "KVM_SET_BOOT_CPU_ID": "id", "KVM_SET_TSC_KHZ": "khz", "KVM_SET_NR_MMU_PAGES": "pages",
}  # fmt: skip
"""Calls whose argument is a number, and what it means."""
POINTERS = {"KVM_SET_IDENTITY_MAP_ADDR": "address", "KVM_X86_SETUP_MCE": "mcg_cap", "KVM_X86_GET_MCE_CAP_SUPPORTED": "mcg_cap"}
"""Calls whose argument is the address of one 64-bit number."""
PLAIN = frozenset((
    "KVM_GET_API_VERSION", "KVM_GET_VCPU_MMAP_SIZE", "KVM_CREATE_IRQCHIP", "KVM_CREATE_PIT", "KVM_RUN", "KVM_NMI", "KVM_SMI",
    "KVM_GET_TSC_KHZ", "KVM_KVMCLOCK_CTRL", "KVM_RESET_DIRTY_RINGS", "KVM_GET_STATS_FD", "KVM_GET_NR_MMU_PAGES",
))  # fmt: skip
"""Calls without an argument."""

ANSWERED = frozenset((
    "KVM_GET_SUPPORTED_CPUID", "KVM_GET_EMULATED_CPUID", "KVM_GET_SUPPORTED_HV_CPUID", "KVM_GET_CPUID2", "KVM_GET_MSR_INDEX_LIST",
    "KVM_GET_MSR_FEATURE_INDEX_LIST",
))  # fmt: skip
"""Calls that fill a flexible array; when they fail, what stands in it means nothing."""

_MEMORY_FLAGS = {0: "LOG_DIRTY_PAGES", 1: "READONLY", 2: "GUEST_MEMFD"}
_NAMED: dict[tuple[str, str], Callable[[int], str]] = {
    ("kvm_enable_cap", "cap"): lambda value: CAPABILITIES.get(value, str(value)),
    ("kvm_msr_entry", "index"): msr_name,
    ("kvm_userspace_memory_region", "flags"): lambda value: bit_names(value, _MEMORY_FLAGS).replace(" ", "|") or "0",
    ("kvm_userspace_memory_region2", "flags"): lambda value: bit_names(value, _MEMORY_FLAGS).replace(" ", "|") or "0",
    ("kvm_irqchip", "chip_id"): lambda value: {0: "PIC_MASTER", 1: "PIC_SLAVE", 2: "IOAPIC"}.get(value, str(value)),
    ("kvm_mp_state", "mp_state"): lambda value: MP_STATES.get(value, str(value)),
}
"""Members whose numbers have names."""

Read = Callable[[int, int], bytes]
"""Reads (address, size) of the traced process; raises MemoryAccessError."""


def name_of(request: int) -> str:
    """Name of a request; its number in hexadecimal when it has none here."""
    return NAMES.get(request) or f"{request:#x}"


def arguments(request: int, argument: int, result: int | None, read: Read) -> dict[str, Any]:
    """The call's argument as it stands after the call. An address that cannot be read, or that nothing is known of, is shown as such."""
    name = NAMES.get(request, "")
    if name in PLAIN:
        return {}
    if name in NUMBERS:
        shown: Any = CAPABILITIES.get(argument, argument) if name == "KVM_CHECK_EXTENSION" else argument
        return {NUMBERS[name]: shown}
    try:
        if name in POINTERS:
            return {POINTERS[name]: int.from_bytes(read(argument, 8), "little")}
        if name in STRUCTS:
            return _struct(STRUCTS[name], argument, read, name in ANSWERED and bool(result))
    except MemoryAccessError:
        pass
    return {"argument": argument}


def _struct(struct: str, address: int, read: Read, head_only: bool) -> dict[str, Any]:
    size = ffi.sizeof(f"struct {struct}")
    data = read(address, size)
    tail = flexible(struct)
    if tail is not None and not head_only:
        member, item = tail
        field = dict(ffi.typeof(f"struct {struct}").fields)[member]
        count = int.from_bytes(data[field.offset : field.offset + 4], "little")
        # To be read as a whole: the last bytes before an unmapped page are no longer the array's.
        data += read(address + size, min(count * item, MOST_TAIL))
    return _name(struct, decode(struct, data))


def _name(struct: str, data: dict[str, Any]) -> dict[str, Any]:
    for (owner, member), text in _NAMED.items():
        if owner == struct and member in data:
            data[member] = text(data[member])
    if struct == "kvm_msrs":
        data["entries"] = {msr_name(entry["index"]): entry["data"] for entry in data["entries"]}
    elif struct == "kvm_msr_list":
        data["indices"] = [msr_name(index) for index in data["indices"]]
    return data
