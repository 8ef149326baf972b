#include "encode.h"

const int8_t host_register[16] = {
    H_R13, H_R14, H_RDX, H_RBX, H_R15, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, IN_MEMORY, IN_MEMORY, IN_MEMORY,
};

/* REX of an instruction without its upper half: W, R, X, B. */
static unsigned rex_bits(unsigned op, int reg, Rm rm)
{
    unsigned rex = (op & OP_W ? 8u : 0) | (reg & 8 ? 4u : 0);
    if (rm.kind == RM_REG)
        rex |= rm.reg & 8 ? 1u : 0;
    else if (rm.kind != RM_GS && rm.kind != RM_NONE)
        rex |= (rm.base & 8 ? 1u : 0) | (rm.index >= 0 && rm.index & 8 ? 2u : 0);
    return rex;
}

static void emit_modrm(Code *e, int reg, Rm rm);

void emit_op(Code *e, unsigned op, int reg, Rm rm)
{
    unsigned rex = rex_bits(op, reg, rm);
    bool force = (op & OP_BYTE) && (reg >= 4 || (rm.kind == RM_REG && rm.reg >= 4));
    if (rm.kind == RM_GS || rm.kind == RM_GS_INDEX)
        put8(e, 0x65);
    if (op & OP_LOCK)
        put8(e, 0xf0);
    if (op & OP_66)
        put8(e, 0x66);
    if (op & OP_F3)
        put8(e, 0xf3);
    if (op & OP_F2)
        put8(e, 0xf2);
    if (rex || force)
        put8(e, 0x40 | rex);
    unsigned map = op >> 8 & 3;
    if (map)
        put8(e, 0x0f);
    if (map > 1)
        put8(e, map == 2 ? 0x38 : 0x3a);
    put8(e, op & 0xff);
    emit_modrm(e, reg, rm);
}

void emit_vex(Code *e, unsigned op, int reg, int vvvv, Rm rm)
{
    unsigned rex = rex_bits(op, reg, rm), map = op >> 8 & 3;
    unsigned last = (~(unsigned)vvvv & 15) << 3 | (op & OP_L ? 4u : 0) | (op & OP_66 ? 1u : op & OP_F3 ? 2u : op & OP_F2 ? 3u : 0);
    if (rm.kind == RM_GS || rm.kind == RM_GS_INDEX)
        put8(e, 0x65);
    if (map == 1 && !(rex & 11)) { /* the short form has R alone */
        put8(e, 0xc5);
        put8(e, (rex & 4 ? 0 : 0x80u) | last);
    } else {
        put8(e, 0xc4);
        put8(e, (~rex & 7) << 5 | map);
        put8(e, (rex & 8 ? 0x80u : 0) | last);
    }
    put8(e, op & 0xff);
    emit_modrm(e, reg, rm);
}

static void emit_modrm(Code *e, int reg, Rm rm)
{
    unsigned r = ((unsigned)reg & 7) << 3;
    switch (rm.kind) {
    case RM_REG:
        put8(e, 0xc0 | r | ((unsigned)rm.reg & 7));
        return;
    case RM_GS:
        put8(e, 0x04 | r);
        put8(e, 0x25);
        put32(e, (uint32_t)rm.disp);
        return;
    case RM_NONE:
        return;
    case RM_GS_INDEX:
        if (!rm.scale)
            break;
        put8(e, 0x04 | r); /* an index alone */
        put8(e, (unsigned)rm.scale << 6 | ((unsigned)rm.base & 7) << 3 | 5);
        put32(e, (uint32_t)rm.disp);
        return;
    default:
        break;
    }
    bool sib = rm.index >= 0 || (rm.base & 7) == 4;
    /* a base of rbp or r13 has no form without displacement */
    unsigned mod = rm.kind == RM_GS_INDEX ? 2 : rm.disp == 0 && (rm.base & 7) != 5 ? 0 : rm.disp == (int8_t)rm.disp ? 1 : 2;
    put8(e, mod << 6 | r | (sib ? 4u : (unsigned)rm.base & 7));
    if (sib)
        put8(e, (unsigned)rm.scale << 6 | (rm.index >= 0 ? ((unsigned)rm.index & 7) << 3 : 0x20u) | ((unsigned)rm.base & 7));
    if (mod == 1)
        put8(e, (unsigned)rm.disp);
    else if (mod == 2)
        put32(e, (uint32_t)rm.disp);
}

void emit_constant(Code *e, int to, uint64_t value)
{
    unsigned b = to & 8 ? 1 : 0;
    if (value <= 0xffffffff) {
        if (b)
            put8(e, 0x41);
        put8(e, 0xb8u | ((unsigned)to & 7));
        put32(e, (uint32_t)value);
    } else if ((int64_t)value == (int32_t)value) {
        emit_op(e, 0xc7 | OP_W, 0, rm_reg(to));
        put32(e, (uint32_t)value);
    } else {
        put8(e, 0x48 | b);
        put8(e, 0xb8u | ((unsigned)to & 7));
        put64(e, value);
    }
}

void emit_store_constant(Code *e, Rm to, uint64_t value)
{
    if ((int64_t)value == (int32_t)value) {
        emit_op(e, 0xc7 | OP_W, 0, to);
        put32(e, (uint32_t)value);
    } else {
        emit_constant(e, H_RAX, value);
        emit_store(e, to, H_RAX);
    }
}

void emit_save_flags(Code *e, int32_t above)
{
    Rm slot = rm_slot(SLOT_FLAGS);
    slot.disp += above;
    put8(e, 0x9f);                             /* lahf */
    emit_op(e, 0x90 | K_0F, 0, rm_reg(H_RAX)); /* seto al */
    emit_store32(e, slot, H_RAX);
}

void emit_flags_to_host(Code *e)
{
    put8(e, 0x04); /* add al, 0x7f: OF */
    put8(e, 0x7f);
    put8(e, 0x9e); /* sahf */
}

void emit_compare_offset(Code *e, unsigned size)
{
    emit_op(e, 0x81 | OP_W, 7, rm_reg(H_RCX)); /* cmp */
    put32(e, 0x1000 - size);
}

static uint8_t *emit_rel32(Code *e, const struct Translator *t, const uint8_t *to)
{
    uint8_t *place = e->p;
    put32(e, 0);
    if (to)
        set_rel32(place, t->writable + (to - t->executable));
    return place;
}

uint8_t *emit_jump(Code *e, const struct Translator *t, const uint8_t *to)
{
    put8(e, 0xe9);
    return emit_rel32(e, t, to);
}

uint8_t *emit_call(Code *e, const struct Translator *t, const uint8_t *to)
{
    put8(e, 0xe8);
    return emit_rel32(e, t, to);
}

uint8_t *emit_jcc(Code *e, unsigned condition)
{
    put8(e, 0x0f);
    put8(e, 0x80 | condition);
    uint8_t *place = e->p;
    put32(e, 0);
    return place;
}
