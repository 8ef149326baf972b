/* Floating-point handlers: the host's own instruction does the arithmetic, so that results, NaNs and flags are exact. */
#ifndef KP_VEC_FP_H
#define KP_VEC_FP_H

#include <emmintrin.h>

#include "vec.h"

extern int fma_on_host; /* does the host's FMA execute the guest's? -1: not asked yet; tests set 0 */

INLINE __m128i xmm_get(const void *p) { return _mm_loadu_si128(p); }
INLINE void xmm_put(void *p, __m128i v) { _mm_storeu_si128(p, v); }
INLINE __m128i xmm_of32(uint32_t v) { return _mm_cvtsi32_si128((int)v); }
INLINE __m128i xmm_of64(uint64_t v) { return _mm_cvtsi64_si128((long long)v); }
INLINE uint32_t xmm_low32(__m128i v) { return (uint32_t)_mm_cvtsi128_si32(v); }
INLINE uint64_t xmm_low64(__m128i v) { return (uint64_t)_mm_cvtsi128_si64(v); }

/* Instruction with two operands: to op= from, or to = op(from). */
#define FP_ASM(insn, to, from) __asm__ volatile(insn " %1, %0" : "+x"(to) : "x"(from))

/* Packed: op(reg, rm) in each 128 bits. */
#define FP_PACKED(name, insn) \
    FP_BODY(name##_rb) \
    { \
        __m128i x = xmm_get(&c->ymm[i->reg]), y = xmm_get(&c->ymm[i->rm]); \
        FP_ASM(insn, x, y); \
        xmm_put(&c->ymm[i->reg], x); \
    } \
    FP_BODY(name##_mb) \
    { \
        Ymm b; \
        load_vec(c, i, &b, 16, true); \
        __m128i x = xmm_get(&c->ymm[i->reg]), y = xmm_get(&b); \
        FP_ASM(insn, x, y); \
        xmm_put(&c->ymm[i->reg], x); \
    } \
    FP_BODY(v##name##_b) \
    { \
        Ymm b, d; \
        unsigned n = vex_bytes(i); \
        get_rm(c, i, &b, n); \
        for (unsigned k = 0; k < n; k += 16) { \
            __m128i x = xmm_get(&c->ymm[i->vvvv].u8[k]), y = xmm_get(&b.u8[k]); \
            FP_ASM(insn, x, y); \
            xmm_put(&d.u8[k], x); \
        } \
        vex_set(c, i->reg, &d, n); \
    } \
    FP_SSE(name##_r, name##_rb) \
    FP_SSE(name##_slow, name##_mb) \
    EXEC(name##_m) \
    { \
        VEC_IN_RAM(c->trap_sse, 16, true, read, name##_slow); \
        __m128i y = xmm_get(ram), x = xmm_get(&c->ymm[i->reg]); \
        FP_ASM(insn, x, y); \
        xmm_put(&c->ymm[i->reg], x); \
        NEXT(); \
    } \
    REG_MEM(name, name##_r, name##_m) \
    FP_AVX(v##name##_any, v##name##_b) \
    ONE(v##name, v##name##_any)

/* Scalar: the low element, the others come from the first operand. */
#define FP_SCALAR(name, insn, bits) \
    FP_BODY(name##_rb) \
    { \
        __m128i x = xmm_of##bits(c->ymm[i->reg].u##bits[0]), y = xmm_of##bits(c->ymm[i->rm].u##bits[0]); \
        FP_ASM(insn, x, y); \
        c->ymm[i->reg].u##bits[0] = xmm_low##bits(x); \
    } \
    FP_BODY(name##_mb) \
    { \
        __m128i y = xmm_of##bits(load##bits(c, i)), x = xmm_of##bits(c->ymm[i->reg].u##bits[0]); \
        FP_ASM(insn, x, y); \
        c->ymm[i->reg].u##bits[0] = xmm_low##bits(x); \
    } \
    FP_BODY(v##name##_b) \
    { \
        __m128i y = xmm_of##bits(get_rm##bits(c, i)), x = xmm_of##bits(c->ymm[i->vvvv].u##bits[0]); \
        FP_ASM(insn, x, y); \
        Ymm d = c->ymm[i->vvvv]; \
        d.u##bits[0] = xmm_low##bits(x); \
        vex_set(c, i->reg, &d, 16); \
    } \
    FP_SSE(name##_r, name##_rb) \
    FP_SSE(name##_slow, name##_mb) \
    EXEC(name##_m) \
    { \
        VEC_IN_RAM(c->trap_sse, bits / 8, false, read, name##_slow); \
        uint##bits##_t v; \
        memcpy(&v, ram, sizeof v); \
        __m128i y = xmm_of##bits(v), x = xmm_of##bits(c->ymm[i->reg].u##bits[0]); \
        FP_ASM(insn, x, y); \
        c->ymm[i->reg].u##bits[0] = xmm_low##bits(x); \
        NEXT(); \
    } \
    REG_MEM(name, name##_r, name##_m) \
    FP_AVX(v##name##_any, v##name##_b) \
    ONE(v##name, v##name##_any)

#endif
