/* Instructions that move RFLAGS or its interrupt flag: PUSHF, POPF, CLI, STI, CLAC, STAC. SDM 2. */
#include "block.h"
#include "system.h"

void flags_write(Cpu *c, uint32_t value, uint32_t mask)
{
    uint32_t before = c->eflags, system = mask & ~FL_OSZAPC;
    c->eflags = (before & ~system) | (value & system) | 2;
    if (mask & FL_OSZAPC)
        cc_change(c, mask & FL_OSZAPC, value);
    if ((before ^ c->eflags) & FL_AC)
        cpu_update_tlb(c);
}

/* What holds for IF: CLI and STI change IF, or VIF (VME, PVI), or are #GP(0). */
enum { IF_REAL, IF_VIRTUAL };
static int if_kind(Cpu *c, const Insn *i)
{
    if (in_real_mode(c) || c->cpl <= flags_iopl(c))
        return IF_REAL;
    bool vm86 = c->mode & MODE_VM86;
    if (vm86 ? c->cr4 & CR4_VME : c->cr4 & CR4_PVI && c->cpl == 3)
        return IF_VIRTUAL;
    raise_gp0(c, i);
}

EXEC(clear_if)
{
    c->eflags &= if_kind(c, i) == IF_REAL ? ~FL_IF : ~FL_VIF;
    NEXT();
}

EXEC(set_if)
{
    if (if_kind(c, i) == IF_REAL) {
        if (!(c->eflags & FL_IF))
            c->shadow = 1;
        c->eflags |= FL_IF;
    } else {
        if (c->eflags & FL_VIP)
            raise_gp0(c, i);
        c->eflags |= FL_VIF;
    }
    LEAVE();
}
ONE(cli, clear_if)
ONE(sti, set_if)

/* #UD rather than #GP where CPL is not 0. */
EXEC(clear_ac)
{
    if (c->cpl != 0 || c->mode & MODE_VM86)
        raise_ud(c, i);
    flags_write(c, 0, FL_AC);
    LEAVE();
}

EXEC(set_ac)
{
    if (c->cpl != 0 || c->mode & MODE_VM86)
        raise_ud(c, i);
    flags_write(c, FL_AC, FL_AC);
    LEAVE();
}
ONE(clac, clear_ac)
ONE(stac, set_ac)

/* Virtual 8086 mode with IOPL < 3: PUSHF and POPF work on VIF (VME, 16 bits), or are #GP(0). */
static bool vme_flags(Cpu *c, const Insn *i)
{
    if (!(c->mode & MODE_VM86) || flags_iopl(c) == 3)
        return false;
    if (!(c->cr4 & CR4_VME) || i->osize != 2)
        raise_gp0(c, i);
    return true;
}

EXEC(push_flags)
{
    uint64_t flags = cpu_get_rflags(c) & ~(uint64_t)(FL_VM | FL_RF);
    if (vme_flags(c, i))
        flags = (flags & ~(uint64_t)FL_IF) | FL_IOPL | (c->eflags & FL_VIF ? FL_IF : 0);
    mem_push(c, i, i->osize, flags);
    NEXT();
}

EXEC(pop_flags)
{
    uint32_t mask = FL_OSZAPC | FL_TF | FL_DF | FL_NT;
    bool vme = vme_flags(c, i);
    Stack s = stack_current(c, i);
    uint32_t flags = (uint32_t)stack_pop(&s, i->osize);
    if (vme) {
        if (flags & FL_TF || (flags & FL_IF && c->eflags & FL_VIP))
            raise_gp0(c, i);
        mask |= FL_VIF;
        flags = (flags & ~FL_VIF) | (flags & FL_IF ? FL_VIF : 0);
    } else {
        if (c->cpl <= flags_iopl(c))
            mask |= FL_IF;
        if (c->cpl == 0)
            mask |= FL_IOPL;
        if (i->osize > 2)
            mask |= FL_AC | FL_ID | FL_RF;
    }
    stack_commit(&s);
    flags_write(c, flags & ~FL_RF, mask);
    LEAVE();
}
ONE(pushf, push_flags)
ONE(popf, pop_flags)
