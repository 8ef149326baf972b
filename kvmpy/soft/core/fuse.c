/* Frequent pairs get one handler: an instruction that sets flags and the conditional jump behind it. The jump's condition is
   then one compare of the operands; the flags are still noted, for whoever reads them later. Each handler does exactly what
   its two exec_<id> do one after the other. */
#include "exec_int.h"

/* Conditions by their number in the opcode, on the operands a, b of a SUB or CMP with result r; S(x) is x as signed. */
#define S(x) ((sint)(x))
#define CONDITIONS_SUB(M, ...) \
    M(2, a < b, __VA_ARGS__) M(3, a >= b, __VA_ARGS__) M(4, a == b, __VA_ARGS__) M(5, a != b, __VA_ARGS__) \
    M(6, a <= b, __VA_ARGS__) M(7, a > b, __VA_ARGS__) M(8, S(r) < 0, __VA_ARGS__) M(9, S(r) >= 0, __VA_ARGS__) \
    M(12, S(a) < S(b), __VA_ARGS__) M(13, S(a) >= S(b), __VA_ARGS__) M(14, S(a) <= S(b), __VA_ARGS__) \
    M(15, S(a) > S(b), __VA_ARGS__)
/* On the result of a logical operation: CF and OF are 0. */
#define CONDITIONS_AND(M, ...) \
    M(4, r == 0, __VA_ARGS__) M(5, r != 0, __VA_ARGS__) M(8, S(r) < 0, __VA_ARGS__) M(9, S(r) >= 0, __VA_ARGS__) \
    M(14, S(r) <= 0, __VA_ARGS__) M(15, S(r) > 0, __VA_ARGS__)
/* Of an addition, INC or DEC: what needs no overflow. */
#define CONDITIONS_ADD(M, ...) \
    M(4, r == 0, __VA_ARGS__) M(5, r != 0, __VA_ARGS__) M(8, S(r) < 0, __VA_ARGS__) M(9, S(r) >= 0, __VA_ARGS__)

#define HANDLER(n, condition, name, bits, operands, result, ...) \
    EXEC(name##_##n) \
    { \
        typedef INT(bits) sint __attribute__((unused)); \
        operands; \
        UINT(bits) r = (UINT(bits))(result); \
        __VA_ARGS__; \
        i++; \
        if (condition) \
            JUMP_TO(i->imm, 0); \
        JUMP_TO(i->next_rip, 1); \
    }
#define ENTRY(n, condition, name, ...) [n] = name##_##n,

#define OPERANDS_rr(bits) UINT(bits) a = GET##bits(i->rm); UINT(bits) b = GET##bits(i->reg)
#define OPERANDS_gr(bits) UINT(bits) a = GET##bits(i->reg); UINT(bits) b = GET##bits(i->rm)
#define OPERANDS_ri(bits) UINT(bits) a = GET##bits(i->rm); UINT(bits) b = (UINT(bits))i->imm
#define OPERANDS_mr(bits) UINT(bits) a = load##bits(c, i); UINT(bits) b = GET##bits(i->reg)
#define OPERANDS_gm(bits) UINT(bits) b = load##bits(c, i); UINT(bits) a = GET##bits(i->reg)
#define OPERANDS_mi(bits) UINT(bits) a = load##bits(c, i); UINT(bits) b = (UINT(bits))i->imm
#define OPERANDS_r(bits) UINT(bits) a = GET##bits(i->rm)

#define FINISH_cmp(form, bits) cc_set(c, CC_SUB##bits, r, b)
#define FINISH_test(form, bits) cc_set(c, CC_LOGIC##bits, r, 0)
#define FINISH_sub(form, bits) cc_set(c, CC_SUB##bits, r, b); DEST_##form(bits)
#define FINISH_and(form, bits) cc_set(c, CC_LOGIC##bits, r, 0); DEST_##form(bits)
#define FINISH_add(form, bits) cc_set(c, CC_ADD##bits, r, b); DEST_##form(bits)
#define FINISH_inc(form, bits) cc_set(c, CC_INC##bits, r, cc_cf(c)); DEST_r(bits)
#define FINISH_dec(form, bits) cc_set(c, CC_DEC##bits, r, cc_cf(c)); DEST_r(bits)
#define DEST_rr(bits) SET##bits(i->rm, r)
#define DEST_ri(bits) SET##bits(i->rm, r)
#define DEST_gr(bits) SET##bits(i->reg, r)
#define DEST_r(bits) SET##bits(i->rm, r)
#define RESULT_cmp a - b
#define RESULT_sub a - b
#define RESULT_test a & b
#define RESULT_and a & b
#define RESULT_add a + b
#define RESULT_inc a + 1
#define RESULT_dec a - 1

#define PAIR(op, conditions, form, bits) \
    conditions(HANDLER, op##_##form##bits, bits, OPERANDS_##form(bits), RESULT_##op, FINISH_##op(form, bits)) \
    static const exec_fn pair_##op##_##form##bits[16] = {conditions(ENTRY, op##_##form##bits)};
#define PAIR_WIDE(op, conditions, form) PAIR(op, conditions, form, 32) PAIR(op, conditions, form, 64)
#define PAIR_ALL(op, conditions, form) PAIR(op, conditions, form, 8) PAIR(op, conditions, form, 16) PAIR_WIDE(op, conditions, form)

PAIR_ALL(cmp, CONDITIONS_SUB, rr)
PAIR_ALL(cmp, CONDITIONS_SUB, gr)
PAIR_ALL(cmp, CONDITIONS_SUB, ri)
PAIR_ALL(cmp, CONDITIONS_SUB, mr)
PAIR_ALL(cmp, CONDITIONS_SUB, gm)
PAIR_ALL(cmp, CONDITIONS_SUB, mi)
PAIR_ALL(test, CONDITIONS_AND, rr)
PAIR_ALL(test, CONDITIONS_AND, ri)
PAIR_ALL(test, CONDITIONS_AND, mi)
PAIR_WIDE(sub, CONDITIONS_SUB, rr)
PAIR_WIDE(sub, CONDITIONS_SUB, gr)
PAIR_WIDE(sub, CONDITIONS_SUB, ri)
PAIR_WIDE(and, CONDITIONS_AND, rr)
PAIR_WIDE(and, CONDITIONS_AND, ri)
PAIR_WIDE(add, CONDITIONS_ADD, rr)
PAIR_WIDE(add, CONDITIONS_ADD, ri)
PAIR_WIDE(inc, CONDITIONS_ADD, r)
PAIR_WIDE(dec, CONDITIONS_ADD, r)

typedef struct {
    const exec_fn *exec; /* place in the exec array of the first instruction: what it holds is replaced */
    const exec_fn *pair; /* by condition, NULL: no pair */
} Pair;

/* Places in an exec_<id> array: log2 of the size, 4 more for memory. */
#define B_R 0
#define W_R 1
#define D_R 2
#define Q_R 3
#define B_M 4
#define W_M 5
#define D_M 6
#define Q_M 7
#define BYTE_RULES(op, form, r_or_m, id) {&exec_##op##_##id[B_##r_or_m], pair_##op##_##form##8},
#define WORD_RULES(op, form, r_or_m, id) {&exec_##op##_##id[W_##r_or_m], pair_##op##_##form##16},
#define WIDE_RULES(op, form, r_or_m, id) \
    {&exec_##op##_##id[D_##r_or_m], pair_##op##_##form##32}, {&exec_##op##_##id[Q_##r_or_m], pair_##op##_##form##64},
#define VARIABLE_RULES(op, form, r_or_m, id) WORD_RULES(op, form, r_or_m, id) WIDE_RULES(op, form, r_or_m, id)

static const Pair pairs[] = {
    BYTE_RULES(cmp, rr, R, EbGb) VARIABLE_RULES(cmp, rr, R, EvGv)
    BYTE_RULES(cmp, mr, M, EbGb) VARIABLE_RULES(cmp, mr, M, EvGv)
    BYTE_RULES(cmp, gr, R, GbEb) VARIABLE_RULES(cmp, gr, R, GvEv)
    BYTE_RULES(cmp, gm, M, GbEb) VARIABLE_RULES(cmp, gm, M, GvEv)
    BYTE_RULES(cmp, ri, R, EbIb) VARIABLE_RULES(cmp, ri, R, EvIz) VARIABLE_RULES(cmp, ri, R, EvIb)
    BYTE_RULES(cmp, mi, M, EbIb) VARIABLE_RULES(cmp, mi, M, EvIz) VARIABLE_RULES(cmp, mi, M, EvIb)
    BYTE_RULES(cmp, ri, R, ALIb) VARIABLE_RULES(cmp, ri, R, rAXIz)
    BYTE_RULES(test, rr, R, EbGb) VARIABLE_RULES(test, rr, R, EvGv)
    BYTE_RULES(test, ri, R, EbIb) VARIABLE_RULES(test, ri, R, EvIz)
    BYTE_RULES(test, mi, M, EbIb) VARIABLE_RULES(test, mi, M, EvIz)
    BYTE_RULES(test, ri, R, ALIb) VARIABLE_RULES(test, ri, R, rAXIz)
    WIDE_RULES(sub, rr, R, EvGv) WIDE_RULES(sub, gr, R, GvEv) WIDE_RULES(sub, ri, R, EvIb) WIDE_RULES(sub, ri, R, EvIz)
    WIDE_RULES(and, rr, R, EvGv) WIDE_RULES(and, ri, R, EvIb) WIDE_RULES(and, ri, R, EvIz)
    WIDE_RULES(add, rr, R, EvGv) WIDE_RULES(add, ri, R, EvIb) WIDE_RULES(add, ri, R, EvIz)
    WIDE_RULES(inc, r, R, Ev) WIDE_RULES(dec, r, R, Ev)
};

void block_fuse(Block *b)
{
    if (b->count < 2)
        return;
    Insn *jump = &b->insn[b->count - 1], *first = jump - 1;
    uint64_t key = insn_table[jump->id].key;
    bool conditional = (K_MAP(key) == 0 && (key & 0xf0) == 0x70) || (K_MAP(key) == 1 && (key & 0xf0) == 0x80);
    if (!(insn_table[jump->id].attributes & A_JUMP) || !conditional || (jump->flags & INSN_CHECK))
        return;
    for (unsigned n = 0; n < ARRAY_SIZE(pairs); n++)
        if (first->exec == *pairs[n].exec) {
            exec_fn fused = pairs[n].pair[key & 15];
            if (fused)
                first->exec = fused;
            return;
        }
}
