/* Instructions on segment registers and descriptor tables. SDM 2 MOV, POP, LDS, LAR, LSL, VERR, ARPL, LLDT, LTR, LGDT. */
#include "system.h"

/* Loads the register and what depends on it; MOV SS and POP SS hold interrupts and traps off for one instruction. */
static void load_sreg(Cpu *c, const Insn *i, unsigned seg, uint16_t sel)
{
    seg_load(c, i, seg, sel);
    cpu_update_mode(c);
    if (seg == SEG_SS)
        c->shadow = 2;
}

EXEC(mov_to_sreg_r)
{
    if (i->reg == SEG_CS || i->reg > SEG_GS)
        raise_ud(c, i);
    load_sreg(c, i, i->reg, (uint16_t)c->gpr[i->rm]);
    LEAVE();
}
EXEC(mov_to_sreg_m)
{
    if (i->reg == SEG_CS || i->reg > SEG_GS)
        raise_ud(c, i);
    load_sreg(c, i, i->reg, load16(c, i));
    LEAVE();
}
REG_MEM(mov_SwEw, mov_to_sreg_r, mov_to_sreg_m)

EXEC_VOID(mov_from_sreg_r)
{
    if (i->reg > SEG_GS)
        raise_ud(c, i);
    set_reg(c, i->rm, i->osize, c->seg[i->reg].selector);
}
EXEC_VOID(mov_from_sreg_m)
{
    if (i->reg > SEG_GS)
        raise_ud(c, i);
    store16(c, i, c->seg[i->reg].selector);
}
REG_MEM(mov_EvSw, mov_from_sreg_r, mov_from_sreg_m)

static void pop_sreg(Cpu *c, const Insn *i, unsigned seg)
{
    Stack s = stack_current(c, i);
    uint16_t sel = (uint16_t)stack_pop(&s, i->osize);
    seg_load(c, i, seg, sel);
    stack_commit(&s);
    cpu_update_mode(c);
    if (seg == SEG_SS)
        c->shadow = 2;
}

#define PUSH(name, seg_) \
    EXEC(push_to_##name) \
    { \
        mem_push(c, i, i->osize, c->seg[seg_].selector); \
        NEXT(); \
    } \
    ONE(push_##name, push_to_##name)
#define POP(name, seg_) \
    EXEC(pop_to_##name) \
    { \
        pop_sreg(c, i, seg_); \
        LEAVE(); \
    } \
    ONE(pop_##name, pop_to_##name)
PUSH(ES, SEG_ES)
PUSH(CS, SEG_CS)
PUSH(SS, SEG_SS)
PUSH(DS, SEG_DS)
PUSH(FS, SEG_FS)
PUSH(GS, SEG_GS)
POP(ES, SEG_ES)
POP(SS, SEG_SS)
POP(DS, SEG_DS)
POP(FS, SEG_FS)
POP(GS, SEG_GS)

static const Insn *load_far(Cpu *c, const Insn *i, unsigned seg)
{
    uint64_t at = mem_offset(c, i);
    uint64_t offset = i->osize == 8   ? read64(c, i, i->seg, at)
                      : i->osize == 4 ? read32(c, i, i->seg, at)
                                      : read16(c, i, i->seg, at);
    uint16_t sel = read16(c, i, i->seg, (at + i->osize) & i->amask);
    load_sreg(c, i, seg, sel);
    c->shadow = 0; /* LSS changes RSP itself and inhibits nothing */
    set_reg(c, i->reg, i->osize, offset);
    LEAVE();
}
EXEC(load_ds) { return load_far(c, i, SEG_DS); }
EXEC(load_es) { return load_far(c, i, SEG_ES); }
EXEC(load_ss) { return load_far(c, i, SEG_SS); }
EXEC(load_fs) { return load_far(c, i, SEG_FS); }
EXEC(load_gs) { return load_far(c, i, SEG_GS); }
ONE(lds, load_ds)
ONE(les, load_es)
ONE(lss, load_ss)
ONE(lfs, load_fs)
ONE(lgs, load_gs)

/* ---- questions about descriptors: answered in ZF, never a fault of their own ---- */

static uint16_t selector_operand(Cpu *c, const Insn *i)
{
    return i->flags & INSN_MEM ? load16(c, i) : (uint16_t)c->gpr[i->rm];
}

/* The descriptor, where this privilege may see it. */
static bool visible(Cpu *c, const Insn *i, uint16_t sel, Desc *d)
{
    if (SEL_NULL(sel) || !desc_find(c, i, sel, false, d))
        return false;
    if (DESC_IS_CODE(d) && DESC_IS_CONFORMING(d))
        return true;
    return DESC_DPL(d) >= c->cpl && DESC_DPL(d) >= SEL_RPL(sel);
}

static bool system_type_in(const Desc *d, uint32_t types) { return types >> DESC_TYPE(d) & 1; }

EXEC_VOID(load_rights)
{
    Desc d;
    bool ok = visible(c, i, selector_operand(c, i), &d);
    if (ok && !DESC_S(&d))
        ok = system_type_in(&d, in_long_mode(c) ? 0x1a04 : 0x1a3e);
    if (ok)
        set_reg(c, i->reg, i->osize, d.low >> 32 & (i->osize == 2 ? 0xff00 : 0xffff00));
    cc_change(c, FL_ZF, ok ? FL_ZF : 0);
}
ONE(lar, load_rights)

EXEC_VOID(load_limit)
{
    Desc d;
    bool ok = visible(c, i, selector_operand(c, i), &d);
    if (ok && !DESC_S(&d))
        ok = system_type_in(&d, in_long_mode(c) ? 0x0a04 : 0x0a0e);
    if (ok) {
        struct kvm_segment s;
        seg_from_desc(&s, 0, &d);
        set_reg(c, i->reg, i->osize, s.limit);
    }
    cc_change(c, FL_ZF, ok ? FL_ZF : 0);
}
ONE(lsl, load_limit)

EXEC_VOID(verify_read)
{
    Desc d;
    bool ok = visible(c, i, selector_operand(c, i), &d) && DESC_S(&d) && (!DESC_IS_CODE(&d) || DESC_TYPE(&d) & 2);
    cc_change(c, FL_ZF, ok ? FL_ZF : 0);
}
EXEC_VOID(verify_write)
{
    Desc d;
    bool ok = visible(c, i, selector_operand(c, i), &d) && DESC_IS_WRITABLE(&d);
    cc_change(c, FL_ZF, ok ? FL_ZF : 0);
}
ONE(verr, verify_read)
ONE(verw, verify_write)

EXEC_VOID(adjust_rpl_r)
{
    uint16_t dst = (uint16_t)c->gpr[i->rm], src = (uint16_t)c->gpr[i->reg];
    bool raise = SEL_RPL(dst) < SEL_RPL(src);
    if (raise)
        set_reg(c, i->rm, 2, (dst & ~3u) | SEL_RPL(src));
    cc_change(c, FL_ZF, raise ? FL_ZF : 0);
}
EXEC_VOID(adjust_rpl_m)
{
    uint16_t dst = load16(c, i), src = (uint16_t)c->gpr[i->reg];
    bool raise = SEL_RPL(dst) < SEL_RPL(src);
    if (raise) /* else the operand is only read */
        store16(c, i, (uint16_t)((dst & ~3u) | SEL_RPL(src)));
    cc_change(c, FL_ZF, raise ? FL_ZF : 0);
}
REG_MEM(arpl, adjust_rpl_r, adjust_rpl_m)

/* ---- LDTR, TR ---- */

static void check_umip(Cpu *c, const Insn *i)
{
    if (c->cr4 & CR4_UMIP && c->cpl != 0)
        raise_gp0(c, i);
}

/* Reads the descriptor of an LDT or TSS for LLDT and LTR. types: bit mask of the system types that will do. */
static void read_system(Cpu *c, const Insn *i, uint16_t sel, uint32_t types, Desc *d, struct kvm_segment *s)
{
    if (sel & SEL_LDT)
        raise_error(c, i, EXC_GP, SEL_ERROR(sel));
    desc_read(c, i, sel, in_long_mode(c), EXC_GP, 0, d);
    if (DESC_S(d) || !system_type_in(d, types))
        raise_error(c, i, EXC_GP, SEL_ERROR(sel));
    if (!DESC_P(d))
        raise_error(c, i, EXC_NP, SEL_ERROR(sel));
    seg_from_desc(s, sel, d);
    if (in_long_mode(c) && (!is_canonical(s->base) || d->high >> 40 & 0x1f))
        raise_error(c, i, EXC_GP, SEL_ERROR(sel));
}

EXEC_VOID(load_ldt)
{
    CHECK_CPL0();
    uint16_t sel = selector_operand(c, i);
    struct kvm_segment s = {.selector = sel, .unusable = 1, .type = TYPE_LDT};
    Desc d;
    if (!SEL_NULL(sel))
        read_system(c, i, sel, 1 << TYPE_LDT, &d, &s);
    c->seg[SEG_LDTR] = s;
}
ONE(lldt, load_ldt)

EXEC(load_tr)
{
    CHECK_CPL0();
    uint16_t sel = selector_operand(c, i);
    struct kvm_segment s;
    Desc d;
    if (SEL_NULL(sel))
        raise_gp0(c, i);
    read_system(c, i, sel, in_long_mode(c) ? 1 << TYPE_TSS32 : 1 << TYPE_TSS16 | 1 << TYPE_TSS32, &d, &s);
    desc_set_busy(c, i, &d, true);
    s.type |= 2;
    c->seg[SEG_TR] = s;
    cpu_update_mode(c);
    LEAVE();
}
ONE(ltr, load_tr)

#define STORE_SELECTOR(id, seg_) \
    EXEC(store_##id##_r) \
    { \
        check_umip(c, i); \
        set_reg(c, i->rm, i->osize, c->seg[seg_].selector); \
        NEXT(); \
    } \
    EXEC(store_##id##_m) \
    { \
        check_umip(c, i); \
        store16(c, i, c->seg[seg_].selector); \
        NEXT(); \
    } \
    REG_MEM(id, store_##id##_r, store_##id##_m)
STORE_SELECTOR(sldt, SEG_LDTR)
STORE_SELECTOR(str, SEG_TR)

/* ---- GDTR, IDTR ---- */

static void load_table(Cpu *c, const Insn *i, struct kvm_dtable *t)
{
    CHECK_CPL0();
    uint64_t at = mem_offset(c, i), base;
    uint16_t limit = read16(c, i, i->seg, at);
    at = (at + 2) & i->amask;
    if (in_64bit(c)) {
        base = read64(c, i, i->seg, at);
        if (!is_canonical(base))
            raise_gp0(c, i);
    } else {
        base = read32(c, i, i->seg, at);
        if (i->osize == 2)
            base &= 0xffffff;
    }
    *t = (struct kvm_dtable){.base = base, .limit = limit};
}

static void store_table(Cpu *c, const Insn *i, const struct kvm_dtable *t)
{
    check_umip(c, i);
    uint8_t image[10];
    unsigned size = in_64bit(c) ? 10 : 6;
    memcpy(image, &t->limit, 2);
    memcpy(image + 2, &t->base, 8);
    uint64_t linear = mem_linear(c, i, i->seg, mem_offset(c, i), size, true);
    mem_write_bytes(c, i, i->seg, linear, image, size);
}

EXEC(load_gdt) { load_table(c, i, &c->gdt); NEXT(); }
EXEC(load_idt) { load_table(c, i, &c->idt); NEXT(); }
EXEC(store_gdt) { store_table(c, i, &c->gdt); NEXT(); }
EXEC(store_idt) { store_table(c, i, &c->idt); NEXT(); }
ONE(lgdt, load_gdt)
ONE(lidt, load_idt)
ONE(sgdt, store_gdt)
ONE(sidt, store_idt)
