/* Model-specific registers, as KVM gives them to a guest. SDM 4; Linux Documentation/virt/kvm/x86/msr.rst for 4b564dxx. */
#include "chips.h"
#include "parallel.h"
#include "run.h"
#include "system.h"
#include "trace.h"

enum {
    MSR_P5_MC_ADDR = 0x0, MSR_P5_MC_TYPE = 0x1, MSR_TSC = 0x10, MSR_KVM_WALL_CLOCK = 0x11, MSR_KVM_SYSTEM_TIME = 0x12,
    MSR_PLATFORM_ID = 0x17, MSR_APIC_BASE = 0x1b, MSR_EBL_CR_POWERON = 0x2a, MSR_SMI_COUNT = 0x34, MSR_FEATURE_CONTROL = 0x3a,
    MSR_TSC_ADJUST = 0x3b, MSR_UCODE_WRITE = 0x79, MSR_UCODE_REV = 0x8b, MSR_FSB_FREQ = 0xcd, MSR_PLATFORM_INFO = 0xce,
    MSR_MTRR_CAP = 0xfe, MSR_ARCH_CAPABILITIES = 0x10a, MSR_BBL_CR_CTL3 = 0x11e, MSR_MISC_FEATURES = 0x140,
    MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, MSR_MCG_CAP = 0x179, MSR_MCG_STATUS, MSR_PERF_STATUS = 0x198,
    MSR_PERF_CTL, MSR_THERM_STATUS = 0x19c, MSR_MISC_ENABLE = 0x1a0, MSR_DEBUGCTL = 0x1d9, MSR_LAST_BRANCH_FROM = 0x1db,
    MSR_LAST_INT_TO = 0x1de, MSR_MTRR_VAR = 0x200, MSR_MTRR_VAR_END = 0x20f, MSR_MTRR_64K = 0x250, MSR_MTRR_16K = 0x258,
    MSR_MTRR_4K = 0x268, MSR_MTRR_4K_END = 0x26f, MSR_PAT = 0x277, MSR_MTRR_DEF = 0x2ff, MSR_PERF_CAPABILITIES = 0x345,
    MSR_RAPL_UNIT = 0x606, MSR_PKG_ENERGY = 0x611, MSR_DRAM_ENERGY = 0x619, MSR_PP0_ENERGY = 0x639, MSR_PP1_ENERGY = 0x641,
    MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC = 0x800, MSR_X2APIC_END = 0x8ff, MSR_XSS = 0xda0,
};
#define MSR_KVM_WALL_CLOCK_NEW 0x4b564d00u
#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01u
#define MSR_KVM_ASYNC_PF_EN 0x4b564d02u
#define MSR_KVM_POLL_CONTROL 0x4b564d05u
#define MSR_KVM_MIGRATION 0x4b564d08u
#define MSR_EFER 0xc0000080u
#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_SFMASK 0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_TSC_AUX 0xc0000103u

/* RDCL_NO, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO,
   GDS_NO, RFDS_NO: an interpreter has none of these. */
#define ARCH_CAPABILITIES 0x0d10e179ull

/* Read as a fixed value, writes are dropped: what Linux and the BSDs touch for a processor's own sake. */
static const struct { uint32_t index, count; uint64_t value; } fixed[] = {
    {MSR_P5_MC_ADDR, 2, 0},
    {MSR_PLATFORM_ID, 1, 0},
    {MSR_EBL_CR_POWERON, 1, 0},
    {MSR_SMI_COUNT, 1, 0},
    {MSR_UCODE_WRITE, 1, 0},
    {0xc1, 8, 0}, /* performance counters */
    {MSR_FSB_FREQ, 1, 3},
    {MSR_BBL_CR_CTL3, 1, 0xbe702111},
    {MSR_MISC_FEATURES, 1, 0},
    {0x186, 8, 0}, /* performance event selects */
    {MSR_PERF_STATUS, 1, 4ull << 40 | 1000},
    {MSR_PERF_CTL, 1, 0},
    {MSR_THERM_STATUS, 1, 0},
    {MSR_DEBUGCTL, 1, 0},
    {MSR_LAST_BRANCH_FROM, 4, 0},
    {MSR_PERF_CAPABILITIES, 1, 0},
    {MSR_RAPL_UNIT, 1, 0},
    {MSR_PKG_ENERGY, 1, 0},
    {MSR_DRAM_ENERGY, 1, 0},
    {MSR_PP0_ENERGY, 1, 0},
    {MSR_PP1_ENERGY, 1, 0},
    {0xc0010000, 8, 0},  /* AMD: K7 event selects and counters */
    {0xc0010010, 1, 0},  /* SYSCFG */
    {0xc0010015, 1, 0},  /* HWCR */
    {0xc001001b, 1, 0x20000000}, /* K7_CLK_CTL */
    {0xc001001f, 1, 0},  /* NB_CFG */
    {0xc0010020, 1, 0},  /* PATCH_LOADER */
    {0xc0010055, 1, 0},  /* interrupt pending */
    {0xc0010058, 1, 0},  /* MMIO configuration base */
    {0xc0010112, 2, 0},  /* TSEG */
    {0xc0010117, 1, 0},  /* VM_HSAVE_PA */
    {0xc0010140, 2, 0},  /* OSVW */
    {0xc0011020, 4, 0},  /* LS_CFG, IC_CFG, DC_CFG, BU_CFG */
    {0xc0011029, 2, 2},  /* DE_CFG: LFENCE is serialising */
};

/* Where a plain 64-bit register lives in the vCPU, or NULL. */
static uint64_t *plain(Cpu *c, uint32_t index)
{
    switch (index) {
    case MSR_SYSENTER_CS: return &c->sysenter_cs;
    case MSR_SYSENTER_ESP: return &c->sysenter_esp;
    case MSR_SYSENTER_EIP: return &c->sysenter_eip;
    case MSR_PAT: return &c->pat;
    case MSR_MTRR_DEF: return &c->mtrr_def;
    case MSR_MTRR_64K: return &c->mtrr_fixed[0];
    case MSR_MTRR_16K:
    case MSR_MTRR_16K + 1: return &c->mtrr_fixed[1 + index - MSR_MTRR_16K];
    case MSR_MISC_ENABLE: return &c->misc_enable;
    case MSR_MCG_STATUS: return &c->mcg_status;
    case MSR_TSC_ADJUST: return &c->tsc_adjust;
    case MSR_XSS: return &c->xss;
    case MSR_EFER: return &c->efer;
    case MSR_STAR: return &c->star;
    case MSR_LSTAR: return &c->lstar;
    case MSR_CSTAR: return &c->cstar;
    case MSR_SFMASK: return &c->sfmask;
    case MSR_FS_BASE: return &c->seg[SEG_FS].base;
    case MSR_GS_BASE: return &c->seg[SEG_GS].base;
    case MSR_KERNEL_GS_BASE: return &c->kernel_gs_base;
    case MSR_TSC_AUX: return &c->tsc_aux;
    case MSR_KVM_SYSTEM_TIME:
    case MSR_KVM_SYSTEM_TIME_NEW: return &c->kvmclock_msr;
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_WALL_CLOCK_NEW: return &c->wallclock_msr;
    default:
        if (index >= MSR_MTRR_VAR && index <= MSR_MTRR_VAR_END)
            return &c->mtrr_var[index - MSR_MTRR_VAR];
        if (index >= MSR_MTRR_4K && index <= MSR_MTRR_4K_END)
            return &c->mtrr_fixed[3 + index - MSR_MTRR_4K];
        return NULL;
    }
}

/* MSRs that come with a CPUID bit; user space reaches them always. */
static bool exists(const Cpu *c, uint32_t index)
{
    switch (index) {
    case MSR_STAR:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_SFMASK:
    case MSR_FS_BASE:
    case MSR_GS_BASE:
    case MSR_KERNEL_GS_BASE: return has_feature(c, FEAT_LM);
    case MSR_TSC_AUX: return has_feature(c, FEAT_RDTSCP) || has_feature(c, FEAT_RDPID);
    case MSR_XSS: return has_feature(c, FEAT_XSAVES);
    default: return true;
    }
}

static bool is_lapic(uint32_t index)
{
    return index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE || (index >= MSR_X2APIC && index <= MSR_X2APIC_END);
}

int msr_read(Cpu *c, uint32_t index, uint64_t *value, bool host)
{
    if (!host && !exists(c, index))
        return MSR_UNKNOWN;
    if (is_lapic(index)) {
        if (c->lapic)
            return lapic_msr_read(c, index, value) ? MSR_INVALID : 0;
        if (index != MSR_APIC_BASE)
            return MSR_UNKNOWN;
        *value = c->apic_base;
        return 0;
    }
    const uint64_t *p = plain(c, index);
    if (p) {
        *value = *p;
        return 0;
    }
    switch (index) {
    case MSR_TSC: *value = cpu_tsc(c); return 0;
    case MSR_FEATURE_CONTROL: *value = 1; return 0; /* locked, no VMX */
    case MSR_UCODE_REV: *value = c->ucode_rev; return 0;
    case MSR_PLATFORM_INFO: *value = 0; return 0;
    case MSR_MTRR_CAP: *value = 0x508; return 0; /* write-combining, fixed ranges, 8 variable ones */
    case MSR_ARCH_CAPABILITIES: *value = ARCH_CAPABILITIES; return 0;
    case MSR_MCG_CAP: *value = 0; return 0; /* no banks */
    case MSR_KVM_POLL_CONTROL: *value = 1; return 0;
    default: break;
    }
    if (index >= MSR_KVM_ASYNC_PF_EN && index <= MSR_KVM_MIGRATION) {
        *value = 0;
        return 0;
    }
    for (unsigned n = 0; n < ARRAY_SIZE(fixed); n++)
        if (index - fixed[n].index < fixed[n].count) {
            *value = fixed[n].value;
            return 0;
        }
    return MSR_UNKNOWN;
}

/* Memory types; PAT has UC- (7) too. */
static bool memory_type(uint64_t type, bool pat) { return type < 2 || (type >= 4 && type <= 6) || (pat && type == 7); }

static bool memory_types(uint64_t value, bool pat)
{
    for (unsigned n = 0; n < 64; n += 8)
        if (!memory_type(value >> n & 0xff, pat))
            return false;
    return true;
}

static int write_efer(Cpu *c, uint64_t value, bool host)
{
    uint64_t known = host ? EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE : c->efer_allowed;
    if (value & ~known)
        return MSR_INVALID;
    if (!host && (value ^ c->efer) & EFER_LME && c->cr0 & CR0_PG)
        return MSR_INVALID;
    value = (value & ~(uint64_t)EFER_LMA) | (c->efer & EFER_LMA); /* LMA follows from CR0.PG, for user space too, as in KVM */
    uint64_t changed = c->efer ^ value;
    c->efer = value;
    if (changed & EFER_NXE)
        tlb_flush_all(c);
    cpu_update_mode(c);
    return 0;
}

static int write_mtrr(Cpu *c, uint32_t index, uint64_t value)
{
    uint64_t outside = ~((1ull << c->phys_bits) - 1);
    if (index == MSR_MTRR_DEF) {
        if (value & ~0xcffull || !memory_type(value & 0xff, false))
            return MSR_INVALID;
    } else if (index <= MSR_MTRR_VAR_END) {
        if (index & 1 ? value & (outside | 0x7ff) : value & (outside | 0xf00) || !memory_type(value & 0xff, false))
            return MSR_INVALID;
    } else if (!memory_types(value, false)) {
        return MSR_INVALID;
    }
    *plain(c, index) = value;
    return 0;
}

/* The time-stamp counter is set: by the guest through TSC_ADJUST (SDM 3B 18.17.3), by user space behind it. */
static void write_tsc(Cpu *c, uint64_t value, bool host)
{
    uint64_t delta = value - cpu_tsc(c);
    if (host)
        c->tsc_offset += delta;
    else
        c->tsc_adjust += delta;
    pvclock_update(c);
    cpu_timer_changed(c);
}

static void write_tsc_adjust(Cpu *c, uint64_t value, bool host)
{
    if (host)
        c->tsc_offset -= value - c->tsc_adjust; /* restoring the register does not move the counter */
    c->tsc_adjust = value;
    pvclock_update(c);
    cpu_timer_changed(c);
}

static int write_plain(Cpu *c, uint32_t index, uint64_t value, bool host)
{
    switch (index) {
    case MSR_PAT:
        if (!memory_types(value, true))
            return MSR_INVALID;
        break;
    case MSR_MCG_STATUS:
        if (value && !host)
            return MSR_INVALID;
        break;
    case MSR_XSS:
        if (value)
            return MSR_INVALID;
        break;
    case MSR_EFER: return write_efer(c, value, host);
    case MSR_TSC_ADJUST: write_tsc_adjust(c, value, host); return 0;
    case MSR_SFMASK:
    case MSR_TSC_AUX:
        value = (uint32_t)value;
        break;
    case MSR_SYSENTER_CS:
        value = (uint32_t)value;
        break;
    case MSR_SYSENTER_ESP:
    case MSR_SYSENTER_EIP:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_FS_BASE:
    case MSR_GS_BASE:
    case MSR_KERNEL_GS_BASE:
        if (!is_canonical(value))
            return MSR_INVALID;
        break;
    case MSR_KVM_SYSTEM_TIME:
    case MSR_KVM_SYSTEM_TIME_NEW:
        c->kvmclock_msr = value;
        pvclock_update(c);
        return 0;
    case MSR_KVM_WALL_CLOCK:
    case MSR_KVM_WALL_CLOCK_NEW:
        c->wallclock_msr = value;
        if (value && !host)
            pvclock_wall(c, value);
        return 0;
    default:
        if ((index >= MSR_MTRR_VAR && index <= MSR_MTRR_4K_END) || index == MSR_MTRR_DEF)
            return write_mtrr(c, index, value);
        break;
    }
    *plain(c, index) = value;
    if (index == MSR_FS_BASE || index == MSR_GS_BASE)
        cpu_update_mode(c);
    return 0;
}

int msr_write(Cpu *c, uint32_t index, uint64_t value, bool host)
{
    if (!host && !exists(c, index))
        return MSR_UNKNOWN;
    if (is_lapic(index)) {
        if (c->lapic)
            return lapic_msr_write(c, index, value, host) ? MSR_INVALID : 0;
        if (index != MSR_APIC_BASE)
            return MSR_UNKNOWN;
        c->apic_base = value;
        return 0;
    }
    if (plain(c, index))
        return write_plain(c, index, value, host);
    switch (index) {
    case MSR_TSC: write_tsc(c, value, host); return 0;
    case MSR_UCODE_REV:
        if (host)
            c->ucode_rev = value;
        return 0;
    case MSR_FEATURE_CONTROL:
    case MSR_PLATFORM_INFO:
    case MSR_MTRR_CAP:
    case MSR_ARCH_CAPABILITIES:
    case MSR_MCG_CAP: return host ? 0 : MSR_INVALID;
    case MSR_KVM_POLL_CONTROL: return value <= 1 ? 0 : MSR_INVALID;
    default: break;
    }
    if (index >= MSR_KVM_ASYNC_PF_EN && index <= MSR_KVM_MIGRATION)
        return value == 0 ? 0 : MSR_INVALID; /* not offered in CPUID */
    for (unsigned n = 0; n < ARRAY_SIZE(fixed); n++)
        if (index - fixed[n].index < fixed[n].count)
            return 0;
    return MSR_UNKNOWN;
}

/* ---- accesses that user space wants to answer: KVM_CAP_X86_USER_SPACE_MSR, the filter ---- */

bool msr_denied(const Cpu *c, uint32_t index, bool write)
{
    const Vm *vm = c->vm;
    if (index >= MSR_X2APIC && index <= MSR_X2APIC_END)
        return false; /* never filtered, as in KVM */
    for (uint32_t n = 0; n < vm->msr_range_count; n++)
        if (index - vm->msr_range[n].first < vm->msr_range[n].count &&
            vm->msr_range[n].flags & (write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ))
            return true;
    return false;
}

uint32_t msr_wants_exit(const Cpu *c, uint32_t index, bool write, int result)
{
    uint32_t reason = 0;
    if (result == MSR_UNKNOWN)
        reason = KVM_MSR_EXIT_REASON_UNKNOWN;
    else if (result == MSR_INVALID)
        reason = KVM_MSR_EXIT_REASON_INVAL;
    else if (msr_denied(c, index, write))
        reason = KVM_MSR_EXIT_REASON_FILTER;
    return reason & c->vm->user_msr_reasons;
}

static void exit_for_msr(Cpu *c, const Insn *i, uint32_t index, bool write, uint64_t data, uint32_t reason)
{
    struct kvm_run *r = c->record;
    r->msr.error = 0;
    memset(r->msr.pad, 0, sizeof r->msr.pad);
    r->msr.reason = reason;
    r->msr.index = index;
    r->msr.data = data;
    c->msr_rip = c->rip = i->next_rip - i->len;
    c->msr_next_rip = i->next_rip;
    c->run->msr_pending = true;
    c->run->msr_write = write;
    cpu_exit_after(c, write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR);
}

void msr_complete(Cpu *c)
{
    const struct kvm_run *r = c->record;
    if (c->rip != c->msr_rip) /* user space went on elsewhere */
        return;
    if (r->msr.error)
        raise_error(c, &c->run->boundary[0], EXC_GP, 0);
    if (!c->run->msr_write) { /* the record's reason may be that of a kick by now */
        c->gpr[RAX] = (uint32_t)r->msr.data;
        c->gpr[RDX] = r->msr.data >> 32;
    }
    c->rip = c->msr_next_rip;
}

static const Insn *read_one(Cpu *c, const Insn *i)
{
    CHECK_CPL0();
    uint32_t index = (uint32_t)c->gpr[RCX];
    uint64_t value = 0;
    uint32_t reason = msr_wants_exit(c, index, false, 0);
    if (!reason) {
        if (msr_denied(c, index, false))
            raise_gp0(c, i);
        int result = msr_read(c, index, &value, false);
        reason = msr_wants_exit(c, index, false, result);
        bool served = result == 0;
        if (traced(c, KP_TRACE_MSR) && (served || !reason))
            value = trace_msr(c, i, index, false, value, &served);
        if (served) {
            c->gpr[RAX] = (uint32_t)value;
            c->gpr[RDX] = value >> 32;
            LEAVE();
        }
    }
    if (!reason)
        raise_gp0(c, i);
    exit_for_msr(c, i, index, false, 0, reason);
    return NULL;
}

static const Insn *write_one(Cpu *c, const Insn *i)
{
    CHECK_CPL0();
    uint32_t index = (uint32_t)c->gpr[RCX];
    uint64_t value = (c->gpr[RDX] << 32) | (uint32_t)c->gpr[RAX];
    uint32_t reason = msr_wants_exit(c, index, true, 0);
    if (!reason) {
        if (msr_denied(c, index, true))
            raise_gp0(c, i);
        bool served = true, told = traced(c, KP_TRACE_MSR) && trace_stops_at(c, KP_TRACE_MSR, index);
        if (told)
            value = trace_msr(c, i, index, true, value, &served);
        int result = msr_write(c, index, value, false);
        reason = msr_wants_exit(c, index, true, result);
        served = result == 0;
        if (traced(c, KP_TRACE_MSR) && !told && (served || !reason))
            trace_msr(c, i, index, true, value, &served);
        if (served)
            LEAVE();
    }
    if (!reason)
        raise_gp0(c, i);
    exit_for_msr(c, i, index, true, value, reason);
    return NULL;
}

/* The clocks, and what they tell other vCPUs and chips of, are shared. */
EXEC(read_msr)
{
    bool taken = core_take(c);
    const Insn *next = read_one(c, i);
    core_give(c, taken);
    return next;
}
EXEC(write_msr)
{
    bool taken = core_take(c);
    const Insn *next = write_one(c, i);
    core_give(c, taken);
    return next;
}
ONE(rdmsr, read_msr)
ONE(wrmsr, write_msr)
