/* Packing, unpacking, shuffles, blends, insertion and extraction of elements. */
#include "vec.h"

/* ---- pack: narrowed with saturation, a below b in each 128-bit lane ---- */

#define PACK(name, from, to, low, high) \
    OP(name) \
    { \
        (void)imm; \
        unsigned lane = LANE_BYTES(n) / sizeof d->to[0], half = lane / 2; \
        for (unsigned l = 0; l < n / sizeof d->to[0]; l += lane) \
            for (unsigned k = 0; k < half; k++) { \
                __typeof__(a->from[0]) x = a->from[l / 2 + k], y = b->from[l / 2 + k]; \
                d->to[l + k] = (__typeof__(d->to[0]))(x < low ? low : x > high ? high : x); \
                d->to[l + half + k] = (__typeof__(d->to[0]))(y < low ? low : y > high ? high : y); \
            } \
    }
PACK(op_packsswb, s16, s8, -128, 127)
PACK(op_packssdw, s32, s16, -32768, 32767)
PACK(op_packuswb, s16, u8, 0, 255)
PACK(op_packusdw, s32, u16, 0, 65535)
INT_OP_MMX(packsswb, op_packsswb)
INT_OP_MMX(packssdw, op_packssdw)
INT_OP_MMX(packuswb, op_packuswb)
INT_OP(packusdw, op_packusdw)

/* ---- unpack: elements of the lower or upper halves of each lane in turn ---- */

#define UNPACK(name, f, high) \
    OP(name) \
    { \
        (void)imm; \
        unsigned lane = LANE_BYTES(n) / sizeof d->f[0], half = lane / 2; \
        for (unsigned l = 0; l < n / sizeof d->f[0]; l += lane) \
            for (unsigned k = 0; k < half; k++) { \
                d->f[l + 2 * k] = a->f[l + (high ? half : 0) + k]; \
                d->f[l + 2 * k + 1] = b->f[l + (high ? half : 0) + k]; \
            } \
    }
UNPACK(op_punpcklbw, u8, 0)
UNPACK(op_punpcklwd, u16, 0)
UNPACK(op_punpckldq, u32, 0)
UNPACK(op_punpcklqdq, u64, 0)
UNPACK(op_punpckhbw, u8, 1)
UNPACK(op_punpckhwd, u16, 1)
UNPACK(op_punpckhdq, u32, 1)
UNPACK(op_punpckhqdq, u64, 1)
/* The MMX forms of the lower half have 32 bits in memory. */
#define PUNPCKL_MMX(name, op) \
    EXEC_VOID(name##_mmx_r) \
    { \
        ENTER_MMX(); \
        Ymm d, a, b; \
        a.u64[0] = MM(i->reg); \
        b.u64[0] = i->flags & INSN_MEM ? load32(c, i) : MM(i->rm); \
        op(&d, &a, &b, 8, 0); \
        mmx_set(c, i->reg, d.u64[0]); \
    } \
    ONE(name##_mmx, name##_mmx_r)
PUNPCKL_MMX(punpcklbw, op_punpcklbw)
PUNPCKL_MMX(punpcklwd, op_punpcklwd)
PUNPCKL_MMX(punpckldq, op_punpckldq)
INT_OP(punpcklbw, op_punpcklbw)
INT_OP(punpcklwd, op_punpcklwd)
INT_OP(punpckldq, op_punpckldq)
INT_OP(punpcklqdq, op_punpcklqdq)
INT_OP_MMX(punpckhbw, op_punpckhbw)
INT_OP_MMX(punpckhwd, op_punpckhwd)
INT_OP_MMX(punpckhdq, op_punpckhdq)
INT_OP(punpckhqdq, op_punpckhqdq)
FLOAT_OP(unpcklps, op_punpckldq)
FLOAT_OP(unpckhps, op_punpckhdq)
FLOAT_OP(unpcklpd, op_punpcklqdq)
FLOAT_OP(unpckhpd, op_punpckhqdq)

/* ---- shuffles ---- */

OP(op_pshufb)
{
    (void)imm;
    unsigned lane = LANE_BYTES(n);
    for (unsigned l = 0; l < n; l += lane)
        for (unsigned k = l; k < l + lane; k++)
            d->u8[k] = b->u8[k] & 0x80 ? 0 : a->u8[l + (b->u8[k] & (lane - 1))];
}
INT_OP_MMX(pshufb, op_pshufb)

OP(op_pshufw)
{
    (void)a, (void)n;
    for (unsigned k = 0; k < 4; k++)
        d->u16[k] = b->u16[imm >> 2 * k & 3];
}
MMX_OP(pshufw, op_pshufw)

OP(op_pshufd)
{
    (void)a;
    for (unsigned k = 0; k < n / 4; k++)
        d->u32[k] = b->u32[(k & ~3u) + (imm >> 2 * (k & 3) & 3)];
}
INT_OP(pshufd, op_pshufd)

OP(op_pshuflw)
{
    (void)a;
    for (unsigned l = 0; l < n / 2; l += 8) {
        for (unsigned k = 0; k < 4; k++)
            d->u16[l + k] = b->u16[l + (imm >> 2 * k & 3)];
        d->u64[l / 4 + 1] = b->u64[l / 4 + 1];
    }
}
INT_OP(pshuflw, op_pshuflw)

OP(op_pshufhw)
{
    (void)a;
    for (unsigned l = 0; l < n / 2; l += 8) {
        for (unsigned k = 0; k < 4; k++)
            d->u16[l + 4 + k] = b->u16[l + 4 + (imm >> 2 * k & 3)];
        d->u64[l / 4] = b->u64[l / 4];
    }
}
INT_OP(pshufhw, op_pshufhw)

OP(op_shufps)
{
    for (unsigned l = 0; l < n / 4; l += 4) {
        d->u32[l] = a->u32[l + (imm & 3)];
        d->u32[l + 1] = a->u32[l + (imm >> 2 & 3)];
        d->u32[l + 2] = b->u32[l + (imm >> 4 & 3)];
        d->u32[l + 3] = b->u32[l + (imm >> 6 & 3)];
    }
}
FLOAT_OP(shufps, op_shufps)

OP(op_shufpd)
{
    for (unsigned l = 0; l < n / 8; l += 2) {
        d->u64[l] = a->u64[l + (imm >> l & 1)];
        d->u64[l + 1] = b->u64[l + (imm >> (l + 1) & 1)];
    }
}
FLOAT_OP(shufpd, op_shufpd)

/* b below a, shifted right by imm bytes. */
OP(op_palignr)
{
    unsigned lane = LANE_BYTES(n);
    for (unsigned l = 0; l < n; l += lane)
        for (unsigned k = 0; k < lane; k++) {
            unsigned at = k + imm;
            d->u8[l + k] = at < lane ? b->u8[l + at] : at < 2 * lane ? a->u8[l + at - lane] : 0;
        }
}
INT_OP_MMX(palignr, op_palignr)

/* ---- blends ---- */

#define BLEND(name, f, mask) \
    OP(name) \
    { \
        for (unsigned k = 0; k < n / sizeof d->f[0]; k++) \
            d->f[k] = imm >> (k & (mask)) & 1 ? b->f[k] : a->f[k]; \
    }
BLEND(op_pblendw, u16, 7)
BLEND(op_blendps, u32, 7)
BLEND(op_blendpd, u64, 3)
INT_OP(pblendw, op_pblendw)
FLOAT_OP(blendps, op_blendps)
FLOAT_OP(blendpd, op_blendpd)
VEX_OP(vpblendd, op_blendps)

/* By the top bits of a third register: XMM0, or the one that VEX names in its last byte. */
#define BLENDV(name, f) \
    INLINE void op_##name(Ymm *d, const Ymm *a, const Ymm *b, const Ymm *mask, unsigned n) \
    { \
        for (unsigned k = 0; k < n / sizeof d->f[0]; k++) \
            d->f[k] = mask->f[k] < 0 ? b->f[k] : a->f[k]; \
    } \
    EXEC_VOID(name##_any) \
    { \
        CHECK_SSE(); \
        Ymm d, b; \
        if (i->flags & INSN_MEM) \
            load_vec(c, i, &b, 16, true); \
        else \
            memcpy(&b, &c->ymm[i->rm], 16); \
        op_##name(&d, &c->ymm[i->reg], &b, &c->ymm[0], 16); \
        memcpy(&c->ymm[i->reg], &d, 16); \
    } \
    ONE(name, name##_any)
#define VEX_BLENDV(id, op) \
    EXEC_VOID(id##_any) \
    { \
        CHECK_AVX(); \
        Ymm d, b; \
        unsigned n = vex_bytes(i), mask = in_64bit(c) ? i->imm2 & 15 : i->imm2 & 7; \
        get_rm(c, i, &b, n); \
        op(&d, &c->ymm[i->vvvv], &b, &c->ymm[mask], n); \
        vex_set(c, i->reg, &d, n); \
    } \
    ONE(id, id##_any)
BLENDV(pblendvb, s8)
BLENDV(blendvps, s32)
BLENDV(blendvpd, s64)
VEX_BLENDV(vpblendvb, op_pblendvb)
VEX_BLENDV(vpblendvb_y, op_pblendvb)
VEX_BLENDV(vblendvps, op_blendvps)
VEX_BLENDV(vblendvpd, op_blendvpd)

/* ---- widening: n bytes of result from n / (ratio) of source ---- */

#define PMOV(name, to, from) \
    INLINE void op_##name(Ymm *d, const Ymm *b, unsigned n) \
    { \
        for (unsigned k = 0; k < n / sizeof d->to[0]; k++) \
            d->to[k] = (__typeof__(d->to[0]))b->from[k]; \
    } \
    INLINE void get_##name(Cpu *c, const Insn *i, Ymm *b, unsigned n) \
    { \
        unsigned size = n * sizeof b->from[0] / sizeof b->to[0]; \
        if (!(i->flags & INSN_MEM)) \
            *b = c->ymm[i->rm]; \
        else if (size == 16) \
            load_vec(c, i, b, 16, false); \
        else if (size == 8) \
            b->u64[0] = load64(c, i); \
        else if (size == 4) \
            b->u32[0] = load32(c, i); \
        else \
            b->u16[0] = load16(c, i); \
    } \
    EXEC_VOID(name##_any) \
    { \
        CHECK_SSE(); \
        Ymm d, b; \
        get_##name(c, i, &b, 16); \
        op_##name(&d, &b, 16); \
        memcpy(&c->ymm[i->reg], &d, 16); \
    } \
    ONE(name, name##_any) \
    EXEC_VOID(v##name##_any) \
    { \
        CHECK_AVX(); \
        Ymm d, b; \
        get_##name(c, i, &b, 16); \
        op_##name(&d, &b, 16); \
        vex_set(c, i->reg, &d, 16); \
    } \
    ONE(v##name, v##name##_any) \
    EXEC_VOID(v##name##_y_any) \
    { \
        CHECK_AVX(); \
        Ymm d, b; \
        get_##name(c, i, &b, 32); \
        op_##name(&d, &b, 32); \
        vex_set(c, i->reg, &d, 32); \
    } \
    ONE(v##name##_y, v##name##_y_any)
PMOV(pmovsxbw, s16, s8)
PMOV(pmovsxbd, s32, s8)
PMOV(pmovsxbq, s64, s8)
PMOV(pmovsxwd, s32, s16)
PMOV(pmovsxwq, s64, s16)
PMOV(pmovsxdq, s64, s32)
PMOV(pmovzxbw, u16, u8)
PMOV(pmovzxbd, u32, u8)
PMOV(pmovzxbq, u64, u8)
PMOV(pmovzxwd, u32, u16)
PMOV(pmovzxwq, u64, u16)
PMOV(pmovzxdq, u64, u32)

/* ---- one element between a general register or memory and a vector ---- */

#define W_BIT(c, i) ((i)->flags & INSN_REXW && in_64bit(c)) /* VEX.W means nothing to these outside 64-bit mode */

EXEC_VOID(pinsrw_mmx_any)
{
    ENTER_MMX();
    uint64_t v = i->flags & INSN_MEM ? load16(c, i) : (uint16_t)c->gpr[i->rm];
    unsigned shift = (imm8(i) & 3) * 16;
    mmx_set(c, i->reg, (MM(i->reg) & ~(0xffffull << shift)) | v << shift);
}
ONE(pinsrw_mmx, pinsrw_mmx_any)

EXEC_VOID(pextrw_mmx_r)
{
    ENTER_MMX();
    c->gpr[i->reg] = MM(i->rm) >> (imm8(i) & 3) * 16 & 0xffff;
    mmx_use(c);
}
ONE(pextrw_mmx, pextrw_mmx_r)

#define PINSR(id, vid, f, count, from_mem) \
    EXEC_VOID(id##_any) \
    { \
        CHECK_SSE(); \
        __typeof__(c->ymm[0].f[0]) v = \
            (__typeof__(v))(i->flags & INSN_MEM ? from_mem(c, i) : c->gpr[i->rm]); \
        c->ymm[i->reg].f[imm8(i) & (count - 1)] = v; \
    } \
    ONE(id, id##_any) \
    INLINE void vid##_do(Cpu *c, const Insn *i) \
    { \
        __typeof__(c->ymm[0].f[0]) v = \
            (__typeof__(v))(i->flags & INSN_MEM ? from_mem(c, i) : c->gpr[i->rm]); \
        Ymm d = c->ymm[i->vvvv]; \
        d.f[imm8(i) & (count - 1)] = v; \
        vex_set(c, i->reg, &d, 16); \
    }
PINSR(pinsrb, vpinsrb, u8, 16, load8)
PINSR(pinsrw, vpinsrw, u16, 8, load16)
PINSR(pinsrd, vpinsrd, u32, 4, load32)
PINSR(pinsrq, vpinsrq, u64, 2, load64)
#define VEX_PINSR(id, statement) \
    EXEC_VOID(id##_any) \
    { \
        CHECK_AVX(); \
        statement; \
    } \
    ONE(id, id##_any)
VEX_PINSR(vpinsrb, vpinsrb_do(c, i))
VEX_PINSR(vpinsrw, vpinsrw_do(c, i))
VEX_PINSR(vpinsrd, vpinsrd_do(c, i))
VEX_PINSR(vpinsrq, if (W_BIT(c, i)) vpinsrq_do(c, i); else vpinsrd_do(c, i))

INLINE void pextr(Cpu *c, const Insn *i, uint64_t v, unsigned size)
{
    if (!(i->flags & INSN_MEM))
        c->gpr[i->rm] = v;
    else if (size == 1)
        store8(c, i, (uint8_t)v);
    else if (size == 2)
        store16(c, i, (uint16_t)v);
    else if (size == 4)
        store32(c, i, (uint32_t)v);
    else
        store64(c, i, v);
}
#define PEXTR(id, check, f, count) \
    EXEC_VOID(id##_any) \
    { \
        check(); \
        pextr(c, i, c->ymm[i->reg].f[imm8(i) & (count - 1)], sizeof c->ymm[0].f[0]); \
    } \
    ONE(id, id##_any)
PEXTR(pextrb, CHECK_SSE, u8, 16)
PEXTR(pextrw_store, CHECK_SSE, u16, 8)
PEXTR(pextrd, CHECK_SSE, u32, 4)
PEXTR(pextrq, CHECK_SSE, u64, 2)
PEXTR(extractps, CHECK_SSE, u32, 4)
PEXTR(vpextrb, CHECK_AVX, u8, 16)
PEXTR(vpextrw_store, CHECK_AVX, u16, 8)
PEXTR(vpextrd, CHECK_AVX, u32, 4)
PEXTR(vextractps, CHECK_AVX, u32, 4)
EXEC_VOID(vpextrq_any)
{
    CHECK_AVX();
    if (W_BIT(c, i))
        pextr(c, i, c->ymm[i->reg].u64[imm8(i) & 1], 8);
    else
        pextr(c, i, c->ymm[i->reg].u32[imm8(i) & 3], 4);
}
ONE(vpextrq, vpextrq_any)

EXEC_VOID(pextrw_r)
{
    CHECK_SSE();
    c->gpr[i->reg] = c->ymm[i->rm].u16[imm8(i) & 7];
}
ONE(pextrw, pextrw_r)
EXEC_VOID(vpextrw_r)
{
    CHECK_AVX();
    c->gpr[i->reg] = c->ymm[i->rm].u16[imm8(i) & 7];
}
ONE(vpextrw, vpextrw_r)

/* imm: source element (register form), destination element, elements to clear. */
INLINE void insertps(Cpu *c, const Insn *i, Ymm *d)
{
    unsigned imm = imm8(i);
    uint32_t v = i->flags & INSN_MEM ? load32(c, i) : c->ymm[i->rm].u32[imm >> 6];
    d->u32[imm >> 4 & 3] = v;
    for (unsigned k = 0; k < 4; k++)
        if (imm >> k & 1)
            d->u32[k] = 0;
}
EXEC_VOID(insertps_any)
{
    CHECK_SSE();
    Ymm d = c->ymm[i->reg];
    insertps(c, i, &d);
    memcpy(&c->ymm[i->reg], &d, 16);
}
ONE(insertps, insertps_any)
EXEC_VOID(vinsertps_any)
{
    CHECK_AVX();
    Ymm d = c->ymm[i->vvvv];
    insertps(c, i, &d);
    vex_set(c, i->reg, &d, 16);
}
ONE(vinsertps, vinsertps_any)

/* ---- masks of top bits into a general register ---- */

#define MOVMSK(id, check, f, count) \
    EXEC_VOID(id##_r) \
    { \
        check(); \
        const Ymm *v = &c->ymm[i->rm]; \
        uint32_t mask = 0; \
        for (unsigned k = 0; k < (count); k++) \
            mask |= (uint32_t)(v->f[k] < 0) << k; \
        c->gpr[i->reg] = mask; \
    } \
    ONE(id, id##_r)
MOVMSK(movmskps, CHECK_SSE, s32, 4)
MOVMSK(movmskpd, CHECK_SSE, s64, 2)
MOVMSK(vmovmskps, CHECK_AVX, s32, vex_bytes(i) / 4)
MOVMSK(vmovmskpd, CHECK_AVX, s64, vex_bytes(i) / 8)

/* The eight top bits of a 64-bit element: the multiplication gathers them in its top byte. */
INLINE uint32_t byte_mask(uint64_t v) { return (uint32_t)(((v >> 7 & 0x0101010101010101u) * 0x0102040810204080u) >> 56); }

EXEC_VOID(pmovmskb_mmx_r)
{
    ENTER_MMX();
    c->gpr[i->reg] = byte_mask(MM(i->rm));
    mmx_use(c);
}
ONE(pmovmskb_mmx, pmovmskb_mmx_r)
EXEC_VOID(pmovmskb_r)
{
    CHECK_SSE();
    const Ymm *v = &c->ymm[i->rm];
    c->gpr[i->reg] = byte_mask(v->u64[0]) | byte_mask(v->u64[1]) << 8;
}
ONE(pmovmskb, pmovmskb_r)
EXEC_VOID(vpmovmskb_r)
{
    CHECK_AVX();
    const Ymm *v = &c->ymm[i->rm];
    c->gpr[i->reg] = byte_mask(v->u64[0]) | byte_mask(v->u64[1]) << 8;
}
ONE(vpmovmskb, vpmovmskb_r)
EXEC_VOID(vpmovmskb_y_r)
{
    CHECK_AVX();
    const Ymm *v = &c->ymm[i->rm];
    c->gpr[i->reg] = byte_mask(v->u64[0]) | byte_mask(v->u64[1]) << 8 | byte_mask(v->u64[2]) << 16 | byte_mask(v->u64[3]) << 24;
}
ONE(vpmovmskb_y, vpmovmskb_y_r)
