/* Near jumps, calls, returns and loops. */
#include "exec_int.h"

/* #GP(0) on the branch itself. Outside 64-bit mode only where the block is not flat; in 64-bit mode the decoder sets
   INSN_CHECK on relative branches whose target is not canonical. */
static inline void check_target(Cpu *c, const Insn *i, uint64_t target)
{
    if (unlikely(i->flags & INSN_CHECK) && (in_64bit(c) ? !is_canonical(target) : target > c->seg[SEG_CS].limit))
        raise_gp0(c, i);
}
static inline void check_indirect(Cpu *c, const Insn *i, uint64_t target)
{
    if (unlikely(!is_canonical(target)))
        raise_gp0(c, i);
    check_target(c, i, target);
}

#define CONDITION(cc, n) \
    EXEC(j##cc) \
    { \
        if (cc_test(c, n)) { \
            check_target(c, i, i->imm); \
            JUMP_TO(i->imm, 0); \
        } \
        JUMP_TO(i->next_rip, 1); \
    } \
    ONE(j##cc##_Jb, j##cc) \
    ONE(j##cc##_Jz, j##cc)
CONDITIONS(CONDITION)

EXEC(jmp)
{
    check_target(c, i, i->imm);
    JUMP_TO(i->imm, 0);
}
ONE(jmp_Jb, jmp)
ONE(jmp_Jz, jmp)

/* The count register is CX, ECX or RCX by the address size. */
static inline uint64_t get_count(const Cpu *c, const Insn *i) { return c->gpr[RCX] & i->amask; }
static inline void set_count(Cpu *c, const Insn *i, uint64_t count)
{
    if (i->amask == 0xffff)
        REG16(RCX) = (uint16_t)count;
    else
        c->gpr[RCX] = count & i->amask;
}

#define LOOP(name, condition) \
    EXEC(name##_any) \
    { \
        uint64_t count = (c->gpr[RCX] - 1) & i->amask; \
        if (count != 0 && (condition)) { \
            check_target(c, i, i->imm); \
            set_count(c, i, count); \
            JUMP_TO(i->imm, 0); \
        } \
        set_count(c, i, count); \
        JUMP_TO(i->next_rip, 1); \
    } \
    ONE(name, name##_any)
LOOP(loop, true)
LOOP(loope, cc_zf(c))
LOOP(loopne, !cc_zf(c))

EXEC(jcxz_any)
{
    if (get_count(c, i) == 0) {
        check_target(c, i, i->imm);
        JUMP_TO(i->imm, 0);
    }
    JUMP_TO(i->next_rip, 1);
}
ONE(jcxz, jcxz_any)

#define BRANCH(bits) \
    EXEC(jmp_r##bits) \
    { \
        uint64_t target = GET##bits(i->rm); \
        check_indirect(c, i, target); \
        JUMP_INDIRECT(target); \
    } \
    EXEC(jmp_m##bits) \
    { \
        uint64_t target = load##bits(c, i); \
        check_indirect(c, i, target); \
        JUMP_INDIRECT(target); \
    } \
    EXEC(call_j##bits) \
    { \
        check_target(c, i, i->imm); \
        mem_push(c, i, bits / 8, i->next_rip); \
        JUMP_TO(i->imm, 0); \
    } \
    EXEC(call_r##bits) \
    { \
        uint64_t target = GET##bits(i->rm); \
        check_indirect(c, i, target); \
        mem_push(c, i, bits / 8, i->next_rip); \
        JUMP_INDIRECT(target); \
    } \
    EXEC(call_m##bits) \
    { \
        uint64_t target = load##bits(c, i); \
        check_indirect(c, i, target); \
        mem_push(c, i, bits / 8, i->next_rip); \
        JUMP_INDIRECT(target); \
    } \
    /* The immediate is 0 without one. */ \
    EXEC(ret_##bits) \
    { \
        uint64_t sp = c->gpr[RSP] & stack_mask(c), target = read##bits(c, i, SEG_SS, sp); \
        check_indirect(c, i, target); \
        set_sp(c, sp + bits / 8 + i->imm); \
        JUMP_INDIRECT(target); \
    }
BRANCH(16)
BRANCH(32)

/* Operand size 64: the stack pointer is RSP and SS has no base. */
EXEC(jmp_r64)
{
    uint64_t target = c->gpr[i->rm];
    check_indirect(c, i, target);
    JUMP_INDIRECT(target);
}
EXEC(jmp_m64)
{
    uint64_t target = load64(c, i);
    check_indirect(c, i, target);
    JUMP_INDIRECT(target);
}
static inline void push64(Cpu *c, const Insn *i, uint64_t value)
{
    uint64_t sp = c->gpr[RSP] - 8;
    write64_linear(c, i, SEG_SS, sp, value);
    c->gpr[RSP] = sp;
}
EXEC(call_j64)
{
    check_target(c, i, i->imm);
    push64(c, i, i->next_rip);
    JUMP_TO(i->imm, 0);
}
EXEC(call_r64)
{
    uint64_t target = c->gpr[i->rm];
    check_indirect(c, i, target);
    push64(c, i, i->next_rip);
    JUMP_INDIRECT(target);
}
EXEC(call_m64)
{
    uint64_t target = load64(c, i);
    check_indirect(c, i, target);
    push64(c, i, i->next_rip);
    JUMP_INDIRECT(target);
}
EXEC(ret_64)
{
    uint64_t sp = c->gpr[RSP], target = read64_linear(c, i, SEG_SS, sp);
    check_indirect(c, i, target);
    c->gpr[RSP] = sp + 8 + i->imm;
    JUMP_INDIRECT(target);
}
EXEC_WIDE(jmp_Ev, jmp_r, jmp_m)
EXEC_WIDE_REG(call_Jz, call_j)
EXEC_WIDE(call_Ev, call_r, call_m)
EXEC_WIDE_REG(ret, ret_)
EXEC_WIDE_REG(ret_Iw, ret_)
