/* The guest's memory as instructions reach it: effective address, segment checks, paging through the TLB, RAM or device.
   Every function here raises the fault itself; a write is checked whole before any byte of it changes. */
#ifndef KP_MEM_H
#define KP_MEM_H

#include "cpu.h"
#include "insn.h"

/* Offset of the ModRM memory operand. */
HOT_INLINE uint64_t mem_offset(const Cpu *c, const Insn *i)
{
    return (c->gpr[i->base] + (c->gpr[i->index] << i->scale) + i->disp) & i->amask;
}

/* mem.c: segment limit, type, canonical checks; gives the linear address. */
uint64_t mem_check(Cpu *c, const Insn *i, unsigned seg, uint64_t offset, unsigned size, bool write);

/* Linear address of `size` bytes at seg:offset. */
HOT_INLINE uint64_t mem_linear(Cpu *c, const Insn *i, unsigned seg, uint64_t offset, unsigned size, bool write)
{
    if (unlikely(i->flags & INSN_CHECK))
        return mem_check(c, i, seg, offset, size, write);
    return offset + c->seg_base[seg]; /* canonical: the TLB holds no other address, the slow path raises */
}

/* mem.c: slow paths by linear address: TLB fill, page crossing, devices, alignment check. `seg` chooses #SS or #GP for
   addresses that are not canonical. */
uint64_t mem_read_slow(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size);
void mem_write_slow(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size, uint64_t value);
uint64_t mem_read_for_write_slow(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size);
/* Walks for a load or store of translated code at an address that the TLB does not hold, and raises nothing. With ACCESS_UNMARKED the
   access may not come. NULL: the instruction's handler must see to it; it faults, or the page has no fast way. */
const TlbEntry *mem_fill(Cpu *c, uint64_t linear, int access);
/* Any size up to 4096; like the above. Used by 16- and 32-byte operands, FXSAVE and their like. */
void mem_read_bytes(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, void *to, unsigned size);
void mem_write_bytes(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, const void *from, unsigned size);
/* Raise what a read or a write of the range would raise, and make none. */
void mem_probe_read(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size);
void mem_probe_write(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size);
/* Implicit supervisor accesses (descriptor tables, TSS): by linear address, with CPL 0 rights whatever the CPL. */
uint64_t sys_read(Cpu *c, const Insn *i, uint64_t linear, unsigned size);
void sys_write(Cpu *c, const Insn *i, uint64_t linear, unsigned size, uint64_t value);

HOT_INLINE TlbEntry *tlb_entry(const Cpu *c, uint64_t linear) { return &c->tlb[linear >> 12 & (TLB_SIZE - 1)]; }

/* Page of an access's last byte: where it is not the first byte's page, the tag compare fails, as the entry found by the
   first byte can never hold the page after it. */
#define TLB_TAG(linear, size) (((linear) + ((size) - 1)) & ~0xfffull)

#define DEFINE_ACCESS(bits) \
    HOT_INLINE uint##bits##_t read##bits##_linear(Cpu *c, const Insn *i, unsigned seg, uint64_t linear) \
    { \
        const TlbEntry *e = tlb_entry(c, linear); \
        if (likely(e->read == TLB_TAG(linear, bits / 8))) { \
            uint##bits##_t v; \
            memcpy(&v, (const void *)(uintptr_t)(linear + e->addend), bits / 8); \
            return v; \
        } \
        return (uint##bits##_t)mem_read_slow(c, i, seg, linear, bits / 8); \
    } \
    HOT_INLINE void write##bits##_linear(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, uint##bits##_t v) \
    { \
        const TlbEntry *e = tlb_entry(c, linear); \
        if (likely(e->write == TLB_TAG(linear, bits / 8))) { \
            memcpy((void *)(uintptr_t)(linear + e->addend), &v, bits / 8); \
            return; \
        } \
        mem_write_slow(c, i, seg, linear, bits / 8, v); \
    } \
    /* Read half of a read-modify-write: raises what the write would raise. Follow it with write##bits of the same place. */ \
    HOT_INLINE uint##bits##_t read_for_write##bits##_linear(Cpu *c, const Insn *i, unsigned seg, uint64_t linear) \
    { \
        const TlbEntry *e = tlb_entry(c, linear); \
        if (likely(e->write == TLB_TAG(linear, bits / 8))) { \
            uint##bits##_t v; \
            memcpy(&v, (const void *)(uintptr_t)(linear + e->addend), bits / 8); \
            return v; \
        } \
        return (uint##bits##_t)mem_read_for_write_slow(c, i, seg, linear, bits / 8); \
    } \
    /* By segment and offset, with all checks. */ \
    HOT_INLINE uint##bits##_t read##bits(Cpu *c, const Insn *i, unsigned seg, uint64_t offset) \
    { \
        return read##bits##_linear(c, i, seg, mem_linear(c, i, seg, offset, bits / 8, false)); \
    } \
    HOT_INLINE void write##bits(Cpu *c, const Insn *i, unsigned seg, uint64_t offset, uint##bits##_t v) \
    { \
        write##bits##_linear(c, i, seg, mem_linear(c, i, seg, offset, bits / 8, true), v); \
    } \
    /* The ModRM memory operand. */ \
    HOT_INLINE uint##bits##_t load##bits(Cpu *c, const Insn *i) { return read##bits(c, i, i->seg, mem_offset(c, i)); } \
    HOT_INLINE void store##bits(Cpu *c, const Insn *i, uint##bits##_t v) { write##bits(c, i, i->seg, mem_offset(c, i), v); } \
    HOT_INLINE uint##bits##_t load_for_store##bits(Cpu *c, const Insn *i, uint64_t *linear) \
    { \
        *linear = mem_linear(c, i, i->seg, mem_offset(c, i), bits / 8, true); \
        return read_for_write##bits##_linear(c, i, i->seg, *linear); \
    }
DEFINE_ACCESS(8)
DEFINE_ACCESS(16)
DEFINE_ACCESS(32)
DEFINE_ACCESS(64)
#undef DEFINE_ACCESS

/* Vector-sized operands: 16 or 32 bytes with a fast path inside one page. */
static inline void read_vec_linear(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, void *to, unsigned size)
{
    const TlbEntry *e = tlb_entry(c, linear);
    if (likely(e->read == (linear & ~0xfffull) && (linear & 0xfff) + size <= 0x1000))
        memcpy(to, (const void *)(uintptr_t)(linear + e->addend), size);
    else
        mem_read_bytes(c, i, seg, linear, to, size);
}
static inline void write_vec_linear(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, const void *from, unsigned size)
{
    const TlbEntry *e = tlb_entry(c, linear);
    if (likely(e->write == (linear & ~0xfffull) && (linear & 0xfff) + size <= 0x1000))
        memcpy((void *)(uintptr_t)(linear + e->addend), from, size);
    else
        mem_write_bytes(c, i, seg, linear, from, size);
}
/* The ModRM memory operand; aligned: #GP(0) where it is not on a multiple of `size` (legacy SSE operands, MOVAPS). */
static inline void load_vec(Cpu *c, const Insn *i, void *to, unsigned size, bool aligned)
{
    uint64_t linear = mem_linear(c, i, i->seg, mem_offset(c, i), size, false);
    if (aligned && unlikely(linear & (size - 1)))
        raise_gp0(c, i);
    read_vec_linear(c, i, i->seg, linear, to, size);
}
static inline void store_vec(Cpu *c, const Insn *i, const void *from, unsigned size, bool aligned)
{
    uint64_t linear = mem_linear(c, i, i->seg, mem_offset(c, i), size, true);
    if (aligned && unlikely(linear & (size - 1)))
        raise_gp0(c, i);
    write_vec_linear(c, i, i->seg, linear, from, size);
}

/* Stack, by its own address size: 64-bit mode RSP, else ESP or SP by SS.B. */
static inline uint64_t stack_mask(const Cpu *c)
{
    return in_64bit(c) ? ~0ull : c->mode & MODE_SS32 ? 0xffffffffull : 0xffffull;
}
static inline void set_sp(Cpu *c, uint64_t sp)
{
    uint64_t mask = stack_mask(c);
    c->gpr[RSP] = mask == 0xffff ? (c->gpr[RSP] & ~mask) | (sp & mask) : sp & mask;
}

/* PUSH and POP of 2, 4 or 8 bytes: memory first, then the stack pointer. */
static inline void mem_push(Cpu *c, const Insn *i, unsigned size, uint64_t value)
{
    uint64_t sp = (c->gpr[RSP] - size) & stack_mask(c);
    uint64_t linear = c->mode & MODE_FLAT ? sp : mem_check(c, i, SEG_SS, sp, size, true);
    if (size == 8)
        write64_linear(c, i, SEG_SS, linear, value);
    else if (size == 4)
        write32_linear(c, i, SEG_SS, linear, (uint32_t)value);
    else
        write16_linear(c, i, SEG_SS, linear, (uint16_t)value);
    set_sp(c, sp);
}
static inline uint64_t mem_pop(Cpu *c, const Insn *i, unsigned size)
{
    uint64_t sp = c->gpr[RSP] & stack_mask(c);
    uint64_t linear = c->mode & MODE_FLAT ? sp : mem_check(c, i, SEG_SS, sp, size, false);
    uint64_t value = size == 8   ? read64_linear(c, i, SEG_SS, linear)
                     : size == 4 ? read32_linear(c, i, SEG_SS, linear)
                                 : read16_linear(c, i, SEG_SS, linear);
    set_sp(c, sp + size);
    return value;
}

#endif
