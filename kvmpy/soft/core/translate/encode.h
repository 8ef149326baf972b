/* Writes host instructions. */
#ifndef KP_ENCODE_H
#define KP_ENCODE_H

#include "translate.h"

enum { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, H_R13, H_R14, H_R15 };
#define IN_MEMORY (-1)

/* Where guest registers live. RAX and RCX are moved away: their hosts are what LAHF, shifts, MUL and DIV need. */
extern const int8_t host_register[16];

/* An r/m operand of the host: a register, memory at [base + index << scale + disp], or a place in the Cpu (gs:disp). */
typedef struct {
    enum { RM_REG, RM_MEM, RM_GS, RM_GS_INDEX, RM_NONE } kind; /* RM_GS_INDEX: gs:[base << scale + disp]; RM_NONE: no ModRM byte */
    int8_t reg, base, index; /* index: host number, or -1; never rsp */
    uint8_t scale;
    int32_t disp;
} Rm;

static inline Rm rm_reg(int reg) { return (Rm){.kind = RM_REG, .reg = (int8_t)reg}; }
static inline Rm rm_gs(size_t offset) { return (Rm){.kind = RM_GS, .disp = (int32_t)offset}; }
static inline Rm rm_gs_index(int base, size_t offset) { return (Rm){.kind = RM_GS_INDEX, .base = (int8_t)base, .index = -1, .disp = (int32_t)offset}; }
static inline Rm rm_mem(int base, int32_t disp) { return (Rm){.kind = RM_MEM, .base = (int8_t)base, .index = -1, .disp = disp}; }
/* The frame of translated code, above rsp. */
enum { SLOT_BUDGET, SLOT_FLAGS, SLOT_SCRATCH, SLOT_HELD, SLOT_R13, SLOT_R14, SLOT_R15, SLOT_SCRATCH2, SLOT_COUNT };
static inline Rm rm_slot(unsigned slot) { return rm_mem(H_RSP, (int32_t)(8 * slot)); }
static inline Rm rm_mem2(int base, int index) { return (Rm){.kind = RM_MEM, .base = (int8_t)base, .index = (int8_t)index}; }

typedef struct {
    uint8_t *p; /* writable address of the next byte */
} Code;

static inline void put8(Code *e, unsigned v) { *e->p++ = (uint8_t)v; }
static inline void put32(Code *e, uint32_t v)
{
    memcpy(e->p, &v, 4);
    e->p += 4;
}
static inline void put64(Code *e, uint64_t v)
{
    memcpy(e->p, &v, 8);
    e->p += 8;
}

/* Opcode: the low byte; maps as in K_0F, K_0F38, K_0F3A; flags: */
#define OP_66 0x10000u
#define OP_F3 0x20000u
#define OP_F2 0x40000u
#define OP_W 0x80000u    /* REX.W */
#define OP_BYTE 0x100000u /* byte registers: a REX prefix, so that 4 to 7 are SPL to DIL */
#define OP_LOCK 0x200000u
#define OP_L 0x400000u   /* VEX.L: 256 bits */

/* op reg, rm (or with reg an opcode extension). An immediate follows by put8, put32. */
void emit_op(Code *e, unsigned op, int reg, Rm rm);
/* The same with a VEX prefix; vvvv: 0 where there is no such operand. */
void emit_vex(Code *e, unsigned op, int reg, int vvvv, Rm rm);

static inline void emit_mov(Code *e, int to, int from) { emit_op(e, 0x89 | OP_W, from, rm_reg(to)); }
static inline void emit_load(Code *e, int to, Rm from) { emit_op(e, 0x8b | OP_W, to, from); }
static inline void emit_load32(Code *e, int to, Rm from) { emit_op(e, 0x8b, to, from); }
static inline void emit_store(Code *e, Rm to, int from) { emit_op(e, 0x89 | OP_W, from, to); }
static inline void emit_store32(Code *e, Rm to, int from) { emit_op(e, 0x89, from, to); }
static inline void emit_lea(Code *e, int to, Rm from) { emit_op(e, 0x8d | OP_W, to, from); }
/* Any constant, in the shortest form; flags stay. */
void emit_constant(Code *e, int to, uint64_t value);
/* May use rax. */
void emit_store_constant(Code *e, Rm to, uint64_t value);

/* The arithmetic flags into their slot, `above` bytes further from rsp, as LAHF and SETO give them in AX; and from ax into RFLAGS.
   rax is lost. */
void emit_save_flags(Code *e, int32_t above);
void emit_flags_to_host(Code *e);
/* cmp rcx with the last offset in a page at which `size` bytes fit. */
void emit_compare_offset(Code *e, unsigned size);

/* jmp, call, jcc to an executable address; the place of the rel32 is given back. */
uint8_t *emit_jump(Code *e, const struct Translator *t, const uint8_t *to);
uint8_t *emit_call(Code *e, const struct Translator *t, const uint8_t *to);
uint8_t *emit_jcc(Code *e, unsigned condition);
/* Makes the rel32 at `place` lead to `to`; both writable addresses. */
static inline void set_rel32(uint8_t *place, const uint8_t *to)
{
    int32_t v = (int32_t)(to - (place + 4));
    memcpy(place, &v, 4); /* one store */
}

enum { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_S, CC_NS };

#endif
