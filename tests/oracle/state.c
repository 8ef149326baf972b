/* Random values of every kind of register and memory: special values, near misses, plain noise. */
#include "oracle.h"

static uint64_t seed = 1;
void rnd_seed(uint64_t s) { seed = s * 2 + 1; }
uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * 0x9e3779b97f4a7c15u >> 3 ^ seed;
}

static uint64_t integer(void)
{
    static const uint64_t special[] = {0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
                                       0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff};
    switch (pick(4)) {
    case 0: return special[pick(ARRAY_SIZE(special))];
    case 1: return rnd() & 0xff;
    default: return rnd();
    }
}

static uint32_t single(void)
{
    static const uint32_t special[] = {0, 1, 0x007fffff, 0x00800000, 0x3f800000, 0x3f000000, 0x40490fdb, 0x4b000000, 0x4b800000,
                                       0x4effffff, 0x4f000000, 0x5f000000, 0x7f7fffff, 0x7f800000, 0x7f800001, 0x7fc00000,
                                       0x7fc12345, 0x38800000, 0x387fc000, 0x33000000, 0x477fe000, 0x477ff000};
    uint32_t sign = (uint32_t)pick(2) << 31;
    switch (pick(5)) {
    case 0: return special[pick(ARRAY_SIZE(special))] | sign;
    case 1: return sign | (100 + pick(56)) << 23 | (rnd() & 0x7fffff);
    case 2: return sign | (120 + pick(16)) << 23 | (uint32_t)pick(16) << 19;
    case 3: return sign | pick(20) << 23 | (rnd() & 0x7fffff);
    default: return (uint32_t)rnd();
    }
}

static uint64_t twice_single(uint32_t v) /* as a double, without arithmetic */
{
    uint64_t e = v >> 23 & 0xff, sign = (uint64_t)(v >> 31) << 63, fraction = (uint64_t)(v & 0x7fffff) << 29;
    return sign | (e == 0xff ? 0x7ffull : e == 0 ? 0 : e + 896) << 52 | fraction;
}

static uint64_t real(void)
{
    static const uint64_t special[] = {0, 1, 0xfffffffffffff, 0x10000000000000, 0x3ff0000000000000, 0x3fe0000000000000,
                                       0x41dfffffffc00000, 0x41e0000000000000, 0x43e0000000000000, 0x7fefffffffffffff,
                                       0x7ff0000000000000, 0x7ff0000000000001, 0x7ff8000000000000, 0x7ff8000012345678,
                                       0x47efffffe0000000, 0x47efffffffffffff, 0x3810000000000000, 0x36a0000000000000};
    uint64_t sign = (uint64_t)pick(2) << 63;
    switch (pick(6)) {
    case 0: return special[pick(ARRAY_SIZE(special))] | sign;
    case 1: return twice_single(single());
    case 2: return sign | (uint64_t)(1000 + pick(80)) << 52 | (rnd() & 0xfffffffffffff);
    case 3: return sign | (uint64_t)(1020 + pick(12)) << 52 | (uint64_t)pick(16) << 48;
    case 4: return sign | (uint64_t)pick(60) << 52 | (rnd() & 0xfffffffffffff);
    default: return rnd();
    }
}

static void fill(uint64_t *to, unsigned words)
{
    unsigned kind = pick(5);
    for (unsigned k = 0; k < words; k++)
        to[k] = kind == 0 ? integer() : kind == 1 ? real() : kind == 2 ? single() | (uint64_t)single() << 32 :
                kind == 3 ? rnd() & 0x0303030303030303 : rnd();
}

void random_state(State *s, const Case *t)
{
    uint64_t base = data_base(t);
    memset(s, 0, sizeof *s);
    for (unsigned n = 0; n < 16; n++) {
        s->gpr[n] = integer();
        fill(s->ymm[n].u64, 4);
        if (n && !pick(4))
            s->ymm[n] = s->ymm[n - 1];
    }
    s->gpr[RSP] = DATA + 0x1000 + 8 * pick(64);
    if (!pick(20))
        s->gpr[RSP] = DATA + pick(40);
    if (pick(8)) {
        s->gpr[RBP] = DATA + 0x800 + 8 * pick(64);
        s->gpr[RSI] = DATA + pick(DATA_BYTES - 512) / 8 * 8;
        s->gpr[RDI] = DATA + pick(DATA_WRITABLE - 512) / 8 * 8;
    }
    if (t->bits != 64)
        for (unsigned n = 0; n < 16; n++)
            s->gpr[n] = n < 8 ? (uint32_t)(s->gpr[n] - (n >= RSP ? base : 0)) : 0;
    if (pick(2))
        s->gpr[RCX] &= 31;
    if (pick(2)) { /* lengths of PCMPESTRx */
        s->gpr[RAX] = (uint64_t)(int64_t)(int)(pick(40) - 20u);
        s->gpr[RDX] = (uint64_t)(int64_t)(int)(pick(40) - 20u);
    }
    s->rflags = 0x202 | (rnd() & FL_OSZAPC);
    s->mxcsr = MXCSR_RESET;
    if (!pick(3))
        s->mxcsr = MXCSR_MASKS | (uint32_t)(rnd() & (MXCSR_RC | MXCSR_DAZ | MXCSR_FTZ | MXCSR_FLAGS));
    if (!pick(6))
        s->mxcsr = (uint32_t)(rnd() & MXCSR_VALID);
    for (unsigned n = 0; n < 8; n++) {
        fill(&s->mant[n], 1);
        s->mant[n] |= 1ull << 63;
        s->se[n] = (uint16_t)(0x3fff - 20 + pick(40) + 0x8000 * pick(2));
        if (!pick(4)) { /* zeros, infinities, NaNs, denormals, pseudo-denormals; the invalid encodings */
            static const uint64_t mantissa[] = {0, 1ull << 63, 3ull << 62, 1, 0xa000000000000001, 0x4000000000000000, ~0ull};
            static const uint16_t exponent[] = {0, 1, 0x3ffe, 0x3fff, 0x403e, 0x7ffe, 0x7fff};
            s->mant[n] = mantissa[pick(ARRAY_SIZE(mantissa))];
            s->se[n] = (uint16_t)(exponent[pick(ARRAY_SIZE(exponent))] | pick(2) << 15);
        }
    }
    s->control = 0x37f;
    if (!pick(4))
        s->control = (uint16_t)((rnd() & 0x0f3f) | 0x40);
    s->status = (uint16_t)(pick(8) << 11 | (rnd() & 0x4700));
    if (!pick(6))
        s->status |= (uint16_t)(rnd() & 0x7f);
    if (s->status & ~s->control & 0x3f) /* pending: ES and B follow from it */
        s->status |= 0x8080;
    s->counter = 1 + pick(4);
    s->tag = (uint8_t)rnd();
    fill((uint64_t *)s->data, DATA_BYTES / 8);
    for (unsigned k = 0; k < DATA_BYTES / 8; k += 8)
        fill((uint64_t *)s->data + k, 8);
}
