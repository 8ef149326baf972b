/* Shifts and rotates. Counts are taken modulo 32, or modulo 64 for 64-bit operands; a count of 0 changes no flag. */
#include "exec_int.h"

#define COUNT_MASK(bits) ((bits) == 64 ? 63u : 31u)

/* Each operation: RESULT gives r of a and the masked count n > 0, FLAGS records it. Bits are shifted in 64-bit arithmetic,
   so that 8- and 16-bit operands may be shifted by more than their width. */
#define shl_RESULT(bits) UINT(bits) last = (UINT(bits))((uint64_t)a << (n - 1)), r = (UINT(bits))(last << 1)
#define shl_FLAGS(bits) cc_set(c, CC_SHL##bits, r, last)
#define shr_RESULT(bits) UINT(bits) last = (UINT(bits))((uint64_t)a >> (n - 1)), r = last >> 1
#define shr_FLAGS(bits) cc_set(c, CC_SHR##bits, r, last)
#define sar_RESULT(bits) \
    UINT(bits) last = (UINT(bits))((int64_t)(INT(bits))a >> (n - 1)), r = (UINT(bits))((INT(bits))last >> 1)
#define sar_FLAGS(bits) cc_set(c, CC_SAR##bits, r, last)

#define TOP(v, bits) ((unsigned)((v) >> ((bits) - 1)) & 1)
/* CF and OF alone change; outside counts of 1 OF follows the same formula. */
#define ROTATE_FLAGS(carry, overflow) cc_change(c, FL_CF | FL_OF, (carry) | (overflow) << 11)

#define rol_RESULT(bits) \
    unsigned k = n & ((bits) - 1); \
    UINT(bits) r = k ? (UINT(bits))(a << k | a >> ((bits) - k)) : a
#define rol_FLAGS(bits) ROTATE_FLAGS((unsigned)(r & 1), (TOP(r, bits) ^ (r & 1)))
#define ror_RESULT(bits) \
    unsigned k = n & ((bits) - 1); \
    UINT(bits) r = k ? (UINT(bits))(a >> k | a << ((bits) - k)) : a
#define ror_FLAGS(bits) ROTATE_FLAGS(TOP(r, bits), (TOP(r, bits) ^ TOP((UINT(bits))(r << 1), bits)))
/* Through the carry: rotation of bits + 1 places. */
#define RC_COUNT(bits) ((bits) < 32 ? n % ((bits) + 1) : n)
#define rcl_RESULT(bits) \
    unsigned k = RC_COUNT(bits); \
    uint64_t carry = cc_cf(c); \
    UINT(bits) r = a; \
    if (k) { \
        r = (UINT(bits))((k == (bits) ? 0 : (uint64_t)a << k) | carry << (k - 1) | (k == 1 ? 0 : (uint64_t)a >> ((bits) + 1 - k))); \
        carry = (uint64_t)a >> ((bits) - k) & 1; \
    }
#define rcl_FLAGS(bits) ROTATE_FLAGS((unsigned)carry, (TOP(r, bits) ^ (unsigned)carry))
#define rcr_RESULT(bits) \
    unsigned k = RC_COUNT(bits); \
    uint64_t carry = cc_cf(c); \
    UINT(bits) r = a; \
    if (k) { \
        r = (UINT(bits))((k == (bits) ? 0 : (uint64_t)a >> k) | carry << ((bits) - k) | \
                         (k == 1 ? 0 : (uint64_t)a << ((bits) + 1 - k))); \
        carry = (uint64_t)a >> (k - 1) & 1; \
    }
#define rcr_FLAGS(bits) ROTATE_FLAGS((unsigned)carry, (TOP(r, bits) ^ TOP((UINT(bits))(r << 1), bits)))

#define SHIFT_BY(op, bits, how, count, masked) \
    EXEC(op##_r##how##bits) \
    { \
        unsigned n = (count) & COUNT_MASK(bits); \
        UINT(bits) a = GET##bits(i->rm); \
        if (masked && unlikely(n == 0)) { \
            SET##bits(i->rm, a); /* a 32-bit register's upper half is cleared even so */ \
            NEXT(); \
        } \
        op##_RESULT(bits); \
        SET##bits(i->rm, r); \
        op##_FLAGS(bits); \
        NEXT(); \
    } \
    EXEC(op##_m##how##bits) \
    { \
        uint64_t at; \
        unsigned n = (count) & COUNT_MASK(bits); \
        UINT(bits) a = load_for_store##bits(c, i, &at); \
        if (masked && unlikely(n == 0)) { \
            write##bits##_linear(c, i, i->seg, at, a); \
            NEXT(); \
        } \
        op##_RESULT(bits); \
        write##bits##_linear(c, i, i->seg, at, r); \
        op##_FLAGS(bits); \
        NEXT(); \
    }
#define SHIFT(op, bits) \
    SHIFT_BY(op, bits, i, (unsigned)i->imm, 1) \
    SHIFT_BY(op, bits, 1, 1u, 0) \
    SHIFT_BY(op, bits, c, (unsigned)REG8(RCX * 8), 1)
#define SHIFT_EXEC(id, op) \
    EXEC_BYTE(id##_EbIb, op##_ri8, op##_mi8) \
    EXEC_WIDE(id##_EvIb, op##_ri, op##_mi) \
    EXEC_BYTE(id##_Eb1, op##_r18, op##_m18) \
    REG_MEM_SIZES(id##_Ev1, op##_r116, op##_r132, op##_r164, op##_m116, op##_m132, op##_m164) \
    EXEC_BYTE(id##_EbCL, op##_rc8, op##_mc8) \
    EXEC_WIDE(id##_EvCL, op##_rc, op##_mc)
#define SHIFT_WIDTHS(op) SHIFT(op, 8) SHIFT(op, 16) SHIFT(op, 32) SHIFT(op, 64) SHIFT_EXEC(op, op)
SHIFT_WIDTHS(rol)
SHIFT_WIDTHS(ror)
SHIFT_WIDTHS(rcl)
SHIFT_WIDTHS(rcr)
SHIFT_WIDTHS(shl)
SHIFT_WIDTHS(shr)
SHIFT_WIDTHS(sar)
SHIFT_EXEC(sal, shl)

/* Double shifts: operands a and b as one value. A 16-bit operand shifted by more than 16, which is undefined, takes its bits
   from b again and leaves CF clear, as AMD Zen 5 does. */
#define OVERLONG(bits) \
    if ((bits) == 16 && n > 16) \
        cc_change(c, FL_CF, 0)
#define LEFT16(k) (UINT(16))((((uint64_t)a << 32 | (uint64_t)b << 16 | b) << (k)) >> 32)
#define LEFT32(k) (UINT(32))((((uint64_t)a << 32 | b) << (k)) >> 32)
#define LEFT64(k) ((k) ? a << (k) | b >> (64 - (k)) : a)
#define RIGHT16(k) (UINT(16))(((uint64_t)b << 32 | (uint64_t)b << 16 | a) >> (k))
#define RIGHT32(k) (UINT(32))(((uint64_t)b << 32 | a) >> (k))
#define RIGHT64(k) ((k) ? a >> (k) | b << (64 - (k)) : a)
#define shld_RESULT(bits) UINT(bits) last = LEFT##bits(n - 1), r = LEFT##bits(n)
#define shld_FLAGS(bits) \
    do { \
        cc_set(c, CC_SHL##bits, r, last); \
        OVERLONG(bits); \
    } while (0)
#define shrd_RESULT(bits) UINT(bits) last = RIGHT##bits(n - 1), r = RIGHT##bits(n)
#define shrd_FLAGS(bits) \
    do { \
        cc_set(c, CC_LOGIC##bits, r, 0); \
        cc_change(c, FL_CF | FL_OF | FL_AF, (uint32_t)(last & 1) | FL_AF | (TOP(r, bits) ^ TOP(last, bits)) << 11); \
        OVERLONG(bits); \
    } while (0)

#define DOUBLE_BY(op, bits, how, count) \
    EXEC(op##_r##how##bits) \
    { \
        unsigned n = (count) & COUNT_MASK(bits); \
        UINT(bits) a = GET##bits(i->rm), b = GET##bits(i->reg); \
        if (n == 0) { \
            SET##bits(i->rm, a); \
            NEXT(); \
        } \
        op##_RESULT(bits); \
        SET##bits(i->rm, r); \
        op##_FLAGS(bits); \
        NEXT(); \
    } \
    EXEC(op##_m##how##bits) \
    { \
        uint64_t at; \
        unsigned n = (count) & COUNT_MASK(bits); \
        UINT(bits) a = load_for_store##bits(c, i, &at), b = GET##bits(i->reg); \
        if (n == 0) { \
            write##bits##_linear(c, i, i->seg, at, a); \
            NEXT(); \
        } \
        op##_RESULT(bits); \
        write##bits##_linear(c, i, i->seg, at, r); \
        op##_FLAGS(bits); \
        NEXT(); \
    }
#define DOUBLE(bits) \
    DOUBLE_BY(shld, bits, i, (unsigned)i->imm) \
    DOUBLE_BY(shld, bits, c, (unsigned)REG8(RCX * 8)) \
    DOUBLE_BY(shrd, bits, i, (unsigned)i->imm) \
    DOUBLE_BY(shrd, bits, c, (unsigned)REG8(RCX * 8))
FOR_WIDE(DOUBLE)
EXEC_WIDE(shld_Ib, shld_ri, shld_mi)
EXEC_WIDE(shld_CL, shld_rc, shld_mc)
EXEC_WIDE(shrd_Ib, shrd_ri, shrd_mi)
EXEC_WIDE(shrd_CL, shrd_rc, shrd_mc)
