/* Floating-point arithmetic and comparison, packed and scalar, and the handling of unmasked exceptions. */
#include "vec_fp.h"

/* All that a body may have written. The change of the x87 registers to MMX ones is not undone: it comes first. */
typedef struct {
    Ymm ymm;
    uint64_t gpr, cc_dst, cc_src;
    uint32_t cc_op;
    F80 st;
} Saved;

static void save(const Cpu *c, const Insn *i, Saved *s)
{
    *s = (Saved){c->ymm[i->reg], c->gpr[i->reg], c->cc_dst, c->cc_src, c->cc_op, c->x87.st[i->reg & 7]};
}

static void restore(Cpu *c, const Insn *i, const Saved *s)
{
    c->ymm[i->reg] = s->ymm;
    c->gpr[i->reg] = s->gpr;
    cc_set(c, s->cc_op, s->cc_dst, s->cc_src);
    c->x87.st[i->reg & 7] = s->st;
}

/* Underflow is reported by the host, which masks it, only for inexact results; unmasked it is any tiny result. Flushing to
   zero tells these, so the body runs a second time for it. SDM 1 11.5.2, 4.9.1.5; priorities: SDM 1 11.5.3. */
const Insn *fp_watched(Cpu *c, const Insn *i, fp_body body, unsigned deny)
{
    if (deny != EXC_NONE)
        raise_fault(c, i, (int)deny);
    uint32_t mxcsr = mxcsr_sync(c), unmasked = ~mxcsr >> 7 & MXCSR_FLAGS;
    Saved before;
    save(c, i, &before);
    body(c, i);
    uint32_t flags = host_mxcsr_read() & MXCSR_FLAGS;
    if (unmasked & MXCSR_UE) {
        Saved after;
        save(c, i, &after);
        restore(c, i, &before);
        host_mxcsr_write(mxcsr_for_host(mxcsr) | MXCSR_FTZ);
        body(c, i);
        flags |= host_mxcsr_read() & MXCSR_UE;
        host_mxcsr_write(mxcsr_for_host(mxcsr));
        restore(c, i, &after);
    }
    if (flags & unmasked & (MXCSR_IE | MXCSR_DE | MXCSR_ZE))
        flags &= MXCSR_IE | MXCSR_DE | MXCSR_ZE;
    c->mxcsr |= flags;
    host_mxcsr_write(mxcsr_for_host(mxcsr));
    if (flags & unmasked) {
        restore(c, i, &before);
        raise_fault(c, i, c->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
    }
    NEXT();
}

#define ARITHMETIC(name) \
    FP_PACKED(name##ps, #name "ps") \
    FP_PACKED(name##pd, #name "pd") \
    FP_SCALAR(name##ss, #name "ss", 32) \
    FP_SCALAR(name##sd, #name "sd", 64)
ARITHMETIC(add)
ARITHMETIC(sub)
ARITHMETIC(mul)
ARITHMETIC(div)
ARITHMETIC(min)
ARITHMETIC(max)
ARITHMETIC(sqrt)
FP_PACKED(rcpps, "rcpps")
FP_PACKED(rsqrtps, "rsqrtps")
FP_SCALAR(rcpss, "rcpss", 32)
FP_SCALAR(rsqrtss, "rsqrtss", 32)

/* ---- CMPPS and its like: SSE2 has the first eight predicates ---- */

/* Result bits of a predicate by relation: less, equal, greater, unordered. Predicates 16 to 31 differ from 0 to 15 in whether
   a quiet NaN is invalid (SDM 2A table 3-1). */
#define LT 1u
#define EQ 2u
#define GT 4u
#define UN 8u
static const uint8_t relation[16] = {EQ, LT, LT | EQ, UN, LT | GT | UN, EQ | GT | UN, GT | UN, LT | EQ | GT,
                                     EQ | UN, LT | UN, LT | EQ | UN, 0, LT | GT, EQ | GT, GT, LT | EQ | GT | UN};
static bool is_signalling(unsigned predicate) { return (0x6666u >> (predicate & 15) & 1) ^ (predicate >> 4 & 1); }

#define DEFINE_COMPARE(s) \
    INLINE __m128i compare_##s##_base(__m128i a, __m128i b, unsigned predicate) \
    { \
        switch (predicate) { \
        case 0: FP_ASM("cmpeq" #s, a, b); break; \
        case 1: FP_ASM("cmplt" #s, a, b); break; \
        case 2: FP_ASM("cmple" #s, a, b); break; \
        case 3: FP_ASM("cmpunord" #s, a, b); break; \
        case 4: FP_ASM("cmpneq" #s, a, b); break; \
        case 5: FP_ASM("cmpnlt" #s, a, b); break; \
        case 6: FP_ASM("cmpnle" #s, a, b); break; \
        default: FP_ASM("cmpord" #s, a, b); break; \
        } \
        return a; \
    } \
    /* The ordered elements compare as 0 where they are not, so that only the first two comparisons raise flags. */ \
    static __m128i compare_##s##_any(__m128i a, __m128i b, unsigned predicate) \
    { \
        unsigned want = relation[predicate & 15]; \
        __m128i ordered = compare_##s##_base(a, b, 7), result = _mm_setzero_si128(); \
        if (is_signalling(predicate)) \
            compare_##s##_base(a, b, 1); \
        a = _mm_and_si128(a, ordered); \
        b = _mm_and_si128(b, ordered); \
        if (want & LT) \
            result = _mm_or_si128(result, _mm_and_si128(compare_##s##_base(a, b, 1), ordered)); \
        if (want & EQ) \
            result = _mm_or_si128(result, _mm_and_si128(compare_##s##_base(a, b, 0), ordered)); \
        if (want & GT) \
            result = _mm_or_si128(result, _mm_and_si128(compare_##s##_base(b, a, 1), ordered)); \
        if (want & UN) \
            result = _mm_or_si128(result, _mm_andnot_si128(ordered, _mm_set1_epi32(-1))); \
        return result; \
    } \
    INLINE __m128i compare_##s(__m128i a, __m128i b, unsigned predicate) \
    { \
        return predicate < 8 ? compare_##s##_base(a, b, predicate) : compare_##s##_any(a, b, predicate); \
    }
DEFINE_COMPARE(ps)
DEFINE_COMPARE(pd)
DEFINE_COMPARE(ss)
DEFINE_COMPARE(sd)

#define COMPARE_PACKED(name, s) \
    FP_BODY(name##_b) \
    { \
        Ymm b; \
        if (i->flags & INSN_MEM) \
            load_vec(c, i, &b, 16, true); \
        else \
            memcpy(&b, &c->ymm[i->rm], 16); \
        xmm_put(&c->ymm[i->reg], compare_##s##_base(xmm_get(&c->ymm[i->reg]), xmm_get(&b), imm8(i) & 7)); \
    } \
    FP_SSE(name##_any, name##_b) \
    ONE(name, name##_any) \
    FP_BODY(vcmp##s##_b) \
    { \
        Ymm b, d; \
        unsigned n = vex_bytes(i); \
        get_rm(c, i, &b, n); \
        for (unsigned k = 0; k < n; k += 16) \
            xmm_put(&d.u8[k], compare_##s(xmm_get(&c->ymm[i->vvvv].u8[k]), xmm_get(&b.u8[k]), imm8(i) & 31)); \
        vex_set(c, i->reg, &d, n); \
    } \
    FP_AVX(vcmp##s##_any, vcmp##s##_b) \
    ONE(vcmp##s, vcmp##s##_any)
#define COMPARE_SCALAR(name, s, bits) \
    FP_BODY(name##_b) \
    { \
        __m128i y = xmm_of##bits(get_rm##bits(c, i)), x = xmm_of##bits(c->ymm[i->reg].u##bits[0]); \
        c->ymm[i->reg].u##bits[0] = xmm_low##bits(compare_##s##_base(x, y, imm8(i) & 7)); \
    } \
    FP_SSE(name##_any, name##_b) \
    ONE(name, name##_any) \
    FP_BODY(vcmp##s##_b) \
    { \
        __m128i y = xmm_of##bits(get_rm##bits(c, i)), x = xmm_of##bits(c->ymm[i->vvvv].u##bits[0]); \
        Ymm d = c->ymm[i->vvvv]; \
        d.u##bits[0] = xmm_low##bits(compare_##s(x, y, imm8(i) & 31)); \
        vex_set(c, i->reg, &d, 16); \
    } \
    FP_AVX(vcmp##s##_any, vcmp##s##_b) \
    ONE(vcmp##s, vcmp##s##_any)
COMPARE_PACKED(cmpps, ps)
COMPARE_PACKED(cmppd, pd)
COMPARE_SCALAR(cmpss, ss, 32)
COMPARE_SCALAR(cmpsd_v, sd, 64)

/* ---- COMISS and its like: ZF PF CF are 111 unordered, 000 greater, 001 less, 100 equal; the other flags 0 ---- */

#define COMPARE_FLAGS(name, bits) \
    INLINE void name##_flags(Cpu *c, __m128i x, __m128i y) \
    { \
        bool z, p, b; \
        __asm__ volatile(#name " %4, %3" : "=@ccz"(z), "=@ccp"(p), "=@ccc"(b) : "x"(x), "x"(y)); \
        cc_explicit(c, (b ? FL_CF : 0) | (p ? FL_PF : 0) | (z ? FL_ZF : 0)); \
    } \
    FP_BODY(name##_rb) { name##_flags(c, xmm_of##bits(c->ymm[i->reg].u##bits[0]), xmm_of##bits(c->ymm[i->rm].u##bits[0])); } \
    FP_BODY(name##_mb) \
    { \
        __m128i y = xmm_of##bits(load##bits(c, i)); \
        name##_flags(c, xmm_of##bits(c->ymm[i->reg].u##bits[0]), y); \
    } \
    FP_SSE(name##_r, name##_rb) \
    FP_SSE(name##_slow, name##_mb) \
    EXEC(name##_m) \
    { \
        VEC_IN_RAM(c->trap_sse, bits / 8, false, read, name##_slow); \
        uint##bits##_t v; \
        memcpy(&v, ram, sizeof v); \
        name##_flags(c, xmm_of##bits(c->ymm[i->reg].u##bits[0]), xmm_of##bits(v)); \
        NEXT(); \
    } \
    REG_MEM(name, name##_r, name##_m) \
    FP_AVX(v##name##_r, name##_rb) \
    FP_AVX(v##name##_m, name##_mb) \
    REG_MEM(v##name, v##name##_r, v##name##_m)
COMPARE_FLAGS(ucomiss, 32)
COMPARE_FLAGS(ucomisd, 64)
COMPARE_FLAGS(comiss, 32)
COMPARE_FLAGS(comisd, 64)

/* ---- SSE3: additions across and with alternating signs. Elements that take no part are 0 and raise nothing ---- */

INLINE void even_odd(const void *a, const void *b, __m128i *even, __m128i *odd, bool is_double)
{
    __m128 x = _mm_loadu_ps(a), y = _mm_loadu_ps(b);
    *even = _mm_castps_si128(is_double ? _mm_shuffle_ps(x, y, 0x44) : _mm_shuffle_ps(x, y, 0x88));
    *odd = _mm_castps_si128(is_double ? _mm_shuffle_ps(x, y, 0xee) : _mm_shuffle_ps(x, y, 0xdd));
}

#define ADD_SUB(to, a, b, s, odd_mask) \
    do { \
        __m128i x_ = _mm_and_si128(a, odd_mask), y_ = _mm_and_si128(b, odd_mask); \
        __m128i z_ = _mm_andnot_si128(odd_mask, a), w_ = _mm_andnot_si128(odd_mask, b); \
        FP_ASM("add" s, x_, y_); \
        FP_ASM("sub" s, z_, w_); \
        (to) = _mm_or_si128(_mm_and_si128(x_, odd_mask), _mm_andnot_si128(odd_mask, z_)); \
    } while (0)
#define ACROSS(insn, is_double) \
    do { \
        __m128i x_, y_; \
        even_odd(&a->u8[k], &b->u8[k], &x_, &y_, is_double); \
        FP_ASM(insn, x_, y_); \
        xmm_put(&d->u8[k], x_); \
    } while (0)

#define FP_OP(name, statement) \
    INLINE void op_##name(Ymm *d, const Ymm *a, const Ymm *b, unsigned n) \
    { \
        for (unsigned k = 0; k < n; k += 16) \
            statement; \
    } \
    FP_BODY(name##_b) \
    { \
        Ymm b, d; \
        if (i->flags & INSN_MEM) \
            load_vec(c, i, &b, 16, true); \
        else \
            memcpy(&b, &c->ymm[i->rm], 16); \
        op_##name(&d, &c->ymm[i->reg], &b, 16); \
        memcpy(&c->ymm[i->reg], &d, 16); \
    } \
    FP_SSE(name##_any, name##_b) \
    ONE(name, name##_any) \
    FP_BODY(v##name##_b) \
    { \
        Ymm b, d; \
        unsigned n = vex_bytes(i); \
        get_rm(c, i, &b, n); \
        op_##name(&d, &c->ymm[i->vvvv], &b, n); \
        vex_set(c, i->reg, &d, n); \
    } \
    FP_AVX(v##name##_any, v##name##_b) \
    ONE(v##name, v##name##_any)
FP_OP(haddps, ACROSS("addps", false))
FP_OP(haddpd, ACROSS("addpd", true))
FP_OP(hsubps, ACROSS("subps", false))
FP_OP(hsubpd, ACROSS("subpd", true))
#define ALTERNATE(s, mask) \
    do { \
        __m128i r_; \
        ADD_SUB(r_, xmm_get(&a->u8[k]), xmm_get(&b->u8[k]), s, mask); \
        xmm_put(&d->u8[k], r_); \
    } while (0)
FP_OP(addsubps, ALTERNATE("ps", _mm_set_epi32(-1, 0, -1, 0)))
FP_OP(addsubpd, ALTERNATE("pd", _mm_set_epi32(-1, -1, 0, 0)))
