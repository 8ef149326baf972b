/* SSE4: rounding, dot products, sums of differences, tests. */
#include "vec_fp.h"

/* ---- ROUNDPS and its like ---- */

/* Rounds to an integer; mantissa and exponent of so many bits. rounding: as MXCSR.RC. */
static uint64_t round_value(uint64_t v, unsigned mantissa, unsigned exponent, unsigned rounding, bool daz, uint32_t *flags)
{
    uint64_t one = 1, max = (one << exponent) - 1, bias = max >> 1, sign = v & one << (mantissa + exponent);
    uint64_t e = v >> mantissa & max, fraction = v & ((one << mantissa) - 1);
    if (e == max) {
        if (fraction && !(fraction >> (mantissa - 1))) {
            *flags |= MXCSR_IE;
            v |= one << (mantissa - 1);
        }
        return v;
    }
    if (e >= bias + mantissa)
        return v;
    if (e == 0 && (fraction == 0 || daz))
        return sign;
    bool up, away = rounding == 1 ? sign != 0 : rounding == 2 && !sign;
    if (e < bias) {
        up = rounding == 0 ? e == bias - 1 && fraction : away;
        *flags |= MXCSR_PE;
        return sign | (up ? bias << mantissa : 0);
    }
    unsigned shift = mantissa - (unsigned)(e - bias);
    uint64_t rest = v & ((one << shift) - 1), half = one << (shift - 1), whole = v - rest;
    if (!rest)
        return v;
    up = rounding == 0 ? rest > half || (rest == half && (v >> shift & 1)) : away;
    *flags |= MXCSR_PE;
    return whole + (up ? one << shift : 0);
}

INLINE unsigned rounding_of(const Cpu *c, unsigned imm) { return imm & 4 ? c->mxcsr >> 13 & 3 : imm & 3; }

INLINE void round_raise(unsigned imm, uint32_t flags) { fp_raise(imm & 8 ? flags & ~MXCSR_PE : flags); }

#define ROUND(name, bits, mantissa, exponent, scalar) \
    INLINE void name##_lanes(const Cpu *c, const Insn *i, Ymm *d, const Ymm *b, unsigned count) \
    { \
        uint32_t flags = 0; \
        for (unsigned k = 0; k < count; k++) \
            d->u##bits[k] = (uint##bits##_t)round_value(b->u##bits[k], mantissa, exponent, rounding_of(c, imm8(i)), \
                                                        c->mxcsr & MXCSR_DAZ, &flags); \
        round_raise(imm8(i), flags); \
    } \
    FP_BODY(name##_b) \
    { \
        Ymm b; \
        if (scalar) \
            b.u##bits[0] = get_rm##bits(c, i); \
        else if (i->flags & INSN_MEM) \
            load_vec(c, i, &b, 16, true); \
        else \
            memcpy(&b, &c->ymm[i->rm], 16); \
        name##_lanes(c, i, &c->ymm[i->reg], &b, scalar ? 1 : 128 / bits); \
    } \
    FP_BODY(v##name##_b) \
    { \
        Ymm b, d; \
        unsigned n = scalar ? 16 : vex_bytes(i); \
        if (scalar) { \
            b.u##bits[0] = get_rm##bits(c, i); \
            d = c->ymm[i->vvvv]; \
        } else { \
            get_rm(c, i, &b, n); \
        } \
        name##_lanes(c, i, &d, &b, scalar ? 1 : n * 8 / bits); \
        vex_set(c, i->reg, &d, n); \
    } \
    FP_SSE(name##_any, name##_b) \
    ONE(name, name##_any) \
    FP_AVX(v##name##_any, v##name##_b) \
    ONE(v##name, v##name##_any)
ROUND(roundps, 32, 23, 8, false)
ROUND(roundpd, 64, 52, 11, false)
ROUND(roundss, 32, 23, 8, true)
ROUND(roundsd, 64, 52, 11, true)

/* ---- DPPS, DPPD: elements that take no part are 0 ---- */

static const uint32_t lane_mask32[16][4] = {
#define B(n, k) ((n) >> (k) & 1 ? 0xffffffffu : 0)
#define ROW(n) {B(n, 0), B(n, 1), B(n, 2), B(n, 3)}
    ROW(0), ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6), ROW(7),
    ROW(8), ROW(9), ROW(10), ROW(11), ROW(12), ROW(13), ROW(14), ROW(15)
#undef ROW
#undef B
};

INLINE void dpps_lane(void *d, const void *a, const void *b, unsigned imm)
{
    __m128i take = xmm_get(lane_mask32[imm >> 4]), give = xmm_get(lane_mask32[imm & 15]);
    __m128i x = _mm_and_si128(xmm_get(a), take), y = _mm_and_si128(xmm_get(b), take);
    FP_ASM("mulps", x, y);
    y = _mm_and_si128(_mm_srli_si128(x, 4), _mm_set_epi32(0, -1, 0, -1));
    x = _mm_and_si128(x, _mm_set_epi32(0, -1, 0, -1));
    FP_ASM("addps", x, y); /* 0+1 in element 0, 2+3 in element 2 */
    y = xmm_of32(xmm_low32(_mm_srli_si128(x, 8)));
    x = xmm_of32(xmm_low32(x));
    FP_ASM("addss", x, y);
    xmm_put(d, _mm_and_si128(_mm_shuffle_epi32(x, 0), give));
}

INLINE void dppd_lane(void *d, const void *a, const void *b, unsigned imm)
{
    static const uint8_t pairs[4] = {0, 3, 12, 15};
    __m128i take = xmm_get(lane_mask32[pairs[imm >> 4 & 3]]), give = xmm_get(lane_mask32[pairs[imm & 3]]);
    __m128i x = _mm_and_si128(xmm_get(a), take), y = _mm_and_si128(xmm_get(b), take);
    FP_ASM("mulpd", x, y);
    y = _mm_srli_si128(x, 8);
    x = xmm_of64(xmm_low64(x));
    FP_ASM("addsd", x, y);
    xmm_put(d, _mm_and_si128(_mm_unpacklo_epi64(x, x), give));
}

#define DOT(name) \
    FP_BODY(name##_b) \
    { \
        Ymm b, d; \
        if (i->flags & INSN_MEM) \
            load_vec(c, i, &b, 16, true); \
        else \
            memcpy(&b, &c->ymm[i->rm], 16); \
        name##_lane(&d, &c->ymm[i->reg], &b, imm8(i)); \
        memcpy(&c->ymm[i->reg], &d, 16); \
    } \
    FP_BODY(v##name##_b) \
    { \
        Ymm b, d; \
        unsigned n = vex_bytes(i); \
        get_rm(c, i, &b, n); \
        for (unsigned k = 0; k < n; k += 16) \
            name##_lane(&d.u8[k], &c->ymm[i->vvvv].u8[k], &b.u8[k], imm8(i)); \
        vex_set(c, i->reg, &d, n); \
    } \
    FP_SSE(name##_any, name##_b) \
    ONE(name, name##_any) \
    FP_AVX(v##name##_any, v##name##_b) \
    ONE(v##name, v##name##_any)
DOT(dpps)
DOT(dppd)

/* ---- integers ---- */

OP(op_mpsadbw)
{
    for (unsigned l = 0; l < n; l += 16) {
        unsigned select = l ? imm >> 3 : imm, at = l + (select & 4), with = l + (select & 3) * 4;
        for (unsigned k = 0; k < 8; k++) {
            unsigned sum = 0;
            for (unsigned j = 0; j < 4; j++) {
                int x = a->u8[at + k + j], y = b->u8[with + j];
                sum += (unsigned)(x > y ? x - y : y - x);
            }
            d->u16[l / 2 + k] = (uint16_t)sum;
        }
    }
}
INT_OP(mpsadbw, op_mpsadbw)

OP(op_phminposuw)
{
    UNUSED_OPERANDS;
    unsigned at = 0;
    for (unsigned k = 1; k < 8; k++)
        if (b->u16[k] < b->u16[at])
            at = k;
    d->u64[0] = b->u16[at] | (uint64_t)at << 16;
    d->u64[1] = 0;
}
SSE_OP(phminposuw, op_phminposuw)
VEX_OP128(vphminposuw, op_phminposuw)

/* ---- tests: ZF where a AND b is 0, CF where (NOT a) AND b is 0, in the bits of `mask` ---- */

INLINE void test_flags(Cpu *c, const Ymm *a, const Ymm *b, unsigned n, uint64_t mask)
{
    uint64_t both = 0, only = 0;
    for (unsigned k = 0; k < n / 8; k++) {
        both |= a->u64[k] & b->u64[k] & mask;
        only |= ~a->u64[k] & b->u64[k] & mask;
    }
    cc_explicit(c, (both ? 0 : FL_ZF) | (only ? 0 : FL_CF));
}
EXEC_VOID(ptest_any)
{
    CHECK_SSE();
    Ymm b;
    if (i->flags & INSN_MEM)
        load_vec(c, i, &b, 16, true);
    else
        memcpy(&b, &c->ymm[i->rm], 16);
    test_flags(c, &c->ymm[i->reg], &b, 16, ~0ull);
}
ONE(ptest, ptest_any)
#define VEX_TEST(id, mask) \
    EXEC_VOID(id##_any) \
    { \
        CHECK_AVX(); \
        Ymm b; \
        get_rm(c, i, &b, vex_bytes(i)); \
        test_flags(c, &c->ymm[i->reg], &b, vex_bytes(i), mask); \
    } \
    ONE(id, id##_any)
VEX_TEST(vptest, ~0ull)
VEX_TEST(vtestps, 0x8000000080000000ull)
VEX_TEST(vtestpd, 0x8000000000000000ull)
