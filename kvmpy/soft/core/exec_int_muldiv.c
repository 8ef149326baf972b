/* MUL, IMUL, DIV, IDIV, MULX. */
#include "exec_int.h"

/* CF and OF say whether the upper half counts; the other four are undefined, and come cheapest this way. */
static inline void mul_flags(Cpu *c, bool overflow) { cc_explicit(c, overflow ? FL_CF | FL_OF : 0); }

/* All six are undefined; processors (AMD Zen 5) leave CF and OF. */
static inline void div_flags(Cpu *c) { cc_change(c, FL_PF | FL_AF | FL_ZF | FL_SF, FL_AF); }

/* src: expression of the operand. */
#define MUL8(form, src) \
    EXEC(mul_##form##8) \
    { \
        uint16_t r = (uint16_t)(REG8(RAX) * (src)); \
        REG16(RAX) = r; \
        mul_flags(c, r >> 8); \
        NEXT(); \
    } \
    EXEC(imul_##form##8) \
    { \
        int16_t r = (int16_t)((int8_t)REG8(RAX) * (int8_t)(src)); \
        REG16(RAX) = (uint16_t)r; \
        mul_flags(c, r != (int8_t)r); \
        NEXT(); \
    }
MUL8(r, REG8(i->rm))
MUL8(m, load8(c, i))

/* twice: type of the product. */
#define MUL(bits, twice, form, src) \
    EXEC(mul_##form##bits) \
    { \
        unsigned twice r = (unsigned twice)GET##bits(RAX) * (src); \
        SET##bits(RAX, (UINT(bits))r); \
        SET##bits(RDX, (UINT(bits))(r >> bits)); \
        mul_flags(c, r >> bits); \
        NEXT(); \
    } \
    EXEC(imul_##form##bits) \
    { \
        twice r = (twice)(INT(bits))GET##bits(RAX) * (INT(bits))(src); \
        SET##bits(RAX, (UINT(bits))r); \
        SET##bits(RDX, (UINT(bits))(r >> bits)); \
        mul_flags(c, r != (INT(bits))r); \
        NEXT(); \
    } \
    EXEC(imul_g##form##bits) \
    { \
        twice r = (twice)(INT(bits))(src) * (INT(bits))GET##bits(i->reg); \
        SET##bits(i->reg, (UINT(bits))r); \
        mul_flags(c, r != (INT(bits))r); \
        NEXT(); \
    } \
    EXEC(imul_i##form##bits) \
    { \
        twice r = (twice)(INT(bits))(src) * (INT(bits))i->imm; \
        SET##bits(i->reg, (UINT(bits))r); \
        mul_flags(c, r != (INT(bits))r); \
        NEXT(); \
    }
#define MUL_WIDTH(bits, twice) MUL(bits, twice, r, GET##bits(i->rm)) MUL(bits, twice, m, load##bits(c, i))
MUL_WIDTH(16, int)
MUL_WIDTH(32, long long)
MUL_WIDTH(64, __int128)
EXEC_BYTE(mul_Eb, mul_r8, mul_m8)
EXEC_WIDE(mul_Ev, mul_r, mul_m)
EXEC_BYTE(imul_Eb, imul_r8, imul_m8)
EXEC_WIDE(imul_Ev, imul_r, imul_m)
EXEC_WIDE(imul_GvEv, imul_gr, imul_gm)
EXEC_WIDE(imul_GvEvIz, imul_ir, imul_im)
EXEC_WIDE(imul_GvEvIb, imul_ir, imul_im)

/* #DE where the divisor is 0 or the quotient does not fit. */
#define DIV8(form, src) \
    EXEC(div_##form##8) \
    { \
        uint8_t d = (src); \
        uint16_t a = REG16(RAX); \
        if (d == 0 || a >> 8 >= d) \
            raise_fault(c, i, EXC_DE); \
        REG16(RAX) = (uint16_t)((a % d) << 8 | a / d); \
        div_flags(c); \
        NEXT(); \
    } \
    EXEC(idiv_##form##8) \
    { \
        int8_t d = (int8_t)(src); \
        int16_t a = (int16_t)REG16(RAX); \
        if (d == 0) \
            raise_fault(c, i, EXC_DE); \
        int q = a / d; \
        if (q != (int8_t)q) \
            raise_fault(c, i, EXC_DE); \
        REG16(RAX) = (uint16_t)((unsigned)(a % d) << 8 | (uint8_t)q); \
        div_flags(c); \
        NEXT(); \
    }
DIV8(r, REG8(i->rm))
DIV8(m, load8(c, i))

#define DIV(bits, twice, form, src) \
    EXEC(div_##form##bits) \
    { \
        UINT(bits) d = (src); \
        if (GET##bits(RDX) >= d) \
            raise_fault(c, i, EXC_DE); \
        unsigned twice a = (unsigned twice)GET##bits(RDX) << bits | GET##bits(RAX); \
        SET##bits(RAX, (UINT(bits))(a / d)); \
        SET##bits(RDX, (UINT(bits))(a % d)); \
        div_flags(c); \
        NEXT(); \
    } \
    EXEC(idiv_##form##bits) \
    { \
        INT(bits) d = (INT(bits))(src); \
        twice a = (twice)((unsigned twice)GET##bits(RDX) << bits | GET##bits(RAX)); \
        /* The one quotient that the double width cannot hold is out of range too. */ \
        if (d == 0 || (d == -1 && a == (twice)((unsigned twice)1 << (2 * bits - 1)))) \
            raise_fault(c, i, EXC_DE); \
        twice q = a / d; \
        if (q != (INT(bits))q) \
            raise_fault(c, i, EXC_DE); \
        SET##bits(RAX, (UINT(bits))q); \
        SET##bits(RDX, (UINT(bits))(a % d)); \
        div_flags(c); \
        NEXT(); \
    }
#define DIV_WIDTH(bits, twice) DIV(bits, twice, r, GET##bits(i->rm)) DIV(bits, twice, m, load##bits(c, i))
DIV_WIDTH(16, int)
DIV_WIDTH(32, long long)

/* 64 bits: where the dividend fits, a division of 64 bits is many times faster. */
#define DIV64(form, src) \
    EXEC(div_##form##64) \
    { \
        uint64_t d = (src), high = c->gpr[RDX], low = c->gpr[RAX]; \
        if (high >= d) \
            raise_fault(c, i, EXC_DE); \
        if (high == 0) { \
            c->gpr[RAX] = low / d; \
            c->gpr[RDX] = low % d; \
        } else { \
            unsigned __int128 a = (unsigned __int128)high << 64 | low; \
            c->gpr[RAX] = (uint64_t)(a / d); \
            c->gpr[RDX] = (uint64_t)(a % d); \
        } \
        div_flags(c); \
        NEXT(); \
    } \
    EXEC(idiv_##form##64) \
    { \
        int64_t d = (int64_t)(src), low = (int64_t)c->gpr[RAX]; \
        if (d == 0) \
            raise_fault(c, i, EXC_DE); \
        if ((int64_t)c->gpr[RDX] == low >> 63 && d != -1) { \
            c->gpr[RAX] = (uint64_t)(low / d); \
            c->gpr[RDX] = (uint64_t)(low % d); \
            div_flags(c); \
            NEXT(); \
        } \
        __int128 a = (__int128)((unsigned __int128)c->gpr[RDX] << 64 | (uint64_t)low); \
        if (d == -1 && a == (__int128)((unsigned __int128)1 << 127)) \
            raise_fault(c, i, EXC_DE); \
        __int128 q = a / d; \
        if (q != (int64_t)q) \
            raise_fault(c, i, EXC_DE); \
        c->gpr[RAX] = (uint64_t)q; \
        c->gpr[RDX] = (uint64_t)(a % d); \
        div_flags(c); \
        NEXT(); \
    }
DIV64(r, c->gpr[i->rm])
DIV64(m, load64(c, i))
EXEC_BYTE(div_Eb, div_r8, div_m8)
EXEC_WIDE(div_Ev, div_r, div_m)
EXEC_BYTE(idiv_Eb, idiv_r8, idiv_m8)
EXEC_WIDE(idiv_Ev, idiv_r, idiv_m)

/* MULX: the high half is written last, so that it stays where both destinations are one register. */
#define MULX(form, src32, src64) \
    EXEC(mulx_##form##32) \
    { \
        uint64_t r = (uint64_t)GET32(RDX) * (src32); \
        SET32(i->vvvv, r); \
        SET32(i->reg, r >> 32); \
        NEXT(); \
    } \
    EXEC(mulx_##form##64) \
    { \
        unsigned __int128 r = (unsigned __int128)c->gpr[RDX] * (src64); \
        c->gpr[i->vvvv] = (uint64_t)r; \
        c->gpr[i->reg] = (uint64_t)(r >> 64); \
        NEXT(); \
    }
MULX(r, GET32(i->rm), GET64(i->rm))
MULX(m, load32(c, i), load64(c, i))
REG_MEM_SIZES(mulx, mulx_r32, mulx_r32, mulx_r64, mulx_m32, mulx_m32, mulx_m64)
