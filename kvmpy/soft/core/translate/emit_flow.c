/* The stack, jumps, calls and returns. Only with the stack width of the mode: 8 bytes in 64-bit mode, else 4. */
#include "emit.h"

unsigned stack_size(const Emit *e) { return (e->b->mode & MODE_SIZE) == MODE_64 ? 8 : 4; }
bool usual(const Emit *e) { return e->i->osize == stack_size(e) && !(e->i->flags & INSN_CHECK); }

void move_sp(Emit *e, int32_t by)
{
    int sp = host_register[RSP];
    emit_op(&e->code, 0x8du | (stack_size(e) == 8 ? OP_W : 0), sp, rm_mem(sp, by));
}

Rm push_place(Emit *e)
{
    unsigned size = stack_size(e);
    Rm place;
    if (emit_shared(e, RSP, -(int64_t)size, size, CHECK_WRITE, &place))
        return place;
    flags_keep(e);
    emit_op(&e->code, 0x8du | (size == 8 ? OP_W : 0), H_RCX, rm_mem(host_register[RSP], -(int32_t)size));
    emit_check(e, size, CHECK_WRITE);
    return rm_mem2(H_RAX, H_RCX);
}

Rm top_place(Emit *e, unsigned base)
{
    unsigned size = stack_size(e);
    Rm place;
    if (emit_shared(e, base, 0, size, CHECK_READ, &place))
        return place;
    flags_keep(e);
    emit_op(&e->code, 0x89u | size_op(size), host_register[base], rm_reg(H_RCX));
    emit_check(e, size, CHECK_READ);
    return rm_mem2(H_RAX, H_RCX);
}

static void push_constant(Emit *e, uint64_t value)
{
    unsigned size = stack_size(e);
    Rm place = push_place(e);
    if (size == 4 || (int64_t)value == (int32_t)value) {
        emit_op(&e->code, 0xc7u | size_op(size), 0, place);
        put32(&e->code, (uint32_t)value);
    } else {
        emit_join(e, &place);
        emit_constant(&e->code, H_RAX, value);
        emit_store(&e->code, place, H_RAX);
    }
    move_sp(e, -(int32_t)size);
}

EMITTER(translate_push)
{
    if (!usual(e))
        return false;
    Rm to = push_place(e);
    int from = host_register[e->i->rm];
    if (from == IN_MEMORY) {
        emit_join(e, &to);
        from = guest_value(e, e->i->rm, H_RAX);
    }
    emit_op(&e->code, 0x89u | size_op(stack_size(e)), from, to);
    move_sp(e, -(int32_t)stack_size(e));
    emit_resume(e);
    return true;
}

EMITTER(translate_push_rm)
{
    const Insn *i = e->i;
    unsigned load = 0x8bu | size_op(stack_size(e));
    Rm from = {0};
    if (!usual(e) || (i->flags & INSN_MEM && !emit_operand(e, stack_size(e), CHECK_READ, &from)))
        return false;
    if (i->flags & INSN_MEM) {
        emit_op(&e->code, load, H_RAX, from);
        emit_store(&e->code, rm_slot(SLOT_SCRATCH), H_RAX);
    }
    Rm to = push_place(e);
    emit_join(e, &to);
    emit_load(&e->code, H_RAX, i->flags & INSN_MEM ? rm_slot(SLOT_SCRATCH) : guest_rm(i->rm));
    emit_op(&e->code, 0x89u | size_op(stack_size(e)), H_RAX, to);
    move_sp(e, -(int32_t)stack_size(e));
    emit_resume(e);
    return true;
}

EMITTER(translate_push_imm)
{
    if (!usual(e))
        return false;
    push_constant(e, e->i->imm);
    emit_resume(e);
    return true;
}

EMITTER(translate_pop)
{
    if (!usual(e))
        return false;
    emit_op(&e->code, 0x8bu | size_op(stack_size(e)), H_RAX, top_place(e, RSP));
    move_sp(e, (int32_t)stack_size(e));
    guest_assign(e, e->i->rm, H_RAX);
    emit_resume(e);
    return true;
}

EMITTER(translate_leave)
{
    if (!usual(e))
        return false;
    unsigned size = stack_size(e), op = 0x8du | (size == 8 ? OP_W : 0);
    emit_op(&e->code, 0x8bu | size_op(size), H_RAX, top_place(e, RBP));
    emit_op(&e->code, op, host_register[RSP], rm_mem(host_register[RBP], (int32_t)size));
    guest_assign(e, RBP, H_RAX);
    emit_resume(e);
    return true;
}

EMITTER(translate_jcc)
{
    const Insn *i = e->i;
    if (i->flags & INSN_CHECK || i->osize == 2)
        return false;
    flags_to_host(e);
    unsigned condition = insn_table[i->id].key & 15;
    switch (follows(e)) {
    case FOLLOWS_JUMP:
        emit_exit(e, i->next_rip, (int)condition ^ 1);
        break;
    case FOLLOWS_FALL:
        emit_exit(e, i->imm, (int)condition);
        break;
    default:
        emit_exit(e, i->imm, (int)condition);
        emit_exit(e, i->next_rip, -1);
        break;
    }
    return true;
}

/* Jumps by whether RCX, or with 32-bit addresses ECX, is 0. */
static bool jump_by_count(Emit *e, bool count, unsigned condition)
{
    const Insn *i = e->i;
    unsigned wide = i->amask == ~0ull ? OP_W : 0;
    int rcx = host_register[RCX];
    if (i->flags & INSN_CHECK || i->osize == 2 || i->amask == 0xffff)
        return false;
    flags_to_memory(e);
    if (!(e->flags.where & FLAGS_MEMORY))
        return false;
    if (count)
        emit_op(&e->code, 0x8du | wide, rcx, rm_mem(rcx, -1));
    emit_op(&e->code, 0x85u | wide, rcx, rm_reg(rcx));
    flags_clobbered(e);
    emit_exit(e, i->imm, (int)condition);
    emit_exit(e, i->next_rip, -1);
    return true;
}

EMITTER(translate_loop) { return jump_by_count(e, true, CC_NE); }
EMITTER(translate_jcxz) { return jump_by_count(e, false, CC_E); }

EMITTER(translate_jmp)
{
    if (e->i->flags & INSN_CHECK || e->i->osize == 2)
        return false;
    if (!follows(e))
        emit_exit(e, e->i->imm, -1);
    return true;
}

EMITTER(translate_call)
{
    if (!usual(e))
        return false;
    push_constant(e, e->i->next_rip);
    emit_interpret(e);
    if (!follows(e))
        emit_exit(e, e->i->imm, -1);
    return true;
}

/* The target of a jump or call through a register or memory in rcx. */
static bool load_target(Emit *e)
{
    const Insn *i = e->i;
    unsigned op = 0x8bu | size_op(stack_size(e));
    if (i->flags & INSN_MEM && !emit_addressable(i))
        return false;
    flags_to_memory(e);
    if (i->flags & INSN_MEM) {
        Rm operand;
        if (!emit_operand(e, stack_size(e), CHECK_READ, &operand))
            return false;
        emit_op(&e->code, op, H_RCX, operand);
    } else {
        emit_op(&e->code, op, H_RCX, guest_rm(i->rm));
    }
    return true;
}

EMITTER(translate_jmp_ev)
{
    if (!usual(e) || !load_target(e))
        return false;
    emit_lookup(e);
    emit_jump_found(e);
    emit_interpret(e);
    return true;
}

EMITTER(translate_call_ev)
{
    if (!usual(e) || !load_target(e))
        return false;
    emit_lookup(e);
    emit_store(&e->code, rm_slot(SLOT_SCRATCH), H_RAX);
    push_constant(e, e->i->next_rip);
    emit_load(&e->code, H_RAX, rm_slot(SLOT_SCRATCH));
    emit_jump_found(e);
    emit_interpret(e);
    return true;
}

/* A return to a call of the same region: another address is left to the interpreter. */
static void emit_expected_return(Emit *e, uint64_t to)
{
    unsigned size = stack_size(e);
    flags_keep(e);
    emit_op(&e->code, 0x8bu | size_op(size), H_RCX, top_place(e, RSP));
    if (size == 4 || (int64_t)to == (int32_t)to) {
        emit_op(&e->code, 0x81u | size_op(size), 7, rm_reg(H_RCX)); /* cmp */
        put32(&e->code, (uint32_t)to);
    } else {
        emit_constant(&e->code, H_RAX, to);
        emit_op(&e->code, 0x39 | OP_W, H_RAX, rm_reg(H_RCX));
    }
    emit_guard(e, CC_NE);
    flags_clobbered(e);
}

EMITTER(translate_ret)
{
    if (!usual(e))
        return false;
    unsigned size = stack_size(e);
    if (follows(e)) {
        emit_expected_return(e, (e->i + 1)->next_rip - (e->i + 1)->len);
        move_sp(e, (int32_t)(size + e->i->imm));
        emit_interpret(e);
        return true;
    }
    flags_to_memory(e);
    emit_op(&e->code, 0x8bu | size_op(size), H_RCX, top_place(e, RSP));
    emit_lookup(e);
    move_sp(e, (int32_t)(size + e->i->imm));
    emit_jump_found(e);
    emit_interpret(e);
    return true;
}
