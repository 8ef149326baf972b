/* General registers by operand width in bits, for handlers specialised by macros. */
#ifndef KP_EXEC_INT_H
#define KP_EXEC_INT_H

#include "block.h"
#include "exec.h"

#define GET8(n) REG8(n)
#define GET16(n) REG16(n)
#define GET32(n) REG32(n)
#define GET64(n) REG64(n)
#define SET8(n, v) (REG8(n) = (uint8_t)(v))
#define SET16(n, v) (REG16(n) = (uint16_t)(v))
#define SET32(n, v) (c->gpr[n] = (uint32_t)(v))
#define SET64(n, v) (c->gpr[n] = (v))

#define UINT(bits) uint##bits##_t
#define INT(bits) int##bits##_t

/* A handler with a register form and a memory form, by width: arrays from functions NAME_r8 .. NAME_m64. */
#define EXEC_BYTE(id, r, m) REG_MEM(id, r, m)
#define EXEC_WIDE(id, r, m) REG_MEM_SIZES(id, r##16, r##32, r##64, m##16, m##32, m##64)
/* The same for a register alone. */
#define EXEC_WIDE_REG(id, r) SIZES(id, r##16, r##32, r##64)

/* Memory forms twice: by the TLB where the operand is plain RAM, and the slow way with all checks. As the slow way is a tail
   call, the fast one needs no stack frame, and a read-modify-write looks the page up once. The operand's value is `m`. */
#define EXEC_SLOW(name) __attribute__((noinline, cold)) static const Insn *name(Cpu *c, const Insn *i)
#define IN_RAM(address, bits, tag, slow) \
    const uint64_t at = (address); \
    const TlbEntry *const entry = tlb_entry(c, at); \
    if (unlikely(entry->tag != TLB_TAG(at, bits / 8))) \
        return slow(c, i); \
    uint8_t *const ram = (uint8_t *)(uintptr_t)(at + entry->addend)
#define OPERAND_IN_RAM(bits, tag, slow) \
    if (unlikely(i->flags & INSN_CHECK)) \
        return slow(c, i); \
    IN_RAM(mem_offset(c, i) + c->seg_base[i->seg], bits, tag, slow)
#define EXEC_LOAD(name, bits, ...) \
    EXEC_SLOW(name##_slow) \
    { \
        UINT(bits) m = load##bits(c, i); \
        __VA_ARGS__; \
        NEXT(); \
    } \
    EXEC(name) \
    { \
        OPERAND_IN_RAM(bits, read, name##_slow); \
        UINT(bits) m; \
        memcpy(&m, ram, bits / 8); \
        __VA_ARGS__; \
        NEXT(); \
    }
#define EXEC_STORE(name, bits, value) \
    EXEC_SLOW(name##_slow) \
    { \
        store##bits(c, i, value); \
        NEXT(); \
    } \
    EXEC(name) \
    { \
        OPERAND_IN_RAM(bits, write, name##_slow); \
        UINT(bits) m = (value); \
        memcpy(ram, &m, bits / 8); \
        NEXT(); \
    }
/* compute: makes r of m; after: what follows the write. */
#define EXEC_UPDATE(name, bits, compute, after) \
    EXEC_SLOW(name##_slow) \
    { \
        uint64_t at; \
        UINT(bits) m = load_for_store##bits(c, i, &at); \
        compute; \
        write##bits##_linear(c, i, i->seg, at, r); \
        after; \
        NEXT(); \
    } \
    EXEC(name) \
    { \
        OPERAND_IN_RAM(bits, write, name##_slow); \
        UINT(bits) m; \
        memcpy(&m, ram, bits / 8); \
        compute; \
        memcpy(ram, &r, bits / 8); \
        after; \
        NEXT(); \
    }

/* Instantiates a macro of a width for all of them. */
#define FOR_WIDTHS(M) M(8) M(16) M(32) M(64)
#define FOR_WIDE(M) M(16) M(32) M(64)

/* X(name, number) for each of Jcc's, SETcc's and CMOVcc's conditions (SDM 1 appendix B). */
#define CONDITIONS(X) \
    X(o, 0) X(no, 1) X(b, 2) X(ae, 3) X(e, 4) X(ne, 5) X(be, 6) X(a, 7) X(s, 8) X(ns, 9) X(p, 10) X(np, 11) X(l, 12) X(ge, 13) X(le, 14) X(g, 15)

#endif
