/* Random encodings and states. */
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

static void random_state(State *s)
{
    memset(s, 0, sizeof *s);
    for (unsigned n = 0; n < 16; n++) {
        s->gpr[n] = integer();
        fill(s->ymm[n].u64, 4);
        if (n && !pick(4))
            s->ymm[n] = s->ymm[n - 1];
    }
    s->gpr[RSP] = DATA + DATA_BYTES / 2 + 8 * pick(64);
    s->gpr[RSI] = DATA + pick(DATA_BYTES - 512) / 8 * 8;
    s->gpr[RDI] = DATA + pick(DATA_BYTES - 512) / 8 * 8;
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
    }
    s->control = 0x37f;
    s->status = (uint16_t)(pick(8) << 11);
    s->tag = (uint8_t)rnd();
    fill((uint64_t *)s->data, DATA_BYTES / 8);
    for (unsigned k = 0; k < DATA_BYTES / 8; k += 8)
        fill((uint64_t *)s->data + k, 8);
}

/* ModRM, SIB and displacement of a memory operand inside the data; sometimes misaligned, seldom beyond its end. */
static unsigned memory_operand(uint8_t *out, unsigned reg, bool extended, uint8_t *rxb, State *s, bool vsib)
{
    unsigned base, index = RSP, scale = 0, length = 0;
    do
        base = pick(extended ? 16 : 8);
    while (base == RSP);
    uint64_t target = DATA + 256 + pick(DATA_BYTES - 512) / 32 * 32;
    if (!pick(4))
        target += pick(32);
    if (!pick(50))
        target = DATA + DATA_BYTES - pick(40);
    bool sib = vsib || (base & 7) == RSP || !pick(3);
    if (vsib) {
        index = pick(extended ? 16 : 8);
        scale = pick(4);
        bool wide = pick(2);
        for (unsigned k = 0; k < 4; k++)
            s->ymm[index].u64[k] = wide ? (uint64_t)(int64_t)(int)(pick(32) - 16u) :
                                   (uint32_t)(pick(32) - 16u) | (uint64_t)(uint32_t)(pick(32) - 16u) << 32;
        target = DATA + DATA_BYTES / 2;
        if (!pick(20))
            s->ymm[index].u32[pick(8)] = 0x10000;
    } else if (sib && pick(2)) {
        do
            index = pick(extended ? 16 : 8);
        while (index == RSP || index == base);
        scale = pick(4);
        s->gpr[index] = pick(16) * 16;
    }
    unsigned mod = pick(2) ? 1 : 2;
    int32_t disp = mod == 1 ? (int8_t)(rnd() & 0xf0) : (int32_t)(rnd() & 0xffff0) - 0x80000;
    s->gpr[base] = target - (uint64_t)(int64_t)disp;
    if (!vsib && index != RSP)
        s->gpr[base] -= s->gpr[index] << scale;
    out[length++] = (uint8_t)(mod << 6 | (reg & 7) << 3 | (sib ? 4 : base & 7));
    if (sib)
        out[length++] = (uint8_t)(scale << 6 | (index & 7) << 3 | (base & 7));
    memcpy(out + length, &disp, 4);
    *rxb |= (uint8_t)(base >> 3 | index >> 3 << 1);
    return length + (mod == 1 ? 1 : 4);
}

unsigned generate(const Cpu *c, unsigned id, uint8_t bytes[16], State *s)
{
    static const uint8_t mandatory[5] = {0, 0, 0x66, 0xf3, 0xf2};
    const InsnInfo *info = &insn_table[id];
    uint64_t k = info->key;
    for (unsigned attempt = 0; attempt < 64; attempt++) {
        uint8_t tail[16], rxb = 0;
        unsigned length = 0, at = 0, pfx = K_PFX(k);
        random_state(s);
        unsigned reg = k & K_REG(0) ? k >> 16 & 7 : pick(16), vvvv = strchr(info->operands, 'H') ? pick(16) : 0;
        bool w = k & K_W1 || (!(k & K_W0) && pick(2)), l = k & K_L1 || (!(k & K_L0) && pick(2));
        bool memory = k & K_MEM || (!(k & (K_MOD3 | K_RM(0))) && pick(2));
        rxb |= (uint8_t)(reg >> 3 << 2);
        if (memory) {
            length = memory_operand(tail, reg, true, &rxb, s, info->attributes & A_VSIB);
        } else {
            unsigned rm = k & K_RM(0) ? k >> 20 & 7 : pick(16);
            if (k & K_REG(0) && !pick(2))
                rm &= 7;
            tail[length++] = (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7));
            rxb |= (uint8_t)(rm >> 3);
        }
        for (unsigned n = 0; n < 8; n++)
            tail[length + n] = (uint8_t)rnd();
        uint8_t opcode = (uint8_t)((k & 0xff) + (k & K_ROW8 ? pick(8) : 0));
        if (k & K_VEX) {
            bool two = K_MAP(k) == 1 && !w && !(rxb & 3) && pick(2);
            uint8_t last = (uint8_t)((~vvvv & 15) << 3 | l << 2 | (pfx ? pfx - 1 : 0));
            bytes[at++] = two ? 0xc5 : 0xc4;
            if (!two)
                bytes[at++] = (uint8_t)((~rxb & 7) << 5 | K_MAP(k));
            bytes[at++] = two ? (uint8_t)(last | (~rxb >> 2 & 1) << 7) : (uint8_t)(last | w << 7);
            bytes[at++] = opcode;
        } else {
            if (mandatory[pfx])
                bytes[at++] = mandatory[pfx];
            else if (!pfx && !pick(4))
                bytes[at++] = 0x66;
            if (rxb || w || !pick(8))
                bytes[at++] = (uint8_t)(0x40 | w << 3 | rxb);
            if (K_MAP(k))
                bytes[at++] = 0x0f;
            if (K_MAP(k) > 1)
                bytes[at++] = K_MAP(k) == 2 ? 0x38 : 0x3a;
            bytes[at++] = opcode;
        }
        memcpy(bytes + at, tail, at + sizeof tail > 15 ? 15 - at : sizeof tail);
        Insn i;
        int n = decode(c, bytes, 15, CODE, c->mode, &i);
        if (n > 0 && i.id == id)
            return (unsigned)n;
    }
    return 0;
}
