/* What the files of exec_<id> functions are written with. */
#ifndef KP_EXEC_H
#define KP_EXEC_H

#include "flags.h"
#include "insn.h"
#include "mem.h"

/* Tail calls keep the dispatch inside the handlers; builds without sibling-call optimisation (sanitizers, -O0) return to
   the loop in run.c instead, with the same meaning. */
#ifdef KP_NO_TAIL_CALLS
#define NEXT() return i + 1
#define GOTO(insn) return (insn)
#else
#define NEXT() return i[1].exec(c, i + 1)
#define GOTO(insn) do { const Insn *to_ = (insn); return to_->exec(c, to_); } while (0)
#endif

/* Ends the block, execution goes on at `to` (an offset in CS, already cut to size); events are looked at. */
#define LEAVE_AT(to) do { c->rip = (to); return NULL; } while (0)
/* Ends the block after an instruction that changed mode, mappings or the like and does not jump. */
#define LEAVE() LEAVE_AT(i->next_rip)

#define EXEC(name) static const Insn *name(Cpu *c, const Insn *i)

/* A handler whose body ends where the next instruction begins: were a local variable still alive there whose address was
   passed on, the compiler would make no tail call of it. */
#define EXEC_VOID(name) \
    HOT_INLINE void name##_body(Cpu *c, const Insn *i); \
    EXEC(name) \
    { \
        name##_body(c, i); \
        NEXT(); \
    } \
    HOT_INLINE void name##_body(Cpu *c __attribute__((unused)), const Insn *i __attribute__((unused)))

/* The exec_<id> array of an instruction with one meaning for every size. */
#define ONE(id, fn) const exec_fn exec_##id[8] = {fn, fn, fn, fn, fn, fn, fn, fn};
/* Register and memory forms. */
#define REG_MEM(id, r, m) const exec_fn exec_##id[8] = {r, r, r, r, m, m, m, m};
/* By operand size 16, 32, 64, same for register and memory. */
#define SIZES(id, w, d, q) const exec_fn exec_##id[8] = {d, w, d, q, d, w, d, q};
#define REG_MEM_SIZES(id, rw, rd, rq, mw, md, mq) const exec_fn exec_##id[8] = {rd, rw, rd, rq, md, mw, md, mq};

/* General registers. A 32-bit write clears the upper half; 8- and 16-bit writes keep the rest. */
#define REG8(n) (((uint8_t *)c->gpr)[n]) /* n: byte offset, as the decoder stores it */
#define REG16(n) (*(uint16_t __attribute__((may_alias)) *)&c->gpr[n])
#define REG32(n) (*(uint32_t __attribute__((may_alias)) *)&c->gpr[n]) /* to read */
#define REG64(n) (c->gpr[n])
static inline void set_reg32(Cpu *c, unsigned n, uint32_t v) { c->gpr[n] = v; }
/* By operand size in bytes. */
static inline uint64_t get_reg(const Cpu *c, unsigned n, unsigned size)
{
    return size == 8 ? c->gpr[n] : size == 4 ? (uint32_t)c->gpr[n] : (uint16_t)c->gpr[n];
}
static inline void set_reg(Cpu *c, unsigned n, unsigned size, uint64_t v)
{
    if (size == 8)
        c->gpr[n] = v;
    else if (size == 4)
        c->gpr[n] = (uint32_t)v;
    else
        REG16(n) = (uint16_t)v;
}

/* #NM or #UD of the FPU and vector units, before anything else of the instruction. */
#define CHECK_X87() do { if (unlikely(c->deny_x87 != EXC_NONE)) raise_fault(c, i, c->deny_x87); } while (0)
#define CHECK_MMX() do { if (unlikely(c->deny_mmx != EXC_NONE)) raise_fault(c, i, c->deny_mmx); } while (0)
#define CHECK_SSE() do { if (unlikely(c->deny_sse != EXC_NONE)) raise_fault(c, i, c->deny_sse); } while (0)
#define CHECK_AVX() do { if (unlikely(c->deny_avx != EXC_NONE)) raise_fault(c, i, c->deny_avx); } while (0)
#define CHECK_CPL0() do { if (unlikely(c->cpl != 0)) raise_gp0(c, i); } while (0)

#endif
