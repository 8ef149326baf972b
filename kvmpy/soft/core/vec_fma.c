/* Fused multiply-add. A host with FMA executes the very instruction; without it libm's fma() computes the exact result, and
   NaNs, denormals and flags, which fma() leaves open, are done here. */
#include <math.h>

#include "vec_fp.h"

/* Operands: x is ModRM.reg (and the result), y VEX.vvvv, z ModRM.rm. The form says which two are multiplied. */
enum { FORM_132, FORM_213, FORM_231 };
#define NEGATE_PRODUCT 1u
#define NEGATE_ADDEND 2u

int fma_on_host = -1;

static bool use_host(void)
{
    if (unlikely(fma_on_host < 0))
        fma_on_host = __builtin_cpu_supports("fma") != 0;
    return fma_on_host;
}

/* ---- portable ---- */

/* One element in the format of so many bits. */
#define DEFINE_PORTABLE(bits, type, fused, mantissa, exponent_max) \
    typedef union { uint##bits##_t u; type f; } Float##bits; \
    static bool is_nan##bits(uint##bits##_t v) \
    { \
        return (v & ~((uint##bits##_t)1 << (bits - 1))) > (uint##bits##_t)exponent_max << mantissa; \
    } \
    static bool is_denormal##bits(uint##bits##_t v) \
    { \
        return v << 1 && !(v >> mantissa & exponent_max); \
    } \
    static uint##bits##_t portable##bits(uint##bits##_t x, uint##bits##_t y, uint##bits##_t z, int form, unsigned negate, \
                                         uint32_t mxcsr) \
    { \
        const uint##bits##_t sign = (uint##bits##_t)1 << (bits - 1), quiet = (uint##bits##_t)1 << (mantissa - 1); \
        const uint##bits##_t infinity = (uint##bits##_t)exponent_max << mantissa; \
        uint##bits##_t a = form == FORM_132 ? x : y, b = form == FORM_213 ? x : z; \
        uint##bits##_t addend = form == FORM_132 ? y : form == FORM_213 ? z : x; \
        uint##bits##_t in[3] = {a, b, addend}; \
        uint32_t flags = 0; \
        for (unsigned k = 0; k < 3; k++) { \
            if (is_nan##bits(in[k]) && !(in[k] & quiet)) \
                flags |= MXCSR_IE; \
            if (is_denormal##bits(in[k]) && mxcsr & MXCSR_DAZ) \
                in[k] &= sign; \
        } \
        bool zero_by_infinity = ((in[0] & ~sign) == 0 && (in[1] & ~sign) == infinity) || \
                                ((in[1] & ~sign) == 0 && (in[0] & ~sign) == infinity); \
        for (unsigned k = 0; k < 3; k++) \
            if (is_nan##bits(in[k])) { \
                fp_raise(flags); \
                return in[k] | quiet; \
            } \
        for (unsigned k = 0; k < 3; k++) \
            if (is_denormal##bits(in[k])) \
                flags |= MXCSR_DE; \
        if (negate & NEGATE_PRODUCT) \
            in[0] ^= sign; \
        if (negate & NEGATE_ADDEND) \
            in[2] ^= sign; \
        if (zero_by_infinity) { \
            fp_raise(MXCSR_IE); \
            return sign | infinity | quiet; \
        } \
        uint32_t host = host_mxcsr_read(); \
        host_mxcsr_write(host & ~(MXCSR_DAZ | MXCSR_FTZ | MXCSR_FLAGS)); \
        Float##bits p = {.u = in[0]}, q = {.u = in[1]}, r = {.u = in[2]}; \
        __asm__ volatile("" : "+x"(p.f)); \
        r.f = fused(p.f, q.f, r.f); \
        __asm__ volatile("" : "+x"(r.f)); \
        flags |= host_mxcsr_read() & MXCSR_FLAGS & ~MXCSR_DE; \
        if (is_nan##bits(r.u)) { \
            r.u = sign | infinity | quiet; \
            flags = MXCSR_IE; \
        } \
        if (host & MXCSR_FTZ && (is_denormal##bits(r.u) || flags & MXCSR_UE)) { \
            r.u &= sign; \
            flags |= MXCSR_UE | MXCSR_PE; \
        } \
        host_mxcsr_write(host | flags); \
        return r.u; \
    }
DEFINE_PORTABLE(32, float, fmaf, 23, 0xff)
DEFINE_PORTABLE(64, double, fma, 52, 0x7ff)

/* ---- instructions ---- */

#define FMA_PACKED(id, form, negate_even, negate_odd, bits) \
    FP_BODY(id##_b) \
    { \
        Ymm d, b; \
        unsigned n = vex_bytes(i); \
        get_rm(c, i, &b, n); \
        if (likely(use_host())) { \
            for (unsigned k = 0; k < n; k += 16) { \
                __m128i x = xmm_get(&c->ymm[i->reg].u8[k]); \
                __asm__ volatile(#id " %2, %1, %0" : "+x"(x) : "x"(xmm_get(&c->ymm[i->vvvv].u8[k])), "x"(xmm_get(&b.u8[k]))); \
                xmm_put(&d.u8[k], x); \
            } \
        } else { \
            for (unsigned k = 0; k < n * 8 / bits; k++) \
                d.u##bits[k] = portable##bits(c->ymm[i->reg].u##bits[k], c->ymm[i->vvvv].u##bits[k], b.u##bits[k], form, \
                                              k & 1 ? negate_odd : negate_even, c->mxcsr); \
        } \
        vex_set(c, i->reg, &d, n); \
    } \
    FP_AVX(id##_any, id##_b) \
    ONE(id, id##_any)
#define FMA_SCALAR(id, form, negate, bits) \
    FP_BODY(id##_b) \
    { \
        Ymm d = c->ymm[i->reg]; \
        uint##bits##_t z = get_rm##bits(c, i), y = c->ymm[i->vvvv].u##bits[0]; \
        if (likely(use_host())) { \
            __m128i x = xmm_of##bits(d.u##bits[0]); \
            __asm__ volatile(#id " %2, %1, %0" : "+x"(x) : "x"(xmm_of##bits(y)), "x"(xmm_of##bits(z))); \
            d.u##bits[0] = xmm_low##bits(x); \
        } else { \
            d.u##bits[0] = portable##bits(d.u##bits[0], y, z, form, negate, c->mxcsr); \
        } \
        vex_set(c, i->reg, &d, 16); \
    } \
    FP_AVX(id##_any, id##_b) \
    ONE(id, id##_any)

#define FMA(name, order, even, odd) \
    FMA_PACKED(v##name##order##ps, FORM_##order, even, odd, 32) \
    FMA_PACKED(v##name##order##pd, FORM_##order, even, odd, 64)
#define FMA_BOTH(name, order, negate) \
    FMA(name, order, negate, negate) \
    FMA_SCALAR(v##name##order##ss, FORM_##order, negate, 32) \
    FMA_SCALAR(v##name##order##sd, FORM_##order, negate, 64)
#define FMA_ORDERS(name, negate) FMA_BOTH(name, 132, negate) FMA_BOTH(name, 213, negate) FMA_BOTH(name, 231, negate)
#define FMA_MIXED(name, even, odd) FMA(name, 132, even, odd) FMA(name, 213, even, odd) FMA(name, 231, even, odd)
FMA_ORDERS(fmadd, 0)
FMA_ORDERS(fmsub, NEGATE_ADDEND)
FMA_ORDERS(fnmadd, NEGATE_PRODUCT)
FMA_ORDERS(fnmsub, NEGATE_PRODUCT | NEGATE_ADDEND)
FMA_MIXED(fmaddsub, NEGATE_ADDEND, 0)
FMA_MIXED(fmsubadd, 0, NEGATE_ADDEND)
