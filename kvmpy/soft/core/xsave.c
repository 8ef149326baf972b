/* XSAVE family: x87, SSE and AVX state in standard and compacted form (SDM 1 chapter 13). */
#include <errno.h>

#include "fpenv.h"
#include "x87.h"

#define XSTATE_X87 1u
#define XSTATE_SSE 2u
#define XSTATE_AVX 4u
#define HEADER 512
#define AVX_AT 576 /* in both forms: the extended region begins with AVX, the only extended component */
#define AREA_BYTES (AVX_AT + 256)

static void put64(uint8_t *area, unsigned at, uint64_t v) { memcpy(area + at, &v, 8); }
static uint64_t get64(const uint8_t *area, unsigned at)
{
    uint64_t v;
    memcpy(&v, area + at, 8);
    return v;
}

/* Components that are not in their initial configuration. */
static uint64_t in_use(const Cpu *c)
{
    static const F80 zero;
    const X87 *x = &c->x87;
    uint64_t used = 0;
    if (x->control != 0x37f || x->status || x->tag || x->opcode || x->ip || x->dp || x->cs || x->ds)
        used |= XSTATE_X87;
    for (unsigned n = 0; n < 8; n++)
        if (x->st[n].mant != zero.mant || x->st[n].se != zero.se)
            used |= XSTATE_X87;
    for (unsigned n = 0; n < (in_64bit(c) ? 16 : 8); n++) {
        if (c->ymm[n].u64[0] | c->ymm[n].u64[1])
            used |= XSTATE_SSE;
        if (c->ymm[n].u64[2] | c->ymm[n].u64[3])
            used |= XSTATE_AVX;
    }
    return used;
}

static void avx_image(const Cpu *c, uint8_t *to)
{
    for (unsigned n = 0; n < (in_64bit(c) ? 16 : 8); n++)
        memcpy(to + 16 * n, c->ymm[n].u8 + 16, 16);
}

static void check(Cpu *c, const Insn *i)
{
    if (!(c->cr4 & CR4_OSXSAVE))
        raise_ud(c, i);
    if (c->cr0 & CR0_TS)
        raise_fault(c, i, EXC_NM);
}

static uint64_t operand(Cpu *c, const Insn *i, bool write)
{
    check(c, i);
    uint64_t linear = mem_linear(c, i, i->seg, mem_offset(c, i), AREA_BYTES, write);
    if (linear & 63)
        raise_gp0(c, i);
    return linear;
}

static uint64_t requested(const Cpu *c, uint64_t enabled) { return ((c->gpr[RDX] << 32) | (uint32_t)c->gpr[RAX]) & enabled; }

enum { PLAIN, COMPACT };

/* skip: components left out because they are in their initial state. */
static void save(Cpu *c, const Insn *i, uint64_t mask, uint64_t skip, int form)
{
    uint64_t linear = operand(c, i, true), used = in_use(c);
    uint8_t area[AREA_BYTES];
    memset(area, 0, sizeof area);
    fxsave_image(c, area, i->flags & INSN_REXW, true);
    avx_image(c, area + AVX_AT);
    uint64_t write = mask & ~skip, bv;
    if (form == COMPACT) {
        bv = mask & used;
        /* MXCSR goes with SSE; XSAVEC saves SSE also where only MXCSR is not at its initial value */
        if ((mask & XSTATE_SSE) && mxcsr_sync(c) != 0x1f80)
            bv |= XSTATE_SSE;
        write = bv;
    } else {
        uint8_t old[8];
        mem_read_bytes(c, i, i->seg, linear + HEADER, old, 8);
        bv = (get64(old, 0) & ~mask) | (mask & used);
    }
    mem_probe_write(c, i, i->seg, linear, mask & XSTATE_AVX ? AREA_BYTES : AVX_AT);
    if (write & XSTATE_X87) {
        mem_write_bytes(c, i, i->seg, linear, area, 24);
        mem_write_bytes(c, i, i->seg, linear + 32, area + 32, 128);
    }
    if ((write | (form == PLAIN ? mask : 0)) & (XSTATE_SSE | XSTATE_AVX) && (form == PLAIN || (write & XSTATE_SSE)))
        mem_write_bytes(c, i, i->seg, linear + 24, area + 24, 8);
    if (write & XSTATE_SSE)
        mem_write_bytes(c, i, i->seg, linear + 160, area + 160, in_64bit(c) ? 256 : 128);
    if (write & XSTATE_AVX)
        mem_write_bytes(c, i, i->seg, linear + AVX_AT, area + AVX_AT, in_64bit(c) ? 256 : 128);
    uint8_t header[16] = {0};
    put64(header, 0, bv);
    if (form == COMPACT)
        put64(header, 8, mask | 1ull << 63);
    mem_write_bytes(c, i, i->seg, linear + HEADER, header, form == COMPACT ? 16 : 8); /* the rest is not written */
}

static void restore_area(Cpu *c, const uint8_t *area, uint64_t mask, uint64_t bv, bool compact, bool rex_w)
{
    unsigned count = in_64bit(c) ? 16 : 8;
    if (mask & XSTATE_X87) {
        if (bv & XSTATE_X87)
            fxrstor_x87(c, area, rex_w);
        else {
            x87_init(c);
            memset(c->x87.st, 0, sizeof c->x87.st);
        }
    }
    if (compact ? mask & XSTATE_SSE : mask & (XSTATE_SSE | XSTATE_AVX)) {
        uint32_t mxcsr = 0x1f80;
        if (!compact || (bv & XSTATE_SSE))
            memcpy(&mxcsr, area + 24, 4);
        mxcsr_write(c, mxcsr);
    }
    for (unsigned n = 0; n < count; n++) {
        if (mask & XSTATE_SSE) {
            if (bv & XSTATE_SSE)
                memcpy(c->ymm[n].u8, area + 160 + 16 * n, 16);
            else
                memset(c->ymm[n].u8, 0, 16);
        }
        if (mask & XSTATE_AVX) {
            if (bv & XSTATE_AVX)
                memcpy(c->ymm[n].u8 + 16, area + AVX_AT + 16 * n, 16);
            else
                memset(c->ymm[n].u8 + 16, 0, 16);
        }
    }
}

static void restore(Cpu *c, const Insn *i, uint64_t mask, bool compact_only)
{
    uint64_t linear = operand(c, i, false);
    uint8_t area[AREA_BYTES];
    memset(area, 0, sizeof area);
    mem_read_bytes(c, i, i->seg, linear, area, AVX_AT);
    uint64_t bv = get64(area, HEADER), comp = get64(area, HEADER + 8);
    bool compact = comp >> 63;
    if (compact_only && !compact)
        raise_gp0(c, i);
    if (compact) {
        uint64_t has = comp & ~(1ull << 63);
        if ((has & ~c->xcr0) || (bv & ~has))
            raise_gp0(c, i);
    } else if (comp || (bv & ~c->xcr0))
        raise_gp0(c, i);
    for (unsigned at = HEADER + 16; at < AVX_AT; at += 8)
        if (get64(area, at) && (compact || at < HEADER + 24))
            raise_gp0(c, i);
    if ((mask & bv & XSTATE_AVX) && (!compact || (comp & XSTATE_AVX)))
        mem_read_bytes(c, i, i->seg, linear + AVX_AT, area + AVX_AT, in_64bit(c) ? 256 : 128);
    if ((mask & (XSTATE_SSE | XSTATE_AVX)) && (!compact || (bv & XSTATE_SSE))) {
        uint32_t mxcsr;
        memcpy(&mxcsr, area + 24, 4);
        if (mxcsr & ~MXCSR_VALID)
            raise_gp0(c, i);
    }
    restore_area(c, area, mask, bv, compact, i->flags & INSN_REXW);
}

EXEC_VOID(xsave)
{
    save(c, i, requested(c, c->xcr0), 0, PLAIN);
}
EXEC_VOID(xsaveopt)
{
    uint64_t mask = requested(c, c->xcr0);
    save(c, i, mask, ~in_use(c), PLAIN);
}
EXEC_VOID(xsavec)
{
    save(c, i, requested(c, c->xcr0), 0, COMPACT);
}
EXEC_VOID(xsaves)
{
    CHECK_CPL0();
    save(c, i, requested(c, c->xcr0 | c->xss), 0, COMPACT);
}
EXEC_VOID(xrstor)
{
    restore(c, i, requested(c, c->xcr0), false);
}
EXEC_VOID(xrstors)
{
    CHECK_CPL0();
    restore(c, i, requested(c, c->xcr0 | c->xss), true);
}
ONE(XSAVE, xsave)
ONE(XSAVEOPT, xsaveopt)
ONE(XSAVEC, xsavec)
ONE(XSAVES, xsaves)
ONE(XRSTOR, xrstor)
ONE(XRSTORS, xrstors)

/* The same state for user space: standard form, all components, as 64-bit mode has them. */
int kp_vcpu_get_xsave(Cpu *c, struct kvm_xsave *xsave)
{
    uint8_t *area = (uint8_t *)xsave->region;
    memset(area, 0, sizeof xsave->region);
    uint32_t mode = c->mode;
    c->mode = (mode & ~MODE_SIZE) | MODE_64; /* all sixteen registers */
    fxsave_image(c, area, true, true);
    avx_image(c, area + AVX_AT);
    put64(area, HEADER, in_use(c));
    c->mode = mode;
    return 0;
}

int kp_vcpu_set_xsave(Cpu *c, const struct kvm_xsave *xsave)
{
    const uint8_t *area = (const uint8_t *)xsave->region;
    uint64_t bv = get64(area, HEADER);
    uint32_t mxcsr, mode = c->mode;
    memcpy(&mxcsr, area + 24, 4);
    if ((bv & ~(uint64_t)(XSTATE_X87 | XSTATE_SSE | XSTATE_AVX)) || (mxcsr & ~MXCSR_VALID))
        return -EINVAL;
    c->mode = (mode & ~MODE_SIZE) | MODE_64;
    restore_area(c, area, XSTATE_X87 | XSTATE_SSE | XSTATE_AVX, bv, false, true);
    c->mode = mode;
    return 0;
}
