/* What the vector instructions are written with. An operation is an inline function on the bytes of its operands,
     op(Ymm *d, const Ymm *a, const Ymm *b, unsigned n, unsigned imm)
   with n = 8, 16 or 32 bytes; d, a and b are distinct. The macros below make the instruction forms of it:
     MMX    n =  8, d = a = MMX register ModRM.reg, b = ModRM.rm
     SSE    n = 16, d = a = XMM register, upper half of the YMM register kept, memory aligned
     VEX    n = 16 or 32, d = ModRM.reg with the rest cleared, a = VEX.vvvv, b = ModRM.rm, memory of any alignment. */
#ifndef KP_VEC_H
#define KP_VEC_H

#include "exec.h"
#include "fpenv.h"
#include "x87.h"

#define INLINE static inline __attribute__((always_inline))

/* Frequent memory forms twice: this one where the operand is plain RAM and nothing is denied, else `slow`, a tail call, so that
   the fast one needs no stack frame. Makes `ram`, the operand's host address. */
#define VEC_IN_RAM(stop, bytes, aligned, tag, slow) \
    if (unlikely((stop) || i->flags & INSN_CHECK)) \
        return slow(c, i); \
    const uint64_t at = mem_offset(c, i) + c->seg_base[i->seg]; \
    const TlbEntry *const entry = tlb_entry(c, at); \
    if (unlikely(entry->tag != TLB_TAG(at, bytes) || ((aligned) && at & ((bytes) - 1)))) \
        return slow(c, i); \
    uint8_t *const ram = (uint8_t *)(uintptr_t)(at + entry->addend)

#define MM(n) (c->x87.st[(n) & 7].mant)

/* An MMX instruction makes all x87 registers valid and TOP 0 (SDM 1 9.5). */
INLINE void mmx_use(Cpu *c)
{
    c->x87.tag = 0xff;
    c->x87.status &= (uint16_t)~0x3800u;
}
INLINE void mmx_set(Cpu *c, unsigned n, uint64_t v)
{
    mmx_use(c);
    c->x87.st[n & 7].mant = v;
    c->x87.st[n & 7].se = 0xffff;
}

/* CHECK_MMX and the x87 exceptions that an MMX instruction finds waiting. */
#define ENTER_MMX() do { CHECK_MMX(); if (unlikely(c->x87.status & 0x80)) x87_pending(c, i); } while (0)
/* Instructions with operands in MMX and XMM registers. */
#define ENTER_SSE_MMX() do { CHECK_SSE(); ENTER_MMX(); } while (0)

INLINE unsigned vex_bytes(const Insn *i) { return i->flags & INSN_VEXL ? 32 : 16; }
INLINE unsigned imm8(const Insn *i) { return (uint8_t)i->imm; }

/* Result of a VEX instruction: n bytes of v, the rest of the register zero. */
INLINE void vex_set(Cpu *c, unsigned reg, const Ymm *v, unsigned n)
{
    memcpy(&c->ymm[reg], v, n);
    if (n < 32)
        memset(&c->ymm[reg].u8[n], 0, 32 - n);
}

/* ModRM.rm operand of `n` bytes: register or memory of any alignment. */
INLINE void get_rm(Cpu *c, const Insn *i, Ymm *v, unsigned n)
{
    if (i->flags & INSN_MEM)
        load_vec(c, i, v, n, false);
    else
        memcpy(v, &c->ymm[i->rm], n);
}
INLINE uint32_t get_rm32(Cpu *c, const Insn *i) { return i->flags & INSN_MEM ? load32(c, i) : c->ymm[i->rm].u32[0]; }
INLINE uint64_t get_rm64(Cpu *c, const Insn *i) { return i->flags & INSN_MEM ? load64(c, i) : c->ymm[i->rm].u64[0]; }

#define MMX_OP(id, op) \
    EXEC_VOID(id##_mmx_r) \
    { \
        ENTER_MMX(); \
        Ymm d, a, b; \
        a.u64[0] = MM(i->reg); \
        b.u64[0] = MM(i->rm); \
        op(&d, &a, &b, 8, imm8(i)); \
        mmx_set(c, i->reg, d.u64[0]); \
    } \
    EXEC_VOID(id##_mmx_m) \
    { \
        ENTER_MMX(); \
        Ymm d, a, b; \
        a.u64[0] = MM(i->reg); \
        b.u64[0] = load64(c, i); \
        op(&d, &a, &b, 8, imm8(i)); \
        mmx_set(c, i->reg, d.u64[0]); \
    } \
    REG_MEM(id##_mmx, id##_mmx_r, id##_mmx_m)

#define SSE_OP(id, op) \
    EXEC_VOID(id##_r) \
    { \
        CHECK_SSE(); \
        Ymm d; \
        op(&d, &c->ymm[i->reg], &c->ymm[i->rm], 16, imm8(i)); \
        memcpy(&c->ymm[i->reg], &d, 16); \
    } \
    EXEC_VOID(id##_slow) \
    { \
        CHECK_SSE(); \
        Ymm d, b; \
        load_vec(c, i, &b, 16, true); \
        op(&d, &c->ymm[i->reg], &b, 16, imm8(i)); \
        memcpy(&c->ymm[i->reg], &d, 16); \
    } \
    EXEC(id##_m) \
    { \
        VEC_IN_RAM(c->deny_sse != EXC_NONE, 16, true, read, id##_slow); \
        Ymm d, b; \
        memcpy(&b, ram, 16); \
        op(&d, &c->ymm[i->reg], &b, 16, imm8(i)); \
        memcpy(&c->ymm[i->reg], &d, 16); \
        NEXT(); \
    } \
    REG_MEM(id, id##_r, id##_m)

/* VEX form of n bytes whose second source has `m` bytes. */
#define VEX_OP_SIZED(id, op, n, m) \
    EXEC_VOID(id##_any) \
    { \
        CHECK_AVX(); \
        Ymm d, b; \
        get_rm(c, i, &b, m); \
        op(&d, &c->ymm[i->vvvv], &b, n, imm8(i)); \
        vex_set(c, i->reg, &d, n); \
    } \
    ONE(id, id##_any)
#define VEX_OP128(id, op) VEX_OP_SIZED(id, op, 16, 16)
#define VEX_OP256(id, op) VEX_OP_SIZED(id, op, 32, 32)
/* One line of the table for both lengths. */
#define VEX_OP(id, op) \
    EXEC_VOID(id##_any) \
    { \
        CHECK_AVX(); \
        Ymm d, b; \
        if (i->flags & INSN_VEXL) { \
            get_rm(c, i, &b, 32); \
            op(&d, &c->ymm[i->vvvv], &b, 32, imm8(i)); \
            vex_set(c, i->reg, &d, 32); \
        } else { \
            get_rm(c, i, &b, 16); \
            op(&d, &c->ymm[i->vvvv], &b, 16, imm8(i)); \
            vex_set(c, i->reg, &d, 16); \
        } \
    } \
    ONE(id, id##_any)

/* All forms of an integer instruction. */
#define INT_OP(name, op) SSE_OP(name, op) VEX_OP128(v##name, op) VEX_OP256(v##name##_y, op)
#define INT_OP_MMX(name, op) MMX_OP(name, op) INT_OP(name, op)
/* Legacy form, and one VEX line for both lengths. */
#define FLOAT_OP(name, op) SSE_OP(name, op) VEX_OP(v##name, op)

#define OP(name) \
    INLINE void name(Ymm *d, const Ymm *a, const Ymm *b, unsigned n, unsigned imm)
#define UNUSED_OPERANDS (void)a, (void)b, (void)n, (void)imm

/* Operation lane by lane: `f` is a member of Ymm, x and y the lanes. */
#define LANES(name, f, expression) \
    OP(name) \
    { \
        UNUSED_OPERANDS; \
        for (unsigned k = 0; k < n / sizeof d->f[0]; k++) { \
            __typeof__(d->f[0]) x = a->f[k], y = b->f[k]; \
            (void)x, (void)y; \
            d->f[k] = (__typeof__(d->f[0]))(expression); \
        } \
    }

/* Bytes of the part that shuffles stay inside: 16, or all 8 of an MMX register. */
#define LANE_BYTES(n) ((n) < 16 ? (n) : 16)

/* ---- floating point: the body of an instruction runs directly, or watched where an exception may have to be raised ---- */
typedef void (*fp_body)(Cpu *c, const Insn *i);
/* vec_fp.c: raises what trap_sse or trap_avx stand for; else executes body and raises the exceptions it met, with its results
   taken back. Bodies write ymm[reg], gpr[reg], MMX register reg or the flags, no memory. */
const Insn *fp_watched(Cpu *c, const Insn *i, fp_body body, unsigned deny);

#define FP_EXEC(name, trap, deny, body) \
    EXEC(name) \
    { \
        if (unlikely(c->trap)) \
            return fp_watched(c, i, body, c->deny); \
        body(c, i); \
        NEXT(); \
    }
#define FP_BODY(name) INLINE void name(Cpu *c, const Insn *i)
#define FP_SSE(name, body) FP_EXEC(name, trap_sse, deny_sse, body)
#define FP_AVX(name, body) FP_EXEC(name, trap_avx, deny_avx, body)

#endif
