/* What follows from a vCPU's registers (mode key, TLB in use, segment bases, FPU denial), its reset state, RFLAGS. */
#include "cpu.h"
#include "chips.h"
#include "flags.h"
#include "fpenv.h"
#include "monitor.h"
#include "insn.h"
#include "system.h"
#include "vm.h"

static bool seg_is_flat(const struct kvm_segment *s)
{
    /* type: 2 read/write data, expand-up, accessed or not */
    return !s->unusable && s->present && s->base == 0 && s->limit == 0xffffffff && (s->type & 0xe) == 2;
}

/* #NM or #UD of the FPU, MMX, SSE and AVX instructions by the control registers (SDM 3A tables 2-2, 14-3). */
static void update_denials(Cpu *c)
{
    bool em = c->cr0 & CR0_EM, ts = c->cr0 & CR0_TS;
    c->deny_x87 = em || ts ? EXC_NM : EXC_NONE;
    c->deny_mmx = em ? EXC_UD : ts ? EXC_NM : EXC_NONE;
    c->deny_sse = em || !(c->cr4 & CR4_OSFXSR) ? EXC_UD : ts ? EXC_NM : EXC_NONE;
    bool avx = c->cr4 & CR4_OSXSAVE && (c->xcr0 & 6) == 6 && c->cr0 & CR0_PE && !(c->eflags & FL_VM);
    c->deny_avx = !avx ? EXC_UD : ts ? EXC_NM : EXC_NONE;
    fp_update_trap(c);
}

void cpu_update_mode(Cpu *c)
{
    bool pe = c->cr0 & CR0_PE, vm86 = pe && c->eflags & FL_VM, lma = c->efer & EFER_LMA;
    const struct kvm_segment *cs = &c->seg[SEG_CS], *ss = &c->seg[SEG_SS];
    bool long64 = lma && cs->l && !vm86;
    c->cpl = !pe ? 0 : vm86 ? 3 : ss->dpl; /* SS.DPL is CPL in protected mode, as in KVM */

    uint32_t mode = long64 ? MODE_64 : vm86 ? MODE_16 : cs->db ? MODE_32 : MODE_16;
    if (lma)
        mode |= MODE_LONG;
    if (vm86)
        mode |= MODE_VM86;
    else if (pe)
        mode |= MODE_PROT;
    if (c->cpl == 3)
        mode |= MODE_USER;
    if (long64 || (seg_is_flat(ss) && seg_is_flat(&c->seg[SEG_DS]) && seg_is_flat(&c->seg[SEG_ES])))
        mode |= MODE_FLAT;
    if (!long64 && !vm86 && ss->db)
        mode |= MODE_SS32;
    if (!long64 && cs->limit != 0xffffffff)
        mode |= (cs->limit >> 20 ? cs->limit >> 12 | MODE_LIMIT_PAGES : cs->limit) << MODE_LIMIT_SHIFT;
    c->mode = mode;
    cpu_update_tlb(c);

    for (unsigned s = 0; s < SEG_COUNT; s++)
        c->seg_base[s] = c->seg[s].base;
    if (long64)
        c->seg_base[SEG_ES] = c->seg_base[SEG_CS] = c->seg_base[SEG_SS] = c->seg_base[SEG_DS] = 0;
    uint64_t *code_base = &c->code_base[c->cpl == 3 ? CODE_USER : CODE_SUPERVISOR];
    if (*code_base != c->seg_base[SEG_CS]) { /* the same RIP is other code now: what finds blocks by RIP alone must not */
        *code_base = c->seg_base[SEG_CS];
        tlb_code_moved(c);
    }
    update_denials(c);
}

void cpu_update_privilege(Cpu *c)
{
    if (!in_64bit(c) || !c->seg[SEG_CS].l || c->eflags & FL_VM) {
        cpu_update_mode(c);
        return;
    }
    c->cpl = c->seg[SEG_SS].dpl;
    c->mode = c->cpl == 3 ? c->mode | MODE_USER : c->mode & ~MODE_USER;
    cpu_update_tlb(c);
}

void cpu_update_tlb(Cpu *c)
{
    bool user = c->cpl == 3, ac = c->eflags & FL_AC && (user ? c->cr0 & CR0_AM : c->cr4 & CR4_SMAP);
    c->mode = ac ? c->mode | MODE_AC : c->mode & ~MODE_AC;
    if (user)
        c->tlb = ac ? c->tlb_slow : c->tlb_user;
    else
        c->tlb = ac ? c->tlb_super_ac : c->tlb_super;
    c->tlb_generation = c->generation[user ? CODE_USER : CODE_SUPERVISOR];
}

uint64_t cpu_get_rflags(Cpu *c) { return (c->eflags & ~FL_OSZAPC) | cc_flags(c) | 2; }

void cpu_set_rflags(Cpu *c, uint64_t rflags)
{
    uint32_t before = c->eflags;
    c->eflags = ((uint32_t)rflags & RFLAGS_ALL & ~FL_OSZAPC) | 2;
    cc_explicit(c, rflags);
    if ((before ^ c->eflags) & (FL_VM | FL_AC))
        cpu_update_mode(c);
}

static void reset_segments(Cpu *c)
{
    for (unsigned s = 0; s < SEG_COUNT; s++)
        c->seg[s] = (struct kvm_segment){.limit = 0xffff, .type = 3, .present = 1, .s = 1};
    c->seg[SEG_CS].selector = 0xf000;
    c->seg[SEG_CS].base = 0xffff0000;
    c->seg[SEG_CS].type = 0xb;
    c->seg[SEG_LDTR].type = 2;
    c->seg[SEG_LDTR].s = 0;
    c->seg[SEG_TR].type = 0xb;
    c->seg[SEG_TR].s = 0;
    c->gdt = c->idt = (struct kvm_dtable){.limit = 0xffff};
}

/* What INIT keeps: x87, vector and MTRR state, most MSRs, CD and NW. */
static void reset_power_on(Cpu *c)
{
    memset(c->ymm, 0, sizeof c->ymm);
    memset(&c->x87, 0, sizeof c->x87);
    /* as after FNINIT, which is what KVM gives; the manual's 0x40 at power-on is never met behind firmware */
    c->x87.control = 0x37f;
    mxcsr_write(c, MXCSR_RESET);
    c->xcr0 = 1;
    c->xss = 0;
    c->star = c->lstar = c->cstar = c->sfmask = c->kernel_gs_base = 0;
    c->sysenter_cs = c->sysenter_esp = c->sysenter_eip = 0;
    c->pat = 0x0007040600070406;
    c->tsc_aux = c->tsc_adjust = c->tsc_deadline = 0;
    c->misc_enable = 0x1801; /* fast strings; no branch trace store, no PEBS */
    c->mtrr_def = 0;
    memset(c->mtrr_fixed, 0, sizeof c->mtrr_fixed);
    memset(c->mtrr_var, 0, sizeof c->mtrr_var);
    c->mcg_status = c->kvmclock_msr = c->wallclock_msr = 0;
    c->ucode_rev = 0x100000000;
    c->apic_base = 0xfee00800 | (c->index == 0 ? 0x100 : 0);
    c->a20_mask = ~0ull;
    c->queued_interrupt = -1;
    c->nmi_pending = false;
}

void cpu_reset(Cpu *c, bool init)
{
    uint64_t cache_bits = c->cr0 & (CR0_CD | CR0_NW);
    memset(c->gpr, 0, sizeof c->gpr);
    if (!init)
        reset_power_on(c);
    uint32_t signature[4];
    cpuid_read(c, 1, 0, signature);
    c->gpr[RDX] = signature[0] ? signature[0] : 0x600;
    c->rip = 0xfff0;
    c->eflags = 2;
    cc_explicit(c, 0);
    reset_segments(c);
    c->cr0 = CR0_ET | (init ? cache_bits : CR0_CD | CR0_NW);
    c->cr2 = c->cr3 = c->cr4 = c->cr8 = c->efer = 0;
    memset(c->pdpte, 0, sizeof c->pdpte);
    memset(c->dr, 0, sizeof c->dr);
    c->dr[6] = 0xffff0ff0;
    c->dr[7] = 0x400;
    memset(&c->events, 0, sizeof c->events);
    c->shadow = 0;
    monitor_disarm(c);
    c->halted = c->nmi_masked = c->init_pending = false;
    if (!init) /* a SIPI may have followed the INIT already */
        c->sipi_pending = false;
    c->wait_sipi = c->lapic && c->index != 0;
    c->pending_debug = 0;
    c->resume_linear = c->told_linear = NEVER;
    if (!c->a20_mask)
        c->a20_mask = ~0ull;
    if (c->lapic)
        lapic_reset(c, init);
    tlb_flush_all(c);
    cpu_update_mode(c);
    cpu_attention(c);
}
