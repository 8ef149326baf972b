/* Hardware task switches. SDM 3A chapter 8 (task management). */
#include "run.h"
#include "system.h"

/* Offsets in a TSS of either kind; FS and GS, CR3 and the T bit are in the 32-bit one alone. */
enum { TSS32_CR3 = 0x1c, TSS32_EIP = 0x20, TSS32_EAX = 0x28, TSS32_ES = 0x48, TSS32_LDT = 0x60, TSS32_T = 0x64,
       TSS16_IP = 0x0e, TSS16_AX = 0x12, TSS16_ES = 0x22, TSS16_LDT = 0x2a };

/* What a TSS loads. */
typedef struct {
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t seg[6], ldt;
    bool trap;
} Task;

static void read_task(Cpu *c, const Insn *i, uint64_t base, bool wide, Task *t)
{
    *t = (Task){0};
    if (wide) {
        t->cr3 = (uint32_t)sys_read(c, i, base + TSS32_CR3, 4);
        t->eip = (uint32_t)sys_read(c, i, base + TSS32_EIP, 4);
        t->eflags = (uint32_t)sys_read(c, i, base + TSS32_EIP + 4, 4);
        for (unsigned n = 0; n < 8; n++)
            t->gpr[n] = (uint32_t)sys_read(c, i, base + TSS32_EAX + 4 * n, 4);
        for (unsigned n = 0; n < 6; n++)
            t->seg[n] = (uint16_t)sys_read(c, i, base + TSS32_ES + 4 * n, 2);
        t->ldt = (uint16_t)sys_read(c, i, base + TSS32_LDT, 2);
        t->trap = sys_read(c, i, base + TSS32_T, 2) & 1;
    } else {
        t->eip = (uint32_t)sys_read(c, i, base + TSS16_IP, 2);
        t->eflags = (uint32_t)sys_read(c, i, base + TSS16_IP + 2, 2);
        for (unsigned n = 0; n < 8; n++) /* the upper halves get all-ones */
            t->gpr[n] = (uint32_t)sys_read(c, i, base + TSS16_AX + 2 * n, 2) | 0xffff0000;
        for (unsigned n = 0; n < 4; n++)
            t->seg[n] = (uint16_t)sys_read(c, i, base + TSS16_ES + 2 * n, 2);
        t->ldt = (uint16_t)sys_read(c, i, base + TSS16_LDT, 2);
    }
}

static void save_task(Cpu *c, const Insn *i, uint64_t base, bool wide, uint64_t eip, uint64_t eflags)
{
    unsigned size = wide ? 4 : 2, at = wide ? TSS32_EIP : TSS16_IP;
    sys_write(c, i, base + at, size, eip);
    sys_write(c, i, base + at + size, size, eflags);
    at += 2 * size;
    for (unsigned n = 0; n < 8; n++)
        sys_write(c, i, base + at + n * size, size, c->gpr[n]);
    at += 8 * size;
    for (unsigned n = 0; n < (wide ? 6u : 4u); n++)
        sys_write(c, i, base + at + n * size, 2, c->seg[n].selector);
}

/* ---- the new task's segments: faults from here on belong to it ---- */

static void load_ldt(Cpu *c, const Insn *i, uint16_t sel, uint32_t ext)
{
    struct kvm_segment *ldt = &c->seg[SEG_LDTR];
    *ldt = (struct kvm_segment){.selector = sel, .unusable = 1, .type = TYPE_LDT};
    if (SEL_NULL(sel))
        return;
    Desc d;
    if (sel & SEL_LDT || !desc_find(c, i, sel, false, &d) || DESC_S(&d) || DESC_TYPE(&d) != TYPE_LDT || !DESC_P(&d))
        raise_error(c, i, EXC_TS, SEL_ERROR(sel) | ext);
    seg_from_desc(ldt, sel, &d);
}

static void load_code(Cpu *c, const Insn *i, uint16_t sel, uint32_t ext)
{
    Desc d;
    if (SEL_NULL(sel))
        raise_error(c, i, EXC_TS, ext);
    desc_read(c, i, sel, false, EXC_TS, ext, &d);
    bool bad = !DESC_IS_CODE(&d);
    if (!bad)
        bad = DESC_IS_CONFORMING(&d) ? DESC_DPL(&d) > SEL_RPL(sel) : DESC_DPL(&d) != SEL_RPL(sel);
    if (bad)
        raise_error(c, i, EXC_TS, SEL_ERROR(sel) | ext);
    if (!DESC_P(&d))
        raise_error(c, i, EXC_NP, SEL_ERROR(sel) | ext);
    desc_set_accessed(c, i, &d);
    seg_from_desc(&c->seg[SEG_CS], sel, &d);
}

static void load_stack(Cpu *c, const Insn *i, uint16_t sel, unsigned cpl, uint32_t ext)
{
    Desc d;
    seg_check_stack(c, i, sel, cpl, EXC_TS, ext, &d);
    desc_set_accessed(c, i, &d);
    seg_from_desc(&c->seg[SEG_SS], sel, &d);
}

static void load_data(Cpu *c, const Insn *i, unsigned seg, uint16_t sel, unsigned cpl, uint32_t ext)
{
    if (SEL_NULL(sel))
        return;
    Desc d;
    desc_read(c, i, sel, false, EXC_TS, ext, &d);
    bool code = DESC_IS_CODE(&d), bad = !DESC_S(&d) || (code && !(DESC_TYPE(&d) & 2));
    if (!(code && DESC_IS_CONFORMING(&d)))
        bad |= SEL_RPL(sel) > DESC_DPL(&d) || cpl > DESC_DPL(&d);
    if (bad)
        raise_error(c, i, EXC_TS, SEL_ERROR(sel) | ext);
    if (!DESC_P(&d))
        raise_error(c, i, EXC_NP, SEL_ERROR(sel) | ext);
    desc_set_accessed(c, i, &d);
    seg_from_desc(&c->seg[seg], sel, &d);
}

static void load_segments(Cpu *c, const Insn *i, const Task *t, uint32_t ext)
{
    load_ldt(c, i, t->ldt, ext);
    if (t->eflags & FL_VM)
        return;
    unsigned cpl = SEL_RPL(t->seg[SEG_CS]);
    load_code(c, i, t->seg[SEG_CS], ext);
    load_stack(c, i, t->seg[SEG_SS], cpl, ext);
    cpu_update_mode(c);
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
        if (seg != SEG_CS && seg != SEG_SS)
            load_data(c, i, seg, t->seg[seg], cpl, ext);
}

/* Registers of the new task; its selectors stand in the segment registers, whose hidden parts are not valid yet. */
static void load_registers(Cpu *c, const Task *t, bool wide)
{
    if (wide && c->cr0 & CR0_PG && t->cr3 != c->cr3) {
        c->cr3 = t->cr3;
        if (c->cr4 & CR4_PAE)
            pdptes_load(c, c->cr0, c->cr4, c->cr3);
        tlb_flush_nonglobal(c);
    }
    c->rip = t->eip;
    for (unsigned n = 0; n < 8; n++)
        c->gpr[n] = t->gpr[n];
    bool vm86 = t->eflags & FL_VM;
    uint8_t cpl = vm86 ? 3 : SEL_RPL(t->seg[SEG_CS]);
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++) {
        uint16_t sel = t->seg[seg];
        if (vm86)
            c->seg[seg] = (struct kvm_segment){.base = (uint64_t)sel << 4, .limit = 0xffff, .selector = sel, .type = 3,
                                               .present = 1, .dpl = 3, .s = 1};
        else
            seg_set_null(&c->seg[seg], sel);
    }
    c->seg[SEG_SS].dpl = cpl;
    c->eflags &= ~(uint32_t)FL_VM;
    cpu_set_rflags(c, t->eflags);
    cpu_update_mode(c);
}

/* The TSS descriptor, checked for this kind of switch. */
static void find_tss(Cpu *c, const Insn *i, int how, uint16_t sel, uint32_t ext, Desc *d)
{
    int vector = how == TASK_IRET ? EXC_TS : EXC_GP;
    if (sel & SEL_LDT || SEL_NULL(sel) || !desc_find(c, i, sel, false, d) || DESC_S(d))
        raise_error(c, i, vector, SEL_ERROR(sel) | ext);
    unsigned type = DESC_TYPE(d);
    bool good = how == TASK_IRET ? type == TYPE_TSS16_BUSY || type == TYPE_TSS32_BUSY : type == TYPE_TSS16 || type == TYPE_TSS32;
    if (!good)
        raise_error(c, i, vector, SEL_ERROR(sel) | ext);
    if (!DESC_P(d))
        raise_error(c, i, EXC_NP, SEL_ERROR(sel) | ext);
}

void task_switch_gate(Cpu *c, const Insn *i, int how, uint16_t sel, uint64_t next, bool has_error, uint32_t error, uint32_t ext)
{
    Desc d, old_desc;
    struct kvm_segment tss;
    Task t;
    find_tss(c, i, how, sel, ext, &d);
    seg_from_desc(&tss, sel, &d);
    bool wide = tss.type & 8, old_wide = c->seg[SEG_TR].type & 8, nested = how == TASK_CALL || how == TASK_GATE_INT;
    if (tss.limit < (wide ? 0x67 : 0x2b))
        raise_error(c, i, EXC_TS, SEL_ERROR(sel) | ext);
    const struct kvm_segment *old = &c->seg[SEG_TR];
    read_task(c, i, tss.base, wide, &t);
    bool have_old = desc_find(c, i, old->selector, false, &old_desc);

    uint64_t flags = cpu_get_rflags(c);
    if (how == TASK_IRET)
        flags &= ~(uint64_t)FL_NT;
    save_task(c, i, old->base, old_wide, next, flags);
    if (nested) {
        sys_write(c, i, tss.base, 2, old->selector);
        t.eflags |= FL_NT;
    } else if (have_old) {
        desc_set_busy(c, i, &old_desc, false);
    }
    if (how != TASK_IRET) {
        d.low |= 2ull << 40;
        desc_set_busy(c, i, &d, true);
    }

    /* the new task from here on */
    seg_from_desc(&c->seg[SEG_TR], sel, &d);
    c->cr0 |= CR0_TS;
    c->dr[7] &= ~0x55ull; /* local breakpoints */
    if (!wide && !(t.eflags & FL_VM))
        t.eflags &= 0xffff;
    load_registers(c, &t, wide);
    const Insn *here = &c->run->boundary[0];
    load_segments(c, here, &t, ext);
    if (has_error) {
        Stack s = stack_current(c, here);
        s.error = ext;
        stack_push(&s, wide ? 4 : 2, error);
        stack_commit(&s);
    }
    cpu_update_mode(c);
    if (c->rip > c->seg[SEG_CS].limit)
        raise_error(c, here, EXC_GP, ext);
    if (t.trap) {
        c->pending_debug |= 0x8000; /* DR6.BT */
        c->attention = 1;
    }
}
