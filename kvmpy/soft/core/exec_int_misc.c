/* Flag instructions, decimal arithmetic, BOUND, hints, fences, undefined instructions. */
#include "exec_int.h"
#include "parallel.h"

EXEC(clc_any) { cc_change(c, FL_CF, 0); NEXT(); }
EXEC(stc_any) { cc_change(c, FL_CF, FL_CF); NEXT(); }
EXEC(cmc_any) { cc_change(c, FL_CF, cc_cf(c) ? 0 : FL_CF); NEXT(); }
EXEC(cld_any) { c->eflags &= ~FL_DF; NEXT(); }
EXEC(std_any) { c->eflags |= FL_DF; NEXT(); }
ONE(clc, clc_any)
ONE(stc, stc_any)
ONE(cmc, cmc_any)
ONE(cld, cld_any)
ONE(std, std_any)

#define AL REG8(0)
#define AH REG8(1)
#define AX REG16(RAX)
#define IN_AH (FL_SF | FL_ZF | FL_AF | FL_PF | FL_CF)
EXEC(lahf_any) { AH = (uint8_t)((cc_flags(c) & IN_AH) | 2); NEXT(); }
EXEC(sahf_any) { cc_change(c, IN_AH, AH); NEXT(); }
ONE(lahf, lahf_any)
ONE(lahf_64, lahf_any)
ONE(sahf, sahf_any)
ONE(sahf_64, sahf_any)
EXEC(salc_any) { AL = cc_cf(c) ? 0xff : 0; NEXT(); }
ONE(salc, salc_any)

/* SF, ZF, PF by AL, then CF and AF; OF is 0. */
static inline void decimal_flags(Cpu *c, bool carry, bool adjust)
{
    cc_set(c, CC_LOGIC8, AL, 0);
    cc_change(c, FL_CF | FL_AF, (carry ? FL_CF : 0) | (adjust ? FL_AF : 0));
}

EXEC(daa_any)
{
    uint8_t old = AL;
    bool adjust = (old & 15) > 9 || cc_af(c), carry = old > 0x99 || cc_cf(c);
    AL = (uint8_t)(old + (adjust ? 6 : 0) + (carry ? 0x60 : 0));
    decimal_flags(c, carry, adjust);
    NEXT();
}
ONE(daa, daa_any)

EXEC(das_any)
{
    uint8_t old = AL;
    bool adjust = (old & 15) > 9 || cc_af(c), carry = old > 0x99 || cc_cf(c);
    /* The borrow of the first step counts too: SDM 2A, DAS. */
    bool borrow = carry || (adjust && old < 6);
    AL = (uint8_t)(old - (adjust ? 6 : 0) - (carry ? 0x60 : 0));
    decimal_flags(c, borrow, adjust);
    NEXT();
}
ONE(das, das_any)

EXEC(aaa_any)
{
    bool adjust = (AL & 15) > 9 || cc_af(c);
    if (adjust)
        AX = (uint16_t)(AX + 0x106);
    AL &= 15;
    decimal_flags(c, adjust, adjust);
    NEXT();
}
ONE(aaa, aaa_any)

EXEC(aas_any)
{
    bool adjust = (AL & 15) > 9 || cc_af(c);
    if (adjust)
        AX = (uint16_t)(AX - 0x106);
    AL &= 15;
    decimal_flags(c, adjust, adjust);
    NEXT();
}
ONE(aas, aas_any)

EXEC(aam_any)
{
    uint8_t base = (uint8_t)i->imm, old = AL;
    if (base == 0)
        raise_fault(c, i, EXC_DE);
    AH = old / base;
    AL = old % base;
    decimal_flags(c, false, false);
    NEXT();
}
ONE(aam, aam_any)

EXEC(aad_any)
{
    uint8_t tens = (uint8_t)(AH * (uint8_t)i->imm);
    AX = (uint8_t)(AL + tens);
    cc_set(c, CC_ADD8, AL, tens); /* CF, AF and OF are undefined; this is what AMD Zen 5 gives */
    NEXT();
}
ONE(aad, aad_any)

/* #BR where the signed index lies outside the two bounds. */
#define BOUND(bits) \
    EXEC(bound_##bits) \
    { \
        uint64_t offset = mem_offset(c, i); \
        INT(bits) low = (INT(bits))read##bits(c, i, i->seg, offset); \
        INT(bits) high = (INT(bits))read##bits(c, i, i->seg, (offset + bits / 8) & i->amask); \
        INT(bits) index = (INT(bits))GET##bits(i->reg); \
        if (index < low || index > high) \
            raise_fault(c, i, EXC_BR); \
        NEXT(); \
    }
BOUND(16)
BOUND(32)
SIZES(bound, bound_16, bound_32, bound_32)

EXEC(pause_any)
{
    if (unlikely(c->parallel))
        core_pause(c);
    NEXT();
}
ONE(pause, pause_any)
EXEC(no_operation) { NEXT(); }
#define NOP(id) ONE(id, no_operation)
NOP(nop)
NOP(prefetch)
NOP(prefetchw)
NOP(nop_0d)
NOP(prefetchnta)
NOP(prefetcht0)
NOP(prefetcht1)
NOP(prefetcht2)
NOP(nop_18)
NOP(nop_19)
NOP(nop_1a)
NOP(nop_1b)
NOP(nop_1c)
NOP(nop_1d)
NOP(endbr64)
NOP(endbr32)
NOP(nop_1e)
NOP(nop_1f)

/* Loads and stores happen in program order as it is; other processors' view of it is kept by the host's fence. */
EXEC(fence)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    NEXT();
}
ONE(lfence, fence)
ONE(mfence, fence)
ONE(sfence, fence)

EXEC(undefined) { raise_ud(c, i); }
ONE(ud0, undefined)
ONE(ud1, undefined)
ONE(ud2, undefined)
