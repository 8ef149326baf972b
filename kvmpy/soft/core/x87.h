/* What the x87 files share. Arithmetic runs on the host's own x87 under the guest's control word: exceptions of an x87
   instruction wait for the next one, so that even unmasked ones never reach the host, and results, rounding, precision and
   status are the hardware's. */
#ifndef KP_X87_H
#define KP_X87_H

#include "exec.h"

#define SW_IE 0x1u
#define SW_DE 0x2u
#define SW_ZE 0x4u
#define SW_OE 0x8u
#define SW_UE 0x10u
#define SW_PE 0x20u
#define SW_SF 0x40u
#define SW_ES 0x80u
#define SW_C0 0x100u
#define SW_C1 0x200u
#define SW_C2 0x400u
#define SW_C3 0x4000u
#define SW_B 0x8000u
#define SW_CC (SW_C0 | SW_C1 | SW_C2 | SW_C3)
#define SW_EXCEPTIONS 0x3fu

static inline unsigned x87_top(const Cpu *c) { return c->x87.status >> 11 & 7; }
static inline unsigned x87_phys(const Cpu *c, unsigned n) { return (x87_top(c) + n) & 7; }
static inline F80 *x87_st(Cpu *c, unsigned n) { return &c->x87.st[x87_phys(c, n)]; }
static inline bool x87_empty(const Cpu *c, unsigned n) { return !(c->x87.tag >> x87_phys(c, n) & 1); }
static inline void x87_set_top(Cpu *c, unsigned top) { c->x87.status = (uint16_t)((c->x87.status & ~0x3800u) | (top & 7) << 11); }

static const F80 x87_indefinite = {0xc000000000000000ull, 0xffff};

/* ES and B follow from unmasked flags. */
static inline void x87_summary(Cpu *c)
{
    if (c->x87.status & ~c->x87.control & SW_EXCEPTIONS)
        c->x87.status |= SW_ES | SW_B;
    else
        c->x87.status &= (uint16_t)~(SW_ES | SW_B);
}

/* Before a waiting instruction: #NM, then a pending #MF. */
void x87_pending(Cpu *c, const Insn *i);
#define X87_ENTER() \
    do { \
        CHECK_X87(); \
        if (unlikely(c->x87.status & SW_ES)) \
            x87_pending(c, i); \
    } while (0)

/* Notes the instruction in FIP, FCS and FOP; `data` also its operand in FDP and FDS. */
static inline void x87_note(Cpu *c, const Insn *i)
{
    c->x87.ip = i->next_rip - i->len;
    c->x87.cs = c->seg[SEG_CS].selector;
    c->x87.opcode = (uint16_t)((insn_table[i->id].key & 7) << 8 | i->modrm);
    if (i->flags & INSN_MEM) {
        c->x87.dp = mem_offset(c, i);
        c->x87.ds = c->seg[i->seg].selector;
    }
}

/* Takes the host's status after an operation. True: the result may be stored and the stack popped; false: an unmasked
   invalid, denormal or zero-divide exception leaves the operands. */
static inline bool x87_take(Cpu *c, uint16_t sw)
{
    c->x87.status = (uint16_t)((c->x87.status & ~SW_C1) | (sw & (SW_EXCEPTIONS | SW_SF | SW_C1)));
    if (likely(!(sw & SW_EXCEPTIONS)))
        return true;
    x87_summary(c);
    return !(sw & ~c->x87.control & (SW_IE | SW_DE | SW_ZE));
}

/* Stack overflow (c1) or underflow. True where it is masked: the caller stores the indefinite. */
static inline bool x87_stack_fault(Cpu *c, bool overflow)
{
    c->x87.status = (uint16_t)((c->x87.status & ~SW_C1) | SW_IE | SW_SF | (overflow ? SW_C1 : 0));
    x87_summary(c);
    return c->x87.control & SW_IE;
}

static inline void x87_store(Cpu *c, unsigned n, const F80 *v)
{
    *x87_st(c, n) = *v;
    c->x87.tag |= (uint8_t)(1u << x87_phys(c, n));
}
static inline void x87_pop(Cpu *c)
{
    c->x87.tag &= (uint8_t)~(1u << x87_top(c));
    x87_set_top(c, x87_top(c) + 1);
}
/* Pushes; on overflow the indefinite where masked, else nothing. */
static inline void x87_push(Cpu *c, const F80 *v)
{
    if (unlikely(c->x87.tag >> ((x87_top(c) - 1) & 7) & 1)) {
        if (!x87_stack_fault(c, true))
            return;
        v = &x87_indefinite;
    }
    x87_set_top(c, x87_top(c) - 1);
    x87_store(c, 0, v);
}

/* Under the control word that programs mostly have, the host's own, nothing traps: what was loaded is there to be stored, and
   neither the control word nor the stack has to be put in order. */
#define X87_HOST_CW 0x37f
#define X87_CLOBBERS "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "memory"
/* Runs `code` on the host with the guest's control word; ST0 is *r before, and what is there afterwards goes to *r. */
#define X87_RUN1(code, reg_, cw_, sw_, ...) \
    do { \
        uint16_t host_ = X87_HOST_CW; \
        if (likely((cw_) == X87_HOST_CW)) \
            __asm__ volatile("fnclex\n\tfldt %[r]\n\t" code "\n\tfnstsw %[sw]\n\tfstpt %[r]" \
                             : [r] "+m"(reg_), [sw] "=&a"(sw_) \
                             : [cw] "m"(cw_), ##__VA_ARGS__ \
                             : X87_CLOBBERS); \
        else \
            __asm__ volatile("fnclex\n\tfldcw %[cw]\n\tfldt %[r]\n\t" code "\n\tfnstsw %[sw]\n\tfnclex\n\tfstpt %[r]\n\tfldcw %[host]" \
                             : [r] "+m"(reg_), [sw] "=&a"(sw_) \
                             : [cw] "m"(cw_), [host] "m"(host_), ##__VA_ARGS__ \
                             : X87_CLOBBERS); \
    } while (0)
/* The same with ST1 = second_, which is thrown away afterwards. */
#define X87_RUN2(code, reg_, second_, cw_, sw_) \
    do { \
        uint16_t host_ = X87_HOST_CW; \
        if (likely((cw_) == X87_HOST_CW)) \
            __asm__ volatile("fnclex\n\tfldt %[b]\n\tfldt %[r]\n\t" code "\n\tfnstsw %[sw]\n\tfstpt %[r]\n\tfstp %%st(0)" \
                             : [r] "+m"(reg_), [sw] "=&a"(sw_) \
                             : [b] "m"(second_) \
                             : X87_CLOBBERS); \
        else \
            __asm__ volatile("fnclex\n\tfldcw %[cw]\n\tfldt %[b]\n\tfldt %[r]\n\t" code \
                             "\n\tfnstsw %[sw]\n\tfnclex\n\tfstpt %[r]\n\tfstp %%st(0)\n\tfldcw %[host]" \
                             : [r] "+m"(reg_), [sw] "=&a"(sw_) \
                             : [cw] "m"(cw_), [host] "m"(host_), [b] "m"(second_) \
                             : X87_CLOBBERS); \
    } while (0)

static inline void load_f80(Cpu *c, const Insn *i, F80 *v)
{
    uint8_t b[10];
    read_vec_linear(c, i, i->seg, mem_linear(c, i, i->seg, mem_offset(c, i), 10, false), b, 10);
    memcpy(&v->mant, b, 8);
    memcpy(&v->se, b + 8, 2);
}

/* x87_env.c: images in memory */
void x87_init(Cpu *c);
uint16_t x87_full_tags(const Cpu *c);
void x87_set_full_tags(Cpu *c, uint16_t tags);
/* fxsave.c */
#define FXSAVE_BYTES 512
void fxsave_image(Cpu *c, uint8_t image[FXSAVE_BYTES], bool rex_w, bool with_sse);
void fxrstor_x87(Cpu *c, const uint8_t *image, bool rex_w); /* its x87 part alone: 160 bytes */
void fxrstor_image(Cpu *c, const uint8_t image[FXSAVE_BYTES], bool rex_w, bool with_sse);

#endif
