/* INT n, INT3, INTO, INT1 and IRET in all modes. SDM 2 INT n, IRET; SDM 3A chapter 20 (virtual 8086), 20.3 (VME). */
#include "system.h"

/* VME: does this software interrupt of virtual 8086 mode go to the program's own interrupt table? The bitmap of 32 bytes ends
   where the I/O permission bitmap begins. */
static bool vme_redirects(Cpu *c, const Insn *i, unsigned vector)
{
    const struct kvm_segment *tr = &c->seg[SEG_TR];
    if (!(c->cr4 & CR4_VME) || !(tr->type & 8) || tr->limit < 0x67)
        return false;
    uint32_t at = (uint32_t)sys_read(c, i, tr->base + 0x66, 2) - 32 + vector / 8;
    if (at > tr->limit)
        return false;
    return !(sys_read(c, i, tr->base + at, 1) >> (vector & 7) & 1);
}

/* FLAGS of virtual 8086 mode as a program with IOPL < 3 sees them: IF is VIF, IOPL is 3. */
static uint32_t vme_flags(Cpu *c)
{
    uint32_t flags = (uint32_t)cpu_get_rflags(c);
    if (flags_iopl(c) == 3)
        return flags;
    return (flags & ~FL_IF) | FL_IOPL | (c->eflags & FL_VIF ? FL_IF : 0);
}

static void int_vme(Cpu *c, const Insn *i, unsigned vector)
{
    uint32_t target = read32_linear(c, i, SEG_DS, vector * 4);
    Stack s = stack_current(c, i);
    stack_push(&s, 2, vme_flags(c));
    stack_push(&s, 2, c->seg[SEG_CS].selector);
    stack_push(&s, 2, i->next_rip);
    stack_commit(&s);
    flags_write(c, 0, FL_TF | FL_NT | (flags_iopl(c) == 3 ? FL_IF : FL_VIF));
    seg_set_real(c, SEG_CS, (uint16_t)(target >> 16));
    c->rip = target & 0xffff;
    cpu_update_mode(c);
}

EXEC(int_n)
{
    unsigned vector = i->imm & 0xff;
    if (c->mode & MODE_VM86) {
        if (vme_redirects(c, i, vector)) {
            int_vme(c, i, vector);
            return NULL;
        }
        if (flags_iopl(c) < 3)
            raise_gp0(c, i);
    }
    deliver_event(c, i, (int)vector, EVENT_SOFT_INT, false, 0, i->next_rip);
    return NULL;
}

EXEC(int_3)
{
    deliver_event(c, i, EXC_BP, EVENT_SOFT_INT, false, 0, i->next_rip);
    return NULL;
}

EXEC(int_1)
{
    deliver_event(c, i, EXC_DB, EVENT_ICEBP, false, 0, i->next_rip);
    return NULL;
}

EXEC(int_o)
{
    if (!cc_of(c))
        LEAVE();
    deliver_event(c, i, EXC_OF, EVENT_SOFT_INT, false, 0, i->next_rip);
    return NULL;
}
ONE(int_Ib, int_n)
ONE(int3, int_3)
ONE(int1, int_1)
ONE(into, int_o)

/* ---- IRET ---- */

#define IRET_FLAGS (FL_OSZAPC | FL_TF | FL_DF | FL_NT)

static void iret_real(Cpu *c, const Insn *i)
{
    bool vm86 = c->mode & MODE_VM86, vme = false;
    if (vm86 && flags_iopl(c) < 3) {
        vme = c->cr4 & CR4_VME && i->osize == 2;
        if (!vme)
            raise_gp0(c, i);
    }
    Stack s = stack_current(c, i);
    uint64_t ip = stack_pop(&s, i->osize);
    uint16_t sel = (uint16_t)stack_pop(&s, i->osize);
    uint32_t flags = (uint32_t)stack_pop(&s, i->osize);
    if (ip > c->seg[SEG_CS].limit)
        raise_gp0(c, i);
    uint32_t mask = IRET_FLAGS | FL_IF | FL_IOPL;
    if (i->osize == 4)
        mask |= FL_RF | FL_AC | FL_ID;
    if (vm86)
        mask &= ~FL_IOPL;
    if (vme) {
        if (flags & FL_TF || (flags & FL_IF && c->eflags & FL_VIP))
            raise_gp0(c, i);
        mask = (mask & ~FL_IF) | FL_VIF;
        flags = (flags & ~FL_VIF) | (flags & FL_IF ? FL_VIF : 0);
    }
    stack_commit(&s);
    seg_set_real(c, SEG_CS, sel);
    c->rip = ip;
    flags_write(c, flags, mask);
    cpu_update_mode(c);
}

static void iret_to_vm86(Cpu *c, Stack *s, uint64_t ip, uint16_t cs, uint32_t flags)
{
    static const uint8_t order[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    uint64_t sp = stack_pop(s, 4);
    uint16_t sel[6];
    sel[SEG_CS] = cs;
    sel[SEG_SS] = (uint16_t)stack_pop(s, 4);
    for (unsigned n = 0; n < ARRAY_SIZE(order); n++)
        sel[order[n]] = (uint16_t)stack_pop(s, 4);
    cpu_set_rflags(c, flags);
    cpu_update_mode(c); /* virtual 8086 mode from here on */
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
        seg_set_real(c, seg, sel[seg]);
    c->gpr[RSP] = (uint32_t)sp;
    c->rip = ip & 0xffff;
    cpu_update_mode(c);
}

static void iret_protected(Cpu *c, const Insn *i)
{
    bool long_mode = in_long_mode(c);
    if (c->eflags & FL_NT) {
        if (long_mode)
            raise_gp0(c, i);
        uint16_t link = (uint16_t)sys_read(c, i, c->seg[SEG_TR].base, 2);
        task_switch_gate(c, i, TASK_IRET, link, i->next_rip, false, 0, 0);
        return;
    }
    Stack s = stack_current(c, i);
    unsigned size = i->osize;
    uint64_t ip = stack_pop(&s, size);
    uint16_t sel = (uint16_t)stack_pop(&s, size);
    uint32_t flags = (uint32_t)stack_pop(&s, size);
    if (flags & FL_VM && size == 4 && !long_mode && c->cpl == 0) {
        if (ip > 0xffff)
            raise_gp0(c, i);
        iret_to_vm86(c, &s, ip, sel, flags);
        return;
    }
    Desc cs;
    far_return_check(c, i, sel, &ip, &cs);
    bool new_stack = in_64bit(c) || SEL_RPL(sel) > c->cpl;
    uint64_t sp = 0;
    uint16_t ss = 0;
    if (new_stack) {
        sp = stack_pop(&s, size);
        ss = (uint16_t)stack_pop(&s, size);
    }
    uint32_t mask = IRET_FLAGS;
    if (size > 2)
        mask |= FL_RF | FL_AC | FL_ID;
    if (c->cpl <= flags_iopl(c))
        mask |= FL_IF;
    if (c->cpl == 0)
        mask |= FL_IOPL | (size > 2 ? FL_VIF | FL_VIP : 0);
    desc_set_accessed(c, i, &cs);
    if (!new_stack)
        stack_commit(&s);
    far_return_enter(c, i, sel, &cs, ip, new_stack, ss, sp, 0);
    flags_write(c, flags, mask);
}

EXEC(int_return)
{
    if (c->mode & MODE_PROT)
        iret_protected(c, i);
    else
        iret_real(c, i);
    c->nmi_masked = false;
    if (c->nmi_pending)
        c->attention = 1;
    return NULL;
}
ONE(iret, int_return)
