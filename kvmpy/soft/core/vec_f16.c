/* Half precision: 10 bits of mantissa, 5 of exponent. */
#include "vec.h"

/* Exact; a signalling NaN is invalid. DAZ does not apply to halves (SDM 2C VCVTPH2PS). */
static uint32_t half_to_single(uint16_t h, uint32_t *flags)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, fraction = h & 0x3ff;
    if (e == 31) {
        if (fraction && !(fraction & 0x200))
            *flags |= MXCSR_IE;
        return sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0);
    }
    if (e == 0) {
        if (!fraction)
            return sign;
        unsigned shift = (unsigned)__builtin_clz(fraction) - 21; /* to bit 10 */
        return sign | (113 - shift) << 23 | (fraction << shift & 0x3ff) << 13;
    }
    return sign | (e + 112) << 23 | fraction << 13;
}

static uint16_t single_to_half(uint32_t v, uint32_t mxcsr, unsigned rounding, uint32_t *flags)
{
    uint16_t sign = v >> 16 & 0x8000;
    uint32_t e = v >> 23 & 0xff, fraction = v & 0x7fffff;
    if (e == 0xff) {
        if (fraction && !(fraction & 0x400000))
            *flags |= MXCSR_IE;
        return (uint16_t)(sign | 0x7c00 | fraction >> 13 | (fraction ? 0x200 : 0));
    }
    if (e == 0 && fraction) {
        if (mxcsr & MXCSR_DAZ)
            fraction = 0;
        else
            *flags |= MXCSR_DE;
    }
    if (e == 0 && !fraction)
        return sign;
    /* The value in units of the last place of the result: exact is whole + rest / 2^shift. */
    uint32_t mantissa = e ? fraction | 0x800000 : fraction;
    int exponent = (e ? (int)e : 1) - 112; /* of the half; below 1 it is denormal */
    unsigned shift = exponent >= 1 ? 13 : exponent < -12 ? 26 : (unsigned)(14 - exponent);
    uint32_t whole = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    bool away = rounding == 1 ? sign != 0 : rounding == 2 && !sign;
    bool up = rest && (rounding == 0 ? rest > half || (rest == half && whole & 1) : away);
    if (rest)
        *flags |= MXCSR_PE;
    uint32_t result = whole + up;
    if (exponent >= 1) {
        result += (uint32_t)(exponent - 1) << 10;
        if (result >= 0x7c00) {
            *flags |= MXCSR_OE | MXCSR_PE;
            result = rounding == 0 || away ? 0x7c00 : 0x7bff;
        }
    } else if (rest || !(mxcsr & MXCSR_UM)) { /* exact tiny results underflow only where that is unmasked */
        /* Tiny is judged after rounding as if the exponent had no bound (SDM 1 4.9.1.5): at the border one more bit counts. */
        bool tiny = true;
        if (exponent == 0 && result == 0x400) {
            uint32_t low = mantissa & 0x1fff, bound = (mantissa >> 13) + (low && (rounding == 0 ? low > 0x1000 ||
                             (low == 0x1000 && (mantissa >> 13 & 1)) : away));
            tiny = bound < 0x800;
        }
        if (tiny)
            *flags |= MXCSR_UE;
    }
    return (uint16_t)(sign | result);
}

FP_BODY(vcvtph2ps_b)
{
    Ymm d;
    uint64_t v = get_rm64(c, i);
    uint32_t flags = 0;
    for (unsigned k = 0; k < 4; k++)
        d.u32[k] = half_to_single((uint16_t)(v >> 16 * k), &flags);
    fp_raise(flags);
    vex_set(c, i->reg, &d, 16);
}
FP_BODY(vcvtph2ps_yb)
{
    Ymm b, d;
    get_rm(c, i, &b, 16);
    uint32_t flags = 0;
    for (unsigned k = 0; k < 8; k++)
        d.u32[k] = half_to_single(b.u16[k], &flags);
    fp_raise(flags);
    vex_set(c, i->reg, &d, 32);
}
FP_AVX(vcvtph2ps_any, vcvtph2ps_b)
ONE(vcvtph2ps, vcvtph2ps_any)
FP_AVX(vcvtph2ps_y_any, vcvtph2ps_yb)
ONE(vcvtph2ps_y, vcvtph2ps_y_any)

/* Its result may be memory, so it looks at unmasked exceptions itself, before it writes. */
INLINE void to_halves(Cpu *c, const Insn *i, unsigned count)
{
    uint32_t flags = 0, mxcsr = mxcsr_sync(c), unmasked = ~mxcsr >> 7 & MXCSR_FLAGS;
    unsigned rounding = imm8(i) & 4 ? mxcsr >> 13 & 3 : imm8(i) & 3;
    Ymm d = {0};
    for (unsigned k = 0; k < count; k++)
        d.u16[k] = single_to_half(c->ymm[i->reg].u32[k], mxcsr, rounding, &flags);
    if (flags & unmasked & (MXCSR_IE | MXCSR_DE))
        flags &= MXCSR_IE | MXCSR_DE;
    if (flags & unmasked) {
        if (i->flags & INSN_MEM)
            mem_probe_write(c, i, i->seg, mem_linear(c, i, i->seg, mem_offset(c, i), 2 * count, true), 2 * count);
        c->mxcsr |= flags;
        raise_fault(c, i, c->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
    }
    if (!(i->flags & INSN_MEM))
        vex_set(c, i->rm, &d, 32);
    else if (count == 4)
        store64(c, i, d.u64[0]);
    else
        store_vec(c, i, &d, 16, false);
    fp_raise(flags);
}
EXEC_VOID(vcvtps2ph_any)
{
    CHECK_AVX();
    to_halves(c, i, 4);
}
ONE(vcvtps2ph, vcvtps2ph_any)
EXEC_VOID(vcvtps2ph_y_any)
{
    CHECK_AVX();
    to_halves(c, i, 8);
}
ONE(vcvtps2ph_y, vcvtps2ph_y_any)
