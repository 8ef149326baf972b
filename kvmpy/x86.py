"""Architectural constants of x86, named as in the Intel and AMD manuals."""

from __future__ import annotations

# Control register 0 (SDM 3A 2.5).
CR0_PE = 1 << 0
CR0_MP = 1 << 1
CR0_EM = 1 << 2
CR0_TS = 1 << 3
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_AM = 1 << 18
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31

# Control register 4 (SDM 3A 2.5).
CR4_VME = 1 << 0
CR4_PVI = 1 << 1
CR4_TSD = 1 << 2
CR4_DE = 1 << 3
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_MCE = 1 << 6
CR4_PGE = 1 << 7
CR4_PCE = 1 << 8
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
CR4_UMIP = 1 << 11
CR4_LA57 = 1 << 12
CR4_VMXE = 1 << 13
CR4_SMXE = 1 << 14
CR4_FSGSBASE = 1 << 16
CR4_PCIDE = 1 << 17
CR4_OSXSAVE = 1 << 18
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
CR4_PKE = 1 << 22
CR4_CET = 1 << 23
CR4_PKS = 1 << 24

# Extended feature enable register (MSR 0xC0000080).
EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11
EFER_SVME = 1 << 12
EFER_FFXSR = 1 << 14

# RFLAGS (SDM 1 3.4.3).
RFLAGS_CF = 1 << 0
RFLAGS_FIXED = 1 << 1
RFLAGS_PF = 1 << 2
RFLAGS_AF = 1 << 4
RFLAGS_ZF = 1 << 6
RFLAGS_SF = 1 << 7
RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_DF = 1 << 10
RFLAGS_OF = 1 << 11
RFLAGS_IOPL = 3 << 12
RFLAGS_NT = 1 << 14
RFLAGS_RF = 1 << 16
RFLAGS_VM = 1 << 17
RFLAGS_AC = 1 << 18
RFLAGS_VIF = 1 << 19
RFLAGS_VIP = 1 << 20
RFLAGS_ID = 1 << 21

RFLAGS_NAMES = {
    0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF",
    14: "NT", 16: "RF", 17: "VM", 18: "AC", 19: "VIF", 20: "VIP", 21: "ID",
}
CR0_NAMES = {0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD", 31: "PG"}
CR4_NAMES = {
    0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE", 9: "OSFXSR",
    10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 13: "VMXE", 14: "SMXE", 16: "FSGSBASE", 17: "PCIDE", 18: "OSXSAVE",
    20: "SMEP", 21: "SMAP", 22: "PKE", 23: "CET", 24: "PKS",
}
EFER_NAMES = {0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME", 14: "FFXSR"}

# Page table entries (SDM 3A 4.5).
PTE_P = 1 << 0
PTE_RW = 1 << 1
PTE_US = 1 << 2
PTE_PWT = 1 << 3
PTE_PCD = 1 << 4
PTE_A = 1 << 5
PTE_D = 1 << 6
PTE_PS = 1 << 7
PTE_G = 1 << 8
PTE_NX = 1 << 63

# Page fault error code (SDM 3A 4.7).
PF_P = 1 << 0
PF_W = 1 << 1
PF_U = 1 << 2
PF_RSVD = 1 << 3
PF_I = 1 << 4
PF_PK = 1 << 5

# Exception vectors (SDM 3A 6.3).
EXCEPTIONS = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 9: "CSO",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 20: "#VE", 21: "#CP",
}
EXCEPTIONS_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21})

# Types of system segments and of code and data segments (SDM 3A 3.5 and 3.4.5.1).
SEG_TSS16 = 1
SEG_LDT = 2
SEG_TSS16_BUSY = 3
SEG_CALL16 = 4
SEG_TASK_GATE = 5
SEG_INT16 = 6
SEG_TRAP16 = 7
SEG_TSS = 9
SEG_TSS_BUSY = 11
SEG_CALL = 12
SEG_INT = 14
SEG_TRAP = 15
SEG_ACCESSED = 1
SEG_WRITABLE = 2
SEG_EXPAND_DOWN = 4
SEG_READABLE = 2
SEG_CONFORMING = 4
SEG_CODE = 8
SEG_DATA_RW = SEG_WRITABLE | SEG_ACCESSED
SEG_CODE_RX = SEG_CODE | SEG_READABLE | SEG_ACCESSED

# Model-specific registers (SDM 4).
MSR_TSC = 0x10
MSR_APIC_BASE = 0x1B
MSR_FEATURE_CONTROL = 0x3A
MSR_TSC_ADJUST = 0x3B
MSR_SPEC_CTRL = 0x48
MSR_PRED_CMD = 0x49
MSR_UCODE_WRITE = 0x79
MSR_UCODE_REV = 0x8B
MSR_PLATFORM_INFO = 0xCE
MSR_MPERF = 0xE7
MSR_APERF = 0xE8
MSR_MTRRCAP = 0xFE
MSR_ARCH_CAPABILITIES = 0x10A
MSR_SYSENTER_CS = 0x174
MSR_SYSENTER_ESP = 0x175
MSR_SYSENTER_EIP = 0x176
MSR_MCG_CAP = 0x179
MSR_MCG_STATUS = 0x17A
MSR_MISC_ENABLE = 0x1A0
MSR_DEBUGCTL = 0x1D9
MSR_MTRR_PHYSBASE0 = 0x200
MSR_MTRR_FIX64K_00000 = 0x250
MSR_MTRR_FIX16K_80000 = 0x258
MSR_MTRR_FIX16K_A0000 = 0x259
MSR_MTRR_FIX4K_C0000 = 0x268
MSR_PAT = 0x277
MSR_MTRR_DEF_TYPE = 0x2FF
MSR_TSC_DEADLINE = 0x6E0
MSR_X2APIC_BASE = 0x800
MSR_XSS = 0xDA0
MSR_EFER = 0xC0000080
MSR_STAR = 0xC0000081
MSR_LSTAR = 0xC0000082
MSR_CSTAR = 0xC0000083
MSR_SFMASK = 0xC0000084
MSR_FS_BASE = 0xC0000100
MSR_GS_BASE = 0xC0000101
MSR_KERNEL_GS_BASE = 0xC0000102
MSR_TSC_AUX = 0xC0000103
MSR_KVM_WALL_CLOCK = 0x4B564D00
MSR_KVM_SYSTEM_TIME = 0x4B564D01

_X2APIC = {
    0x02: "ID", 0x03: "VERSION", 0x08: "TPR", 0x0A: "PPR", 0x0B: "EOI", 0x0D: "LDR", 0x0F: "SVR", 0x28: "ESR", 0x2F: "LVT_CMCI",
    0x30: "ICR", 0x32: "LVT_TIMER", 0x33: "LVT_THERMAL", 0x34: "LVT_PMC", 0x35: "LVT_LINT0", 0x36: "LVT_LINT1", 0x37: "LVT_ERROR",
    0x38: "INITIAL_COUNT", 0x39: "CURRENT_COUNT", 0x3E: "DIVIDE", 0x3F: "SELF_IPI",
}

MSR_NAMES: dict[int, str] = {value: name[4:] for name, value in list(globals().items()) if name.startswith("MSR_")}


def msr_name(index: int) -> str:
    """Name of an MSR as the manuals write it; its number in hexadecimal when it has none here."""
    if MSR_MTRR_PHYSBASE0 <= index < MSR_MTRR_PHYSBASE0 + 0x20:
        pair, mask = divmod(index - MSR_MTRR_PHYSBASE0, 2)
        return f"MTRR_PHYS{'MASK' if mask else 'BASE'}{pair}"
    if MSR_MTRR_FIX4K_C0000 <= index < MSR_MTRR_FIX4K_C0000 + 8:
        return f"MTRR_FIX4K_{0xC0000 + (index - MSR_MTRR_FIX4K_C0000) * 0x8000:X}"
    if MSR_X2APIC_BASE <= index < MSR_X2APIC_BASE + 0x100:
        return f"X2APIC_{_X2APIC.get(index - MSR_X2APIC_BASE, f'{index - MSR_X2APIC_BASE:#x}')}"
    return MSR_NAMES.get(index, f"{index:#x}")


def bit_names(value: int, names: dict[int, str]) -> str:
    """Names of the set bits, lowest first: bit_names(0x11, CR0_NAMES) -> "PE ET"."""
    return " ".join(name for bit, name in names.items() if value >> bit & 1)
