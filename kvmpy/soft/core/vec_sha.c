/* SHA-1 and SHA-256 (FIPS 180-4). The first word of four stands in the top element. */
#include "vec.h"

INLINE uint32_t rol(uint32_t v, unsigned by) { return v << by | v >> (32 - by); }
INLINE uint32_t ror(uint32_t v, unsigned by) { return v >> by | v << (32 - by); }
INLINE uint32_t choose(uint32_t x, uint32_t y, uint32_t z) { return (x & y) ^ (~x & z); }
INLINE uint32_t majority(uint32_t x, uint32_t y, uint32_t z) { return (x & y) ^ (x & z) ^ (y & z); }
INLINE uint32_t big_sigma0(uint32_t x) { return ror(x, 2) ^ ror(x, 13) ^ ror(x, 22); }
INLINE uint32_t big_sigma1(uint32_t x) { return ror(x, 6) ^ ror(x, 11) ^ ror(x, 25); }
INLINE uint32_t sigma0(uint32_t x) { return ror(x, 7) ^ ror(x, 18) ^ x >> 3; }
INLINE uint32_t sigma1(uint32_t x) { return ror(x, 17) ^ ror(x, 19) ^ x >> 10; }

/* The first word of b has E added already. */
OP(op_sha1rnds4)
{
    (void)n;
    static const uint32_t constants[4] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
    uint32_t va = a->u32[3], vb = a->u32[2], vc = a->u32[1], vd = a->u32[0], ve = 0;
    for (unsigned k = 0; k < 4; k++) {
        unsigned phase = imm & 3;
        uint32_t f = phase == 0 ? choose(vb, vc, vd) : phase == 2 ? majority(vb, vc, vd) : vb ^ vc ^ vd;
        uint32_t t = f + rol(va, 5) + b->u32[3 - k] + ve + constants[phase];
        ve = vd;
        vd = vc;
        vc = rol(vb, 30);
        vb = va;
        va = t;
    }
    d->u32[3] = va;
    d->u32[2] = vb;
    d->u32[1] = vc;
    d->u32[0] = vd;
}
SSE_OP(sha1rnds4, op_sha1rnds4)

OP(op_sha1nexte)
{
    UNUSED_OPERANDS;
    memcpy(d, b, 16);
    d->u32[3] += rol(a->u32[3], 30);
}
SSE_OP(sha1nexte, op_sha1nexte)

OP(op_sha1msg1)
{
    UNUSED_OPERANDS;
    d->u32[3] = a->u32[1] ^ a->u32[3];
    d->u32[2] = a->u32[0] ^ a->u32[2];
    d->u32[1] = b->u32[3] ^ a->u32[1];
    d->u32[0] = b->u32[2] ^ a->u32[0];
}
SSE_OP(sha1msg1, op_sha1msg1)

OP(op_sha1msg2)
{
    UNUSED_OPERANDS;
    d->u32[3] = rol(a->u32[3] ^ b->u32[2], 1);
    d->u32[2] = rol(a->u32[2] ^ b->u32[1], 1);
    d->u32[1] = rol(a->u32[1] ^ b->u32[0], 1);
    d->u32[0] = rol(a->u32[0] ^ d->u32[3], 1);
}
SSE_OP(sha1msg2, op_sha1msg2)

/* Two rounds: b has A B E F, a has C D G H, XMM0 the sums of message and constant. */
static void sha256rnds2(Ymm *d, const Ymm *a, const Ymm *b, const Ymm *wk)
{
    uint32_t va = b->u32[3], vb = b->u32[2], vc = a->u32[3], vd = a->u32[2];
    uint32_t ve = b->u32[1], vf = b->u32[0], vg = a->u32[1], vh = a->u32[0];
    for (unsigned k = 0; k < 2; k++) {
        uint32_t t = choose(ve, vf, vg) + big_sigma1(ve) + wk->u32[k] + vh;
        uint32_t u = t + majority(va, vb, vc) + big_sigma0(va);
        vh = vg;
        vg = vf;
        vf = ve;
        ve = t + vd;
        vd = vc;
        vc = vb;
        vb = va;
        va = u;
    }
    d->u32[3] = va;
    d->u32[2] = vb;
    d->u32[1] = ve;
    d->u32[0] = vf;
}
EXEC_VOID(sha256rnds2_any)
{
    CHECK_SSE();
    Ymm b, d;
    if (i->flags & INSN_MEM)
        load_vec(c, i, &b, 16, true);
    else
        memcpy(&b, &c->ymm[i->rm], 16);
    sha256rnds2(&d, &c->ymm[i->reg], &b, &c->ymm[0]);
    memcpy(&c->ymm[i->reg], &d, 16);
}
ONE(sha256rnds2, sha256rnds2_any)

OP(op_sha256msg1)
{
    UNUSED_OPERANDS;
    for (unsigned k = 0; k < 3; k++)
        d->u32[k] = a->u32[k] + sigma0(a->u32[k + 1]);
    d->u32[3] = a->u32[3] + sigma0(b->u32[0]);
}
SSE_OP(sha256msg1, op_sha256msg1)

OP(op_sha256msg2)
{
    UNUSED_OPERANDS;
    d->u32[0] = a->u32[0] + sigma1(b->u32[2]);
    d->u32[1] = a->u32[1] + sigma1(b->u32[3]);
    d->u32[2] = a->u32[2] + sigma1(d->u32[0]);
    d->u32[3] = a->u32[3] + sigma1(d->u32[1]);
}
SSE_OP(sha256msg2, op_sha256msg2)
