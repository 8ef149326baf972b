/* What only AVX and AVX2 have: broadcasts, permutations, 128-bit halves, masked moves, gathers. */
#include "vec.h"

/* ---- broadcasts ---- */

#define BROADCAST(id, bits) \
    EXEC_VOID(id##_any) \
    { \
        CHECK_AVX(); \
        uint##bits##_t v = i->flags & INSN_MEM ? load##bits(c, i) : c->ymm[i->rm].u##bits[0]; \
        Ymm d; \
        for (unsigned k = 0; k < 256 / bits; k++) \
            d.u##bits[k] = v; \
        vex_set(c, i->reg, &d, vex_bytes(i)); \
    } \
    ONE(id, id##_any)
BROADCAST(vbroadcastss, 32)
BROADCAST(vbroadcastss_reg, 32)
BROADCAST(vbroadcastsd, 64)
BROADCAST(vbroadcastsd_reg, 64)
BROADCAST(vpbroadcastb, 8)
BROADCAST(vpbroadcastw, 16)
BROADCAST(vpbroadcastd, 32)
BROADCAST(vpbroadcastq, 64)

EXEC_VOID(vbroadcast128_m)
{
    CHECK_AVX();
    Ymm d;
    load_vec(c, i, &d, 16, false);
    memcpy(&d.u8[16], &d, 16);
    c->ymm[i->reg] = d;
}
ONE(vbroadcastf128, vbroadcast128_m)
ONE(vbroadcasti128, vbroadcast128_m)

/* ---- permutations ---- */

OP(op_vpermilps)
{
    (void)imm;
    for (unsigned k = 0; k < n / 4; k++)
        d->u32[k] = a->u32[(k & ~3u) + (b->u32[k] & 3)];
}
OP(op_vpermilpd)
{
    (void)imm;
    for (unsigned k = 0; k < n / 8; k++)
        d->u64[k] = a->u64[(k & ~1u) + (b->u64[k] >> 1 & 1)];
}
OP(op_vpermilps_imm)
{
    (void)a;
    for (unsigned k = 0; k < n / 4; k++)
        d->u32[k] = b->u32[(k & ~3u) + (imm >> 2 * (k & 3) & 3)];
}
OP(op_vpermilpd_imm)
{
    (void)a;
    for (unsigned k = 0; k < n / 8; k++)
        d->u64[k] = b->u64[(k & ~1u) + (imm >> k & 1)];
}
VEX_OP(vpermilps, op_vpermilps)
VEX_OP(vpermilpd, op_vpermilpd)
VEX_OP(vpermilps_imm, op_vpermilps_imm)
VEX_OP(vpermilpd_imm, op_vpermilpd_imm)

OP(op_vpermd)
{
    UNUSED_OPERANDS;
    for (unsigned k = 0; k < 8; k++)
        d->u32[k] = b->u32[a->u32[k] & 7];
}
OP(op_vpermq)
{
    (void)a, (void)n;
    for (unsigned k = 0; k < 4; k++)
        d->u64[k] = b->u64[imm >> 2 * k & 3];
}
VEX_OP256(vpermd, op_vpermd)
VEX_OP256(vpermps, op_vpermd)
VEX_OP256(vpermq, op_vpermq)
VEX_OP256(vpermpd, op_vpermq)

/* Each half: one of the four halves of a and b, or zero. */
OP(op_vperm2f128)
{
    (void)n;
    for (unsigned k = 0; k < 2; k++) {
        unsigned control = imm >> 4 * k;
        const Ymm *from = control & 2 ? b : a;
        for (unsigned j = 0; j < 2; j++)
            d->u64[2 * k + j] = control & 8 ? 0 : from->u64[2 * (control & 1) + j];
    }
}
VEX_OP256(vperm2f128, op_vperm2f128)
VEX_OP256(vperm2i128, op_vperm2f128)

OP(op_vinsertf128)
{
    (void)n;
    *d = *a;
    memcpy(&d->u8[imm & 1 ? 16 : 0], b, 16);
}
VEX_OP_SIZED(vinsertf128, op_vinsertf128, 32, 16)
VEX_OP_SIZED(vinserti128, op_vinsertf128, 32, 16)

EXEC_VOID(vextractf128_any)
{
    CHECK_AVX();
    Ymm v;
    memcpy(&v, &c->ymm[i->reg].u8[imm8(i) & 1 ? 16 : 0], 16);
    if (i->flags & INSN_MEM)
        store_vec(c, i, &v, 16, false);
    else
        vex_set(c, i->rm, &v, 16);
}
ONE(vextractf128, vextractf128_any)
ONE(vextracti128, vextractf128_any)

/* ---- masked moves: elements whose mask's top bit is clear are not accessed ---- */

#define MASK_LOAD(id, bits) \
    EXEC_VOID(id##_m) \
    { \
        CHECK_AVX(); \
        Ymm d = {0}; \
        const Ymm *mask = &c->ymm[i->vvvv]; \
        uint64_t offset = mem_offset(c, i); \
        unsigned n = vex_bytes(i); \
        for (unsigned k = 0; k < n * 8 / bits; k++) \
            if (mask->s##bits[k] < 0) \
                d.u##bits[k] = read##bits(c, i, i->seg, (offset + k * (bits / 8)) & i->amask); \
        vex_set(c, i->reg, &d, 32); \
    } \
    ONE(id, id##_m)
#define MASK_STORE(id, bits) \
    EXEC_VOID(id##_m) \
    { \
        CHECK_AVX(); \
        const Ymm *mask = &c->ymm[i->vvvv], *v = &c->ymm[i->reg]; \
        uint64_t offset = mem_offset(c, i); \
        unsigned n = vex_bytes(i); \
        for (unsigned k = 0; k < n * 8 / bits; k++) \
            if (mask->s##bits[k] < 0) \
                mem_probe_write(c, i, i->seg, \
                                mem_linear(c, i, i->seg, (offset + k * (bits / 8)) & i->amask, bits / 8, true), bits / 8); \
        for (unsigned k = 0; k < n * 8 / bits; k++) \
            if (mask->s##bits[k] < 0) \
                write##bits(c, i, i->seg, (offset + k * (bits / 8)) & i->amask, v->u##bits[k]); \
    } \
    ONE(id, id##_m)
MASK_LOAD(vmaskmovps_load, 32)
MASK_LOAD(vmaskmovpd_load, 64)
MASK_LOAD(vpmaskmovd_load, 32)
MASK_LOAD(vpmaskmovq_load, 64)
MASK_STORE(vmaskmovps_store, 32)
MASK_STORE(vmaskmovpd_store, 64)
MASK_STORE(vpmaskmovd_store, 32)
MASK_STORE(vpmaskmovq_store, 64)

/* ---- gathers: each element loaded clears its mask, so that a fault leaves what remains to be done ---- */

#define GATHER(id, bits, index_bits) \
    EXEC_VOID(id##_m) \
    { \
        CHECK_AVX(); \
        if (i->reg == i->index || i->reg == i->vvvv || i->index == i->vvvv) \
            raise_ud(c, i); \
        Ymm index = c->ymm[i->index], *mask = &c->ymm[i->vvvv], *d = &c->ymm[i->reg]; \
        unsigned n = vex_bytes(i), count = n * 8 / (bits > index_bits ? bits : index_bits); \
        for (unsigned k = 0; k < count; k++) { \
            uint64_t offset = c->gpr[i->base] + ((uint64_t)(int64_t)index.s##index_bits[k] << i->scale) + i->disp; \
            if (mask->s##bits[k] < 0) \
                d->u##bits[k] = read##bits(c, i, i->seg, offset & i->amask); \
            mask->u##bits[k] = 0; \
        } \
        Ymm result = *d; \
        memset(mask, 0, sizeof *mask); \
        vex_set(c, i->reg, &result, count * (bits / 8)); \
    } \
    ONE(id, id##_m)
GATHER(vpgatherdd, 32, 32)
GATHER(vpgatherdq, 64, 32)
GATHER(vpgatherqd, 32, 64)
GATHER(vpgatherqq, 64, 64)
GATHER(vgatherdps, 32, 32)
GATHER(vgatherdpd, 64, 32)
GATHER(vgatherqps, 32, 64)
GATHER(vgatherqpd, 64, 64)
