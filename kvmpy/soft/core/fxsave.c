/* FXSAVE and FXRSTOR: the 512-byte image of x87, MXCSR and XMM registers (SDM 1 10.5). */
#include "fpenv.h"
#include "x87.h"

static void put(uint8_t *image, unsigned at, uint64_t v, unsigned size) { memcpy(image + at, &v, size); }
static uint64_t get(const uint8_t *image, unsigned at, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, image + at, size);
    return v;
}

/* rex_w: 64-bit pointers without selectors. The XMM part is as large as the mode has registers. */
void fxsave_image(Cpu *c, uint8_t image[FXSAVE_BYTES], bool rex_w, bool with_sse)
{
    memset(image, 0, FXSAVE_BYTES);
    const X87 *x = &c->x87;
    put(image, 0, x->control, 2);
    put(image, 2, x->status, 2);
    put(image, 4, x->tag, 1);
    put(image, 6, x->opcode, 2);
    if (rex_w) {
        put(image, 8, x->ip, 8);
        put(image, 16, x->dp, 8);
    } else {
        put(image, 8, x->ip, 4);
        put(image, 12, x->cs, 2);
        put(image, 16, x->dp, 4);
        put(image, 20, x->ds, 2);
    }
    for (unsigned n = 0; n < 8; n++) {
        put(image, 32 + 16 * n, x87_st(c, n)->mant, 8);
        put(image, 40 + 16 * n, x87_st(c, n)->se, 2);
    }
    put(image, 24, mxcsr_sync(c), 4);
    put(image, 28, MXCSR_VALID, 4);
    if (with_sse)
        for (unsigned n = 0; n < (in_64bit(c) ? 16 : 8); n++)
            memcpy(image + 160 + 16 * n, c->ymm[n].u8, 16);
}

void fxrstor_x87(Cpu *c, const uint8_t *image, bool rex_w)
{
    X87 *x = &c->x87;
    x->control = (uint16_t)((get(image, 0, 2) & 0x1f3f) | 0x40);
    x->status = (uint16_t)get(image, 2, 2);
    x->tag = image[4];
    x->opcode = (uint16_t)(get(image, 6, 2) & 0x7ff);
    x->ip = get(image, 8, rex_w ? 8 : 4);
    x->dp = get(image, 16, rex_w ? 8 : 4);
    x->cs = rex_w ? 0 : (uint16_t)get(image, 12, 2);
    x->ds = rex_w ? 0 : (uint16_t)get(image, 20, 2);
    for (unsigned n = 0; n < 8; n++) {
        x87_st(c, n)->mant = get(image, 32 + 16 * n, 8);
        x87_st(c, n)->se = (uint16_t)get(image, 40 + 16 * n, 2);
    }
    x87_summary(c);
}

void fxrstor_image(Cpu *c, const uint8_t image[FXSAVE_BYTES], bool rex_w, bool with_sse)
{
    fxrstor_x87(c, image, rex_w);
    if (!with_sse)
        return;
    mxcsr_write(c, (uint32_t)get(image, 24, 4));
    for (unsigned n = 0; n < (in_64bit(c) ? 16 : 8); n++)
        memcpy(c->ymm[n].u8, image + 160 + 16 * n, 16);
}

/* #UD with CR0.EM, #NM with CR0.TS; the operand is aligned to 16 bytes. CR4.OSFXSR decides about MXCSR and XMM. */
static uint64_t fx_operand(Cpu *c, const Insn *i, bool write)
{
    if (c->cr0 & (CR0_EM | CR0_TS))
        raise_fault(c, i, EXC_NM);
    uint64_t linear = mem_linear(c, i, i->seg, mem_offset(c, i), FXSAVE_BYTES, write);
    if (linear & 15)
        raise_gp0(c, i);
    return linear;
}

EXEC_VOID(fxsave)
{
    uint64_t linear = fx_operand(c, i, true);
    uint8_t image[FXSAVE_BYTES];
    fxsave_image(c, image, i->flags & INSN_REXW, c->cr4 & CR4_OSFXSR);
    /* the last 48 bytes are software's: never written (SDM 1 10.5.1) */
    mem_write_bytes(c, i, i->seg, linear, image, c->cr4 & CR4_OSFXSR ? (in_64bit(c) ? 416 : 288) : 160);
}

EXEC_VOID(fxrstor)
{
    uint64_t linear = fx_operand(c, i, false);
    uint8_t image[FXSAVE_BYTES];
    mem_read_bytes(c, i, i->seg, linear, image, FXSAVE_BYTES);
    bool sse = c->cr4 & CR4_OSFXSR;
    if (sse && (get(image, 24, 4) & ~(uint64_t)MXCSR_VALID))
        raise_gp0(c, i);
    fxrstor_image(c, image, i->flags & INSN_REXW, sse);
}
ONE(FXSAVE, fxsave)
ONE(FXRSTOR, fxrstor)
