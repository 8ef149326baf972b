/* PUSH, POP, PUSHA, POPA, ENTER, LEAVE. The stack pointer changes after every access has gone well. */
#include "exec_int.h"

#define PUSH(bits) \
    EXEC(push_r##bits) { mem_push(c, i, bits / 8, GET##bits(i->rm)); NEXT(); } \
    EXEC(push_i##bits) { mem_push(c, i, bits / 8, i->imm); NEXT(); } \
    EXEC(pop_r##bits) { UINT(bits) v = (UINT(bits))mem_pop(c, i, bits / 8); SET##bits(i->rm, v); NEXT(); }
PUSH(16)
PUSH(32)
/* Operand size 64: the stack pointer is RSP and SS has no base. */
#define PUSH64(name, value) \
    EXEC_SLOW(name##_slow) { mem_push(c, i, 8, value); NEXT(); } \
    EXEC(name) \
    { \
        IN_RAM(c->gpr[RSP] - 8, 64, write, name##_slow); \
        memcpy(ram, &(value), 8); \
        c->gpr[RSP] = at; \
        NEXT(); \
    }
PUSH64(push_r64, c->gpr[i->rm])
PUSH64(push_i64, i->imm)
EXEC_SLOW(pop_r64_slow)
{
    uint64_t v = mem_pop(c, i, 8);
    c->gpr[i->rm] = v;
    NEXT();
}
EXEC(pop_r64)
{
    IN_RAM(c->gpr[RSP], 64, read, pop_r64_slow);
    uint64_t v;
    memcpy(&v, ram, 8);
    c->gpr[RSP] = at + 8;
    c->gpr[i->rm] = v;
    NEXT();
}
EXEC_WIDE_REG(push_Zv, push_r)
EXEC_WIDE_REG(pop_Zv, pop_r)
EXEC_WIDE_REG(push_Iz, push_i)
EXEC_WIDE_REG(push_Ib, push_i)

/* POP to memory: an address based on the stack pointer uses its value after the pop. */
#define PUSH_MEMORY(bits) \
    EXEC(push_m##bits) { mem_push(c, i, bits / 8, load##bits(c, i)); NEXT(); } \
    EXEC(pop_m##bits) \
    { \
        uint64_t old = c->gpr[RSP], sp = old & stack_mask(c); \
        UINT(bits) v = read##bits(c, i, SEG_SS, sp); \
        set_sp(c, sp + bits / 8); \
        uint64_t after = c->gpr[RSP], offset = mem_offset(c, i); \
        c->gpr[RSP] = old; \
        write##bits(c, i, i->seg, offset, v); \
        c->gpr[RSP] = after; \
        NEXT(); \
    }
FOR_WIDE(PUSH_MEMORY)
EXEC_WIDE(push_Ev, push_r, push_m)
EXEC_WIDE(pop_Ev, pop_r, pop_m)

static uint64_t stack_read(Cpu *c, const Insn *i, uint64_t sp, unsigned size)
{
    uint64_t at = sp & stack_mask(c);
    return size == 8 ? read64(c, i, SEG_SS, at) : size == 4 ? read32(c, i, SEG_SS, at) : read16(c, i, SEG_SS, at);
}

static void stack_write(Cpu *c, const Insn *i, uint64_t sp, unsigned size, uint64_t value)
{
    uint64_t at = sp & stack_mask(c);
    if (size == 8)
        write64(c, i, SEG_SS, at, value);
    else if (size == 4)
        write32(c, i, SEG_SS, at, (uint32_t)value);
    else
        write16(c, i, SEG_SS, at, (uint16_t)value);
}

/* Raises what a write of the stack at `sp` would raise. */
static void stack_probe(Cpu *c, const Insn *i, uint64_t sp, unsigned size)
{
    mem_probe_write(c, i, SEG_SS, mem_linear(c, i, SEG_SS, sp & stack_mask(c), size, true), size);
}

static void stack_probe_read(Cpu *c, const Insn *i, uint64_t sp, unsigned size)
{
    mem_probe_read(c, i, SEG_SS, mem_linear(c, i, SEG_SS, sp & stack_mask(c), size, false), size);
}

EXEC(pusha_any)
{
    unsigned size = i->osize;
    uint64_t sp = c->gpr[RSP];
    stack_probe(c, i, sp - 8 * size, size);
    for (unsigned n = RAX; n <= RDI; n++)
        stack_write(c, i, sp - (n + 1) * size, size, c->gpr[n]);
    set_sp(c, sp - 8 * size);
    NEXT();
}
ONE(pusha, pusha_any)

EXEC(popa_any)
{
    unsigned size = i->osize;
    uint64_t sp = c->gpr[RSP], value[8];
    for (unsigned n = 0; n < 8; n++)
        value[n] = stack_read(c, i, sp + n * size, size);
    set_sp(c, sp + 8 * size);
    for (unsigned n = 0; n < 8; n++)
        if (RDI - n != RSP)
            set_reg(c, RDI - n, size, value[n]);
    NEXT();
}
ONE(popa, popa_any)

EXEC(enter_any)
{
    unsigned size = i->osize, level = i->imm2 & 31;
    uint64_t sp = c->gpr[RSP] - size, bp = c->gpr[RBP], frame = sp;
    stack_probe(c, i, sp, size);
    for (unsigned n = 1; n < level; n++) { /* faults come in the order of the accesses, before the first of them */
        stack_probe_read(c, i, bp - n * size, size);
        stack_probe(c, i, sp - n * size, size);
    }
    if (level)
        stack_probe(c, i, sp - level * size, size);
    stack_probe(c, i, sp - level * size - (uint16_t)i->imm, 1);
    stack_write(c, i, sp, size, bp);
    for (unsigned n = 1; n < level; n++) {
        bp -= size;
        sp -= size;
        stack_write(c, i, sp, size, stack_read(c, i, bp, size));
    }
    if (level) {
        sp -= size;
        stack_write(c, i, sp, size, frame);
    }
    set_sp(c, sp - (uint16_t)i->imm);
    /* Of the frame pointer the stack's address size counts, then the operand size. */
    frame = stack_mask(c) == 0xffff ? (c->gpr[RSP] & ~0xffffull) | (frame & 0xffff) : frame & stack_mask(c);
    set_reg(c, RBP, size, frame);
    NEXT();
}
ONE(enter, enter_any)

EXEC(leave_any)
{
    uint64_t bp = c->gpr[RBP], v = stack_read(c, i, bp, i->osize);
    set_sp(c, (bp & stack_mask(c)) + i->osize);
    set_reg(c, RBP, i->osize, v);
    NEXT();
}
EXEC(leave_64)
{
    uint64_t bp = c->gpr[RBP], v = read64_linear(c, i, SEG_SS, bp);
    c->gpr[RSP] = bp + 8;
    c->gpr[RBP] = v;
    NEXT();
}
SIZES(leave, leave_any, leave_any, leave_64)
