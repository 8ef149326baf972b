/* Delivery of exceptions and interrupts through the IVT or IDT. SDM 3A chapter 6; SDM 2 INT n. Nothing of the vCPU changes
   before all that may fault has been done. */
#include "run.h"
#include "system.h"
#include "trace.h"

/* Benign, contributory, page fault (SDM 3A table 7-4). */
enum { CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE_FAULT };
static int exception_class(int vector)
{
    switch (vector) {
    case EXC_DE: case EXC_TS: case EXC_NP: case EXC_SS: case EXC_GP:
        return CLASS_CONTRIBUTORY;
    case EXC_PF:
        return CLASS_PAGE_FAULT;
    default:
        return CLASS_BENIGN;
    }
}

int cpu_combine(int first, int second)
{
    int then = exception_class(second);
    if (first == EXC_DF)
        return then == CLASS_BENIGN ? second : -1;
    int now = exception_class(first);
    if (now == CLASS_CONTRIBUTORY && then == CLASS_CONTRIBUTORY)
        return EXC_DF;
    if (now == CLASS_PAGE_FAULT && then != CLASS_BENIGN)
        return EXC_DF;
    return second;
}

/* One event on its way. */
typedef struct {
    int vector, kind;
    bool has_error;
    uint32_t error, ext; /* ext: bit 0 of the error codes that delivery itself raises */
    uint64_t rip;
} Event;

/* RFLAGS as pushed: RF is set for faults, so that an instruction breakpoint does not hit again (SDM 3B 18.3.1.1). */
static uint64_t pushed_flags(Cpu *c, const Event *e)
{
    uint64_t flags = cpu_get_rflags(c);
    bool fault = e->kind == EVENT_EXCEPTION && e->vector != EXC_DB && e->vector != EXC_BP && e->vector != EXC_OF;
    return fault ? flags | FL_RF : flags;
}

static void clear_flags(Cpu *c, uint32_t bits)
{
    c->eflags &= ~bits;
}

static void deliver_real(Cpu *c, const Insn *i, const Event *e)
{
    uint32_t at = (uint32_t)e->vector * 4;
    if (at + 3 > c->idt.limit)
        raise_fault(c, i, EXC_GP);
    uint32_t target = (uint32_t)sys_read(c, i, c->idt.base + at, 4);
    Stack s = stack_current(c, i);
    stack_push(&s, 2, cpu_get_rflags(c));
    stack_push(&s, 2, c->seg[SEG_CS].selector);
    stack_push(&s, 2, e->rip);
    stack_commit(&s);
    clear_flags(c, FL_IF | FL_TF | FL_AC | FL_RF);
    seg_set_real(c, SEG_CS, (uint16_t)(target >> 16));
    c->rip = target & 0xffff;
    cpu_update_mode(c);
}

/* #GP, #NP for the gate of this vector. */
static _Noreturn void gate_fault(Cpu *c, const Insn *i, const Event *e, int vector)
{
    raise_error(c, i, vector, (uint32_t)e->vector << 3 | 2 | e->ext);
}

static void read_gate(Cpu *c, const Insn *i, const Event *e, bool wide, Desc *gate)
{
    uint64_t at = (uint64_t)e->vector * (wide ? 16 : 8);
    if (at + (wide ? 15 : 7) > c->idt.limit)
        gate_fault(c, i, e, EXC_GP);
    gate->linear = c->idt.base + at;
    gate->low = sys_read(c, i, gate->linear, 8);
    gate->high = wide ? sys_read(c, i, gate->linear + 8, 8) : 0;
    unsigned type = DESC_TYPE(gate);
    bool known = type == TYPE_INT32 || type == TYPE_TRAP32;
    if (!wide)
        known |= type == TYPE_INT16 || type == TYPE_TRAP16 || type == TYPE_TASK_GATE;
    if (DESC_S(gate) || !known || (e->kind == EVENT_SOFT_INT && DESC_DPL(gate) < c->cpl))
        gate_fault(c, i, e, EXC_GP);
    if (!DESC_P(gate))
        gate_fault(c, i, e, EXC_NP);
}

/* The code segment behind the gate; gives the new CPL. */
static unsigned read_target(Cpu *c, const Insn *i, const Event *e, uint16_t sel, Desc *cs)
{
    if (SEL_NULL(sel))
        raise_error(c, i, EXC_GP, e->ext);
    desc_read(c, i, sel, false, EXC_GP, e->ext, cs);
    bool bad = !DESC_IS_CODE(cs) || DESC_DPL(cs) > c->cpl;
    if (in_long_mode(c))
        bad |= !DESC_L(cs) || DESC_DB(cs);
    if (bad)
        raise_error(c, i, EXC_GP, SEL_ERROR(sel) | e->ext);
    if (!DESC_P(cs))
        raise_error(c, i, EXC_NP, SEL_ERROR(sel) | e->ext);
    return DESC_IS_CONFORMING(cs) ? c->cpl : DESC_DPL(cs);
}

static void deliver_protected(Cpu *c, const Insn *i, const Event *e)
{
    Desc gate, cs, ss_desc = {0};
    read_gate(c, i, e, false, &gate);
    uint16_t sel = GATE_SELECTOR(&gate);
    if (DESC_TYPE(&gate) == TYPE_TASK_GATE) {
        task_switch_gate(c, i, TASK_GATE_INT, sel, e->rip, e->has_error, e->error, e->ext);
        return;
    }
    unsigned cpl = read_target(c, i, e, sel, &cs);
    bool vm86 = c->eflags & FL_VM, inner = cpl < c->cpl;
    if (vm86 && cpl != 0)
        raise_error(c, i, EXC_GP, SEL_ERROR(sel) | e->ext);

    unsigned size = DESC_TYPE(&gate) & 8 ? 4 : 2;
    uint64_t target = size == 4 ? GATE_OFFSET32(&gate) : GATE_OFFSET32(&gate) & 0xffff;
    struct kvm_segment new_cs, new_ss = c->seg[SEG_SS];
    Stack s;
    if (inner) {
        uint16_t ss;
        uint32_t sp;
        tss_stack(c, i, cpl, e->ext, &ss, &sp);
        seg_check_stack(c, i, ss, cpl, EXC_TS, e->ext, &ss_desc);
        desc_set_accessed(c, i, &ss_desc);
        seg_from_desc(&new_ss, ss, &ss_desc);
        s = stack_of(c, i, &new_ss, sp, cpl, SEL_ERROR(ss) | e->ext);
        if (vm86) {
            stack_push(&s, size, c->seg[SEG_GS].selector);
            stack_push(&s, size, c->seg[SEG_FS].selector);
            stack_push(&s, size, c->seg[SEG_DS].selector);
            stack_push(&s, size, c->seg[SEG_ES].selector);
        }
        stack_push(&s, size, c->seg[SEG_SS].selector);
        stack_push(&s, size, c->gpr[RSP]);
    } else {
        s = stack_current(c, i);
        s.error = e->ext;
    }
    stack_push(&s, size, pushed_flags(c, e));
    stack_push(&s, size, c->seg[SEG_CS].selector);
    stack_push(&s, size, e->rip);
    if (e->has_error)
        stack_push(&s, size, e->error);
    desc_set_accessed(c, i, &cs);
    seg_from_desc(&new_cs, sel, &cs);
    if (target > new_cs.limit)
        raise_error(c, i, EXC_GP, e->ext);

    if (vm86)
        for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
            seg_set_null(&c->seg[seg], 0);
    if (inner)
        c->seg[SEG_SS] = new_ss;
    stack_commit(&s);
    seg_set_cs(c, sel, &cs, cpl);
    c->rip = target;
    clear_flags(c, FL_TF | FL_NT | FL_VM | FL_RF | (DESC_TYPE(&gate) & 1 ? 0 : FL_IF));
    cpu_update_mode(c);
}

static void deliver_long(Cpu *c, const Insn *i, const Event *e)
{
    Desc gate, cs;
    read_gate(c, i, e, true, &gate);
    uint16_t sel = GATE_SELECTOR(&gate);
    unsigned cpl = read_target(c, i, e, sel, &cs), ist = gate.low >> 32 & 7;
    bool inner = cpl < c->cpl;
    uint64_t target = GATE_OFFSET64(&gate), rsp = c->gpr[RSP];
    if (!is_canonical(target))
        raise_error(c, i, EXC_GP, e->ext);
    if (ist)
        rsp = tss_rsp(c, i, ist + 3, e->ext);
    else if (inner)
        rsp = tss_rsp(c, i, cpl, e->ext);
    Stack s = stack_of(c, i, NULL, rsp & ~15ull, cpl, e->ext);
    stack_push(&s, 8, c->seg[SEG_SS].selector);
    stack_push(&s, 8, c->gpr[RSP]);
    stack_push(&s, 8, pushed_flags(c, e));
    stack_push(&s, 8, c->seg[SEG_CS].selector);
    stack_push(&s, 8, e->rip);
    if (e->has_error)
        stack_push(&s, 8, e->error);
    desc_set_accessed(c, i, &cs);

    if (inner)
        seg_set_null_ss(c, cpl);
    stack_commit(&s);
    seg_set_cs(c, sel, &cs, cpl);
    c->rip = target;
    clear_flags(c, FL_TF | FL_NT | FL_VM | FL_RF | (DESC_TYPE(&gate) & 1 ? 0 : FL_IF));
    cpu_update_privilege(c);
}

struct kp_delivery *note_delivery(Cpu *c, int vector, int kind, bool has_error, uint32_t error, uint64_t rip)
{
    struct kp_deliveries *all = &c->run->deliveries;
    struct kp_delivery *d = &all->entry[all->count++ % KP_DELIVERIES];
    *d = (struct kp_delivery){.rip = fetch_address(c, rip), .cr2 = vector == EXC_PF ? c->cr2 : 0, .retired = cpu_icount(c),
                              .error = error, .vector = (uint8_t)vector, .kind = (uint8_t)kind, .has_error = has_error,
                              .outcome = KP_DELIVERY_FAILED};
    return d;
}

void deliver_event(Cpu *c, const Insn *i, int vector, int kind, bool has_error, uint32_t error, uint64_t return_rip)
{
    Event e = {.vector = vector, .kind = kind, .has_error = has_error, .error = error,
               .ext = kind != EVENT_SOFT_INT, .rip = return_rip};
    bool again = i == &c->run->boundary[0] && c->run->redelivering;
    if (again)
        c->run->deliveries.count--; /* its entry is made anew */
    struct kp_delivery *noted = note_delivery(c, vector, kind, has_error, error, return_rip);
    if (!again)
        trace_delivery(c, i, vector, kind, has_error, error);
    if (!(c->cr0 & CR0_PE))
        deliver_real(c, i, &e);
    else if (c->efer & EFER_LMA)
        deliver_long(c, i, &e);
    else
        deliver_protected(c, i, &e);
    if (vector == EXC_DB)
        c->dr[7] &= ~0x2000ull; /* GD: the handler may use the debug registers */
    c->shadow = 0;
    noted->outcome = KP_DELIVERY_TAKEN;
}

void cpu_deliver(Cpu *c, int vector, int kind, bool has_error, uint32_t error)
{
    deliver_event(c, &c->run->boundary[0], vector, kind, has_error, error, c->rip);
}
