/* x87 control: words, tags, the environment and its images in memory. */
#include "x87.h"

void x87_init(Cpu *c)
{
    c->x87.control = 0x37f;
    c->x87.status = 0;
    c->x87.tag = 0;
    c->x87.opcode = 0;
    c->x87.ip = c->x87.dp = 0;
    c->x87.cs = c->x87.ds = 0;
}

/* Two bits a register: valid, zero, special, empty. */
uint16_t x87_full_tags(const Cpu *c)
{
    uint16_t tags = 0;
    for (unsigned n = 0; n < 8; n++) {
        const F80 *v = &c->x87.st[n];
        unsigned e = v->se & 0x7fff, t;
        if (!(c->x87.tag >> n & 1))
            t = 3;
        else if (e == 0 && v->mant == 0)
            t = 1;
        else if (e == 0 || e == 0x7fff || !(v->mant >> 63))
            t = 2;
        else
            t = 0;
        tags |= (uint16_t)(t << 2 * n);
    }
    return tags;
}

void x87_set_full_tags(Cpu *c, uint16_t tags)
{
    c->x87.tag = 0;
    for (unsigned n = 0; n < 8; n++)
        if ((tags >> 2 * n & 3) != 3)
            c->x87.tag |= (uint8_t)(1u << n);
}

EXEC_VOID(fninit)
{
    CHECK_X87();
    x87_init(c);
}
EXEC_VOID(fnclex)
{
    CHECK_X87();
    c->x87.status &= (uint16_t)~(SW_EXCEPTIONS | SW_SF | SW_ES | SW_B);
}
EXEC_VOID(fldcw)
{
    X87_ENTER();
    uint16_t v = load16(c, i);
    c->x87.control = (uint16_t)((v & 0x1f3f) | 0x40);
    x87_summary(c);
}
EXEC_VOID(fnstcw)
{
    CHECK_X87();
    store16(c, i, c->x87.control);
}
EXEC_VOID(fnstsw_m)
{
    CHECK_X87();
    store16(c, i, c->x87.status);
}
EXEC_VOID(fnstsw_ax)
{
    CHECK_X87();
    REG16(RAX) = c->x87.status;
}
EXEC_VOID(fwait)
{
    if ((c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        raise_fault(c, i, EXC_NM);
    if (c->x87.status & SW_ES)
        x87_pending(c, i);
}
EXEC_VOID(fnop)
{
    X87_ENTER();
}
EXEC_VOID(fnop_nowait)
{
    CHECK_X87();
}
EXEC_VOID(fincstp)
{
    X87_ENTER();
    c->x87.status &= (uint16_t)~SW_C1;
    x87_set_top(c, x87_top(c) + 1);
}
EXEC_VOID(fdecstp)
{
    X87_ENTER();
    c->x87.status &= (uint16_t)~SW_C1;
    x87_set_top(c, x87_top(c) - 1);
}
/* The condition codes are undefined; processors clear C1. */
EXEC_VOID(ffree)
{
    X87_ENTER();
    c->x87.status &= (uint16_t)~SW_C1;
    c->x87.tag &= (uint8_t)~(1u << x87_phys(c, i->rm & 7));
}
EXEC_VOID(ffreep)
{
    X87_ENTER();
    c->x87.status &= (uint16_t)~SW_C1;
    c->x87.tag &= (uint8_t)~(1u << x87_phys(c, i->rm & 7));
    x87_pop(c);
}
ONE(FNINIT, fninit)
ONE(FNCLEX, fnclex)
ONE(FLDCW, fldcw)
ONE(FNSTCW, fnstcw)
ONE(FNSTSW_m16, fnstsw_m)
ONE(FNSTSW_AX, fnstsw_ax)
ONE(FWAIT, fwait)
ONE(FNOP, fnop)
ONE(FNENI, fnop_nowait)
ONE(FNDISI, fnop_nowait)
ONE(FNSETPM, fnop_nowait)
ONE(FINCSTP, fincstp)
ONE(FDECSTP, fdecstp)
ONE(FFREE, ffree)
ONE(FFREEP, ffreep)

/* The environment in its four formats: 16 or 32 bits, real or protected mode (SDM 1 figures 8-9 to 8-12). */
static unsigned env_size(const Insn *i) { return i->osize == 2 ? 14 : 28; }
static bool real_format(const Cpu *c) { return !(c->mode & MODE_PROT); }

static void env_pack(const Cpu *c, const Insn *i, uint8_t *b)
{
    const X87 *x = &c->x87;
    uint16_t tags = x87_full_tags(c);
    bool real = real_format(c);
    uint32_t ip = (uint32_t)x->ip, dp = (uint32_t)x->dp;
    if (real) {
        ip += (uint32_t)x->cs << 4;
        dp += (uint32_t)x->ds << 4;
    }
    if (i->osize == 2) {
        uint16_t w[7] = {x->control, x->status, tags, (uint16_t)ip,
                         real ? (uint16_t)((ip >> 4 & 0xf000) | x->opcode) : x->cs, (uint16_t)dp,
                         real ? (uint16_t)(dp >> 4 & 0xf000) : x->ds};
        memcpy(b, w, 14);
    } else {
        uint32_t d[7] = {0xffff0000u | x->control, 0xffff0000u | x->status, 0xffff0000u | tags};
        if (real) {
            d[3] = 0xffff0000u | (ip & 0xffff);
            d[4] = (ip >> 4 & 0x0ffff000) | x->opcode;
            d[5] = 0xffff0000u | (dp & 0xffff);
            d[6] = dp >> 4 & 0x0ffff000;
        } else {
            d[3] = ip;
            d[4] = x->cs | (uint32_t)x->opcode << 16;
            d[5] = dp;
            d[6] = 0xffff0000u | x->ds;
        }
        memcpy(b, d, 28);
    }
}

static void env_unpack(Cpu *c, const Insn *i, const uint8_t *b)
{
    X87 *x = &c->x87;
    uint16_t w[7];
    uint32_t d[7];
    bool real = real_format(c);
    if (i->osize == 2) {
        memcpy(w, b, 14);
        x->ip = real ? w[3] | (uint32_t)(w[4] & 0xf000) << 4 : w[3];
        x->dp = real ? w[5] | (uint32_t)(w[6] & 0xf000) << 4 : w[5];
        x->opcode = real ? w[4] & 0x7ff : 0;
        x->cs = real ? 0 : w[4];
        x->ds = real ? 0 : w[6];
    } else {
        memcpy(d, b, 28);
        for (unsigned n = 0; n < 3; n++)
            w[n] = (uint16_t)d[n];
        x->ip = real ? (d[3] & 0xffff) | (d[4] & 0x0ffff000) << 4 : d[3];
        x->dp = real ? (d[5] & 0xffff) | (d[6] & 0x0ffff000) << 4 : d[5];
        x->opcode = (real ? d[4] : d[4] >> 16) & 0x7ff;
        x->cs = real ? 0 : (uint16_t)d[4];
        x->ds = real ? 0 : (uint16_t)d[6];
    }
    x->control = (uint16_t)((w[0] & 0x1f3f) | 0x40);
    x->status = w[1];
    x87_set_full_tags(c, w[2]);
    x87_summary(c);
}

static uint64_t operand(Cpu *c, const Insn *i, unsigned size, bool write)
{
    return mem_linear(c, i, i->seg, mem_offset(c, i), size, write);
}

EXEC_VOID(fnstenv)
{
    CHECK_X87();
    uint8_t b[28];
    env_pack(c, i, b);
    mem_write_bytes(c, i, i->seg, operand(c, i, env_size(i), true), b, env_size(i));
    c->x87.control |= SW_EXCEPTIONS;
    x87_summary(c);
}
EXEC_VOID(fldenv)
{
    X87_ENTER();
    uint8_t b[28];
    mem_read_bytes(c, i, i->seg, operand(c, i, env_size(i), false), b, env_size(i));
    env_unpack(c, i, b);
}
EXEC_VOID(fnsave)
{
    CHECK_X87();
    uint8_t b[108];
    unsigned env = env_size(i);
    env_pack(c, i, b);
    for (unsigned n = 0; n < 8; n++) {
        memcpy(b + env + 10 * n, &x87_st(c, n)->mant, 8);
        memcpy(b + env + 10 * n + 8, &x87_st(c, n)->se, 2);
    }
    mem_write_bytes(c, i, i->seg, operand(c, i, env + 80, true), b, env + 80);
    x87_init(c);
}
EXEC_VOID(frstor)
{
    X87_ENTER();
    uint8_t b[108];
    unsigned env = env_size(i);
    mem_read_bytes(c, i, i->seg, operand(c, i, env + 80, false), b, env + 80);
    env_unpack(c, i, b);
    for (unsigned n = 0; n < 8; n++) {
        memcpy(&x87_st(c, n)->mant, b + env + 10 * n, 8);
        memcpy(&x87_st(c, n)->se, b + env + 10 * n + 8, 2);
    }
}
ONE(FNSTENV, fnstenv)
ONE(FLDENV, fldenv)
ONE(FNSAVE, fnsave)
ONE(FRSTOR, frstor)
