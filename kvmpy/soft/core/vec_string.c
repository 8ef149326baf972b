/* SSE4.2 string comparison (SDM 2B 4.1). imm8: 1:0 element type, 3:2 aggregation, 5:4 polarity, 6 form of the output. */
#include "vec.h"

enum { EQUAL_ANY, RANGES, EQUAL_EACH, EQUAL_ORDERED };

INLINE int element(const Ymm *v, unsigned k, unsigned type)
{
    switch (type) {
    case 0: return v->u8[k];
    case 1: return v->u16[k];
    case 2: return v->s8[k];
    default: return v->s16[k];
    }
}

/* Valid elements up to the first that is 0. */
static unsigned implicit_length(const Ymm *v, unsigned count, unsigned type)
{
    unsigned k = 0;
    while (k < count && element(v, k, type))
        k++;
    return k;
}

/* The magnitude of EAX or EDX (RAX, RDX with W), at most `count`. */
static unsigned explicit_length(uint64_t reg, bool wide, unsigned count)
{
    uint64_t v = wide ? reg : (uint64_t)(int64_t)(int32_t)reg;
    if (v >> 63)
        v = 0 - v;
    return v < count ? (unsigned)v : count;
}

/* One bit for each element of b. */
static unsigned aggregate(const Ymm *a, const Ymm *b, unsigned la, unsigned lb, unsigned count, unsigned imm)
{
    unsigned type = imm & 3, result = 0;
    for (unsigned j = 0; j < count; j++) {
        bool r = false;
        int y = element(b, j, type);
        switch (imm >> 2 & 3) {
        case EQUAL_ANY:
            for (unsigned k = 0; k < la && j < lb; k++)
                r |= element(a, k, type) == y;
            break;
        case RANGES:
            for (unsigned k = 0; k + 1 < la && j < lb; k += 2)
                r |= element(a, k, type) <= y && y <= element(a, k + 1, type);
            break;
        case EQUAL_EACH:
            r = j < la && j < lb ? element(a, j, type) == y : j >= la && j >= lb;
            break;
        default:
            r = true;
            for (unsigned k = 0; k < la && j + k < count; k++)
                r &= j + k < lb && element(a, k, type) == element(b, j + k, type);
            break;
        }
        result |= (unsigned)r << j;
    }
    if (imm >> 4 & 1)
        result ^= imm >> 5 & 1 ? (1u << lb) - 1 : (1u << count) - 1;
    return result;
}

static unsigned compare(Cpu *c, const Insn *i, bool explicit_lengths)
{
    Ymm b;
    const Ymm *a = &c->ymm[i->reg];
    get_rm(c, i, &b, 16);
    unsigned imm = imm8(i), count = imm & 1 ? 8 : 16, la, lb;
    bool wide = i->flags & INSN_REXW && in_64bit(c);
    if (explicit_lengths) {
        la = explicit_length(c->gpr[RAX], wide, count);
        lb = explicit_length(c->gpr[RDX], wide, count);
    } else {
        la = implicit_length(a, count, imm & 3);
        lb = implicit_length(&b, count, imm & 3);
    }
    unsigned result = aggregate(a, &b, la, lb, count, imm);
    cc_explicit(c, (result ? FL_CF : 0) | (lb < count ? FL_ZF : 0) | (la < count ? FL_SF : 0) | (result & 1 ? FL_OF : 0));
    return result;
}

static void compare_index(Cpu *c, const Insn *i, bool explicit_lengths)
{
    unsigned result = compare(c, i, explicit_lengths), count = imm8(i) & 1 ? 8 : 16;
    c->gpr[RCX] = !result ? count : imm8(i) & 0x40 ? 31 - (unsigned)__builtin_clz(result) : (unsigned)__builtin_ctz(result);
}

static void compare_mask(Cpu *c, const Insn *i, bool explicit_lengths)
{
    unsigned result = compare(c, i, explicit_lengths);
    Ymm d = {.u64 = {result}};
    if (imm8(i) & 0x40)
        for (unsigned k = 0; k < 16; k++)
            d.u8[k] = result >> (imm8(i) & 1 ? k / 2 : k) & 1 ? 0xff : 0;
    memcpy(&c->ymm[0], &d, i->flags & INSN_VEX ? 32 : 16);
}

#define STRING(id, check, fn, explicit_lengths) \
    EXEC_VOID(id##_any) \
    { \
        check(); \
        fn(c, i, explicit_lengths); \
    } \
    ONE(id, id##_any)
STRING(pcmpestrm, CHECK_SSE, compare_mask, true)
STRING(pcmpestri, CHECK_SSE, compare_index, true)
STRING(pcmpistrm, CHECK_SSE, compare_mask, false)
STRING(pcmpistri, CHECK_SSE, compare_index, false)
STRING(vpcmpestrm, CHECK_AVX, compare_mask, true)
STRING(vpcmpestri, CHECK_AVX, compare_index, true)
STRING(vpcmpistrm, CHECK_AVX, compare_mask, false)
STRING(vpcmpistri, CHECK_AVX, compare_index, false)
