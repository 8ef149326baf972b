/* Conversions between integers, single and double precision. */
#include "vec_fp.h"

/* ---- general register to scalar ---- */

#define FROM_INT(name, insn, f) \
    FP_BODY(name##_r32b) \
    { \
        __m128i x = xmm_of##f(c->ymm[i->reg].u##f[0]); \
        __asm__ volatile(insn "l %1, %0" : "+x"(x) : "r"((uint32_t)c->gpr[i->rm])); \
        c->ymm[i->reg].u##f[0] = xmm_low##f(x); \
    } \
    FP_BODY(name##_r64b) \
    { \
        __m128i x = xmm_of##f(c->ymm[i->reg].u##f[0]); \
        __asm__ volatile(insn "q %1, %0" : "+x"(x) : "r"(c->gpr[i->rm])); \
        c->ymm[i->reg].u##f[0] = xmm_low##f(x); \
    } \
    FP_BODY(name##_m32b) \
    { \
        uint32_t v = load32(c, i); \
        __m128i x = xmm_of##f(c->ymm[i->reg].u##f[0]); \
        __asm__ volatile(insn "l %1, %0" : "+x"(x) : "r"(v)); \
        c->ymm[i->reg].u##f[0] = xmm_low##f(x); \
    } \
    FP_BODY(name##_m64b) \
    { \
        uint64_t v = load64(c, i); \
        __m128i x = xmm_of##f(c->ymm[i->reg].u##f[0]); \
        __asm__ volatile(insn "q %1, %0" : "+x"(x) : "r"(v)); \
        c->ymm[i->reg].u##f[0] = xmm_low##f(x); \
    } \
    FP_BODY(v##name##_b) \
    { \
        Ymm d = c->ymm[i->vvvv]; \
        __m128i x = xmm_of##f(d.u##f[0]); \
        if (i->osize == 8) { \
            uint64_t v = i->flags & INSN_MEM ? load64(c, i) : c->gpr[i->rm]; \
            __asm__ volatile(insn "q %1, %0" : "+x"(x) : "r"(v)); \
        } else { \
            uint32_t v = i->flags & INSN_MEM ? load32(c, i) : (uint32_t)c->gpr[i->rm]; \
            __asm__ volatile(insn "l %1, %0" : "+x"(x) : "r"(v)); \
        } \
        d.u##f[0] = xmm_low##f(x); \
        vex_set(c, i->reg, &d, 16); \
    } \
    FP_SSE(name##_r32, name##_r32b) \
    FP_SSE(name##_r64, name##_r64b) \
    FP_SSE(name##_m32_slow, name##_m32b) \
    EXEC(name##_m32) \
    { \
        VEC_IN_RAM(c->trap_sse, 4, false, read, name##_m32_slow); \
        uint32_t v; \
        memcpy(&v, ram, sizeof v); \
        __m128i x = xmm_of##f(c->ymm[i->reg].u##f[0]); \
        __asm__ volatile(insn "l %1, %0" : "+x"(x) : "r"(v)); \
        c->ymm[i->reg].u##f[0] = xmm_low##f(x); \
        NEXT(); \
    } \
    FP_SSE(name##_m64_slow, name##_m64b) \
    EXEC(name##_m64) \
    { \
        VEC_IN_RAM(c->trap_sse, 8, false, read, name##_m64_slow); \
        uint64_t v; \
        memcpy(&v, ram, sizeof v); \
        __m128i x = xmm_of##f(c->ymm[i->reg].u##f[0]); \
        __asm__ volatile(insn "q %1, %0" : "+x"(x) : "r"(v)); \
        c->ymm[i->reg].u##f[0] = xmm_low##f(x); \
        NEXT(); \
    } \
    REG_MEM_SIZES(name, name##_r32, name##_r32, name##_r64, name##_m32, name##_m32, name##_m64) \
    FP_AVX(v##name##_any, v##name##_b) \
    ONE(v##name, v##name##_any)
FROM_INT(cvtsi2ss, "cvtsi2ss", 32)
FROM_INT(cvtsi2sd, "cvtsi2sd", 64)

/* ---- scalar to general register ---- */

#define TO_INT(name, f) \
    FP_BODY(name##_32b) \
    { \
        uint32_t v; \
        __m128i x = xmm_of##f(get_rm##f(c, i)); \
        __asm__ volatile(#name " %1, %0" : "=r"(v) : "x"(x)); \
        c->gpr[i->reg] = v; \
    } \
    FP_BODY(name##_64b) \
    { \
        uint64_t v; \
        __m128i x = xmm_of##f(get_rm##f(c, i)); \
        __asm__ volatile(#name " %1, %0" : "=r"(v) : "x"(x)); \
        c->gpr[i->reg] = v; \
    } \
    FP_SSE(name##_32, name##_32b) \
    FP_SSE(name##_64, name##_64b) \
    SIZES(name, name##_32, name##_32, name##_64) \
    FP_AVX(v##name##_32, name##_32b) \
    FP_AVX(v##name##_64, name##_64b) \
    SIZES(v##name, v##name##_32, v##name##_32, v##name##_64)
TO_INT(cvtss2si, 32)
TO_INT(cvttss2si, 32)
TO_INT(cvtsd2si, 64)
TO_INT(cvttsd2si, 64)

/* ---- scalar to scalar ---- */

#define SCALAR(name, from, to) \
    FP_BODY(name##_b) \
    { \
        __m128i y = xmm_of##from(get_rm##from(c, i)), x = xmm_of##to(c->ymm[i->reg].u##to[0]); \
        FP_ASM(#name, x, y); \
        c->ymm[i->reg].u##to[0] = xmm_low##to(x); \
    } \
    FP_BODY(v##name##_b) \
    { \
        __m128i y = xmm_of##from(get_rm##from(c, i)), x = _mm_setzero_si128(); \
        FP_ASM(#name, x, y); \
        Ymm d = c->ymm[i->vvvv]; \
        d.u##to[0] = xmm_low##to(x); \
        vex_set(c, i->reg, &d, 16); \
    } \
    FP_SSE(name##_any, name##_b) \
    ONE(name, name##_any) \
    FP_AVX(v##name##_any, v##name##_b) \
    ONE(v##name, v##name##_any)
SCALAR(cvtss2sd, 32, 64)
SCALAR(cvtsd2ss, 64, 32)

/* ---- packed, elements of one size ---- */

FP_PACKED(cvtdq2ps, "cvtdq2ps")
FP_PACKED(cvtps2dq, "cvtps2dq")
FP_PACKED(cvttps2dq, "cvttps2dq")

/* ---- packed, to twice the size: 64 bits give 128 ---- */

#define WIDEN(name) \
    FP_BODY(name##_b) \
    { \
        __m128i y = xmm_of64(get_rm64(c, i)), x = _mm_setzero_si128(); \
        FP_ASM(#name, x, y); \
        xmm_put(&c->ymm[i->reg], x); \
    } \
    FP_BODY(v##name##_b) \
    { \
        __m128i y = xmm_of64(get_rm64(c, i)), x = _mm_setzero_si128(); \
        FP_ASM(#name, x, y); \
        vex_set(c, i->reg, (const Ymm *)&x, 16); \
    } \
    FP_BODY(v##name##_yb) \
    { \
        Ymm b, d; \
        get_rm(c, i, &b, 16); \
        for (unsigned k = 0; k < 2; k++) { \
            __m128i y = xmm_of64(b.u64[k]), x = _mm_setzero_si128(); \
            FP_ASM(#name, x, y); \
            xmm_put(&d.u64[2 * k], x); \
        } \
        vex_set(c, i->reg, &d, 32); \
    } \
    FP_SSE(name##_any, name##_b) \
    ONE(name, name##_any) \
    FP_AVX(v##name##_any, v##name##_b) \
    ONE(v##name, v##name##_any) \
    FP_AVX(v##name##_y_any, v##name##_yb) \
    ONE(v##name##_y, v##name##_y_any)
WIDEN(cvtps2pd)
WIDEN(cvtdq2pd)

/* ---- packed, to half the size: the rest of the XMM register becomes zero ---- */

#define NARROW(name) \
    FP_BODY(name##_b) \
    { \
        Ymm b; \
        if (i->flags & INSN_MEM) \
            load_vec(c, i, &b, 16, true); \
        else \
            memcpy(&b, &c->ymm[i->rm], 16); \
        __m128i y = xmm_get(&b), x = _mm_setzero_si128(); \
        FP_ASM(#name, x, y); \
        xmm_put(&c->ymm[i->reg], x); \
    } \
    FP_BODY(v##name##_b) \
    { \
        Ymm b, d = {0}; \
        unsigned n = vex_bytes(i); \
        get_rm(c, i, &b, n); \
        for (unsigned k = 0; k < n / 16; k++) { \
            __m128i y = xmm_get(&b.u64[2 * k]), x = _mm_setzero_si128(); \
            FP_ASM(#name, x, y); \
            d.u64[k] = xmm_low64(x); \
        } \
        vex_set(c, i->reg, &d, 32); \
    } \
    FP_SSE(name##_any, name##_b) \
    ONE(name, name##_any) \
    FP_AVX(v##name##_any, v##name##_b) \
    ONE(v##name, v##name##_any)
NARROW(cvtpd2ps)
NARROW(cvtpd2dq)
NARROW(cvttpd2dq)

/* ---- between MMX and XMM registers. With 128-bit registers in place of the MMX one: unused elements are 0 and exact ---- */

/* From memory it is no MMX instruction. */
INLINE __m128i get_pi(Cpu *c, const Insn *i)
{
    if (i->flags & INSN_MEM)
        return xmm_of64(load64(c, i));
    ENTER_MMX();
    mmx_use(c);
    return xmm_of64(MM(i->rm));
}

FP_BODY(cvtpi2ps_b)
{
    __m128i y = get_pi(c, i), x = _mm_setzero_si128();
    FP_ASM("cvtdq2ps", x, y);
    c->ymm[i->reg].u64[0] = xmm_low64(x);
}
FP_SSE(cvtpi2ps_any, cvtpi2ps_b)
ONE(cvtpi2ps, cvtpi2ps_any)

FP_BODY(cvtpi2pd_b)
{
    __m128i y = get_pi(c, i), x = _mm_setzero_si128();
    FP_ASM("cvtdq2pd", x, y);
    xmm_put(&c->ymm[i->reg], x);
}
FP_SSE(cvtpi2pd_any, cvtpi2pd_b)
ONE(cvtpi2pd, cvtpi2pd_any)

#define TO_MMX(name, insn, get) \
    FP_BODY(name##_b) \
    { \
        ENTER_MMX(); \
        __m128i y = get, x = _mm_setzero_si128(); \
        FP_ASM(insn, x, y); \
        mmx_set(c, i->reg, xmm_low64(x)); \
    } \
    FP_SSE(name##_any, name##_b) \
    ONE(name, name##_any)
INLINE __m128i get_pd(Cpu *c, const Insn *i)
{
    Ymm b;
    if (i->flags & INSN_MEM)
        load_vec(c, i, &b, 16, true);
    else
        memcpy(&b, &c->ymm[i->rm], 16);
    return xmm_get(&b);
}
TO_MMX(cvtps2pi, "cvtps2dq", xmm_of64(get_rm64(c, i)))
TO_MMX(cvttps2pi, "cvttps2dq", xmm_of64(get_rm64(c, i)))
TO_MMX(cvtpd2pi, "cvtpd2dq", get_pd(c, i))
TO_MMX(cvttpd2pi, "cvttpd2dq", get_pd(c, i))
