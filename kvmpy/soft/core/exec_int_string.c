/* MOVS, CMPS, SCAS, LODS, STOS, alone and repeated. Registers advance element by element, so that a fault or an interrupt
   finds them as between two iterations; where elements lie in plain RAM, a run of them is done at once. */
#include "exec_int.h"

#define REPEATED(i) ((i)->prefix & (PFX_REP | PFX_REPNE))

/* Elements that count as one instruction: where more are left, the next ones are another, at the same RIP. Interrupts come between. */
#define STRETCH 4096
/* Of these instructions at most so many more are begun at once. */
#define AHEAD 15
/* They leave this of the budget: translated code goes on without a look at it, to the end of a region and into the next block. */
#define RESERVE (2 * BLOCK_MAX)

#define SI (c->gpr[RSI] & i->amask)
#define DI (c->gpr[RDI] & i->amask)

static inline void set_index(Cpu *c, const Insn *i, unsigned n, uint64_t v)
{
    if (i->amask == 0xffff)
        REG16(n) = (uint16_t)v;
    else
        c->gpr[n] = v & i->amask;
}

static inline uint64_t own_rip(const Cpu *c, const Insn *i)
{
    uint64_t rip = i->next_rip - i->len;
    return in_64bit(c) ? rip : (c->mode & MODE_SIZE) == MODE_32 ? rip & 0xffffffff : rip & 0xffff;
}

/* By how much the index registers move for `count` elements. */
static inline uint64_t distance(const Cpu *c, uint64_t count, unsigned size) { return c->eflags & FL_DF ? 0 - count * size : count * size; }

HOT_INLINE uint64_t read_element(Cpu *c, const Insn *i, unsigned seg, uint64_t offset, unsigned size)
{
    switch (size) {
    case 1: return read8(c, i, seg, offset);
    case 2: return read16(c, i, seg, offset);
    case 4: return read32(c, i, seg, offset);
    default: return read64(c, i, seg, offset);
    }
}

HOT_INLINE void write_element(Cpu *c, const Insn *i, uint64_t offset, uint64_t value, unsigned size)
{
    switch (size) {
    case 1: write8(c, i, SEG_ES, offset, (uint8_t)value); break;
    case 2: write16(c, i, SEG_ES, offset, (uint16_t)value); break;
    case 4: write32(c, i, SEG_ES, offset, (uint32_t)value); break;
    default: write64(c, i, SEG_ES, offset, value); break;
    }
}

HOT_INLINE uint64_t rax_element(const Cpu *c, unsigned size) { return size == 1 ? c->gpr[RAX] & 0xff : get_reg(c, RAX, size); }

HOT_INLINE void set_rax_element(Cpu *c, uint64_t value, unsigned size)
{
    if (size == 1)
        REG8(RAX) = (uint8_t)value;
    else
        set_reg(c, RAX, size, value);
}

HOT_INLINE void compare(Cpu *c, uint64_t a, uint64_t b, unsigned size)
{
    uint64_t mask = size == 8 ? ~0ull : (1ull << 8 * size) - 1;
    cc_set(c, size == 1 ? CC_SUB8 : size == 2 ? CC_SUB16 : size == 4 ? CC_SUB32 : CC_SUB64, (a - b) & mask, b);
}

HOT_INLINE void movs_once(Cpu *c, const Insn *i, unsigned size)
{
    uint64_t step = distance(c, 1, size), si = SI, di = DI;
    write_element(c, i, di, read_element(c, i, i->seg, si, size), size);
    set_index(c, i, RSI, si + step);
    set_index(c, i, RDI, di + step);
}

HOT_INLINE void stos_once(Cpu *c, const Insn *i, unsigned size)
{
    uint64_t di = DI;
    write_element(c, i, di, rax_element(c, size), size);
    set_index(c, i, RDI, di + distance(c, 1, size));
}

HOT_INLINE void lods_once(Cpu *c, const Insn *i, unsigned size)
{
    uint64_t si = SI;
    set_rax_element(c, read_element(c, i, i->seg, si, size), size);
    set_index(c, i, RSI, si + distance(c, 1, size));
}

HOT_INLINE void scas_once(Cpu *c, const Insn *i, unsigned size)
{
    uint64_t di = DI, b = read_element(c, i, SEG_ES, di, size);
    set_index(c, i, RDI, di + distance(c, 1, size));
    compare(c, rax_element(c, size), b, size);
}

HOT_INLINE void cmps_once(Cpu *c, const Insn *i, unsigned size)
{
    uint64_t step = distance(c, 1, size), si = SI, di = DI;
    uint64_t a = read_element(c, i, i->seg, si, size), b = read_element(c, i, SEG_ES, di, size);
    set_index(c, i, RSI, si + step);
    set_index(c, i, RDI, di + step);
    compare(c, a, b, size);
}

/* ---- runs of elements in plain RAM ---- */

/* Of `*count` elements from `offset` on, in the direction of DF, those that lie in plain RAM side by side also in the host: their
   number in *count, the host address of the first one. 0: the first one is no such. */
HOT_INLINE uint8_t *run_of(const Cpu *c, const Insn *i, unsigned seg, uint64_t offset, uint64_t *count, unsigned size, bool write)
{
    uint64_t linear = offset + c->seg_base[seg], in_page = linear & 0xfff, room;
    const TlbEntry *e = tlb_entry(c, linear);
    uint8_t *host = (uint8_t *)(uintptr_t)(linear + e->addend);
    if (i->flags & INSN_CHECK || (write ? e->write : e->read) != linear - in_page || in_page + size > 0x1000) {
        *count = 0;
    } else if (c->eflags & FL_DF) {
        room = (in_page < offset ? in_page : offset) / size + 1;
        *count = room < *count ? room : *count;
    } else {
        uint64_t bytes = 0x1000 - in_page, before_wrap = i->amask - offset;
        while (bytes < *count * size) {
            const TlbEntry *next = tlb_entry(c, linear + bytes);
            if ((write ? next->write : next->read) != linear + bytes || next->addend != e->addend)
                break;
            bytes += 0x1000;
        }
        room = (before_wrap < bytes - 1 ? before_wrap + 1 : bytes) / size;
        *count = room < *count ? room : *count;
    }
    return host;
}

/* The same for both operands of MOVS and CMPS. */
HOT_INLINE uint64_t runs_of(const Cpu *c, const Insn *i, uint64_t count, unsigned size, bool write, uint8_t **source, uint8_t **target)
{
    *source = run_of(c, i, i->seg, SI, &count, size, false);
    if (count)
        *target = run_of(c, i, SEG_ES, DI, &count, size, write);
    return count;
}

HOT_INLINE uint64_t load_element(const uint8_t *p, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, p, size);
    return v;
}

/* As the processor does it, element by element upwards. */
HOT_INLINE void copy_upwards(uint8_t *to, const uint8_t *from, uint64_t count, unsigned size)
{
#ifdef __x86_64__
    switch (size) {
    case 1: __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    case 2: __asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    case 4: __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    default: __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory"); break;
    }
#else
    for (uint64_t k = 0; k < count * size; k += size) {
        uint64_t v = load_element(from + k, size);
        memcpy(to + k, &v, size);
    }
#endif
}

/* These do up to `count` elements at once, and give how many; 0: the next one has to be done alone. */

HOT_INLINE uint64_t movs_run(Cpu *c, const Insn *i, uint64_t count, unsigned size)
{
    uint8_t *from, *to;
    uint64_t n = runs_of(c, i, count, size, true, &from, &to), bytes = n * size;
    if (!n)
        return 0;
    bool down = c->eflags & FL_DF;
    uint64_t ahead = down ? (uintptr_t)from - (uintptr_t)to : (uintptr_t)to - (uintptr_t)from;
    if (ahead < bytes && ahead) { /* what is written is read again */
        if (down)
            return 0;
        copy_upwards(to, from, n, size);
    } else if (ahead) {
        memmove(down ? to + size - bytes : to, down ? from + size - bytes : from, bytes);
    }
    set_index(c, i, RSI, SI + distance(c, n, size));
    set_index(c, i, RDI, DI + distance(c, n, size));
    return n;
}

HOT_INLINE uint64_t stos_run(Cpu *c, const Insn *i, uint64_t count, unsigned size)
{
    uint64_t n = count, value = rax_element(c, size), low = value & 0xff;
    uint8_t *to = run_of(c, i, SEG_ES, DI, &n, size, true);
    if (!n)
        return 0;
    if (c->eflags & FL_DF)
        to -= (n - 1) * size;
    if (size == 1 || value == (size == 8 ? ~0ull : (1ull << 8 * size) - 1) / 0xff * low) {
        memset(to, (int)low, n * size);
    } else {
#ifdef __x86_64__
        uint64_t left = n;
        switch (size) {
        case 2: __asm__ volatile("rep stosw" : "+D"(to), "+c"(left) : "a"(value) : "memory"); break;
        case 4: __asm__ volatile("rep stosl" : "+D"(to), "+c"(left) : "a"(value) : "memory"); break;
        default: __asm__ volatile("rep stosq" : "+D"(to), "+c"(left) : "a"(value) : "memory"); break;
        }
#else
        for (uint64_t k = 0; k < n; k++)
            memcpy(to + k * size, &value, size);
#endif
    }
    set_index(c, i, RDI, DI + distance(c, n, size));
    return n;
}

HOT_INLINE uint64_t lods_run(Cpu *c, const Insn *i, uint64_t count, unsigned size)
{
    uint64_t n = count;
    const uint8_t *from = run_of(c, i, i->seg, SI, &n, size, false);
    if (!n)
        return 0;
    set_rax_element(c, load_element(from + (int64_t)distance(c, n - 1, size), size), size);
    set_index(c, i, RSI, SI + distance(c, n, size));
    return n;
}

/* Comparisons go on while ZF is `zf`: at most one element that ends it is the last of the run. */

HOT_INLINE uint64_t scas_run(Cpu *c, const Insn *i, uint64_t count, unsigned size, unsigned zf)
{
    uint64_t n = count, a = rax_element(c, size), b, k = 0;
    const uint8_t *at = run_of(c, i, SEG_ES, DI, &n, size, false);
    if (!n)
        return 0;
    int64_t step = (int64_t)distance(c, 1, size);
    if (size == 1 && !zf && step > 0) {
        const uint8_t *found = memchr(at, (int)a, n);
        k = found ? (uint64_t)(found - at) : n - 1;
    }
    do {
        b = load_element(at + (int64_t)k * step, size);
        k++;
    } while (k < n && (a == b) == zf);
    set_index(c, i, RDI, DI + distance(c, k, size));
    compare(c, a, b, size);
    return k;
}

HOT_INLINE uint64_t cmps_run(Cpu *c, const Insn *i, uint64_t count, unsigned size, unsigned zf)
{
    uint8_t *first, *second;
    uint64_t n = runs_of(c, i, count, size, false, &first, &second), a, b, k = 0;
    if (!n)
        return 0;
    int64_t step = (int64_t)distance(c, 1, size);
    if (zf && step > 0) /* the last one is compared below in any case */
        while (k + 8 / size < n && load_element(first + k * size, 8) == load_element(second + k * size, 8))
            k += 8 / size;
    do {
        a = load_element(first + (int64_t)k * step, size);
        b = load_element(second + (int64_t)k * step, size);
        k++;
    } while (k < n && (a == b) == zf);
    set_index(c, i, RSI, SI + distance(c, k, size));
    set_index(c, i, RDI, DI + distance(c, k, size));
    compare(c, a, b, size);
    return k;
}

/* ---- repetition ---- */

/* What is left to do of a repeated instruction, and how much of that belongs to the instruction that is counted now. */
typedef struct {
    uint64_t left, stretch;
} Repeat;

/* Run alone (devices, single-stepping, watchpoints) each iteration is an instruction of its own. */
static inline uint64_t stretch_of(const Cpu *c, uint64_t left)
{
    uint64_t most = c->alone ? 1 : STRETCH;
    return left < most ? left : most;
}

/* May the next instruction begin without a look at events and at the code? */
static inline bool undisturbed(const Cpu *c, const Insn *i) { return !c->alone && i->block && !c->attention && i->block->mode != ~0u; }

/* How many elements may be done at once. */
static inline uint64_t allowed(const Cpu *c, const Insn *i, const Repeat *r)
{
    int64_t spare = c->budget - RESERVE;
    if (r->left == r->stretch || spare <= 0 || !undisturbed(c, i))
        return r->stretch;
    uint64_t most = r->stretch + STRETCH * (uint64_t)(spare < AHEAD ? spare : AHEAD);
    return r->left < most ? r->left : most;
}

/* Takes elements that are done off; those beyond the stretch were further instructions. */
static inline void advance(Cpu *c, const Insn *i, Repeat *r, uint64_t done)
{
    if (unlikely(done > r->stretch)) {
        uint64_t more = 1 + (done - r->stretch - 1) / STRETCH;
        c->budget -= (int64_t)more;
        r->stretch += more * STRETCH;
    }
    r->stretch -= done;
    r->left -= done;
    if (r->stretch > r->left)
        r->stretch = r->left;
    set_index(c, i, RCX, r->left);
}

/* The stretch is done and more is left: is it to be continued here? */
static inline bool go_on(Cpu *c, const Insn *i, Repeat *r)
{
    if (c->budget <= RESERVE || !undisturbed(c, i))
        return false;
    c->budget--;
    r->stretch = stretch_of(c, r->left);
    return true;
}

#define REPEAT(run, once, ends) \
    do { \
        Repeat r = {.left = c->gpr[RCX] & i->amask}; \
        r.stretch = stretch_of(c, r.left); \
        while (r.left) { \
            uint64_t done = c->alone ? 0 : run; \
            if (!done) { \
                once; \
                done = 1; \
            } \
            advance(c, i, &r, done); \
            if (ends) \
                break; \
            if (r.left && !r.stretch && !go_on(c, i, &r)) \
                LEAVE_EARLY_AT(own_rip(c, i)); \
        } \
        NEXT(); \
    } while (0)

/* REPE goes on while ZF is 1, REPNE while it is 0. */
#define WHILE_ZF (i->prefix & PFX_REP ? 1u : 0u)

#define STRING(bits) \
    MOVING(movs, bits) \
    MOVING(stos, bits) \
    MOVING(lods, bits) \
    COMPARING(scas, bits) \
    COMPARING(cmps, bits)
#define MOVING(op, bits) \
    EXEC(op##_##bits) \
    { \
        if (REPEATED(i)) \
            REPEAT(op##_run(c, i, allowed(c, i, &r), bits / 8), op##_once(c, i, bits / 8), false); \
        op##_once(c, i, bits / 8); \
        NEXT(); \
    }
#define COMPARING(op, bits) \
    EXEC(op##_##bits) \
    { \
        if (REPEATED(i)) \
            REPEAT(op##_run(c, i, allowed(c, i, &r), bits / 8, WHILE_ZF), op##_once(c, i, bits / 8), cc_zf(c) != WHILE_ZF); \
        op##_once(c, i, bits / 8); \
        NEXT(); \
    }
FOR_WIDTHS(STRING)
ONE(movs_b, movs_8)
EXEC_WIDE_REG(movs_v, movs_)
ONE(stos_b, stos_8)
EXEC_WIDE_REG(stos_v, stos_)
ONE(lods_b, lods_8)
EXEC_WIDE_REG(lods_v, lods_)
ONE(scas_b, scas_8)
EXEC_WIDE_REG(scas_v, scas_)
ONE(cmps_b, cmps_8)
EXEC_WIDE_REG(cmps_v, cmps_)
