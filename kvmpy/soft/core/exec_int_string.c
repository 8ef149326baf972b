/* MOVS, CMPS, SCAS, LODS, STOS, alone and repeated. Registers advance element by element, so that a fault or an interrupt
   finds them as between two iterations. */
#include "exec_int.h"

#define REPEATED(i) ((i)->prefix & (PFX_REP | PFX_REPNE))

/* Elements after which a repeated instruction ends early, to be continued as a new instruction. */
#define STRETCH 4096

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

/* Iterations to do now. Run alone (devices, single-stepping, watchpoints) each is an instruction of its own. */
static inline uint64_t stretch(const Cpu *c, uint64_t count)
{
    uint64_t most = c->alone ? 1 : STRETCH;
    return count < most ? count : most;
}

#define FINISH_REPEAT(left) \
    do { \
        if (unlikely(left)) \
            LEAVE_EARLY_AT(own_rip(c, i)); \
        NEXT(); \
    } while (0)

/* How many elements from `offset` lie within the page of `linear` and before the offset wraps; 0 where the first crosses. */
static inline uint64_t in_page(const Insn *i, uint64_t offset, uint64_t linear, unsigned size)
{
    uint64_t room = 0x1000 - (linear & 0xfff), before_wrap = i->amask - offset;
    if (before_wrap < room - 1)
        room = before_wrap + 1;
    return room / size;
}

/* Host address of plain RAM at `linear`, or NULL. */
static inline uint8_t *ram_to_read(const Cpu *c, uint64_t linear)
{
    const TlbEntry *e = tlb_entry(c, linear);
    return e->read == (linear & ~0xfffull) ? (uint8_t *)(uintptr_t)(linear + e->addend) : NULL;
}
static inline uint8_t *ram_to_write(const Cpu *c, uint64_t linear)
{
    const TlbEntry *e = tlb_entry(c, linear);
    return e->write == (linear & ~0xfffull) ? (uint8_t *)(uintptr_t)(linear + e->addend) : NULL;
}

/* Copies up to `count` elements inside one page on each side; gives how many. */
static uint64_t bulk_copy(Cpu *c, const Insn *i, uint64_t from, uint64_t to, uint64_t count, unsigned size)
{
    if (c->eflags & FL_DF || i->flags & INSN_CHECK)
        return 0;
    uint64_t source = from + c->seg_base[i->seg], target = to + c->seg_base[SEG_ES];
    uint64_t n = in_page(i, from, source, size), m = in_page(i, to, target, size);
    n = n < m ? n : m;
    n = n < count ? n : count;
    const uint8_t *s = ram_to_read(c, source);
    uint8_t *d = ram_to_write(c, target);
    if (n == 0 || !s || !d)
        return 0;
    /* A target that starts inside the source sees what was written before it. */
    uint64_t distance = (uintptr_t)d - (uintptr_t)s, bytes = n * size;
    if (distance >= bytes || distance == 0)
        memmove(d, s, bytes);
    else
        for (uint64_t k = 0; k < bytes; k += size) {
            uint64_t v;
            memcpy(&v, s + k, size);
            memcpy(d + k, &v, size);
        }
    return n;
}

static uint64_t bulk_fill(Cpu *c, const Insn *i, uint64_t to, uint64_t count, unsigned size)
{
    if (c->eflags & FL_DF || i->flags & INSN_CHECK)
        return 0;
    uint64_t target = to + c->seg_base[SEG_ES], n = in_page(i, to, target, size), value = c->gpr[RAX];
    n = n < count ? n : count;
    uint8_t *d = ram_to_write(c, target);
    if (n == 0 || !d)
        return 0;
    if (size == 1) {
        memset(d, (int)(value & 0xff), n);
        return n;
    }
    value = size == 2 ? (value & 0xffff) * 0x0001000100010001ull : size == 4 ? (value & 0xffffffff) * 0x0000000100000001ull : value;
    uint64_t bytes = n * size, k = 0;
    for (; k + 8 <= bytes; k += 8)
        memcpy(d + k, &value, 8);
    if (k < bytes)
        memcpy(d + k, &value, bytes - k);
    return n;
}

#define STEP(bits) (c->eflags & FL_DF ? 0 - (uint64_t)(bits / 8) : (uint64_t)(bits / 8))
#define SI (c->gpr[RSI] & i->amask)
#define DI (c->gpr[RDI] & i->amask)

#define STRING(bits) \
    static inline void movs_once##bits(Cpu *c, const Insn *i) \
    { \
        uint64_t step = STEP(bits), si = SI, di = DI; \
        write##bits(c, i, SEG_ES, di, read##bits(c, i, i->seg, si)); \
        set_index(c, i, RSI, si + step); \
        set_index(c, i, RDI, di + step); \
    } \
    static inline void stos_once##bits(Cpu *c, const Insn *i) \
    { \
        uint64_t di = DI; \
        write##bits(c, i, SEG_ES, di, GET##bits(RAX)); \
        set_index(c, i, RDI, di + STEP(bits)); \
    } \
    static inline void lods_once##bits(Cpu *c, const Insn *i) \
    { \
        uint64_t si = SI; \
        SET##bits(RAX, read##bits(c, i, i->seg, si)); \
        set_index(c, i, RSI, si + STEP(bits)); \
    } \
    static inline void scas_once##bits(Cpu *c, const Insn *i) \
    { \
        uint64_t di = DI; \
        UINT(bits) a = GET##bits(RAX), b = read##bits(c, i, SEG_ES, di); \
        set_index(c, i, RDI, di + STEP(bits)); \
        cc_set(c, CC_SUB##bits, (UINT(bits))(a - b), b); \
    } \
    static inline void cmps_once##bits(Cpu *c, const Insn *i) \
    { \
        uint64_t step = STEP(bits), si = SI, di = DI; \
        UINT(bits) a = read##bits(c, i, i->seg, si), b = read##bits(c, i, SEG_ES, di); \
        set_index(c, i, RSI, si + step); \
        set_index(c, i, RDI, di + step); \
        cc_set(c, CC_SUB##bits, (UINT(bits))(a - b), b); \
    } \
    EXEC(movs_##bits) \
    { \
        if (!REPEATED(i)) { \
            movs_once##bits(c, i); \
            NEXT(); \
        } \
        uint64_t left = c->gpr[RCX] & i->amask; \
        for (uint64_t n = stretch(c, left); n;) { \
            uint64_t done = c->alone ? 0 : bulk_copy(c, i, SI, DI, n, bits / 8); \
            if (done) { \
                set_index(c, i, RSI, SI + done * (bits / 8)); \
                set_index(c, i, RDI, DI + done * (bits / 8)); \
            } else { \
                movs_once##bits(c, i); \
                done = 1; \
            } \
            n -= done; \
            left -= done; \
            set_index(c, i, RCX, left); \
        } \
        FINISH_REPEAT(left); \
    } \
    EXEC(stos_##bits) \
    { \
        if (!REPEATED(i)) { \
            stos_once##bits(c, i); \
            NEXT(); \
        } \
        uint64_t left = c->gpr[RCX] & i->amask; \
        for (uint64_t n = stretch(c, left); n;) { \
            uint64_t done = c->alone ? 0 : bulk_fill(c, i, DI, n, bits / 8); \
            if (done) { \
                set_index(c, i, RDI, DI + done * (bits / 8)); \
            } else { \
                stos_once##bits(c, i); \
                done = 1; \
            } \
            n -= done; \
            left -= done; \
            set_index(c, i, RCX, left); \
        } \
        FINISH_REPEAT(left); \
    } \
    EXEC(lods_##bits) \
    { \
        if (!REPEATED(i)) { \
            lods_once##bits(c, i); \
            NEXT(); \
        } \
        uint64_t left = c->gpr[RCX] & i->amask; \
        for (uint64_t n = stretch(c, left); n; n--) { \
            lods_once##bits(c, i); \
            set_index(c, i, RCX, --left); \
        } \
        FINISH_REPEAT(left); \
    } \
    COMPARING(scas, bits) \
    COMPARING(cmps, bits)
/* REPE goes on while ZF is 1, REPNE while it is 0. */
#define COMPARING(op, bits) \
    EXEC(op##_##bits) \
    { \
        if (!REPEATED(i)) { \
            op##_once##bits(c, i); \
            NEXT(); \
        } \
        unsigned while_zf = i->prefix & PFX_REP ? 1 : 0; \
        uint64_t left = c->gpr[RCX] & i->amask; \
        for (uint64_t n = stretch(c, left); n; n--) { \
            op##_once##bits(c, i); \
            set_index(c, i, RCX, --left); \
            if (cc_zf(c) != while_zf) \
                NEXT(); \
        } \
        FINISH_REPEAT(left); \
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
