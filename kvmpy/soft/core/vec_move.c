/* Moves of whole registers and of elements, non-temporal and masked stores, MXCSR, EMMS. */
#include "vec.h"

/* ---- whole registers ---- */

#define MOVE_LOAD(id, aligned) \
    EXEC_VOID(id##_r) \
    { \
        CHECK_SSE(); \
        c->ymm[i->reg].u64[0] = c->ymm[i->rm].u64[0]; \
        c->ymm[i->reg].u64[1] = c->ymm[i->rm].u64[1]; \
    } \
    EXEC_VOID(id##_slow) \
    { \
        CHECK_SSE(); \
        Ymm v; \
        load_vec(c, i, &v, 16, aligned); \
        memcpy(&c->ymm[i->reg], &v, 16); \
    } \
    EXEC(id##_m) \
    { \
        VEC_IN_RAM(c->deny_sse != EXC_NONE, 16, aligned, read, id##_slow); \
        memcpy(&c->ymm[i->reg], ram, 16); \
        NEXT(); \
    } \
    REG_MEM(id, id##_r, id##_m)
#define MOVE_STORE(id, aligned) \
    EXEC_VOID(id##_r) \
    { \
        CHECK_SSE(); \
        c->ymm[i->rm].u64[0] = c->ymm[i->reg].u64[0]; \
        c->ymm[i->rm].u64[1] = c->ymm[i->reg].u64[1]; \
    } \
    EXEC_VOID(id##_slow) \
    { \
        CHECK_SSE(); \
        store_vec(c, i, &c->ymm[i->reg], 16, aligned); \
    } \
    EXEC(id##_m) \
    { \
        VEC_IN_RAM(c->deny_sse != EXC_NONE, 16, aligned, write, id##_slow); \
        memcpy(ram, &c->ymm[i->reg], 16); \
        NEXT(); \
    } \
    REG_MEM(id, id##_r, id##_m)
#define VEX_MOVE_LOAD(id, aligned) \
    EXEC_VOID(id##_r) \
    { \
        CHECK_AVX(); \
        Ymm v = c->ymm[i->rm]; \
        vex_set(c, i->reg, &v, vex_bytes(i)); \
    } \
    EXEC_VOID(id##_m) \
    { \
        CHECK_AVX(); \
        Ymm v; \
        if (i->flags & INSN_VEXL) { \
            load_vec(c, i, &v, 32, aligned); \
            c->ymm[i->reg] = v; \
        } else { \
            load_vec(c, i, &v, 16, aligned); \
            vex_set(c, i->reg, &v, 16); \
        } \
    } \
    REG_MEM(id, id##_r, id##_m)
#define VEX_MOVE_STORE(id, aligned) \
    EXEC_VOID(id##_r) \
    { \
        CHECK_AVX(); \
        Ymm v = c->ymm[i->reg]; \
        vex_set(c, i->rm, &v, vex_bytes(i)); \
    } \
    EXEC_VOID(id##_m) \
    { \
        CHECK_AVX(); \
        if (i->flags & INSN_VEXL) \
            store_vec(c, i, &c->ymm[i->reg], 32, aligned); \
        else \
            store_vec(c, i, &c->ymm[i->reg], 16, aligned); \
    } \
    REG_MEM(id, id##_r, id##_m)
#define MOVES(name, aligned) \
    MOVE_LOAD(name##_load, aligned) \
    MOVE_STORE(name##_store, aligned) \
    VEX_MOVE_LOAD(v##name##_load, aligned) \
    VEX_MOVE_STORE(v##name##_store, aligned)
MOVES(movaps, true)
MOVES(movapd, true)
MOVES(movups, false)
MOVES(movupd, false)
MOVES(movdqa, true)
MOVES(movdqu, false)
MOVE_LOAD(lddqu, false)
VEX_MOVE_LOAD(vlddqu, false)
MOVE_LOAD(movntdqa, true)
VEX_MOVE_LOAD(vmovntdqa, true)
VEX_MOVE_LOAD(vmovntdqa_y, true)
MOVE_STORE(movntps, true)
MOVE_STORE(movntpd, true)
MOVE_STORE(movntdq, true)
VEX_MOVE_STORE(vmovntps, true)
VEX_MOVE_STORE(vmovntpd, true)
VEX_MOVE_STORE(vmovntdq, true)

/* ---- MOVSS, MOVSD: a load clears the rest of the register, a register move keeps it ---- */

#define MOVE_SCALAR(name, vname, f, bits) \
    EXEC_VOID(name##_load_r) \
    { \
        CHECK_SSE(); \
        c->ymm[i->reg].f[0] = c->ymm[i->rm].f[0]; \
    } \
    EXEC_VOID(name##_load_slow) \
    { \
        CHECK_SSE(); \
        uint64_t v = load##bits(c, i); \
        c->ymm[i->reg].u64[0] = v; \
        c->ymm[i->reg].u64[1] = 0; \
    } \
    EXEC(name##_load_m) \
    { \
        VEC_IN_RAM(c->deny_sse != EXC_NONE, bits / 8, false, read, name##_load_slow); \
        uint##bits##_t v; \
        memcpy(&v, ram, sizeof v); \
        Ymm *d = &c->ymm[i->reg]; \
        d->u64[0] = v; \
        d->u64[1] = 0; \
        NEXT(); \
    } \
    REG_MEM(name##_load, name##_load_r, name##_load_m) \
    EXEC_VOID(name##_store_r) \
    { \
        CHECK_SSE(); \
        c->ymm[i->rm].f[0] = c->ymm[i->reg].f[0]; \
    } \
    EXEC_VOID(name##_store_slow) \
    { \
        CHECK_SSE(); \
        store##bits(c, i, c->ymm[i->reg].f[0]); \
    } \
    EXEC(name##_store_m) \
    { \
        VEC_IN_RAM(c->deny_sse != EXC_NONE, bits / 8, false, write, name##_store_slow); \
        memcpy(ram, &c->ymm[i->reg], bits / 8); \
        NEXT(); \
    } \
    REG_MEM(name##_store, name##_store_r, name##_store_m) \
    EXEC_VOID(vname##_load_m) \
    { \
        CHECK_AVX(); \
        Ymm v; \
        v.u64[0] = load##bits(c, i); \
        vex_set(c, i->reg, &v, 8); \
    } \
    ONE(vname##_load, vname##_load_m) \
    EXEC_VOID(vname##_store_m) \
    { \
        CHECK_AVX(); \
        store##bits(c, i, c->ymm[i->reg].f[0]); \
    } \
    ONE(vname##_store, vname##_store_m) \
    EXEC_VOID(vname##_r) \
    { \
        CHECK_AVX(); \
        Ymm v = c->ymm[i->vvvv]; \
        v.f[0] = c->ymm[i->rm].f[0]; \
        vex_set(c, i->reg, &v, 16); \
    } \
    ONE(vname, vname##_r) \
    EXEC_VOID(vname##_back_r) \
    { \
        CHECK_AVX(); \
        Ymm v = c->ymm[i->vvvv]; \
        v.f[0] = c->ymm[i->reg].f[0]; \
        vex_set(c, i->rm, &v, 16); \
    } \
    ONE(vname##_back, vname##_back_r)
MOVE_SCALAR(movss, vmovss, u32, 32)
MOVE_SCALAR(movsd_v, vmovsd, u64, 64)

/* ---- one half of a register ---- */

#define MOVE_HALF(name, half) \
    EXEC_VOID(name##_load_m) \
    { \
        CHECK_SSE(); \
        c->ymm[i->reg].u64[half] = load64(c, i); \
    } \
    ONE(name##_load, name##_load_m) \
    EXEC_VOID(name##_store_m) \
    { \
        CHECK_SSE(); \
        store64(c, i, c->ymm[i->reg].u64[half]); \
    } \
    ONE(name##_store, name##_store_m) \
    EXEC_VOID(v##name##_load_m) \
    { \
        CHECK_AVX(); \
        Ymm v = c->ymm[i->vvvv]; \
        v.u64[half] = load64(c, i); \
        vex_set(c, i->reg, &v, 16); \
    } \
    ONE(v##name##_load, v##name##_load_m) \
    EXEC_VOID(v##name##_store_m) \
    { \
        CHECK_AVX(); \
        store64(c, i, c->ymm[i->reg].u64[half]); \
    } \
    ONE(v##name##_store, v##name##_store_m)
MOVE_HALF(movlps, 0)
MOVE_HALF(movlpd, 0)
MOVE_HALF(movhps, 1)
MOVE_HALF(movhpd, 1)

#define MOVE_CROSS(name, to, from) \
    EXEC_VOID(name##_r) \
    { \
        CHECK_SSE(); \
        c->ymm[i->reg].u64[to] = c->ymm[i->rm].u64[from]; \
    } \
    ONE(name, name##_r) \
    EXEC_VOID(v##name##_r) \
    { \
        CHECK_AVX(); \
        Ymm v = c->ymm[i->vvvv]; \
        v.u64[to] = c->ymm[i->rm].u64[from]; \
        vex_set(c, i->reg, &v, 16); \
    } \
    ONE(v##name, v##name##_r)
MOVE_CROSS(movhlps, 0, 1)
MOVE_CROSS(movlhps, 1, 0)

/* ---- duplicated elements ---- */

OP(op_movsldup)
{
    UNUSED_OPERANDS;
    for (unsigned k = 0; k < n / 4; k++)
        d->u32[k] = b->u32[k & ~1u];
}
OP(op_movshdup)
{
    UNUSED_OPERANDS;
    for (unsigned k = 0; k < n / 4; k++)
        d->u32[k] = b->u32[k | 1];
}
FLOAT_OP(movsldup, op_movsldup)
FLOAT_OP(movshdup, op_movshdup)

EXEC_VOID(movddup_any)
{
    CHECK_SSE();
    uint64_t v = get_rm64(c, i);
    c->ymm[i->reg].u64[0] = c->ymm[i->reg].u64[1] = v;
}
ONE(movddup, movddup_any)
EXEC_VOID(vmovddup_any)
{
    CHECK_AVX();
    Ymm b;
    if (i->flags & INSN_VEXL) {
        get_rm(c, i, &b, 32);
        b.u64[1] = b.u64[0];
        b.u64[3] = b.u64[2];
    } else {
        b.u64[0] = b.u64[1] = get_rm64(c, i);
    }
    vex_set(c, i->reg, &b, vex_bytes(i));
}
ONE(vmovddup, vmovddup_any)

/* ---- 32 and 64 bits between general registers, memory and vectors ---- */

/* The upper bits of the XMM register become zero. */
#define MOVD_LOAD(id, value_r, value_m) \
    EXEC_VOID(id##_r) \
    { \
        CHECK_SSE(); \
        c->ymm[i->reg].u64[0] = (value_r); \
        c->ymm[i->reg].u64[1] = 0; \
    } \
    EXEC_VOID(id##_m) \
    { \
        CHECK_SSE(); \
        uint64_t v = (value_m); \
        c->ymm[i->reg].u64[0] = v; \
        c->ymm[i->reg].u64[1] = 0; \
    } \
    REG_MEM(id, id##_r, id##_m)
MOVD_LOAD(movd_load, (uint32_t)c->gpr[i->rm], load32(c, i))
MOVD_LOAD(movq_gpr_load, c->gpr[i->rm], load64(c, i))
MOVD_LOAD(movq_load, c->ymm[i->rm].u64[0], load64(c, i))

#define MOVD_STORE(id, check, wide, value) \
    EXEC_VOID(id##_any) \
    { \
        check(); \
        if (i->flags & INSN_MEM) { \
            if (wide) \
                store64(c, i, (value)); \
            else \
                store32(c, i, (uint32_t)(value)); \
        } else { \
            c->gpr[i->rm] = (wide) ? (value) : (uint32_t)(value); \
        } \
    } \
    ONE(id, id##_any)
#define VALUE (c->ymm[i->reg].u64[0])
/* VEX.W means nothing to these outside 64-bit mode. */
#define W_BIT (i->flags & INSN_REXW && in_64bit(c))
MOVD_STORE(movd_store, CHECK_SSE, false, VALUE)
MOVD_STORE(movq_gpr_store, CHECK_SSE, true, VALUE)
MOVD_STORE(vmovd_store, CHECK_AVX, false, VALUE)
MOVD_STORE(vmovq_gpr_store, CHECK_AVX, W_BIT, VALUE)

EXEC_VOID(vmovd_gpr_any)
{
    CHECK_AVX();
    Ymm v;
    if (W_BIT)
        v.u64[0] = i->flags & INSN_MEM ? load64(c, i) : c->gpr[i->rm];
    else
        v.u64[0] = i->flags & INSN_MEM ? load32(c, i) : (uint32_t)c->gpr[i->rm];
    vex_set(c, i->reg, &v, 8);
}
ONE(vmovd_load, vmovd_gpr_any)
ONE(vmovq_gpr_load, vmovd_gpr_any)

EXEC_VOID(vmovq_load_any)
{
    CHECK_AVX();
    Ymm v;
    v.u64[0] = get_rm64(c, i);
    vex_set(c, i->reg, &v, 8);
}
ONE(vmovq_load, vmovq_load_any)

EXEC_VOID(movq_store_r)
{
    CHECK_SSE();
    c->ymm[i->rm].u64[0] = VALUE;
    c->ymm[i->rm].u64[1] = 0;
}
EXEC_VOID(movq_store_m)
{
    CHECK_SSE();
    store64(c, i, VALUE);
}
REG_MEM(movq_store, movq_store_r, movq_store_m)
EXEC_VOID(vmovq_store_any)
{
    CHECK_AVX();
    Ymm v = c->ymm[i->reg];
    if (i->flags & INSN_MEM)
        store64(c, i, v.u64[0]);
    else
        vex_set(c, i->rm, &v, 8);
}
ONE(vmovq_store, vmovq_store_any)

#define MMX_LOAD(id, value_r, value_m) \
    EXEC_VOID(id##_any) \
    { \
        ENTER_MMX(); \
        mmx_set(c, i->reg, i->flags & INSN_MEM ? value_m(c, i) : (value_r)); \
    } \
    ONE(id, id##_any)
MMX_LOAD(movd_mmx_load, (uint32_t)c->gpr[i->rm], load32)
MMX_LOAD(movq_mmx_gpr_load, c->gpr[i->rm], load64)
MMX_LOAD(movq_mmx_load, MM(i->rm), load64)

EXEC_VOID(movd_mmx_store_any)
{
    ENTER_MMX();
    if (i->flags & INSN_MEM)
        store32(c, i, (uint32_t)MM(i->reg));
    else
        c->gpr[i->rm] = (uint32_t)MM(i->reg);
    mmx_use(c);
}
ONE(movd_mmx_store, movd_mmx_store_any)
EXEC_VOID(movq_mmx_gpr_store_any)
{
    ENTER_MMX();
    if (i->flags & INSN_MEM)
        store64(c, i, MM(i->reg));
    else
        c->gpr[i->rm] = MM(i->reg);
    mmx_use(c);
}
ONE(movq_mmx_gpr_store, movq_mmx_gpr_store_any)
EXEC_VOID(movq_mmx_store_any)
{
    ENTER_MMX();
    if (i->flags & INSN_MEM) {
        store64(c, i, MM(i->reg));
        mmx_use(c);
    } else {
        mmx_set(c, i->rm, MM(i->reg));
    }
}
ONE(movq_mmx_store, movq_mmx_store_any)
ONE(movntq, movq_mmx_store_any)

EXEC_VOID(movq2dq_r)
{
    ENTER_SSE_MMX();
    c->ymm[i->reg].u64[0] = MM(i->rm);
    c->ymm[i->reg].u64[1] = 0;
    mmx_use(c);
}
ONE(movq2dq, movq2dq_r)
EXEC_VOID(movdq2q_r)
{
    ENTER_SSE_MMX();
    mmx_set(c, i->reg, c->ymm[i->rm].u64[0]);
}
ONE(movdq2q, movdq2q_r)

/* ---- MASKMOV: bytes to DS:rDI where the mask's top bits are set; all are checked before the first is written. The segment
   has to hold the bytes that are not chosen too, pages need not (SDM 2, MASKMOVQ: with a mask of zeros #GP and #SS come, #PF
   is the implementation's choice) ---- */

static void mask_store(Cpu *c, const Insn *i, const uint8_t *value, const uint8_t *mask, unsigned n)
{
    uint64_t offset = c->gpr[RDI] & i->amask;
    for (unsigned k = 0; k < n; k++) {
        uint64_t linear = mem_linear(c, i, i->seg, (offset + k) & i->amask, 1, true);
        if (mask[k] & 0x80)
            mem_probe_write(c, i, i->seg, linear, 1);
        else if (in_64bit(c) && !is_canonical(linear))
            raise_error(c, i, i->seg == SEG_SS ? EXC_SS : EXC_GP, 0);
    }
    for (unsigned k = 0; k < n; k++)
        if (mask[k] & 0x80)
            write8(c, i, i->seg, (offset + k) & i->amask, value[k]);
}
EXEC_VOID(maskmovq_r)
{
    ENTER_MMX();
    uint64_t v = MM(i->reg), m = MM(i->rm);
    mask_store(c, i, (const uint8_t *)&v, (const uint8_t *)&m, 8);
    mmx_use(c);
}
ONE(maskmovq, maskmovq_r)
EXEC_VOID(maskmovdqu_r)
{
    CHECK_SSE();
    mask_store(c, i, c->ymm[i->reg].u8, c->ymm[i->rm].u8, 16);
}
ONE(maskmovdqu, maskmovdqu_r)
EXEC_VOID(vmaskmovdqu_r)
{
    CHECK_AVX();
    mask_store(c, i, c->ymm[i->reg].u8, c->ymm[i->rm].u8, 16);
}
ONE(vmaskmovdqu, vmaskmovdqu_r)

/* ---- state ---- */

EXEC_VOID(emms_any)
{
    ENTER_MMX();
    c->x87.tag = 0;
    c->x87.status &= (uint16_t)~0x3800u;
}
ONE(emms, emms_any)

INLINE void ldmxcsr(Cpu *c, const Insn *i)
{
    uint32_t v = load32(c, i);
    if (v & ~MXCSR_VALID)
        raise_gp0(c, i);
    mxcsr_write(c, v);
}
EXEC_VOID(ldmxcsr_m)
{
    CHECK_SSE();
    ldmxcsr(c, i);
}
ONE(ldmxcsr, ldmxcsr_m)
EXEC_VOID(vldmxcsr_m)
{
    CHECK_AVX();
    ldmxcsr(c, i);
}
ONE(vldmxcsr, vldmxcsr_m)
EXEC_VOID(stmxcsr_m)
{
    CHECK_SSE();
    store32(c, i, mxcsr_sync(c));
}
ONE(stmxcsr, stmxcsr_m)
EXEC_VOID(vstmxcsr_m)
{
    CHECK_AVX();
    store32(c, i, mxcsr_sync(c));
}
ONE(vstmxcsr, vstmxcsr_m)

/* Outside 64-bit mode only eight registers are reached. */
EXEC_VOID(vzeroupper_any)
{
    CHECK_AVX();
    for (unsigned r = 0; r < (in_64bit(c) ? 16 : 8); r++)
        c->ymm[r].u64[2] = c->ymm[r].u64[3] = 0;
}
ONE(vzeroupper, vzeroupper_any)
EXEC_VOID(vzeroall_any)
{
    CHECK_AVX();
    for (unsigned r = 0; r < (in_64bit(c) ? 16 : 8); r++)
        memset(&c->ymm[r], 0, sizeof c->ymm[r]);
}
ONE(vzeroall, vzeroall_any)
