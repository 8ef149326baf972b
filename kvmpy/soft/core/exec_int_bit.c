/* BT to BTC, bit scans and counts, BMI1, BMI2, ADX, CRC32. */
#include "exec_int.h"

/* CF is the bit; the others are undefined or unaffected and stay. */
static inline void bit_flag(Cpu *c, uint64_t bit) { cc_change(c, FL_CF, (uint32_t)(bit & 1)); }

/* Linear address of the operand that holds bit `n` of the bit string at the memory operand; n is signed. */
#define BIT_AT(bits, n, write) \
    mem_linear(c, i, i->seg, \
               (mem_offset(c, i) + (uint64_t)(((int64_t)(INT(bits))(n) >> (bits == 16 ? 4 : bits == 32 ? 5 : 6)) * (bits / 8))) & \
                   i->amask, \
               bits / 8, write)

#define BT(bits) \
    EXEC(bt_rr##bits) { bit_flag(c, GET##bits(i->rm) >> (GET##bits(i->reg) & (bits - 1))); NEXT(); } \
    EXEC(bt_ri##bits) { bit_flag(c, GET##bits(i->rm) >> (i->imm & (bits - 1))); NEXT(); } \
    EXEC(bt_mr##bits) \
    { \
        UINT(bits) n = GET##bits(i->reg), a = read##bits##_linear(c, i, i->seg, BIT_AT(bits, n, false)); \
        bit_flag(c, a >> (n & (bits - 1))); \
        NEXT(); \
    } \
    EXEC(bt_mi##bits) { bit_flag(c, load##bits(c, i) >> (i->imm & (bits - 1))); NEXT(); }
FOR_WIDE(BT)

#define BIT_CHANGE(name, bits, result) \
    EXEC(name##_rr##bits) \
    { \
        unsigned n = GET##bits(i->reg) & (bits - 1); \
        UINT(bits) a = GET##bits(i->rm), bit = (UINT(bits))((UINT(bits))1 << n); \
        SET##bits(i->rm, (UINT(bits))(result)); \
        bit_flag(c, a >> n); \
        NEXT(); \
    } \
    EXEC(name##_ri##bits) \
    { \
        unsigned n = i->imm & (bits - 1); \
        UINT(bits) a = GET##bits(i->rm), bit = (UINT(bits))((UINT(bits))1 << n); \
        SET##bits(i->rm, (UINT(bits))(result)); \
        bit_flag(c, a >> n); \
        NEXT(); \
    } \
    EXEC(name##_mr##bits) \
    { \
        unsigned n = GET##bits(i->reg) & (bits - 1); \
        uint64_t at = BIT_AT(bits, GET##bits(i->reg), true); \
        UINT(bits) a = read_for_write##bits##_linear(c, i, i->seg, at), bit = (UINT(bits))((UINT(bits))1 << n); \
        write##bits##_linear(c, i, i->seg, at, (UINT(bits))(result)); \
        bit_flag(c, a >> n); \
        NEXT(); \
    } \
    EXEC(name##_mi##bits) \
    { \
        uint64_t at; \
        unsigned n = i->imm & (bits - 1); \
        UINT(bits) a = load_for_store##bits(c, i, &at), bit = (UINT(bits))((UINT(bits))1 << n); \
        write##bits##_linear(c, i, i->seg, at, (UINT(bits))(result)); \
        bit_flag(c, a >> n); \
        NEXT(); \
    }
#define BITS(bits) BIT_CHANGE(bts, bits, a | bit) BIT_CHANGE(btr, bits, a & ~bit) BIT_CHANGE(btc, bits, a ^ bit)
FOR_WIDE(BITS)
#define BIT_EXEC(name) \
    EXEC_WIDE(name##_EvGv, name##_rr, name##_mr) \
    EXEC_WIDE(name##_EvIb, name##_ri, name##_mi)
BIT_EXEC(bt)
BIT_EXEC(bts)
BIT_EXEC(btr)
BIT_EXEC(btc)

/* A source of 0 leaves the destination as it is (AMD APM 3; Intel processors do the same). The undefined flags are those of
   AMD Zen 5. */
#define SCAN(bits, form, src) \
    EXEC(bsf_##form##bits) \
    { \
        UINT(bits) a = (src); \
        unsigned n = a ? (unsigned)__builtin_ctzll(a) : 0; \
        if (a) \
            SET##bits(i->reg, (UINT(bits))n); \
        cc_explicit(c, (a ? 0 : FL_ZF) | parity(n) << 2); \
        NEXT(); \
    } \
    EXEC(bsr_##form##bits) \
    { \
        UINT(bits) a = (src); \
        unsigned n = a ? 63 - (unsigned)__builtin_clzll(a) : 0; \
        if (a) \
            SET##bits(i->reg, (UINT(bits))n); \
        cc_explicit(c, (a ? 0 : FL_ZF) | parity(n) << 2); \
        NEXT(); \
    } \
    EXEC(tzcnt_##form##bits) \
    { \
        UINT(bits) a = (src), r = (UINT(bits))(a ? __builtin_ctzll(a) : bits); \
        SET##bits(i->reg, r); \
        cc_explicit(c, (a ? 0 : FL_CF) | (r ? 0 : FL_ZF) | cc_of(c) << 11); \
        NEXT(); \
    } \
    EXEC(lzcnt_##form##bits) \
    { \
        UINT(bits) a = (src), r = (UINT(bits))(a ? __builtin_clzll(a) - (64 - bits) : bits); \
        SET##bits(i->reg, r); \
        cc_explicit(c, (a ? 0 : FL_CF) | (r ? 0 : FL_ZF) | cc_of(c) << 11); \
        NEXT(); \
    } \
    EXEC(popcnt_##form##bits) \
    { \
        UINT(bits) a = (src); \
        SET##bits(i->reg, (UINT(bits))__builtin_popcountll(a)); \
        cc_explicit(c, a ? 0 : FL_ZF); \
        NEXT(); \
    }
#define SCANS(bits) SCAN(bits, r, GET##bits(i->rm)) SCAN(bits, m, load##bits(c, i))
FOR_WIDE(SCANS)
EXEC_WIDE(bsf, bsf_r, bsf_m)
EXEC_WIDE(bsr, bsr_r, bsr_m)
EXEC_WIDE(tzcnt, tzcnt_r, tzcnt_m)
EXEC_WIDE(lzcnt, lzcnt_r, lzcnt_m)
EXEC_WIDE(popcnt, popcnt_r, popcnt_m)

/* VEX-encoded and other instructions on 32 or 64 bits: a is the ModRM operand, v the one in VEX.vvvv. */
#define BODY(name, bits, ...) \
    EXEC(name##_r##bits) { UINT(bits) a = GET##bits(i->rm), v = GET##bits(i->vvvv); (void)v; __VA_ARGS__; NEXT(); } \
    EXEC(name##_m##bits) { UINT(bits) a = load##bits(c, i), v = GET##bits(i->vvvv); (void)v; __VA_ARGS__; NEXT(); }
#define EXEC_Y(name) REG_MEM_SIZES(name, name##_r32, name##_r32, name##_r64, name##_m32, name##_m32, name##_m64)

#define ANDN(bits) BODY(andn, bits, UINT(bits) r = ~v & a; SET##bits(i->reg, r); cc_set(c, CC_LOGIC##bits, r, 0))
ANDN(32)
ANDN(64)
EXEC_Y(andn)

/* The destination is in VEX.vvvv; SF and ZF by the result, CF by the source. */
#define LOWEST(name, bits, result, carry) \
    BODY(name, bits, UINT(bits) r = (result); SET##bits(i->vvvv, r); cc_set(c, CC_LOGIC##bits, r, 0); \
         cc_change(c, FL_CF, (carry)))
#define LOWEST_ALL(bits) \
    LOWEST(blsr, bits, a & (a - 1), a == 0) \
    LOWEST(blsmsk, bits, a ^ (a - 1), a == 0) \
    LOWEST(blsi, bits, a & (0 - a), a != 0)
LOWEST_ALL(32)
LOWEST_ALL(64)
EXEC_Y(blsr)
EXEC_Y(blsmsk)
EXEC_Y(blsi)

#define BZHI(bits) \
    BODY(bzhi, bits, unsigned n = v & 0xff; UINT(bits) r = n < bits ? a & (((UINT(bits))1 << n) - 1) : a; SET##bits(i->reg, r); \
         cc_set(c, CC_LOGIC##bits, r, 0); cc_change(c, FL_CF, n >= bits))
BZHI(32)
BZHI(64)
EXEC_Y(bzhi)

#define BEXTR(bits) \
    BODY(bextr, bits, unsigned start = v & 0xff, length = v >> 8 & 0xff; UINT(bits) r = start < bits ? a >> start : 0; \
         if (length < bits) r &= ((UINT(bits))1 << length) - 1; \
         SET##bits(i->reg, r); cc_explicit(c, (r ? 0 : FL_ZF) | parity(r) << 2 | FL_AF))
BEXTR(32)
BEXTR(64)
EXEC_Y(bextr)

static uint64_t extract(uint64_t value, uint64_t mask)
{
    uint64_t r = 0;
    for (unsigned n = 0; mask; n++, mask &= mask - 1)
        r |= (value >> __builtin_ctzll(mask) & 1) << n;
    return r;
}
static uint64_t deposit(uint64_t value, uint64_t mask)
{
    uint64_t r = 0;
    for (; mask; value >>= 1, mask &= mask - 1)
        r |= value & 1 ? mask & (0 - mask) : 0;
    return r;
}
#define WITHOUT_FLAGS(bits) \
    BODY(pext, bits, SET##bits(i->reg, (UINT(bits))extract(v, a))) \
    BODY(pdep, bits, SET##bits(i->reg, (UINT(bits))deposit(v, a))) \
    BODY(shlx, bits, SET##bits(i->reg, a << (v & (bits - 1)))) \
    BODY(shrx, bits, SET##bits(i->reg, a >> (v & (bits - 1)))) \
    BODY(sarx, bits, SET##bits(i->reg, (UINT(bits))((INT(bits))a >> (v & (bits - 1))))) \
    BODY(rorx, bits, unsigned n = i->imm & (bits - 1); SET##bits(i->reg, n ? a >> n | a << (bits - n) : a))
WITHOUT_FLAGS(32)
WITHOUT_FLAGS(64)
EXEC_Y(pext)
EXEC_Y(pdep)
EXEC_Y(shlx)
EXEC_Y(shrx)
EXEC_Y(sarx)
EXEC_Y(rorx)

#define ADX(bits) \
    BODY(adcx, bits, UINT(bits) b = GET##bits(i->reg), r; unsigned k = cc_cf(c); \
         k = __builtin_add_overflow(a, b, &r) | __builtin_add_overflow(r, (UINT(bits))k, &r); SET##bits(i->reg, r); \
         cc_change(c, FL_CF, k)) \
    BODY(adox, bits, UINT(bits) b = GET##bits(i->reg), r; unsigned k = cc_of(c); \
         k = __builtin_add_overflow(a, b, &r) | __builtin_add_overflow(r, (UINT(bits))k, &r); SET##bits(i->reg, r); \
         cc_change(c, FL_OF, k << 11))
ADX(32)
ADX(64)
EXEC_Y(adcx)
EXEC_Y(adox)

/* CRC-32C, bits reversed (polynomial 11EDC6F41h). */
static uint32_t crc_table[256];
__attribute__((constructor)) static void fill_crc_table(void)
{
    for (unsigned n = 0; n < 256; n++) {
        uint32_t r = n;
        for (unsigned bit = 0; bit < 8; bit++)
            r = r >> 1 ^ (r & 1 ? 0x82f63b78u : 0);
        crc_table[n] = r;
    }
}
static uint32_t crc(uint32_t r, uint64_t value, unsigned bytes)
{
    for (; bytes; bytes--, value >>= 8)
        r = r >> 8 ^ crc_table[(r ^ value) & 0xff];
    return r;
}
#define CRC(bits) \
    EXEC(crc32_r##bits) { SET32(i->reg, crc(GET32(i->reg), GET##bits(i->rm), bits / 8)); NEXT(); } \
    EXEC(crc32_m##bits) { SET32(i->reg, crc(GET32(i->reg), load##bits(c, i), bits / 8)); NEXT(); }
FOR_WIDTHS(CRC)
EXEC_BYTE(crc32_Eb, crc32_r8, crc32_m8)
EXEC_WIDE(crc32_Ev, crc32_r, crc32_m)
