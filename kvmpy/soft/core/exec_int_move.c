/* MOV, MOVZX, MOVSX, LEA, CMOVcc, SETcc, XCHG, XADD, CMPXCHG and their like. */
#include "exec_int.h"

#define MOV(bits) \
    EXEC(mov_rr##bits) { SET##bits(i->rm, GET##bits(i->reg)); NEXT(); } \
    EXEC_STORE(mov_mr##bits, bits, GET##bits(i->reg)) \
    EXEC(mov_gr##bits) { SET##bits(i->reg, GET##bits(i->rm)); NEXT(); } \
    EXEC_LOAD(mov_gm##bits, bits, SET##bits(i->reg, m)) \
    EXEC(mov_ri##bits) { SET##bits(i->rm, (UINT(bits))i->imm); NEXT(); } \
    EXEC_STORE(mov_mi##bits, bits, (UINT(bits))i->imm) \
    EXEC(mov_am##bits) { SET##bits(RAX, load##bits(c, i)); NEXT(); } \
    EXEC(mov_ma##bits) { store##bits(c, i, GET##bits(RAX)); NEXT(); }
FOR_WIDTHS(MOV)
EXEC_BYTE(mov_EbGb, mov_rr8, mov_mr8)
EXEC_WIDE(mov_EvGv, mov_rr, mov_mr)
EXEC_BYTE(mov_GbEb, mov_gr8, mov_gm8)
EXEC_WIDE(mov_GvEv, mov_gr, mov_gm)
EXEC_BYTE(mov_ALOb, mov_am8, mov_am8)
EXEC_WIDE(mov_rAXOv, mov_am, mov_am)
EXEC_BYTE(mov_ObAL, mov_ma8, mov_ma8)
EXEC_WIDE(mov_OvrAX, mov_ma, mov_ma)
EXEC_BYTE(mov_ZbIb, mov_ri8, mov_ri8)
EXEC_WIDE_REG(mov_ZvIv, mov_ri)
EXEC_BYTE(mov_EbIb, mov_ri8, mov_mi8)
EXEC_WIDE(mov_EvIz, mov_ri, mov_mi)

#define LEA(bits) \
    EXEC(lea_m##bits) { SET##bits(i->reg, (UINT(bits))mem_offset(c, i)); NEXT(); }
FOR_WIDE(LEA)
EXEC_WIDE_REG(lea, lea_m)

/* from: width of the source, to: of the destination. */
#define EXTEND(from, to) \
    EXEC(movzx##from##_r##to) { SET##to(i->reg, (UINT(to))GET##from(i->rm)); NEXT(); } \
    EXEC_LOAD(movzx##from##_m##to, from, SET##to(i->reg, (UINT(to))m)) \
    EXEC(movsx##from##_r##to) { SET##to(i->reg, (UINT(to))(INT(to))(INT(from))GET##from(i->rm)); NEXT(); } \
    EXEC_LOAD(movsx##from##_m##to, from, SET##to(i->reg, (UINT(to))(INT(to))(INT(from))m))
EXTEND(8, 16)
EXTEND(8, 32)
EXTEND(8, 64)
EXTEND(16, 16)
EXTEND(16, 32)
EXTEND(16, 64)
EXEC_WIDE(movzx_GvEb, movzx8_r, movzx8_m)
EXEC_WIDE(movzx_GvEw, movzx16_r, movzx16_m)
EXEC_WIDE(movsx_GvEb, movsx8_r, movsx8_m)
EXEC_WIDE(movsx_GvEw, movsx16_r, movsx16_m)

/* Without REX.W MOVSXD is a plain move; with 66 it reads 16 bits only. */
EXEC(movsxd_r64) { SET64(i->reg, (uint64_t)(int64_t)(int32_t)GET32(i->rm)); NEXT(); }
EXEC_LOAD(movsxd_m64, 32, SET64(i->reg, (uint64_t)(int64_t)(int32_t)m))
REG_MEM_SIZES(movsxd, mov_gr16, mov_gr32, movsxd_r64, mov_gm16, mov_gm32, movsxd_m64)

#define SWAP16 __builtin_bswap16
#define SWAP32 __builtin_bswap32
#define SWAP64 __builtin_bswap64
#define MOVBE(bits) \
    EXEC(movbe_load##bits) { SET##bits(i->reg, SWAP##bits(load##bits(c, i))); NEXT(); } \
    EXEC(movbe_store##bits) { store##bits(c, i, SWAP##bits(GET##bits(i->reg))); NEXT(); }
FOR_WIDE(MOVBE)
EXEC_WIDE_REG(movbe_GvMv, movbe_load)
EXEC_WIDE_REG(movbe_MvGv, movbe_store)
EXEC_WIDE_REG(movbe_GvMv_66, movbe_load)
EXEC_WIDE_REG(movbe_MvGv_66, movbe_store)
SIZES(movnti, mov_mr32, mov_mr32, mov_mr64)

/* With a 16-bit operand BSWAP is undefined; processors give 0. */
EXEC(bswap_16) { SET16(i->rm, 0); NEXT(); }
EXEC(bswap_32) { SET32(i->rm, SWAP32(GET32(i->rm))); NEXT(); }
EXEC(bswap_64) { SET64(i->rm, SWAP64(GET64(i->rm))); NEXT(); }
EXEC_WIDE_REG(bswap, bswap_)

#define EXCHANGE(bits) \
    EXEC(xchg_r##bits) \
    { \
        UINT(bits) a = GET##bits(i->rm), b = GET##bits(i->reg); \
        SET##bits(i->rm, b); \
        SET##bits(i->reg, a); \
        NEXT(); \
    } \
    EXEC(xchg_m##bits) \
    { \
        uint64_t at; \
        UINT(bits) a = load_for_store##bits(c, i, &at); \
        write##bits##_linear(c, i, i->seg, at, GET##bits(i->reg)); \
        SET##bits(i->reg, a); \
        NEXT(); \
    } \
    EXEC(xadd_r##bits) \
    { \
        UINT(bits) a = GET##bits(i->rm), b = GET##bits(i->reg), r = (UINT(bits))(a + b); \
        SET##bits(i->reg, a); \
        SET##bits(i->rm, r); \
        cc_set(c, CC_ADD##bits, r, b); \
        NEXT(); \
    } \
    EXEC(xadd_m##bits) \
    { \
        uint64_t at; \
        UINT(bits) a = load_for_store##bits(c, i, &at), b = GET##bits(i->reg), r = (UINT(bits))(a + b); \
        write##bits##_linear(c, i, i->seg, at, r); \
        SET##bits(i->reg, a); \
        cc_set(c, CC_ADD##bits, r, b); \
        NEXT(); \
    } \
    /* Only one of destination and accumulator is written, so that only its upper half is cleared. */ \
    EXEC(cmpxchg_r##bits) \
    { \
        UINT(bits) a = GET##bits(i->rm), acc = GET##bits(RAX); \
        if (acc == a) \
            SET##bits(i->rm, GET##bits(i->reg)); \
        else \
            SET##bits(RAX, a); \
        cc_set(c, CC_SUB##bits, (UINT(bits))(acc - a), a); \
        NEXT(); \
    } \
    /* Memory is written in any case. */ \
    EXEC(cmpxchg_m##bits) \
    { \
        uint64_t at; \
        UINT(bits) a = load_for_store##bits(c, i, &at), acc = GET##bits(RAX); \
        write##bits##_linear(c, i, i->seg, at, acc == a ? GET##bits(i->reg) : a); \
        if (acc != a) \
            SET##bits(RAX, a); \
        cc_set(c, CC_SUB##bits, (UINT(bits))(acc - a), a); \
        NEXT(); \
    }
FOR_WIDTHS(EXCHANGE)
EXEC_BYTE(xchg_EbGb, xchg_r8, xchg_m8)
EXEC_WIDE(xchg_EvGv, xchg_r, xchg_m)
EXEC_WIDE_REG(xchg_ZvrAX, xchg_r) /* the decoder leaves 0, RAX, in Insn.reg */
EXEC_BYTE(xadd_EbGb, xadd_r8, xadd_m8)
EXEC_WIDE(xadd_EvGv, xadd_r, xadd_m)
EXEC_BYTE(cmpxchg_EbGb, cmpxchg_r8, cmpxchg_m8)
EXEC_WIDE(cmpxchg_EvGv, cmpxchg_r, cmpxchg_m)

EXEC(cmpxchg8b_m)
{
    uint64_t at, old = load_for_store64(c, i, &at), want = c->gpr[RDX] << 32 | GET32(RAX);
    write64_linear(c, i, i->seg, at, old == want ? c->gpr[RCX] << 32 | GET32(RBX) : old);
    if (old != want) {
        SET32(RAX, old);
        SET32(RDX, old >> 32);
    }
    cc_change(c, FL_ZF, old == want ? FL_ZF : 0);
    NEXT();
}
ONE(cmpxchg8b, cmpxchg8b_m)

EXEC(cmpxchg16b_m)
{
    uint64_t at = mem_linear(c, i, i->seg, mem_offset(c, i), 16, true);
    if (at & 15)
        raise_gp0(c, i);
    uint64_t low = read_for_write64_linear(c, i, i->seg, at), high = read_for_write64_linear(c, i, i->seg, at + 8);
    bool equal = low == c->gpr[RAX] && high == c->gpr[RDX];
    write64_linear(c, i, i->seg, at, equal ? c->gpr[RBX] : low);
    write64_linear(c, i, i->seg, at + 8, equal ? c->gpr[RCX] : high);
    if (!equal) {
        c->gpr[RAX] = low;
        c->gpr[RDX] = high;
    }
    cc_change(c, FL_ZF, equal ? FL_ZF : 0);
    NEXT();
}
ONE(cmpxchg16b, cmpxchg16b_m)

EXEC(cbw_16) { SET16(RAX, (uint16_t)(int8_t)GET16(RAX)); NEXT(); }
EXEC(cbw_32) { SET32(RAX, (uint32_t)(int16_t)GET16(RAX)); NEXT(); }
EXEC(cbw_64) { SET64(RAX, (uint64_t)(int64_t)(int32_t)GET32(RAX)); NEXT(); }
EXEC_WIDE_REG(cbw, cbw_)
EXEC(cwd_16) { SET16(RDX, GET16(RAX) >> 15 ? 0xffff : 0); NEXT(); }
EXEC(cwd_32) { SET32(RDX, GET32(RAX) >> 31 ? 0xffffffffu : 0); NEXT(); }
EXEC(cwd_64) { SET64(RDX, GET64(RAX) >> 63 ? ~0ull : 0); NEXT(); }
EXEC_WIDE_REG(cwd, cwd_)

EXEC(xlat_m)
{
    REG8(RAX) = read8(c, i, i->seg, (c->gpr[RBX] + REG8(RAX)) & i->amask);
    NEXT();
}
ONE(xlat, xlat_m)

/* A 32-bit CMOVcc clears the upper half whatever the condition, and memory is always read. */
#define CMOV(cc, n, bits) \
    EXEC(cmov##cc##_r##bits) \
    { \
        UINT(bits) v = GET##bits(i->rm); \
        SET##bits(i->reg, cc_test(c, n) ? v : GET##bits(i->reg)); \
        NEXT(); \
    } \
    EXEC(cmov##cc##_m##bits) \
    { \
        UINT(bits) v = load##bits(c, i); \
        SET##bits(i->reg, cc_test(c, n) ? v : GET##bits(i->reg)); \
        NEXT(); \
    }
#define CONDITION(cc, n) \
    CMOV(cc, n, 16) \
    CMOV(cc, n, 32) \
    CMOV(cc, n, 64) \
    EXEC_WIDE(cmov##cc, cmov##cc##_r, cmov##cc##_m) \
    EXEC(set##cc##_r8) { REG8(i->rm) = cc_test(c, n); NEXT(); } \
    EXEC(set##cc##_m8) { store8(c, i, cc_test(c, n)); NEXT(); } \
    EXEC_BYTE(set##cc, set##cc##_r8, set##cc##_m8)
CONDITIONS(CONDITION)
