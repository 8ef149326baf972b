/* What works on RAX and RDX: MUL, IMUL, DIV, IDIV, CMPXCHG. The guest's RDX is the host's; RAX is brought to it. */
#include "emit.h"

static unsigned size_of_operand(const Insn *i) { return insn_table[i->id].operands[1] == 'b' ? 1 : i->osize; }
static unsigned opcode_of(unsigned size) { return (size == 1 ? 0xf6u : 0xf7u) | size_op(size); }

EMITTER(translate_mul)
{
    const Insn *i = e->i;
    unsigned size = size_of_operand(i);
    Rm operand;
    if (i->flags & INSN_MEM) {
        if (!emit_operand(e, size, CHECK_READ, &operand))
            return false;
        emit_join(e, &operand);
    } else {
        if (size == 1 && high_byte(i->rm))
            return false;
        operand = guest_rm(size == 1 ? i->rm >> 3 : i->rm);
    }
    emit_mov(&e->code, H_RAX, host_register[RAX]);
    emit_op(&e->code, opcode_of(size), i->modrm >> 3 & 7, operand);
    emit_mov(&e->code, host_register[RAX], H_RAX);
    flags_written(e);
    emit_resume(e);
    return true;
}

/* The divisor in rcx, zero-extended; false where there is no form for it. */
static bool load_divisor(Emit *e, unsigned size)
{
    const Insn *i = e->i;
    if (size != 4 && size != 8)
        return false;
    unsigned op = 0x8bu | (size == 8 ? OP_W : 0);
    if (i->flags & INSN_MEM) {
        Rm operand;
        if (!emit_operand(e, size, CHECK_READ, &operand))
            return false;
        flags_keep(e);
        emit_op(&e->code, op, H_RCX, operand);
    } else {
        flags_keep(e);
        emit_op(&e->code, op, H_RCX, guest_rm(i->rm));
    }
    return true;
}

/* The flags are undefined after a division; the handlers leave them alone, and so does this. */
static void divide(Emit *e, unsigned size, int extension)
{
    emit_mov(&e->code, H_RAX, host_register[RAX]);
    emit_op(&e->code, opcode_of(size), extension, rm_reg(H_RCX));
    emit_mov(&e->code, host_register[RAX], H_RAX);
    flags_clobbered(e);
}

/* DIV of AX or DX:AX by 8 or 16 bits. */
static bool divide_narrow(Emit *e, unsigned size)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    unsigned extend = (size == 1 ? 0xb6u : 0xb7u) | K_0F;
    Rm operand;
    if (i->flags & INSN_MEM) {
        if (!emit_operand(e, size, CHECK_READ, &operand))
            return false;
    } else {
        if (size == 1 && high_byte(i->rm))
            return false;
        flags_keep(e);
        operand = guest_rm(size == 1 ? i->rm >> 3 : i->rm);
    }
    flags_keep(e);
    emit_op(o, extend | (size == 1 ? OP_BYTE : 0), H_RCX, operand);
    emit_op(o, 0x89, host_register[RAX], rm_reg(H_RAX));
    if (size == 1)
        emit_op(o, 0x38, H_RCX, rm_reg(H_RAX + 4)); /* cmp ah, cl */
    else
        emit_op(o, 0x3b | OP_66, H_RDX, rm_reg(H_RCX));
    emit_guard(e, CC_AE);
    emit_op(o, (size == 1 ? 0xf6u : 0xf7u | OP_66), 6, rm_reg(H_RCX));
    emit_op(o, 0x89 | OP_66, H_RAX, rm_reg(host_register[RAX]));
    flags_clobbered(e);
    emit_resume(e);
    return true;
}

EMITTER(translate_div)
{
    unsigned size = size_of_operand(e->i);
    if (size < 4)
        return divide_narrow(e, size);
    if (!load_divisor(e, size))
        return false;
    emit_op(&e->code, 0x3bu | (size == 8 ? OP_W : 0), H_RDX, rm_reg(H_RCX)); /* a quotient too large, or a divisor of 0 */
    emit_guard(e, CC_AE);
    divide(e, size, 6);
    emit_resume(e);
    return true;
}

/* IDIV of EDX:EAX, which as 64 bits divided have a quotient that can be looked at. */
static void divide_wide32(Emit *e)
{
    Code *o = &e->code;
    emit_op(o, 0x63 | OP_W, H_RCX, rm_reg(H_RCX)); /* movsxd */
    emit_lea(o, H_RAX, rm_mem(H_RCX, 1));
    emit_op(o, 0x83 | OP_W, 7, rm_reg(H_RAX)); /* cmp: 0 traps, -1 may */
    put8(o, 1);
    emit_guard(e, CC_BE);
    emit_store(o, rm_slot(SLOT_SCRATCH), H_RDX);
    emit_op(o, 0x89, host_register[RAX], rm_reg(H_RAX));
    emit_op(o, 0xc1 | OP_W, 4, rm_reg(H_RDX)); /* shl */
    put8(o, 32);
    emit_op(o, 0x09 | OP_W, H_RDX, rm_reg(H_RAX)); /* or */
    put8(o, 0x48);                                 /* cqo */
    put8(o, 0x99);
    emit_op(o, 0xf7 | OP_W, 7, rm_reg(H_RCX));
    emit_op(o, 0x63 | OP_W, H_RCX, rm_reg(H_RAX));
    emit_op(o, 0x39 | OP_W, H_RAX, rm_reg(H_RCX)); /* cmp: does it fit? */
    emit_op(o, 0x89, H_RDX, rm_reg(H_RCX));
    emit_load(o, H_RDX, rm_slot(SLOT_SCRATCH));
    emit_guard(e, CC_NE);
    emit_op(o, 0x89, H_RCX, rm_reg(H_RDX));
    emit_op(o, 0x89, H_RAX, rm_reg(host_register[RAX]));
}

/* A negative number in a register becomes positive, or one of two words of which `low` is the lower. */
static void absolute(Emit *e, int high, int low)
{
    Code *o = &e->code;
    emit_op(o, 0x85 | OP_W, high, rm_reg(high)); /* test */
    uint8_t *positive = emit_jcc(o, CC_NS);
    if (low != high) {
        emit_op(o, 0xf7 | OP_W, 3, rm_reg(low));  /* neg */
        emit_op(o, 0x83 | OP_W, 2, rm_reg(high)); /* adc */
        put8(o, 0);
    }
    emit_op(o, 0xf7 | OP_W, 3, rm_reg(high));
    set_rel32(positive, o->p);
}

/* IDIV of RDX:RAX as DIV without the signs. */
static void divide_wide64(Emit *e)
{
    Code *o = &e->code;
    emit_store(o, rm_slot(SLOT_SCRATCH), H_RDX);
    emit_store(o, rm_slot(SLOT_SCRATCH2), H_RCX);
    emit_mov(o, H_RAX, host_register[RAX]);
    absolute(e, H_RDX, H_RAX);
    absolute(e, H_RCX, H_RCX);
    emit_op(o, 0x3b | OP_W, H_RDX, rm_reg(H_RCX)); /* cmp */
    uint8_t *too_large = emit_jcc(o, CC_AE);
    emit_op(o, 0xf7 | OP_W, 6, rm_reg(H_RCX)); /* div */
    emit_load(o, H_RCX, rm_slot(SLOT_SCRATCH));
    emit_op(o, 0x85 | OP_W, H_RCX, rm_reg(H_RCX)); /* test: the rest has the dividend's sign */
    uint8_t *positive = emit_jcc(o, CC_NS);
    emit_op(o, 0xf7 | OP_W, 3, rm_reg(H_RDX)); /* neg */
    set_rel32(positive, o->p);
    emit_op(o, 0x33 | OP_W, H_RCX, rm_slot(SLOT_SCRATCH2)); /* xor: the quotient's sign */
    positive = emit_jcc(o, CC_NS);
    emit_op(o, 0xf7 | OP_W, 3, rm_reg(H_RAX));
    set_rel32(positive, o->p);
    emit_op(o, 0x85 | OP_W, H_RAX, rm_reg(H_RAX));
    uint8_t *zero = emit_jcc(o, CC_E);
    emit_op(o, 0x33 | OP_W, H_RCX, rm_reg(H_RAX));
    uint8_t *fits = emit_jcc(o, CC_NS);
    set_rel32(too_large, o->p);
    emit_load(o, H_RDX, rm_slot(SLOT_SCRATCH));
    emit_op(o, 0x39, H_RAX, rm_reg(H_RAX)); /* cmp: equal */
    emit_guard(e, CC_E);
    set_rel32(zero, o->p);
    set_rel32(fits, o->p);
    emit_mov(o, host_register[RAX], H_RAX);
}

EMITTER(translate_idiv)
{
    Code *o = &e->code;
    unsigned size = size_of_operand(e->i), wide = size == 8 ? OP_W : 0;
    if (!load_divisor(e, size))
        return false;
    /* mostly the dividend is a sign-extended RAX and the divisor neither 0 nor -1: the quotient fits then */
    emit_op(o, 0x89u | wide, host_register[RAX], rm_reg(H_RAX));
    emit_op(o, 0xc1u | wide, 7, rm_reg(H_RAX)); /* sar */
    put8(o, size * 8 - 1);
    emit_op(o, 0x39u | wide, H_RDX, rm_reg(H_RAX));
    uint8_t *long_dividend = emit_jcc(o, CC_NE);
    emit_op(o, 0x8du | wide, H_RAX, rm_mem(H_RCX, 1));
    emit_op(o, 0x83u | wide, 7, rm_reg(H_RAX));
    put8(o, 1);
    emit_guard(e, CC_BE);
    divide(e, size, 7);
    uint8_t *done = emit_jump(o, e->t, NULL);
    set_rel32(long_dividend, o->p);
    if (size == 8)
        divide_wide64(e);
    else
        divide_wide32(e);
    set_rel32(done, o->p);
    emit_resume(e);
    return true;
}

EMITTER(translate_cmpxchg)
{
    const Insn *i = e->i;
    unsigned size = size_of_operand(i), reg = i->reg;
    if (!(i->flags & INSN_MEM) || (size == 1 && high_byte(reg)))
        return false;
    if (size == 1)
        reg >>= 3;
    Rm operand;
    if (host_register[reg] == IN_MEMORY || !emit_operand(e, size, CHECK_WRITE, &operand))
        return false;
    emit_join(e, &operand);
    emit_mov(&e->code, H_RAX, host_register[RAX]);
    emit_op(&e->code, (size == 1 ? 0xb0u : 0xb1u) | K_0F | size_op(size) | (i->prefix & PFX_LOCK ? OP_LOCK : 0), host_register[reg],
            operand);
    emit_mov(&e->code, host_register[RAX], H_RAX);
    flags_written(e);
    emit_resume(e);
    return true;
}

/* CMPXCHG8B, CMPXCHG16B: their registers are the host's but for RAX and RCX, in whose place the address stands. */
EMITTER(translate_cmpxchg_pair)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    bool wide = i->id == INSN_cmpxchg16b;
    Rm operand;
    if (!emit_operand(e, wide ? 16 : 8, CHECK_WRITE, &operand))
        return false;
    emit_join(e, &operand);
    if (wide) { /* must be aligned */
        flags_keep(e);
        emit_lea(o, H_RAX, operand);
        put8(o, 0xa8); /* test al */
        put8(o, 15);
        emit_guard(e, CC_NE);
        flags_clobbered(e);
    }
    if (wants_flags(e, 0, FL_ZF))
        flags_to_host(e);
    emit_store(o, rm_slot(SLOT_SCRATCH), H_RSI);
    emit_lea(o, H_RSI, operand);
    emit_mov(o, H_RAX, host_register[RAX]);
    emit_mov(o, H_RCX, host_register[RCX]);
    emit_op(o, 0xc7 | K_0F | (wide ? OP_W : 0) | (i->prefix & PFX_LOCK ? OP_LOCK : 0), 1, rm_mem(H_RSI, 0));
    emit_load(o, H_RSI, rm_slot(SLOT_SCRATCH));
    emit_mov(o, host_register[RAX], H_RAX);
    flags_written(e);
    emit_resume(e);
    return true;
}

bool emit_memory_operand(const Insn *i, unsigned *size, bool *write)
{
    emit_fn fn = emitter[i->id];
    if (fn == translate_vector)
        return vector_operand(i, size, write);
    if (fn == translate_jmp_ev || fn == translate_call_ev || fn == translate_mul || fn == translate_div || fn == translate_idiv ||
        fn == translate_cmpxchg) {
        *size = size_of_operand(i);
        *write = fn == translate_cmpxchg;
        return true;
    }
    if (fn == translate_cmpxchg_pair) {
        *size = i->id == INSN_cmpxchg16b ? 16 : 8;
        *write = true;
        return true;
    }
    if (fn == translate_moffs) {
        *size = i->id == INSN_mov_ALOb || i->id == INSN_mov_ObAL ? 1 : i->osize;
        *write = i->id == INSN_mov_ObAL || i->id == INSN_mov_OvrAX;
        return true;
    }
    if (fn == translate_bit_string)
        return false;
    if (fn == translate_push_rm) {
        *size = i->osize;
        *write = false;
        return true;
    }
    return copy_operand(i, size, write);
}
