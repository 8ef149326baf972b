/* ADD to CMP, TEST, INC, DEC, NOT, NEG. */
#include "exec_int.h"

/* Each operation: RESULT gives r of a and b (both UINT(bits)), FLAGS records it, once all memory accesses are done. */
#define add_RESULT(bits) UINT(bits) r = (UINT(bits))(a + b)
#define add_FLAGS(bits) cc_set(c, CC_ADD##bits, r, b)
#define adc_RESULT(bits) unsigned carry = cc_cf(c); UINT(bits) r = (UINT(bits))(a + b + carry)
#define adc_FLAGS(bits) cc_set(c, CC_ADD##bits + 4 * carry, r, b)
#define sub_RESULT(bits) UINT(bits) r = (UINT(bits))(a - b)
#define sub_FLAGS(bits) cc_set(c, CC_SUB##bits, r, b)
#define sbb_RESULT(bits) unsigned carry = cc_cf(c); UINT(bits) r = (UINT(bits))(a - b - carry)
#define sbb_FLAGS(bits) cc_set(c, CC_SUB##bits + 4 * carry, r, b)
#define and_RESULT(bits) UINT(bits) r = a & b
#define and_FLAGS(bits) cc_set(c, CC_LOGIC##bits, r, 0)
#define or_RESULT(bits) UINT(bits) r = a | b
#define or_FLAGS and_FLAGS
#define xor_RESULT(bits) UINT(bits) r = a ^ b
#define xor_FLAGS and_FLAGS

#define ALU(op, bits) \
    EXEC(op##_rr##bits) \
    { \
        UINT(bits) a = GET##bits(i->rm), b = GET##bits(i->reg); \
        op##_RESULT(bits); \
        SET##bits(i->rm, r); \
        op##_FLAGS(bits); \
        NEXT(); \
    } \
    EXEC_UPDATE(op##_mr##bits, bits, UINT(bits) a = m; UINT(bits) b = GET##bits(i->reg); op##_RESULT(bits), op##_FLAGS(bits)) \
    EXEC(op##_gr##bits) \
    { \
        UINT(bits) a = GET##bits(i->reg), b = GET##bits(i->rm); \
        op##_RESULT(bits); \
        SET##bits(i->reg, r); \
        op##_FLAGS(bits); \
        NEXT(); \
    } \
    EXEC_LOAD(op##_gm##bits, bits, UINT(bits) a = GET##bits(i->reg); UINT(bits) b = m; op##_RESULT(bits); SET##bits(i->reg, r); \
              op##_FLAGS(bits)) \
    EXEC(op##_ri##bits) \
    { \
        UINT(bits) a = GET##bits(i->rm), b = (UINT(bits))i->imm; \
        op##_RESULT(bits); \
        SET##bits(i->rm, r); \
        op##_FLAGS(bits); \
        NEXT(); \
    } \
    EXEC_UPDATE(op##_mi##bits, bits, UINT(bits) a = m; UINT(bits) b = (UINT(bits))i->imm; op##_RESULT(bits), op##_FLAGS(bits))
/* Without a destination: CMP by SUB, TEST by AND. */
#define COMPARE(name, op, bits) \
    EXEC(name##_rr##bits) \
    { \
        UINT(bits) a = GET##bits(i->rm), b = GET##bits(i->reg); \
        op##_RESULT(bits); \
        op##_FLAGS(bits); \
        NEXT(); \
    } \
    EXEC_LOAD(name##_mr##bits, bits, UINT(bits) a = m; UINT(bits) b = GET##bits(i->reg); op##_RESULT(bits); op##_FLAGS(bits)) \
    EXEC(name##_ri##bits) \
    { \
        UINT(bits) a = GET##bits(i->rm), b = (UINT(bits))i->imm; \
        op##_RESULT(bits); \
        op##_FLAGS(bits); \
        NEXT(); \
    } \
    EXEC_LOAD(name##_mi##bits, bits, UINT(bits) a = m; UINT(bits) b = (UINT(bits))i->imm; op##_RESULT(bits); op##_FLAGS(bits))
/* CMP has the forms with the register first too. */
#define COMPARE_REVERSED(name, op, bits) \
    EXEC(name##_gr##bits) \
    { \
        UINT(bits) a = GET##bits(i->reg), b = GET##bits(i->rm); \
        op##_RESULT(bits); \
        op##_FLAGS(bits); \
        NEXT(); \
    } \
    EXEC_LOAD(name##_gm##bits, bits, UINT(bits) a = GET##bits(i->reg); UINT(bits) b = m; op##_RESULT(bits); op##_FLAGS(bits))

#define ALU_EXEC(op) \
    EXEC_BYTE(op##_EbGb, op##_rr8, op##_mr8) \
    EXEC_WIDE(op##_EvGv, op##_rr, op##_mr) \
    EXEC_BYTE(op##_GbEb, op##_gr8, op##_gm8) \
    EXEC_WIDE(op##_GvEv, op##_gr, op##_gm) \
    EXEC_BYTE(op##_ALIb, op##_ri8, op##_ri8) \
    EXEC_WIDE_REG(op##_rAXIz, op##_ri) \
    EXEC_BYTE(op##_EbIb, op##_ri8, op##_mi8) \
    EXEC_WIDE(op##_EvIz, op##_ri, op##_mi) \
    EXEC_BYTE(op##_EbIb82, op##_ri8, op##_mi8) \
    EXEC_WIDE(op##_EvIb, op##_ri, op##_mi)
#define ALU_WIDTHS(op) ALU(op, 8) ALU(op, 16) ALU(op, 32) ALU(op, 64) ALU_EXEC(op)
ALU_WIDTHS(add)
ALU_WIDTHS(or)
ALU_WIDTHS(adc)
ALU_WIDTHS(sbb)
ALU_WIDTHS(and)
ALU_WIDTHS(sub)
ALU_WIDTHS(xor)

#define CMP(bits) COMPARE(cmp, sub, bits) COMPARE_REVERSED(cmp, sub, bits)
FOR_WIDTHS(CMP)
ALU_EXEC(cmp)

#define TEST(bits) COMPARE(test, and, bits)
FOR_WIDTHS(TEST)
EXEC_BYTE(test_EbGb, test_rr8, test_mr8)
EXEC_WIDE(test_EvGv, test_rr, test_mr)
EXEC_BYTE(test_ALIb, test_ri8, test_ri8)
EXEC_WIDE_REG(test_rAXIz, test_ri)
EXEC_BYTE(test_EbIb, test_ri8, test_mi8)
EXEC_WIDE(test_EvIz, test_ri, test_mi)
EXEC_BYTE(test_EbIb1, test_ri8, test_mi8)
EXEC_WIDE(test_EvIz1, test_ri, test_mi)

#define inc_RESULT(bits) UINT(bits) r = (UINT(bits))(a + 1)
#define inc_FLAGS(bits) cc_set(c, CC_INC##bits, r, cc_cf(c))
#define dec_RESULT(bits) UINT(bits) r = (UINT(bits))(a - 1)
#define dec_FLAGS(bits) cc_set(c, CC_DEC##bits, r, cc_cf(c))
#define not_RESULT(bits) UINT(bits) r = (UINT(bits))~a
#define not_FLAGS(bits) (void)0
#define neg_RESULT(bits) UINT(bits) r = (UINT(bits))(0 - a)
#define neg_FLAGS(bits) cc_set(c, CC_SUB##bits, r, a)

#define UNARY(op, bits) \
    EXEC(op##_r##bits) \
    { \
        UINT(bits) a = GET##bits(i->rm); \
        op##_RESULT(bits); \
        SET##bits(i->rm, r); \
        op##_FLAGS(bits); \
        NEXT(); \
    } \
    EXEC_UPDATE(op##_m##bits, bits, UINT(bits) a = m; op##_RESULT(bits), op##_FLAGS(bits))
#define UNARY_WIDTHS(op) \
    UNARY(op, 8) UNARY(op, 16) UNARY(op, 32) UNARY(op, 64) \
    EXEC_BYTE(op##_Eb, op##_r8, op##_m8) \
    EXEC_WIDE(op##_Ev, op##_r, op##_m)
UNARY_WIDTHS(inc)
UNARY_WIDTHS(dec)
UNARY_WIDTHS(not)
UNARY_WIDTHS(neg)
EXEC_WIDE_REG(inc_Zv, inc_r)
EXEC_WIDE_REG(dec_Zv, dec_r)
