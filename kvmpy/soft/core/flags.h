/* The six arithmetic flags, kept as the last operation and computed when they are read. */
#ifndef KP_FLAGS_H
#define KP_FLAGS_H

#include "cpu.h"

static inline void cc_set(Cpu *c, uint32_t op, uint64_t dst, uint64_t src)
{
    c->cc_op = op;
    c->cc_dst = dst;
    c->cc_src = src;
}

/* flags: FL_OSZAPC bits. */
static inline void cc_explicit(Cpu *c, uint64_t flags) { cc_set(c, CC_EXPLICIT, flags & FL_OSZAPC, 0); }

static inline unsigned parity(uint64_t v) { return !__builtin_parity((unsigned)v & 0xff); }

#define CC_KIND(op) (((op) - 1) & ~3u) /* 0 ADD, 4 ADC, 8 SUB, 12 SBB, 16 LOGIC, 20 INC, 24 DEC, 28 SHL, 32 SHR, 36 SAR */
#define CC_BITS(op) (8u << (((op) - 1) & 3))

static inline unsigned cc_zf(const Cpu *c) { return c->cc_op == CC_EXPLICIT ? c->cc_dst >> 6 & 1 : c->cc_dst == 0; }
static inline unsigned cc_sf(const Cpu *c)
{
    return c->cc_op == CC_EXPLICIT ? c->cc_dst >> 7 & 1 : c->cc_dst >> (CC_BITS(c->cc_op) - 1) & 1;
}
static inline unsigned cc_pf(const Cpu *c) { return c->cc_op == CC_EXPLICIT ? c->cc_dst >> 2 & 1 : parity(c->cc_dst); }

static inline unsigned cc_cf(const Cpu *c)
{
    uint32_t op = c->cc_op;
    uint64_t dst = c->cc_dst, src = c->cc_src;
    if (op == CC_EXPLICIT)
        return dst & 1;
    uint64_t mask = ~0ull >> (64 - CC_BITS(op));
    switch (CC_KIND(op)) {
    case 0: return dst < src;
    case 4: return dst <= src;
    case 8: return ((dst + src) & mask) < src;
    case 12: return ((dst + src + 1) & mask) <= src;
    case 16: return 0;
    case 20:
    case 24: return src & 1;
    case 28: return src >> (CC_BITS(op) - 1) & 1;
    default: return src & 1;
    }
}

static inline unsigned cc_of(const Cpu *c)
{
    uint32_t op = c->cc_op;
    uint64_t dst = c->cc_dst, src = c->cc_src;
    if (op == CC_EXPLICIT)
        return dst >> 11 & 1;
    unsigned top = CC_BITS(op) - 1;
    uint64_t a;
    switch (CC_KIND(op)) {
    case 0: a = dst - src; return (~(a ^ src) & (a ^ dst)) >> top & 1;
    case 4: a = dst - src - 1; return (~(a ^ src) & (a ^ dst)) >> top & 1;
    case 8: a = dst + src; return ((a ^ src) & (a ^ dst)) >> top & 1;
    case 12: a = dst + src + 1; return ((a ^ src) & (a ^ dst)) >> top & 1;
    case 20: return dst == 1ull << top;
    case 24: return dst == (1ull << top) - 1;
    case 28: return (src ^ dst) >> top & 1; /* defined for counts of 1: CF xor the result's top bit */
    case 32: return src >> top & 1;
    default: return 0;
    }
}

static inline unsigned cc_af(const Cpu *c)
{
    uint32_t op = c->cc_op;
    uint64_t dst = c->cc_dst, src = c->cc_src;
    if (op == CC_EXPLICIT)
        return dst >> 4 & 1;
    switch (CC_KIND(op)) {
    case 0: return ((dst - src) ^ src ^ dst) >> 4 & 1;
    case 4: return ((dst - src - 1) ^ src ^ dst) >> 4 & 1;
    case 8: return ((dst + src) ^ src ^ dst) >> 4 & 1;
    case 12: return ((dst + src + 1) ^ src ^ dst) >> 4 & 1;
    case 20: return (dst & 15) == 0;
    case 24: return (dst & 15) == 15;
    case 16: return 0;
    default: return 1; /* shifts: undefined, AMD Zen 5 sets it */
    }
}

/* All six at their places in RFLAGS. */
static inline uint32_t cc_flags(const Cpu *c)
{
    if (c->cc_op == CC_EXPLICIT)
        return (uint32_t)c->cc_dst;
    return cc_cf(c) | cc_pf(c) << 2 | cc_af(c) << 4 | cc_zf(c) << 6 | cc_sf(c) << 7 | cc_of(c) << 11;
}

/* Makes CC_EXPLICIT of whatever is there, and changes the flags in `mask` to those of `value`. */
static inline void cc_change(Cpu *c, uint32_t mask, uint32_t value)
{
    cc_explicit(c, (cc_flags(c) & ~mask) | (value & mask));
}

/* Condition by its number in the opcode: O NO B AE E NE BE A S NS P NP L GE LE G. */
static inline bool cc_test(const Cpu *c, unsigned condition)
{
    unsigned r;
    switch (condition >> 1) {
    case 0: r = cc_of(c); break;
    case 1: r = cc_cf(c); break;
    case 2: r = cc_zf(c); break;
    case 3: r = cc_cf(c) | cc_zf(c); break;
    case 4: r = cc_sf(c); break;
    case 5: r = cc_pf(c); break;
    case 6: r = cc_sf(c) ^ cc_of(c); break;
    default: r = cc_zf(c) | (cc_sf(c) ^ cc_of(c)); break;
    }
    return r ^ (condition & 1);
}

#endif
