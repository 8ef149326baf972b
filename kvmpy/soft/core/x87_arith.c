/* FADD, FMUL, FSUB, FDIV in all operand forms, compares, and the one- and two-operand functions. */
#include "vm.h"
#include "x87.h"

void x87_pending(Cpu *c, const Insn *i)
{
    if (c->cr0 & CR0_NE)
        raise_fault(c, i, EXC_MF);
    if (c->vm->chips) { /* FERR# goes to IRQ 13, as in a PC whose CR0.NE is clear */
        chips_irq_line(c->vm->chips, 13, 1);
        chips_irq_line(c->vm->chips, 13, 0);
    }
}

/* ---- arithmetic with a second operand: ST(i), m32fp, m64fp, m16int, m32int ---- */
typedef uint16_t (*binary_fn)(F80 *r, const void *operand, uint16_t cw);

#define BINARY(op) \
    static uint16_t host_##op(F80 *r, const void *b, uint16_t cw) \
    { \
        uint16_t sw; \
        X87_RUN2(#op " %%st(1), %%st", *r, *(const F80 *)b, cw, sw); \
        return sw; \
    } \
    static uint16_t host_##op##_m32(F80 *r, const void *b, uint16_t cw) \
    { \
        uint16_t sw; \
        X87_RUN1(#op "s %[b]", *r, cw, sw, [b] "m"(*(const uint32_t *)b)); \
        return sw; \
    } \
    static uint16_t host_##op##_m64(F80 *r, const void *b, uint16_t cw) \
    { \
        uint16_t sw; \
        X87_RUN1(#op "l %[b]", *r, cw, sw, [b] "m"(*(const uint64_t *)b)); \
        return sw; \
    }
#define BINARY_INT(op, iop) \
    static uint16_t host_##op##_i16(F80 *r, const void *b, uint16_t cw) \
    { \
        uint16_t sw; \
        X87_RUN1(#iop "s %[b]", *r, cw, sw, [b] "m"(*(const uint16_t *)b)); \
        return sw; \
    } \
    static uint16_t host_##op##_i32(F80 *r, const void *b, uint16_t cw) \
    { \
        uint16_t sw; \
        X87_RUN1(#iop "l %[b]", *r, cw, sw, [b] "m"(*(const uint32_t *)b)); \
        return sw; \
    }
BINARY(fadd)
BINARY(fmul)
BINARY(fsub)
BINARY(fsubr)
BINARY(fdiv)
BINARY(fdivr)
BINARY_INT(fadd, fiadd)
BINARY_INT(fmul, fimul)
BINARY_INT(fsub, fisub)
BINARY_INT(fsubr, fisubr)
BINARY_INT(fdiv, fidiv)
BINARY_INT(fdivr, fidivr)

/* ST(to) = ST(to) op ST(from) */
static void arith_reg(Cpu *c, const Insn *i, binary_fn op, unsigned to, unsigned from, bool pop)
{
    X87_ENTER();
    x87_note(c, i);
    bool done = true;
    if (unlikely(x87_empty(c, to) || x87_empty(c, from))) {
        if ((done = x87_stack_fault(c, false)))
            x87_store(c, to, &x87_indefinite);
    } else {
        F80 r = *x87_st(c, to);
        if ((done = x87_take(c, op(&r, x87_st(c, from), c->x87.control))))
            *x87_st(c, to) = r;
    }
    if (pop && done)
        x87_pop(c);
}

/* ST(0) = ST(0) op memory */
static void arith_mem(Cpu *c, const Insn *i, binary_fn op, unsigned size)
{
    X87_ENTER();
    uint64_t operand = size == 8 ? load64(c, i) : size == 4 ? load32(c, i) : load16(c, i);
    x87_note(c, i);
    if (unlikely(x87_empty(c, 0))) {
        if (x87_stack_fault(c, false))
            x87_store(c, 0, &x87_indefinite);
    } else {
        F80 r = *x87_st(c, 0);
        if (x87_take(c, op(&r, &operand, c->x87.control)))
            *x87_st(c, 0) = r;
    }
}

/* In the forms with ST(i) as destination the manual's FSUB and FSUBR, FDIV and FDIVR keep their meaning: dest = dest - src. */
#define ARITH(name, op) \
    EXEC_VOID(op##_st0) { arith_reg(c, i, host_##op, 0, i->rm & 7, false); } \
    EXEC_VOID(op##_sti) { arith_reg(c, i, host_##op, i->rm & 7, 0, false); } \
    EXEC_VOID(op##p_sti) { arith_reg(c, i, host_##op, i->rm & 7, 0, true); } \
    EXEC_VOID(op##_m32) { arith_mem(c, i, host_##op##_m32, 4); } \
    EXEC_VOID(op##_m64) { arith_mem(c, i, host_##op##_m64, 8); } \
    EXEC_VOID(op##_i16) { arith_mem(c, i, host_##op##_i16, 2); } \
    EXEC_VOID(op##_i32) { arith_mem(c, i, host_##op##_i32, 4); } \
    ONE(name##_ST0, op##_st0) \
    ONE(name##_STi, op##_sti) \
    ONE(name##P_STi, op##p_sti) \
    ONE(name##_m32, op##_m32) \
    ONE(name##_m64, op##_m64) \
    ONE(name##_i16, op##_i16) \
    ONE(name##_i32, op##_i32)
ARITH(FADD, fadd)
ARITH(FMUL, fmul)
ARITH(FSUB, fsub)
ARITH(FSUBR, fsubr)
ARITH(FDIV, fdiv)
ARITH(FDIVR, fdivr)

/* ---- compares ---- */
static uint16_t host_fcom(F80 *r, const void *b, uint16_t cw)
{
    uint16_t sw;
    X87_RUN2("fcom %%st(1)", *r, *(const F80 *)b, cw, sw);
    return sw;
}
static uint16_t host_fucom(F80 *r, const void *b, uint16_t cw)
{
    uint16_t sw;
    X87_RUN2("fucom %%st(1)", *r, *(const F80 *)b, cw, sw);
    return sw;
}
#define COMPARE_MEM(name, code, type) \
    static uint16_t name(F80 *r, const void *b, uint16_t cw) \
    { \
        uint16_t sw; \
        X87_RUN1(code " %[b]", *r, cw, sw, [b] "m"(*(const type *)b)); \
        return sw; \
    }
COMPARE_MEM(host_fcom_m32, "fcoms", uint32_t)
COMPARE_MEM(host_fcom_m64, "fcoml", uint64_t)
COMPARE_MEM(host_fcom_i16, "ficoms", uint16_t)
COMPARE_MEM(host_fcom_i32, "ficoml", uint32_t)

/* Condition codes of a compare; without a valid operand they say unordered. True where the stack may be popped. */
static bool compare(Cpu *c, binary_fn op, const void *operand, bool empty, uint16_t *cc)
{
    *cc = SW_C0 | SW_C2 | SW_C3;
    if (unlikely(empty))
        return x87_stack_fault(c, false);
    F80 r = *x87_st(c, 0);
    uint16_t sw = op(&r, operand, c->x87.control);
    bool done = x87_take(c, sw);
    *cc = sw & (SW_C0 | SW_C2 | SW_C3);
    return done;
}

static void compare_to_status(Cpu *c, const Insn *i, binary_fn op, const void *operand, bool empty, unsigned pops)
{
    uint16_t cc;
    x87_note(c, i);
    bool done = compare(c, op, operand, empty, &cc);
    c->x87.status = (uint16_t)((c->x87.status & ~(SW_C0 | SW_C2 | SW_C3)) | cc);
    while (done && pops--)
        x87_pop(c);
}

static void compare_reg(Cpu *c, const Insn *i, binary_fn op, unsigned n, unsigned pops)
{
    X87_ENTER();
    compare_to_status(c, i, op, x87_st(c, n), x87_empty(c, 0) || x87_empty(c, n), pops);
}
static void compare_mem(Cpu *c, const Insn *i, binary_fn op, unsigned size, unsigned pops)
{
    X87_ENTER();
    uint64_t operand = size == 8 ? load64(c, i) : size == 4 ? load32(c, i) : load16(c, i);
    compare_to_status(c, i, op, &operand, x87_empty(c, 0), pops);
}
/* FCOMI and kin: ZF, PF, CF; OF, SF, AF are cleared. */
static void compare_flags(Cpu *c, const Insn *i, binary_fn op, bool pop)
{
    X87_ENTER();
    uint16_t cc;
    unsigned n = i->rm & 7;
    x87_note(c, i);
    if (compare(c, op, x87_st(c, n), x87_empty(c, 0) || x87_empty(c, n), &cc)) {
        cc_explicit(c, (cc & SW_C0 ? FL_CF : 0) | (cc & SW_C2 ? FL_PF : 0) | (cc & SW_C3 ? FL_ZF : 0));
        if (pop)
            x87_pop(c);
    }
}

EXEC_VOID(fcom_sti) { compare_reg(c, i, host_fcom, i->rm & 7, 0); }
EXEC_VOID(fcomp_sti) { compare_reg(c, i, host_fcom, i->rm & 7, 1); }
EXEC_VOID(fcompp) { compare_reg(c, i, host_fcom, 1, 2); }
EXEC_VOID(fucom_sti) { compare_reg(c, i, host_fucom, i->rm & 7, 0); }
EXEC_VOID(fucomp_sti) { compare_reg(c, i, host_fucom, i->rm & 7, 1); }
EXEC_VOID(fucompp) { compare_reg(c, i, host_fucom, 1, 2); }
EXEC_VOID(fcomi) { compare_flags(c, i, host_fcom, false); }
EXEC_VOID(fcomip) { compare_flags(c, i, host_fcom, true); }
EXEC_VOID(fucomi) { compare_flags(c, i, host_fucom, false); }
EXEC_VOID(fucomip) { compare_flags(c, i, host_fucom, true); }
EXEC_VOID(fcom_m32) { compare_mem(c, i, host_fcom_m32, 4, 0); }
EXEC_VOID(fcomp_m32) { compare_mem(c, i, host_fcom_m32, 4, 1); }
EXEC_VOID(fcom_m64) { compare_mem(c, i, host_fcom_m64, 8, 0); }
EXEC_VOID(fcomp_m64) { compare_mem(c, i, host_fcom_m64, 8, 1); }
EXEC_VOID(ficom_i16) { compare_mem(c, i, host_fcom_i16, 2, 0); }
EXEC_VOID(ficomp_i16) { compare_mem(c, i, host_fcom_i16, 2, 1); }
EXEC_VOID(ficom_i32) { compare_mem(c, i, host_fcom_i32, 4, 0); }
EXEC_VOID(ficomp_i32) { compare_mem(c, i, host_fcom_i32, 4, 1); }
ONE(FCOM_STi, fcom_sti)
ONE(FCOMP_STi, fcomp_sti)
ONE(FCOM2_STi, fcom_sti)
ONE(FCOMP3_STi, fcomp_sti)
ONE(FCOMP5_STi, fcomp_sti)
ONE(FCOMPP, fcompp)
ONE(FUCOM_STi, fucom_sti)
ONE(FUCOMP_STi, fucomp_sti)
ONE(FUCOMPP, fucompp)
ONE(FCOMI_STi, fcomi)
ONE(FCOMIP_STi, fcomip)
ONE(FUCOMI_STi, fucomi)
ONE(FUCOMIP_STi, fucomip)
ONE(FCOM_m32, fcom_m32)
ONE(FCOMP_m32, fcomp_m32)
ONE(FCOM_m64, fcom_m64)
ONE(FCOMP_m64, fcomp_m64)
ONE(FICOM_i16, ficom_i16)
ONE(FICOMP_i16, ficomp_i16)
ONE(FICOM_i32, ficom_i32)
ONE(FICOMP_i32, ficomp_i32)

EXEC_VOID(ftst)
{
    static const F80 zero = {0, 0};
    X87_ENTER();
    compare_to_status(c, i, host_fcom, &zero, x87_empty(c, 0), 0);
}
ONE(FTST, ftst)

/* Class of ST(0): SDM 2A FXAM. */
EXEC_VOID(fxam)
{
    X87_ENTER();
    x87_note(c, i);
    const F80 *v = x87_st(c, 0);
    unsigned e = v->se & 0x7fff;
    bool integer = v->mant >> 63;
    uint16_t cc;
    if (x87_empty(c, 0))
        cc = SW_C3 | SW_C0;
    else if (e == 0x7fff)
        cc = !integer ? 0 : v->mant << 1 ? SW_C0 : SW_C2 | SW_C0;
    else if (e == 0)
        cc = v->mant ? SW_C3 | SW_C2 : SW_C3;
    else
        cc = integer ? SW_C2 : 0;
    c->x87.status = (uint16_t)((c->x87.status & ~SW_CC) | cc | (v->se & 0x8000 ? SW_C1 : 0));
}
ONE(FXAM, fxam)

/* ---- functions of ST(0) ---- */
#define UNARY(name, op) \
    EXEC_VOID(exec_host_##op) \
    { \
        X87_ENTER(); \
        x87_note(c, i); \
        if (unlikely(x87_empty(c, 0))) { \
            if (x87_stack_fault(c, false)) \
                x87_store(c, 0, &x87_indefinite); \
            return; \
        } \
        F80 r = *x87_st(c, 0); \
        uint16_t sw; \
        X87_RUN1(#op, r, c->x87.control, sw); \
        if (x87_take(c, sw)) \
            *x87_st(c, 0) = r; \
    } \
    ONE(name, exec_host_##op)
UNARY(FSQRT, fsqrt)
UNARY(FRNDINT, frndint)
UNARY(F2XM1, f2xm1)
UNARY(FABS, fabs)
UNARY(FCHS, fchs)

/* FSIN, FCOS: C2 says that the operand was out of range. */
#define TRIGONOMETRIC(name, op) \
    EXEC_VOID(exec_host_##op) \
    { \
        X87_ENTER(); \
        x87_note(c, i); \
        c->x87.status &= (uint16_t)~SW_C2; \
        if (unlikely(x87_empty(c, 0))) { \
            if (x87_stack_fault(c, false)) \
                x87_store(c, 0, &x87_indefinite); \
            return; \
        } \
        F80 r = *x87_st(c, 0); \
        uint16_t sw; \
        X87_RUN1(#op, r, c->x87.control, sw); \
        if (x87_take(c, sw)) \
            *x87_st(c, 0) = r; \
        c->x87.status |= sw & SW_C2; \
    } \
    ONE(name, exec_host_##op)
TRIGONOMETRIC(FSIN, fsin)
TRIGONOMETRIC(FCOS, fcos)

/* FPREM, FPREM1, FSCALE: ST(0) from ST(0) and ST(1); the condition codes tell the quotient. */
#define WITH_ST1(name, op, codes) \
    EXEC_VOID(exec_host_##op) \
    { \
        X87_ENTER(); \
        x87_note(c, i); \
        if (unlikely(x87_empty(c, 0) || x87_empty(c, 1))) { \
            c->x87.status &= (uint16_t)~((codes) & SW_C2); \
            if (x87_stack_fault(c, false)) \
                x87_store(c, 0, &x87_indefinite); \
            return; \
        } \
        F80 r = *x87_st(c, 0); \
        uint16_t sw; \
        __asm__ volatile("fninit"); /* no condition codes of an earlier instruction in what is read back */ \
        X87_RUN2(#op, r, *x87_st(c, 1), c->x87.control, sw); \
        bool done = x87_take(c, sw); \
        if (done) \
            *x87_st(c, 0) = r; \
        bool none = !done || sw & SW_IE || ((r.se & 0x7fff) == 0x7fff && r.mant << 1); /* no quotient: its bits stay */ \
        uint16_t changed = none ? (codes) & SW_C2 : (codes); \
        c->x87.status = (uint16_t)((c->x87.status & ~changed) | (sw & changed)); \
    } \
    ONE(name, exec_host_##op)
WITH_ST1(FPREM, fprem, SW_CC)
WITH_ST1(FPREM1, fprem1, SW_CC)
WITH_ST1(FSCALE, fscale, 0)

/* FYL2X, FYL2XP1, FPATAN: result in ST(1), then pop. */
#define INTO_ST1(name, op) \
    EXEC_VOID(exec_host_##op) \
    { \
        X87_ENTER(); \
        x87_note(c, i); \
        bool done = true; \
        if (unlikely(x87_empty(c, 0) || x87_empty(c, 1))) { \
            if ((done = x87_stack_fault(c, false))) \
                x87_store(c, 1, &x87_indefinite); \
        } else { \
            F80 x = *x87_st(c, 0), y = *x87_st(c, 1); \
            uint16_t sw, host = X87_HOST_CW; \
            /* the host may or may not have popped (an unmasked fault does not): FNINIT clears either way */ \
            __asm__ volatile("fnclex\n\tfldcw %[cw]\n\tfldt %[y]\n\tfldt %[x]\n\t" #op \
                             "\n\tfnstsw %[sw]\n\tfnclex\n\tfstpt %[x]\n\tfninit\n\tfldcw %[host]" \
                             : [x] "+m"(x), [sw] "=&a"(sw) \
                             : [cw] "m"(c->x87.control), [host] "m"(host), [y] "m"(y) \
                             : "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "memory"); \
            if ((done = x87_take(c, sw))) \
                *x87_st(c, 1) = x; \
        } \
        if (done) \
            x87_pop(c); \
    } \
    ONE(name, exec_host_##op)
INTO_ST1(FYL2X, fyl2x)
INTO_ST1(FYL2XP1, fyl2xp1)
INTO_ST1(FPATAN, fpatan)

/* FPTAN, FSINCOS, FXTRACT: ST(0) becomes the first result, the second is pushed. partial: C2 set means nothing happened. */
#define PUSHES(name, op, partial) \
    EXEC_VOID(exec_host_##op) \
    { \
        X87_ENTER(); \
        x87_note(c, i); \
        if (partial) \
            c->x87.status &= (uint16_t)~SW_C2; \
        bool full = c->x87.tag >> ((x87_top(c) - 1) & 7) & 1; \
        if (unlikely(x87_empty(c, 0) || full)) { \
            if (x87_stack_fault(c, !x87_empty(c, 0))) { \
                x87_store(c, 0, &x87_indefinite); \
                x87_set_top(c, x87_top(c) - 1); \
                x87_store(c, 0, &x87_indefinite); \
            } \
            return; \
        } \
        F80 first = *x87_st(c, 0), second = {0, 0}; \
        uint16_t sw, host = X87_HOST_CW; \
        /* where the host pushed nothing, the second store takes the operand and the first one an empty register */ \
        __asm__ volatile("fnclex\n\tfldcw %[cw]\n\tfldt %[a]\n\t" #op \
                         "\n\tfnstsw %[sw]\n\tfnclex\n\tfldcw %[host]\n\tfstpt %[b]\n\tfstpt %[a]\n\tfninit\n\tfldcw %[host]" \
                         : [a] "+m"(first), [b] "=m"(second), [sw] "=&a"(sw) \
                         : [cw] "m"(c->x87.control), [host] "m"(host) \
                         : "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "memory"); \
        bool done = x87_take(c, sw); \
        if (partial && (sw & SW_C2)) { \
            c->x87.status |= SW_C2; \
            return; \
        } \
        if (done) { \
            *x87_st(c, 0) = first; \
            x87_set_top(c, x87_top(c) - 1); \
            x87_store(c, 0, &second); \
        } \
    } \
    ONE(name, exec_host_##op)
PUSHES(FPTAN, fptan, true)
PUSHES(FSINCOS, fsincos, true)
PUSHES(FXTRACT, fxtract, false)
