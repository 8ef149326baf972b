/* SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS and GS base instructions. SDM 2; AMD APM 3 for its own SYSCALL. */
#include "system.h"

/* Flat segments that these instructions load without reading a descriptor. */
static void flat_cs(Cpu *c, uint16_t sel, unsigned dpl, bool long64)
{
    c->seg[SEG_CS] = (struct kvm_segment){.limit = 0xffffffff, .selector = sel, .type = 0xb, .present = 1, .dpl = (uint8_t)dpl,
                                          .db = !long64, .s = 1, .l = long64, .g = 1};
}

static void flat_ss(Cpu *c, uint16_t sel, unsigned dpl)
{
    c->seg[SEG_SS] = (struct kvm_segment){.limit = 0xffffffff, .selector = sel, .type = 3, .present = 1, .dpl = (uint8_t)dpl,
                                          .db = 1, .s = 1, .g = 1};
}

/* Intel: 64-bit mode alone. AMD: compatibility and legacy protected mode too. */
static void check_syscall(Cpu *c, const Insn *i)
{
    bool there = in_64bit(c) || (cpuid_is_amd(c) && c->cr0 & CR0_PE && !(c->mode & MODE_VM86));
    if (!there || !(c->efer & EFER_SCE))
        raise_ud(c, i);
}

EXEC(system_call)
{
    check_syscall(c, i);
    uint16_t sel = (uint16_t)(c->star >> 32) & 0xfffc;
    if (in_long_mode(c)) {
        uint64_t target = in_64bit(c) ? c->lstar : c->cstar;
        c->gpr[RCX] = i->next_rip;
        c->gpr[R11] = cpu_get_rflags(c) & ~(uint64_t)FL_RF;
        flat_cs(c, sel, 0, true);
        flat_ss(c, (uint16_t)(sel + 8), 0);
        flags_write(c, 0, ((uint32_t)c->sfmask & RFLAGS_ALL) | FL_RF);
        c->rip = target;
    } else {
        c->gpr[RCX] = (uint32_t)i->next_rip;
        flat_cs(c, sel, 0, false);
        flat_ss(c, (uint16_t)(sel + 8), 0);
        flags_write(c, 0, FL_IF | FL_RF | FL_VM);
        c->rip = (uint32_t)c->star;
    }
    cpu_update_privilege(c);
    return NULL;
}
ONE(syscall, system_call)

EXEC(system_return)
{
    check_syscall(c, i);
    if (!(c->cr0 & CR0_PE))
        raise_gp0(c, i);
    CHECK_CPL0();
    bool to64 = i->flags & INSN_REXW;
    uint16_t sel = (uint16_t)(c->star >> 48) & 0xfffc;
    uint64_t rcx = c->gpr[RCX];
    if (to64 && !is_canonical(rcx))
        raise_gp0(c, i);
    flat_cs(c, (uint16_t)((sel + (to64 ? 16 : 0)) | 3), 3, to64);
    flat_ss(c, (uint16_t)((sel + 8) | 3), 3);
    c->rip = to64 ? rcx : (uint32_t)rcx;
    if (in_long_mode(c))
        cpu_set_rflags(c, c->gpr[R11] & 0x3c7fd7);
    else
        flags_write(c, FL_IF, FL_IF);
    cpu_update_privilege(c);
    return NULL;
}
ONE(sysret, system_return)

EXEC(system_enter)
{
    uint16_t sel = (uint16_t)c->sysenter_cs & 0xfffc;
    if (!(c->cr0 & CR0_PE) || sel == 0)
        raise_gp0(c, i);
    bool lma = c->efer & EFER_LMA;
    flags_write(c, 0, FL_VM | FL_IF | FL_RF);
    flat_cs(c, sel, 0, lma);
    flat_ss(c, (uint16_t)(sel + 8), 0);
    c->gpr[RSP] = lma ? c->sysenter_esp : (uint32_t)c->sysenter_esp;
    c->rip = lma ? c->sysenter_eip : (uint32_t)c->sysenter_eip;
    cpu_update_privilege(c);
    return NULL;
}
ONE(sysenter, system_enter)

EXEC(system_exit)
{
    uint16_t sel = (uint16_t)c->sysenter_cs & 0xfffc;
    if (!(c->cr0 & CR0_PE) || sel == 0)
        raise_gp0(c, i);
    CHECK_CPL0();
    bool to64 = i->flags & INSN_REXW;
    uint64_t rip = c->gpr[RDX], rsp = c->gpr[RCX];
    if (to64 && (!is_canonical(rip) || !is_canonical(rsp)))
        raise_gp0(c, i);
    flat_cs(c, (uint16_t)((sel + (to64 ? 32 : 16)) | 3), 3, to64);
    flat_ss(c, (uint16_t)((sel + (to64 ? 40 : 24)) | 3), 3);
    c->rip = to64 ? rip : (uint32_t)rip;
    c->gpr[RSP] = to64 ? rsp : (uint32_t)rsp;
    cpu_update_privilege(c);
    return NULL;
}
ONE(sysexit, system_exit)

EXEC(swap_gs)
{
    CHECK_CPL0();
    uint64_t base = c->seg[SEG_GS].base;
    c->seg[SEG_GS].base = c->seg_base[SEG_GS] = c->kernel_gs_base;
    c->kernel_gs_base = base;
    NEXT();
}
ONE(swapgs, swap_gs)

static void check_fsgsbase(Cpu *c, const Insn *i)
{
    if (!(c->cr4 & CR4_FSGSBASE))
        raise_ud(c, i);
}

static void write_base(Cpu *c, const Insn *i, unsigned seg)
{
    check_fsgsbase(c, i);
    uint64_t base = get_reg(c, i->rm, i->osize);
    if (!is_canonical(base))
        raise_gp0(c, i);
    c->seg[seg].base = c->seg_base[seg] = base;
}

#define BASES(name, seg_) \
    EXEC(read_##name) \
    { \
        check_fsgsbase(c, i); \
        set_reg(c, i->rm, i->osize, c->seg[seg_].base); \
        NEXT(); \
    } \
    EXEC(write_##name) \
    { \
        write_base(c, i, seg_); \
        NEXT(); \
    } \
    ONE(rd##name, read_##name) \
    ONE(wr##name, write_##name)
BASES(fsbase, SEG_FS)
BASES(gsbase, SEG_GS)
