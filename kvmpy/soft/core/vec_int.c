/* Packed integer arithmetic, comparison, logic and shifts. */
#include "vec.h"

#define SATURATE(v, low, high) ((v) < (low) ? (low) : (v) > (high) ? (high) : (v))
#define SAT_S8(v) SATURATE(v, -128, 127)
#define SAT_S16(v) SATURATE(v, -32768, 32767)
#define SAT_U8(v) SATURATE(v, 0, 255)
#define SAT_U16(v) SATURATE(v, 0, 65535)

LANES(op_paddb, u8, x + y)
LANES(op_paddw, u16, x + y)
LANES(op_paddd, u32, x + y)
LANES(op_paddq, u64, x + y)
LANES(op_psubb, u8, x - y)
LANES(op_psubw, u16, x - y)
LANES(op_psubd, u32, x - y)
LANES(op_psubq, u64, x - y)
LANES(op_paddsb, s8, SAT_S8(x + y))
LANES(op_paddsw, s16, SAT_S16(x + y))
LANES(op_paddusb, u8, SAT_U8(x + y))
LANES(op_paddusw, u16, SAT_U16(x + y))
LANES(op_psubsb, s8, SAT_S8(x - y))
LANES(op_psubsw, s16, SAT_S16(x - y))
LANES(op_psubusb, u8, x > y ? x - y : 0)
LANES(op_psubusw, u16, x > y ? x - y : 0)
LANES(op_pmullw, u16, (uint32_t)x * y)
LANES(op_pmulhw, s16, (x * y) >> 16)
LANES(op_pmulhuw, u16, ((uint32_t)x * y) >> 16)
LANES(op_pmulld, u32, x * y)
LANES(op_pmuludq, u64, (x & 0xffffffff) * (y & 0xffffffff))
LANES(op_pmuldq, s64, (int64_t)(int32_t)x * (int32_t)y)
LANES(op_pmulhrsw, s16, (((x * y) >> 14) + 1) >> 1)
LANES(op_pavgb, u8, (x + y + 1) >> 1)
LANES(op_pavgw, u16, (x + y + 1) >> 1)
LANES(op_pminub, u8, x < y ? x : y)
LANES(op_pminuw, u16, x < y ? x : y)
LANES(op_pminud, u32, x < y ? x : y)
LANES(op_pminsb, s8, x < y ? x : y)
LANES(op_pminsw, s16, x < y ? x : y)
LANES(op_pminsd, s32, x < y ? x : y)
LANES(op_pmaxub, u8, x > y ? x : y)
LANES(op_pmaxuw, u16, x > y ? x : y)
LANES(op_pmaxud, u32, x > y ? x : y)
LANES(op_pmaxsb, s8, x > y ? x : y)
LANES(op_pmaxsw, s16, x > y ? x : y)
LANES(op_pmaxsd, s32, x > y ? x : y)
LANES(op_pcmpeqb, u8, -(x == y))
LANES(op_pcmpeqw, u16, -(x == y))
LANES(op_pcmpeqd, u32, -(x == y))
LANES(op_pcmpeqq, u64, -(uint64_t)(x == y))
LANES(op_pcmpgtb, s8, -(x > y))
LANES(op_pcmpgtw, s16, -(x > y))
LANES(op_pcmpgtd, s32, -(x > y))
LANES(op_pcmpgtq, s64, -(x > y))
LANES(op_pand, u64, x & y)
LANES(op_pandn, u64, ~x & y)
LANES(op_por, u64, x | y)
LANES(op_pxor, u64, x ^ y)
LANES(op_pabsb, s8, y < 0 ? -y : y)
LANES(op_pabsw, s16, y < 0 ? -y : y)
LANES(op_pabsd, u32, y >> 31 ? -y : y)
LANES(op_psignb, s8, y < 0 ? -x : y == 0 ? 0 : x)
LANES(op_psignw, s16, y < 0 ? -x : y == 0 ? 0 : x)
LANES(op_psignd, u32, y >> 31 ? -x : y == 0 ? 0 : x)

OP(op_pmaddwd)
{
    UNUSED_OPERANDS;
    for (unsigned k = 0; k < n / 4; k++)
        d->u32[k] = (uint32_t)(a->s16[2 * k] * b->s16[2 * k]) + (uint32_t)(a->s16[2 * k + 1] * b->s16[2 * k + 1]);
}

OP(op_pmaddubsw)
{
    UNUSED_OPERANDS;
    for (unsigned k = 0; k < n / 2; k++)
        d->s16[k] = (int16_t)SAT_S16(a->u8[2 * k] * b->s8[2 * k] + a->u8[2 * k + 1] * b->s8[2 * k + 1]);
}

OP(op_psadbw)
{
    UNUSED_OPERANDS;
    for (unsigned k = 0; k < n / 8; k++) {
        unsigned sum = 0;
        for (unsigned j = 8 * k; j < 8 * k + 8; j++)
            sum += (unsigned)(a->u8[j] > b->u8[j] ? a->u8[j] - b->u8[j] : b->u8[j] - a->u8[j]);
        d->u64[k] = sum;
    }
}

/* Horizontal: neighbours of a give the lower half of each lane, those of b the upper. */
#define HORIZONTAL(name, f, expression) \
    OP(name) \
    { \
        UNUSED_OPERANDS; \
        enum { SIZE = sizeof d->f[0] }; \
        unsigned lane = LANE_BYTES(n) / SIZE, half = lane / 2; \
        for (unsigned l = 0; l < n / SIZE; l += lane) \
            for (unsigned k = 0; k < lane; k++) { \
                const Ymm *s = k < half ? a : b; \
                unsigned at = l + 2 * (k < half ? k : k - half); \
                __typeof__(d->f[0]) x = s->f[at], y = s->f[at + 1]; \
                d->f[l + k] = (__typeof__(d->f[0]))(expression); \
            } \
    }
HORIZONTAL(op_phaddw, u16, x + y)
HORIZONTAL(op_phaddd, u32, x + y)
HORIZONTAL(op_phaddsw, s16, SAT_S16(x + y))
HORIZONTAL(op_phsubw, u16, x - y)
HORIZONTAL(op_phsubd, u32, x - y)
HORIZONTAL(op_phsubsw, s16, SAT_S16(x - y))

INT_OP_MMX(paddb, op_paddb)
INT_OP_MMX(paddw, op_paddw)
INT_OP_MMX(paddd, op_paddd)
INT_OP_MMX(paddq, op_paddq)
INT_OP_MMX(psubb, op_psubb)
INT_OP_MMX(psubw, op_psubw)
INT_OP_MMX(psubd, op_psubd)
INT_OP_MMX(psubq, op_psubq)
INT_OP_MMX(paddsb, op_paddsb)
INT_OP_MMX(paddsw, op_paddsw)
INT_OP_MMX(paddusb, op_paddusb)
INT_OP_MMX(paddusw, op_paddusw)
INT_OP_MMX(psubsb, op_psubsb)
INT_OP_MMX(psubsw, op_psubsw)
INT_OP_MMX(psubusb, op_psubusb)
INT_OP_MMX(psubusw, op_psubusw)
INT_OP_MMX(pmullw, op_pmullw)
INT_OP_MMX(pmulhw, op_pmulhw)
INT_OP_MMX(pmulhuw, op_pmulhuw)
INT_OP_MMX(pmuludq, op_pmuludq)
INT_OP_MMX(pmulhrsw, op_pmulhrsw)
INT_OP_MMX(pmaddwd, op_pmaddwd)
INT_OP_MMX(pmaddubsw, op_pmaddubsw)
INT_OP_MMX(psadbw, op_psadbw)
INT_OP_MMX(pavgb, op_pavgb)
INT_OP_MMX(pavgw, op_pavgw)
INT_OP_MMX(pminub, op_pminub)
INT_OP_MMX(pminsw, op_pminsw)
INT_OP_MMX(pmaxub, op_pmaxub)
INT_OP_MMX(pmaxsw, op_pmaxsw)
INT_OP_MMX(pcmpeqb, op_pcmpeqb)
INT_OP_MMX(pcmpeqw, op_pcmpeqw)
INT_OP_MMX(pcmpeqd, op_pcmpeqd)
INT_OP_MMX(pcmpgtb, op_pcmpgtb)
INT_OP_MMX(pcmpgtw, op_pcmpgtw)
INT_OP_MMX(pcmpgtd, op_pcmpgtd)
INT_OP_MMX(pand, op_pand)
INT_OP_MMX(pandn, op_pandn)
INT_OP_MMX(por, op_por)
INT_OP_MMX(pxor, op_pxor)
INT_OP_MMX(pabsb, op_pabsb)
INT_OP_MMX(pabsw, op_pabsw)
INT_OP_MMX(pabsd, op_pabsd)
INT_OP_MMX(psignb, op_psignb)
INT_OP_MMX(psignw, op_psignw)
INT_OP_MMX(psignd, op_psignd)
INT_OP_MMX(phaddw, op_phaddw)
INT_OP_MMX(phaddd, op_phaddd)
INT_OP_MMX(phaddsw, op_phaddsw)
INT_OP_MMX(phsubw, op_phsubw)
INT_OP_MMX(phsubd, op_phsubd)
INT_OP_MMX(phsubsw, op_phsubsw)
INT_OP(pmulld, op_pmulld)
INT_OP(pmuldq, op_pmuldq)
INT_OP(pminsb, op_pminsb)
INT_OP(pminsd, op_pminsd)
INT_OP(pminuw, op_pminuw)
INT_OP(pminud, op_pminud)
INT_OP(pmaxsb, op_pmaxsb)
INT_OP(pmaxsd, op_pmaxsd)
INT_OP(pmaxuw, op_pmaxuw)
INT_OP(pmaxud, op_pmaxud)
INT_OP(pcmpeqq, op_pcmpeqq)
INT_OP(pcmpgtq, op_pcmpgtq)
FLOAT_OP(andps, op_pand)
FLOAT_OP(andpd, op_pand)
FLOAT_OP(andnps, op_pandn)
FLOAT_OP(andnpd, op_pandn)
FLOAT_OP(orps, op_por)
FLOAT_OP(orpd, op_por)
FLOAT_OP(xorps, op_pxor)
FLOAT_OP(xorpd, op_pxor)

/* ---- shifts: the count is the low 64 bits of b, or the immediate ---- */

#define SHIFT(name, f, bits, in_range, beyond) \
    INLINE void name##_by(Ymm *d, const Ymm *a, uint64_t count, unsigned n) \
    { \
        unsigned by = count < bits ? (unsigned)count : 0; \
        for (unsigned k = 0; k < n / sizeof d->f[0]; k++) { \
            __typeof__(d->f[0]) x = a->f[k]; \
            d->f[k] = (__typeof__(d->f[0]))(count < bits ? (in_range) : (beyond)); \
        } \
    } \
    OP(name) \
    { \
        (void)imm; \
        name##_by(d, a, b->u64[0], n); \
    } \
    OP(name##_imm) \
    { \
        (void)a; \
        name##_by(d, b, imm, n); \
    }
SHIFT(op_psllw, u16, 16, x << by, 0)
SHIFT(op_pslld, u32, 32, x << by, 0)
SHIFT(op_psllq, u64, 64, x << by, 0)
SHIFT(op_psrlw, u16, 16, x >> by, 0)
SHIFT(op_psrld, u32, 32, x >> by, 0)
SHIFT(op_psrlq, u64, 64, x >> by, 0)
SHIFT(op_psraw, s16, 16, x >> by, x >> 15)
SHIFT(op_psrad, s32, 32, x >> by, x >> 31)

OP(op_pslldq_imm)
{
    (void)a;
    unsigned by = imm < 16 ? imm : 16;
    for (unsigned k = 0; k < n; k++)
        d->u8[k] = (k & 15) >= by ? b->u8[k - by] : 0;
}

OP(op_psrldq_imm)
{
    (void)a;
    unsigned by = imm < 16 ? imm : 16;
    for (unsigned k = 0; k < n; k++)
        d->u8[k] = (k & 15) + by < 16 ? b->u8[k + by] : 0;
}

/* The immediate forms work on ModRM.rm in place, VEX ones on it into VEX.vvvv. */
#define SHIFT_IMM_SSE(name) \
    EXEC_VOID(name##_imm_r) \
    { \
        CHECK_SSE(); \
        Ymm d; \
        op_##name##_imm(&d, &c->ymm[i->rm], &c->ymm[i->rm], 16, imm8(i)); \
        memcpy(&c->ymm[i->rm], &d, 16); \
    } \
    ONE(name##_imm, name##_imm_r) \
    EXEC_VOID(v##name##_imm_r) \
    { \
        CHECK_AVX(); \
        Ymm d; \
        op_##name##_imm(&d, &c->ymm[i->rm], &c->ymm[i->rm], 16, imm8(i)); \
        vex_set(c, i->vvvv, &d, 16); \
    } \
    ONE(v##name##_imm, v##name##_imm_r) \
    EXEC_VOID(v##name##_imm_y_r) \
    { \
        CHECK_AVX(); \
        Ymm d; \
        op_##name##_imm(&d, &c->ymm[i->rm], &c->ymm[i->rm], 32, imm8(i)); \
        vex_set(c, i->vvvv, &d, 32); \
    } \
    ONE(v##name##_imm_y, v##name##_imm_y_r)
#define SHIFT_FORMS(name) \
    MMX_OP(name, op_##name) \
    SSE_OP(name, op_##name) \
    VEX_OP_SIZED(v##name, op_##name, 16, 16) \
    VEX_OP_SIZED(v##name##_y, op_##name, 32, 16) \
    EXEC_VOID(name##_imm_mmx_r) \
    { \
        ENTER_MMX(); \
        Ymm d, b; \
        b.u64[0] = MM(i->rm); \
        op_##name##_imm(&d, &b, &b, 8, imm8(i)); \
        mmx_set(c, i->rm, d.u64[0]); \
    } \
    ONE(name##_imm_mmx, name##_imm_mmx_r)
SHIFT_FORMS(psllw)
SHIFT_FORMS(pslld)
SHIFT_FORMS(psllq)
SHIFT_FORMS(psrlw)
SHIFT_FORMS(psrld)
SHIFT_FORMS(psrlq)
SHIFT_FORMS(psraw)
SHIFT_FORMS(psrad)
SHIFT_IMM_SSE(psllw)
SHIFT_IMM_SSE(pslld)
SHIFT_IMM_SSE(psllq)
SHIFT_IMM_SSE(psrlw)
SHIFT_IMM_SSE(psrld)
SHIFT_IMM_SSE(psrlq)
SHIFT_IMM_SSE(psraw)
SHIFT_IMM_SSE(psrad)
SHIFT_IMM_SSE(pslldq)
SHIFT_IMM_SSE(psrldq)

/* AVX2: a count of its own for each element. */
LANES(op_vpsllvd, u32, y < 32 ? x << (y & 31) : 0)
LANES(op_vpsllvq, u64, y < 64 ? x << (y & 63) : 0)
LANES(op_vpsrlvd, u32, y < 32 ? x >> (y & 31) : 0)
LANES(op_vpsrlvq, u64, y < 64 ? x >> (y & 63) : 0)
LANES(op_vpsravd, s32, x >> ((uint32_t)y < 32 ? y : 31))
VEX_OP(vpsllvd, op_vpsllvd)
VEX_OP(vpsllvq, op_vpsllvq)
VEX_OP(vpsrlvd, op_vpsrlvd)
VEX_OP(vpsrlvq, op_vpsrlvq)
VEX_OP(vpsravd, op_vpsravd)
