/* x87 loads, stores, exchanges, conversions and constants. */
#include "x87.h"

/* ---- loads ---- */
#define LOAD_HOST(code, reg_, sw_, ...) \
    do { \
        uint16_t host_ = X87_HOST_CW; \
        if (likely(c->x87.control == X87_HOST_CW)) \
            __asm__ volatile("fnclex\n\t" code "\n\tfnstsw %[sw]\n\tfstpt %[v]" \
                             : [v] "=m"(reg_), [sw] "=&a"(sw_) \
                             : [cw] "m"(c->x87.control), ##__VA_ARGS__ \
                             : X87_CLOBBERS); \
        else \
            __asm__ volatile("fnclex\n\tfldcw %[cw]\n\t" code "\n\tfnstsw %[sw]\n\tfnclex\n\tfldcw %[host]\n\tfstpt %[v]\n\tfninit\n\tfldcw %[host]" \
                             : [v] "=m"(reg_), [sw] "=&a"(sw_) \
                             : [cw] "m"(c->x87.control), [host] "m"(host_), ##__VA_ARGS__ \
                             : X87_CLOBBERS); \
    } while (0)

/* The stack is looked at before the conversion: an overflow hides the operand's own exceptions. */
#define LOAD(name, fn, bits, code) \
    EXEC_VOID(fn) \
    { \
        X87_ENTER(); \
        uint##bits##_t operand = load##bits(c, i); \
        x87_note(c, i); \
        F80 v = {0, 0}; \
        uint16_t sw = 0; \
        if (likely(!(c->x87.tag >> ((x87_top(c) - 1) & 7) & 1))) { \
            LOAD_HOST(code " %[b]", v, sw, [b] "m"(operand)); \
            x87_take(c, sw); \
            if (sw & ~c->x87.control & SW_IE) /* an unmasked denormal is loaded all the same */ \
                return; \
        } \
        x87_push(c, &v); \
    } \
    ONE(name, fn)
LOAD(FLD_m32, fld_m32, 32, "flds")
LOAD(FLD_m64, fld_m64, 64, "fldl")
LOAD(FILD_i16, fild_i16, 16, "filds")
LOAD(FILD_i32, fild_i32, 32, "fildl")
LOAD(FILD_i64, fild_i64, 64, "fildll")

static void push_plain(Cpu *c, const Insn *i, const F80 *v)
{
    x87_note(c, i);
    c->x87.status &= (uint16_t)~SW_C1;
    x87_push(c, v);
}

EXEC_VOID(fld_m80)
{
    X87_ENTER();
    F80 v;
    load_f80(c, i, &v);
    push_plain(c, i, &v);
}
EXEC_VOID(fld_sti)
{
    X87_ENTER();
    if (unlikely(x87_empty(c, i->rm & 7))) {
        x87_note(c, i);
        if (x87_stack_fault(c, false)) {
            uint16_t status = c->x87.status;
            x87_set_top(c, x87_top(c) - 1);
            x87_store(c, 0, &x87_indefinite);
            c->x87.status = (uint16_t)((status & ~0x3800u) | (c->x87.status & 0x3800u));
        }
        return;
    }
    F80 v = *x87_st(c, i->rm & 7);
    push_plain(c, i, &v);
}
EXEC_VOID(fbld)
{
    X87_ENTER();
    F80 packed, v = {0, 0};
    uint16_t sw;
    load_f80(c, i, &packed);
    LOAD_HOST("fbld %[b]", v, sw, [b] "m"(packed));
    (void)sw;
    push_plain(c, i, &v);
}
ONE(FLD_m80, fld_m80)
ONE(FLD_STi, fld_sti)
ONE(FBLD, fbld)

#define CONSTANT(name, op) \
    EXEC_VOID(exec_host_##op) \
    { \
        X87_ENTER(); \
        F80 v; \
        uint16_t sw; \
        LOAD_HOST(#op, v, sw); \
        (void)sw; \
        push_plain(c, i, &v); \
    } \
    ONE(name, exec_host_##op)
CONSTANT(FLD1, fld1)
CONSTANT(FLDL2T, fldl2t)
CONSTANT(FLDL2E, fldl2e)
CONSTANT(FLDPI, fldpi)
CONSTANT(FLDLG2, fldlg2)
CONSTANT(FLDLN2, fldln2)
CONSTANT(FLDZ, fldz)

/* ---- stores ---- */
/* `drop`: takes the number off the host's stack where `code` does not. */
#define STORE_HOST(code, drop, out_, reg_, sw_) \
    do { \
        uint16_t host_ = X87_HOST_CW; \
        if (likely(c->x87.control == X87_HOST_CW)) \
            __asm__ volatile("fnclex\n\tfldt %[v]\n\t" code " %[o]\n\tfnstsw %[sw]\n\t" drop \
                             : [o] "=m"(out_), [sw] "=&a"(sw_) \
                             : [v] "m"(reg_) \
                             : X87_CLOBBERS); \
        else \
            __asm__ volatile("fnclex\n\tfldcw %[cw]\n\tfldt %[v]\n\t" code " %[o]\n\tfnstsw %[sw]\n\tfnclex\n\tfninit\n\tfldcw %[host]" \
                             : [o] "=m"(out_), [sw] "=&a"(sw_) \
                             : [cw] "m"(c->x87.control), [host] "m"(host_), [v] "m"(reg_) \
                             : X87_CLOBBERS); \
    } while (0)
#define DROP_true ""
#define DROP_false "fstp %%st(0)"

/* An unmasked overflow or underflow keeps a store to memory from happening, unlike one to a register. */
static bool take_store(Cpu *c, uint16_t sw)
{
    bool done = x87_take(c, sw);
    return done && !(sw & ~c->x87.control & (SW_OE | SW_UE));
}

/* `masked`: what memory gets of an empty register. The write may fault: status changes only behind it. */
#define STORE(name, fn, bits, code, masked, pop) \
    EXEC_VOID(fn) \
    { \
        X87_ENTER(); \
        uint##bits##_t out = masked; \
        uint16_t sw = 0; \
        bool empty = x87_empty(c, 0), store; \
        X87 before = c->x87; \
        uint64_t linear = mem_linear(c, i, i->seg, mem_offset(c, i), bits / 8, true); \
        mem_probe_write(c, i, i->seg, linear, bits / 8); \
        if (unlikely(empty)) \
            store = x87_stack_fault(c, false); \
        else { \
            STORE_HOST(code, DROP_##pop, out, *x87_st(c, 0), sw); \
            store = take_store(c, sw); \
        } \
        if (store) { \
            X87 after = c->x87; \
            c->x87 = before; \
            write##bits##_linear(c, i, i->seg, linear, out); \
            c->x87 = after; \
            if (pop) \
                x87_pop(c); \
        } \
        x87_note(c, i); \
    } \
    ONE(name, fn)
STORE(FST_m32, fst_m32, 32, "fsts", 0xffc00000u, false)
STORE(FSTP_m32, fstp_m32, 32, "fstps", 0xffc00000u, true)
STORE(FST_m64, fst_m64, 64, "fstl", 0xfff8000000000000ull, false)
STORE(FSTP_m64, fstp_m64, 64, "fstpl", 0xfff8000000000000ull, true)
STORE(FIST_i16, fist_i16, 16, "fists", 0x8000u, false)
STORE(FISTP_i16, fistp_i16, 16, "fistps", 0x8000u, true)
STORE(FIST_i32, fist_i32, 32, "fistl", 0x80000000u, false)
STORE(FISTP_i32, fistp_i32, 32, "fistpl", 0x80000000u, true)
STORE(FISTP_i64, fistp_i64, 64, "fistpll", 0x8000000000000000ull, true)
STORE(FISTTP_i16, fisttp_i16, 16, "fisttps", 0x8000u, true)
STORE(FISTTP_i32, fisttp_i32, 32, "fisttpl", 0x80000000u, true)
STORE(FISTTP_i64, fisttp_i64, 64, "fisttpll", 0x8000000000000000ull, true)

static void store_f80(Cpu *c, const Insn *i, const F80 *v)
{
    uint8_t b[10];
    memcpy(b, &v->mant, 8);
    memcpy(b + 8, &v->se, 2);
    write_vec_linear(c, i, i->seg, mem_linear(c, i, i->seg, mem_offset(c, i), 10, true), b, 10);
}

EXEC_VOID(fstp_m80)
{
    X87_ENTER();
    if (unlikely(x87_empty(c, 0))) {
        mem_probe_write(c, i, i->seg, mem_linear(c, i, i->seg, mem_offset(c, i), 10, true), 10);
        if (c->x87.control & SW_IE)
            store_f80(c, i, &x87_indefinite);
        x87_note(c, i);
        if (x87_stack_fault(c, false))
            x87_pop(c);
        return;
    }
    store_f80(c, i, x87_st(c, 0));
    x87_note(c, i);
    c->x87.status &= (uint16_t)~SW_C1;
    x87_pop(c);
}
EXEC_VOID(fbstp)
{
    X87_ENTER();
    F80 out = {0xc000000000000000ull, 0xffff}; /* packed BCD indefinite */
    uint16_t sw = SW_IE | SW_SF;
    bool empty = x87_empty(c, 0);
    mem_probe_write(c, i, i->seg, mem_linear(c, i, i->seg, mem_offset(c, i), 10, true), 10);
    if (!empty)
        STORE_HOST("fbstp", DROP_true, out, *x87_st(c, 0), sw);
    if (!(sw & ~c->x87.control & (SW_IE | SW_OE | SW_UE)))
        store_f80(c, i, &out);
    x87_note(c, i);
    if (empty ? x87_stack_fault(c, false) : take_store(c, sw))
        x87_pop(c);
}
ONE(FSTP_m80, fstp_m80)
ONE(FBSTP, fbstp)

static void store_reg(Cpu *c, const Insn *i, bool pop)
{
    X87_ENTER();
    x87_note(c, i);
    unsigned n = i->rm & 7;
    if (unlikely(x87_empty(c, 0))) {
        if (!x87_stack_fault(c, false))
            return;
        x87_store(c, n, &x87_indefinite);
    } else {
        F80 v = *x87_st(c, 0);
        c->x87.status &= (uint16_t)~SW_C1;
        x87_store(c, n, &v);
    }
    if (pop)
        x87_pop(c);
}
EXEC_VOID(fst_sti) { store_reg(c, i, false); }
EXEC_VOID(fstp_sti) { store_reg(c, i, true); }
ONE(FST_STi, fst_sti)
ONE(FSTP_STi, fstp_sti)
ONE(FSTP8_STi, fstp_sti)
ONE(FSTP9_STi, fstp_sti)

/* D9 D8+i: FSTP without stack underflow (processors' own, in no manual). */
EXEC_VOID(fstp_unchecked)
{
    X87_ENTER();
    x87_note(c, i);
    c->x87.status &= (uint16_t)~SW_C1;
    if (!x87_empty(c, 0)) {
        F80 v = *x87_st(c, 0);
        x87_store(c, i->rm & 7, &v);
    }
    x87_pop(c);
}
ONE(FSTP1_STi, fstp_unchecked)

EXEC_VOID(fxch)
{
    X87_ENTER();
    x87_note(c, i);
    unsigned n = i->rm & 7;
    c->x87.status &= (uint16_t)~SW_C1;
    if (unlikely(x87_empty(c, 0) || x87_empty(c, n))) {
        if (!x87_stack_fault(c, false))
            return;
        if (x87_empty(c, 0))
            x87_store(c, 0, &x87_indefinite);
        if (x87_empty(c, n))
            x87_store(c, n, &x87_indefinite);
    }
    F80 t = *x87_st(c, 0);
    *x87_st(c, 0) = *x87_st(c, n);
    *x87_st(c, n) = t;
}
ONE(FXCH, fxch)
ONE(FXCH4, fxch)
ONE(FXCH7, fxch)

/* FCMOVcc: ST(0) = ST(i) where the condition holds. */
static void cmov(Cpu *c, const Insn *i, bool condition)
{
    X87_ENTER();
    x87_note(c, i);
    unsigned n = i->rm & 7;
    if (unlikely(x87_empty(c, 0) || x87_empty(c, n))) {
        if (x87_stack_fault(c, false)) /* whatever the condition */
            x87_store(c, 0, &x87_indefinite);
        return;
    }
    if (condition) {
        F80 v = *x87_st(c, n);
        x87_store(c, 0, &v);
    }
}
EXEC_VOID(fcmovb) { cmov(c, i, cc_cf(c)); }
EXEC_VOID(fcmove) { cmov(c, i, cc_zf(c)); }
EXEC_VOID(fcmovbe) { cmov(c, i, cc_cf(c) | cc_zf(c)); }
EXEC_VOID(fcmovu) { cmov(c, i, cc_pf(c)); }
EXEC_VOID(fcmovnb) { cmov(c, i, !cc_cf(c)); }
EXEC_VOID(fcmovne) { cmov(c, i, !cc_zf(c)); }
EXEC_VOID(fcmovnbe) { cmov(c, i, !(cc_cf(c) | cc_zf(c))); }
EXEC_VOID(fcmovnu) { cmov(c, i, !cc_pf(c)); }
ONE(FCMOVB, fcmovb)
ONE(FCMOVE, fcmove)
ONE(FCMOVBE, fcmovbe)
ONE(FCMOVU, fcmovu)
ONE(FCMOVNB, fcmovnb)
ONE(FCMOVNE, fcmovne)
ONE(FCMOVNBE, fcmovnbe)
ONE(FCMOVNU, fcmovnu)
