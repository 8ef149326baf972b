/* Far jumps, calls and returns: code segments, call gates, task gates and TSSs. SDM 2 JMP, CALL, RET; SDM 3A 5.8. */
#include "system.h"

/* A far pointer: in the instruction (selector in disp, offset in imm), or in memory. */
typedef struct { uint16_t sel; uint64_t offset; } Far;

static Far far_immediate(const Insn *i)
{
    return (Far){(uint16_t)i->disp, i->osize == 2 ? i->imm & 0xffff : i->imm & 0xffffffff};
}

static Far far_memory(Cpu *c, const Insn *i)
{
    uint64_t at = mem_offset(c, i);
    uint64_t offset = i->osize == 8   ? read64(c, i, i->seg, at)
                      : i->osize == 4 ? read32(c, i, i->seg, at)
                                      : read16(c, i, i->seg, at);
    return (Far){read16(c, i, i->seg, (at + i->osize) & i->amask), offset};
}

/* The offset in the code segment `cs`, or #GP(0) where it is outside. */
static uint64_t check_offset(Cpu *c, const Insn *i, const Desc *cs, uint64_t offset)
{
    struct kvm_segment seg;
    if (in_long_mode(c) && DESC_L(cs)) {
        if (!is_canonical(offset))
            raise_gp0(c, i);
        return offset;
    }
    offset = (uint32_t)offset;
    seg_from_desc(&seg, 0, cs);
    if (offset > seg.limit)
        raise_gp0(c, i);
    return offset;
}

static void check_code_size(Cpu *c, const Insn *i, uint16_t sel, const Desc *cs)
{
    if (in_long_mode(c) && DESC_L(cs) && DESC_DB(cs))
        raise_error(c, i, EXC_GP, SEL_ERROR(sel));
}

/* A code segment reached directly by JMP or CALL: privilege does not change. */
static void check_direct(Cpu *c, const Insn *i, uint16_t sel, const Desc *cs)
{
    bool bad = DESC_IS_CONFORMING(cs) ? DESC_DPL(cs) > c->cpl : SEL_RPL(sel) > c->cpl || DESC_DPL(cs) != c->cpl;
    if (bad)
        raise_error(c, i, EXC_GP, SEL_ERROR(sel));
    check_code_size(c, i, sel, cs);
    if (!DESC_P(cs))
        raise_error(c, i, EXC_NP, SEL_ERROR(sel));
}

static void enter_code(Cpu *c, const Insn *i, uint16_t sel, Desc *cs, unsigned cpl, uint64_t offset)
{
    (void)i;
    seg_set_cs(c, sel, cs, cpl);
    c->rip = offset;
    cpu_update_mode(c);
}

/* A gate or TSS: privilege to use it, presence. */
static void check_gate(Cpu *c, const Insn *i, uint16_t sel, const Desc *d)
{
    if (DESC_DPL(d) < c->cpl || DESC_DPL(d) < SEL_RPL(sel))
        raise_error(c, i, EXC_GP, SEL_ERROR(sel));
    if (!DESC_P(d))
        raise_error(c, i, EXC_NP, SEL_ERROR(sel));
}

/* The code segment that a call gate names, with the offset. */
static uint64_t read_call_gate(Cpu *c, const Insn *i, uint16_t sel, Desc *gate, bool call, uint16_t *code_sel, Desc *cs)
{
    bool long_mode = in_long_mode(c);
    if (long_mode) {
        desc_read(c, i, sel, true, EXC_GP, 0, gate);
        if (gate->high >> 40 & 0x1f)
            raise_error(c, i, EXC_GP, SEL_ERROR(sel));
    }
    check_gate(c, i, sel, gate);
    *code_sel = GATE_SELECTOR(gate);
    if (SEL_NULL(*code_sel))
        raise_gp0(c, i);
    desc_read(c, i, *code_sel, false, EXC_GP, 0, cs);
    bool bad = !DESC_IS_CODE(cs) || DESC_DPL(cs) > c->cpl;
    if (!call && !bad && !DESC_IS_CONFORMING(cs))
        bad = DESC_DPL(cs) != c->cpl;
    if (long_mode)
        bad |= !DESC_L(cs) || DESC_DB(cs);
    if (bad)
        raise_error(c, i, EXC_GP, SEL_ERROR(*code_sel));
    if (!DESC_P(cs))
        raise_error(c, i, EXC_NP, SEL_ERROR(*code_sel));
    uint64_t offset = long_mode ? GATE_OFFSET64(gate) : GATE_OFFSET32(gate);
    if (DESC_TYPE(gate) == TYPE_CALL16)
        offset &= 0xffff;
    return check_offset(c, i, cs, offset);
}

static void call_through_gate(Cpu *c, const Insn *i, uint16_t sel, Desc *gate)
{
    uint16_t code_sel;
    Desc cs, ss_desc;
    uint64_t offset = read_call_gate(c, i, sel, gate, true, &code_sel, &cs);
    bool long_mode = in_long_mode(c);
    unsigned size = long_mode ? 8 : DESC_TYPE(gate) == TYPE_CALL32 ? 4 : 2;
    unsigned cpl = DESC_IS_CONFORMING(&cs) ? c->cpl : DESC_DPL(&cs);
    struct kvm_segment new_ss = c->seg[SEG_SS];
    Stack s;
    if (cpl < c->cpl && long_mode) {
        s = stack_of(c, i, NULL, tss_rsp(c, i, cpl, 0), cpl, 0);
        stack_push(&s, 8, c->seg[SEG_SS].selector);
        stack_push(&s, 8, c->gpr[RSP]);
    } else if (cpl < c->cpl) {
        uint16_t ss;
        uint32_t sp;
        uint64_t parameter[31];
        unsigned count = GATE_PARAMS(gate);
        tss_stack(c, i, cpl, 0, &ss, &sp);
        seg_check_stack(c, i, ss, cpl, EXC_TS, 0, &ss_desc);
        Stack old = stack_current(c, i);
        for (unsigned n = 0; n < count; n++)
            parameter[n] = stack_pop(&old, size);
        desc_set_accessed(c, i, &ss_desc);
        seg_from_desc(&new_ss, ss, &ss_desc);
        s = stack_of(c, i, &new_ss, sp, cpl, SEL_ERROR(ss));
        stack_push(&s, size, c->seg[SEG_SS].selector);
        stack_push(&s, size, c->gpr[RSP]);
        while (count > 0)
            stack_push(&s, size, parameter[--count]);
    } else {
        s = long_mode ? stack_of(c, i, NULL, c->gpr[RSP] & stack_mask(c), cpl, 0) : stack_current(c, i);
    }
    stack_push(&s, size, c->seg[SEG_CS].selector);
    stack_push(&s, size, i->next_rip);
    desc_set_accessed(c, i, &cs);
    if (cpl < c->cpl) {
        if (long_mode)
            seg_set_null_ss(c, cpl);
        else
            c->seg[SEG_SS] = new_ss;
    }
    stack_commit(&s);
    enter_code(c, i, code_sel, &cs, cpl, offset);
}

/* JMP or CALL to selector:offset in protected and long mode. */
static void far_protected(Cpu *c, const Insn *i, Far to, bool call)
{
    Desc d;
    uint16_t sel = to.sel;
    if (SEL_NULL(sel))
        raise_gp0(c, i);
    desc_read(c, i, sel, false, EXC_GP, 0, &d);
    if (DESC_IS_CODE(&d)) {
        check_direct(c, i, sel, &d);
        uint64_t offset = check_offset(c, i, &d, to.offset);
        Stack s = stack_current(c, i);
        if (call) {
            stack_push(&s, i->osize, c->seg[SEG_CS].selector);
            stack_push(&s, i->osize, i->next_rip);
        }
        desc_set_accessed(c, i, &d);
        if (call)
            stack_commit(&s);
        enter_code(c, i, sel, &d, c->cpl, offset);
        return;
    }
    unsigned type = DESC_S(&d) ? 0 : DESC_TYPE(&d);
    if (type == TYPE_CALL32 || (type == TYPE_CALL16 && !in_long_mode(c))) {
        if (call) {
            call_through_gate(c, i, sel, &d);
            return;
        }
        uint16_t code_sel;
        Desc cs;
        uint64_t offset = read_call_gate(c, i, sel, &d, false, &code_sel, &cs);
        desc_set_accessed(c, i, &cs);
        enter_code(c, i, code_sel, &cs, c->cpl, offset);
        return;
    }
    int how = call ? TASK_CALL : TASK_JUMP;
    if (type == TYPE_TASK_GATE && !in_long_mode(c)) {
        check_gate(c, i, sel, &d);
        task_switch_gate(c, i, how, GATE_SELECTOR(&d), i->next_rip, false, 0, 0);
        return;
    }
    if ((type == TYPE_TSS16 || type == TYPE_TSS32) && !in_long_mode(c)) {
        check_gate(c, i, sel, &d);
        task_switch_gate(c, i, how, sel, i->next_rip, false, 0, 0);
        return;
    }
    raise_error(c, i, EXC_GP, SEL_ERROR(sel));
}

static const Insn *far_transfer(Cpu *c, const Insn *i, Far to, bool call)
{
    if (c->mode & MODE_PROT) {
        far_protected(c, i, to, call);
        return NULL;
    }
    if (to.offset > c->seg[SEG_CS].limit)
        raise_gp0(c, i);
    if (call) {
        Stack s = stack_current(c, i);
        stack_push(&s, i->osize, c->seg[SEG_CS].selector);
        stack_push(&s, i->osize, i->next_rip);
        stack_commit(&s);
    }
    seg_set_real(c, SEG_CS, to.sel);
    c->rip = to.offset;
    cpu_update_mode(c);
    return NULL;
}

EXEC(jmp_far) { return far_transfer(c, i, far_immediate(i), false); }
EXEC(jmp_far_m) { return far_transfer(c, i, far_memory(c, i), false); }
EXEC(call_far) { return far_transfer(c, i, far_immediate(i), true); }
EXEC(call_far_m) { return far_transfer(c, i, far_memory(c, i), true); }
ONE(jmp_Ap, jmp_far)
ONE(jmp_Mp, jmp_far_m)
ONE(call_Ap, call_far)
ONE(call_Mp, call_far_m)

/* The stack pointer that a return to an outer privilege, or IRET, loads. */
static void set_outer_sp(Cpu *c, uint64_t sp)
{
    if (in_64bit(c))
        c->gpr[RSP] = sp;
    else if (c->seg[SEG_SS].db)
        c->gpr[RSP] = (uint32_t)sp;
    else
        c->gpr[RSP] = (c->gpr[RSP] & ~0xffffull) | (sp & 0xffff);
}

void far_return_check(Cpu *c, const Insn *i, uint16_t sel, uint64_t *offset, Desc *cs)
{
    if (SEL_NULL(sel))
        raise_gp0(c, i);
    desc_read(c, i, sel, false, EXC_GP, 0, cs);
    unsigned rpl = SEL_RPL(sel);
    bool bad = !DESC_IS_CODE(cs) || rpl < c->cpl;
    if (!bad)
        bad = DESC_IS_CONFORMING(cs) ? DESC_DPL(cs) > rpl : DESC_DPL(cs) != rpl;
    if (bad)
        raise_error(c, i, EXC_GP, SEL_ERROR(sel));
    check_code_size(c, i, sel, cs);
    if (!DESC_P(cs))
        raise_error(c, i, EXC_NP, SEL_ERROR(sel));
    *offset = check_offset(c, i, cs, *offset);
}

void far_return_enter(Cpu *c, const Insn *i, uint16_t sel, Desc *cs, uint64_t offset, bool new_stack, uint16_t ss, uint64_t sp,
                      uint64_t release)
{
    unsigned rpl = SEL_RPL(sel);
    struct kvm_segment new_ss = {0};
    bool null_ss = false, outer = rpl > c->cpl;
    if (new_stack) {
        Desc d;
        null_ss = SEL_NULL(ss) && in_long_mode(c) && DESC_L(cs) && rpl != 3 && SEL_RPL(ss) == rpl;
        if (!null_ss) {
            seg_check_stack(c, i, ss, rpl, EXC_GP, 0, &d);
            desc_set_accessed(c, i, &d);
            seg_from_desc(&new_ss, ss, &d);
        }
    }
    desc_set_accessed(c, i, cs);
    seg_set_cs(c, sel, cs, rpl);
    if (new_stack) {
        if (null_ss)
            seg_set_null_ss(c, rpl);
        else
            c->seg[SEG_SS] = new_ss;
    }
    c->rip = offset;
    cpu_update_privilege(c);
    if (new_stack)
        set_outer_sp(c, sp + release);
    if (outer && seg_drop_inner(c))
        cpu_update_mode(c);
}

static const Insn *far_return(Cpu *c, const Insn *i, uint64_t release)
{
    Stack s = stack_current(c, i);
    uint64_t offset = stack_pop(&s, i->osize);
    uint16_t sel = (uint16_t)stack_pop(&s, i->osize);
    if (!(c->mode & MODE_PROT)) {
        if (offset > c->seg[SEG_CS].limit)
            raise_gp0(c, i);
        s.sp += release;
        stack_commit(&s);
        seg_set_real(c, SEG_CS, sel);
        c->rip = offset;
        cpu_update_mode(c);
        return NULL;
    }
    Desc cs;
    far_return_check(c, i, sel, &offset, &cs);
    s.sp += release;
    if (SEL_RPL(sel) == c->cpl) {
        desc_set_accessed(c, i, &cs);
        stack_commit(&s);
        enter_code(c, i, sel, &cs, c->cpl, offset);
        return NULL;
    }
    uint64_t sp = stack_pop(&s, i->osize);
    uint16_t ss = (uint16_t)stack_pop(&s, i->osize);
    far_return_enter(c, i, sel, &cs, offset, true, ss, sp, release);
    return NULL;
}

EXEC(retf) { return far_return(c, i, 0); }
EXEC(retf_n) { return far_return(c, i, i->imm & 0xffff); }
ONE(retf, retf)
ONE(retf_Iw, retf_n)
