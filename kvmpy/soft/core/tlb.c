/* The software TLB: what stands in it, its flushes, the address spaces of other PCIDs. SDM 3A 4.10.

   The tables hold global pages and the present PCID's. What they hold of a PCID that is left is parked, packed, and put back when
   MOV to CR3 comes back without a flush: so the check before an access knows nothing of PCIDs.

   Links between pages and what finds blocks by RIP hold under a generation, one for each privilege. Where a privilege has fetched
   code by global pages alone its generation is the same in all address spaces ("shared"), and no MOV to CR3 ends it. Else it is
   the PCID's own, parked with it. */
#include "parallel.h"
#include "system.h"
#include "vm.h"

#include <stdlib.h>

#define WAYS 4 /* shift of the second way's bits in tlb_used */
#define PARKED 12        /* address spaces: Linux uses six PCIDs of a vCPU in turn, twelve with page-table isolation */
#define PARKED_PAGES 256 /* of each, the last ones walked: a move costs a sixth of a walk, and most may not be wanted again */
#define NO_PCID 0x1000u

/* Cpu.code_own */
#define CODE_OWN(privilege) (1u << (privilege)) /* it has fetched by pages that are not global under its generation */
#define CODE_LARGE 4u    /* by such of more than 4 KiB too */
#define CODE_UNLOGGED 8u /* and the log does not know all of those */

/* An entry: its page with the tags it has, its table and the page's size in the low bits; the physical page with TLBF_*. */
typedef struct {
    uint64_t linear, phys, host;
} Packed;
#define PACKED_READ 1u
#define PACKED_WRITE 2u
#define PACKED_EXEC 4u
#define PACKED_TABLE(p) ((p)->linear >> 3 & 3)
#define PACKED_SHIFT(p) ((unsigned)(p)->linear >> 5 & 0x3f)

typedef struct {
    uint32_t pcid, count;
    uint64_t left; /* when it was */
    uint8_t code_own;
    uint64_t generation[2];
    uint64_t fetched[TLB_SIZE / 64];
    Packed page[PARKED_PAGES];
} Space;

struct Parked {
    uint64_t clock;
    Space space[PARKED];
};

static unsigned index_of(uint64_t linear) { return linear >> 12 & (TLB_SIZE - 1); }

static bool bit(const uint64_t *bits, unsigned n) { return bits[n >> 6] >> (n & 63) & 1; }
static void set_bit(uint64_t *bits, unsigned n) { bits[n >> 6] |= 1ull << (n & 63); }
static void clear_bit(uint64_t *bits, unsigned n) { bits[n >> 6] &= ~(1ull << (n & 63)); }

static uint32_t present_pcid(const Cpu *c) { return c->cr4 & CR4_PCIDE ? c->cr3 & 0xfff : 0; }

/* ---- generations ---- */

/* A number for a generation. In turns it is used once in the VM, since links hold it that all vCPUs share; vCPUs in parallel share none. */
static uint64_t next_generation(Cpu *c) { return c->parallel ? ++c->generations : ++c->vm->generation; }

static void use_generations(Cpu *c) { c->tlb_generation = c->generation[c->cpl == 3 ? CODE_USER : CODE_SUPERVISOR]; }

/* The address space's own generation ends. */
static void end_own(Cpu *c, unsigned privilege)
{
    if (c->generation[privilege] == c->shared_generation[privilege])
        c->shared_generation[privilege] = next_generation(c);
    c->generation[privilege] = c->shared_generation[privilege];
    c->code_own &= (uint8_t)~CODE_OWN(privilege);
}

/* Pages that are not global lead elsewhere. */
static void own_code_changed(Cpu *c)
{
    for (unsigned privilege = 0; privilege < 2; privilege++)
        if (c->code_own & CODE_OWN(privilege))
            end_own(c, privilege);
    c->code_own = 0;
    memset(c->tlb_log[TLB_OWN].fetched, 0, sizeof c->tlb_log[TLB_OWN].fetched);
    use_generations(c);
}

/* All generations of a privilege end, of parked address spaces too. */
static void end_all(Cpu *c, unsigned privilege)
{
    c->generation[privilege] = c->shared_generation[privilege] = next_generation(c);
    c->code_own &= (uint8_t)~CODE_OWN(privilege);
    for (unsigned n = 0; c->parked && n < PARKED; n++)
        c->parked->space[n].code_own &= (uint8_t)~CODE_OWN(privilege);
}

static void all_code_changed(Cpu *c)
{
    end_all(c, CODE_SUPERVISOR);
    end_all(c, CODE_USER);
    c->code_own = 0;
    for (unsigned n = 0; n < 2; n++)
        memset(c->tlb_log[n].fetched, 0, sizeof c->tlb_log[n].fetched);
    use_generations(c);
}

void tlb_code_moved(Cpu *c)
{
    end_all(c, c->cpl == 3 ? CODE_USER : CODE_SUPERVISOR);
    use_generations(c);
}

void tlb_fetched(Cpu *c, const TlbEntry *e)
{
    unsigned global = e->flags & TLBF_GLOBAL ? TLB_GLOBAL : TLB_OWN;
    set_bit(c->tlb_log[global].fetched, index_of(e->linear));
    if (global == TLB_OWN)
        c->code_own |= (uint8_t)(CODE_OWN(c->cpl == 3 ? CODE_USER : CODE_SUPERVISOR) | (e->shift > 12 ? CODE_LARGE : 0));
}

/* ---- entries ---- */

static TlbEntry *entry_at(Cpu *c, unsigned used, unsigned n) { return &c->tlb_table[used & (TLB_TABLES - 1)][(used / WAYS) * TLB_SIZE + n]; }

/* The bit in tlb_used of an entry of the first way. */
static uint8_t used_bit(const Cpu *c, const TlbEntry *e) { return (uint8_t)(1u << (size_t)(e - c->tlb_table[0]) / (2 * TLB_SIZE)); }

static void invalidate(TlbEntry *e, unsigned n)
{
    e->read = e->write = e->exec = tlb_no_tag(n);
    e->linear = TLB_INVALID;
}

/* Empties an index of the tables, of global pages too or not. */
static void invalidate_index(Cpu *c, unsigned n, bool global)
{
    unsigned kept = 0;
    for (unsigned used = c->tlb_used[n]; used; used &= used - 1) {
        unsigned k = (unsigned)__builtin_ctz(used);
        TlbEntry *e = entry_at(c, k, n);
        if (!global && e->flags & TLBF_GLOBAL && e->linear != TLB_INVALID)
            kept |= 1u << k;
        else
            invalidate(e, n);
    }
    c->tlb_used[n] = (uint8_t)kept;
}

/* Larger pages stand at the log's end, so that a flush of one page looks at them alone; of the others each index stands there once,
   however often it is filled. */
static void log_page(Cpu *c, uint64_t linear, unsigned shift, bool global)
{
    TlbLog *log = &c->tlb_log[global ? TLB_GLOBAL : TLB_OWN];
    unsigned n = index_of(linear);
    if (shift == 12 && bit(log->logged, n))
        return;
    if (log->small + log->large >= TLB_SIZE) {
        log->lost = true;
    } else if (shift == 12) {
        set_bit(log->logged, n);
        log->page[log->small++] = linear | shift;
    } else {
        log->page[TLB_SIZE - ++log->large] = linear | shift;
    }
}

void tlb_take(Cpu *c, TlbEntry *e, const TlbEntry *walked)
{
    uint64_t page = walked->linear;
    unsigned n = index_of(page);
    uint8_t used = used_bit(c, e);
    if (e->linear != page) {
        if (c->tlb_used[n] & used && e->linear != TLB_INVALID) {
            e[TLB_SIZE] = *e;
            c->tlb_used[n] |= (uint8_t)(used << WAYS);
        } else if (e[TLB_SIZE].linear == page) {
            invalidate(&e[TLB_SIZE], n);
        }
    }
    /* by parts, as they have just been stored: a processor waits where it loads several stores by one */
    e->read = e->write = e->exec = tlb_no_tag(n);
    e->addend = e->host = 0;
    e->linear = page;
    e->phys = walked->phys;
    e->flags = walked->flags;
    e->shift = walked->shift;
    c->tlb_used[n] |= used;
    log_page(c, page, walked->shift, walked->flags & TLBF_GLOBAL);
}

void tlb_swap_ways(Cpu *c, TlbEntry *e)
{
    TlbEntry first = *e;
    *e = e[TLB_SIZE];
    e[TLB_SIZE] = first;
    c->tlb_used[index_of(e->linear)] |= used_bit(c, e);
}

/* ---- flushes ---- */

static void forget_log(TlbLog *log)
{
    log->small = log->large = 0;
    log->lost = false;
    memset(log->logged, 0, sizeof log->logged);
}

static void forget_parked(Cpu *c)
{
    for (unsigned n = 0; c->parked && n < PARKED; n++)
        c->parked->space[n].pcid = NO_PCID;
}

void tlb_clear(Cpu *c)
{
    for (unsigned n = 0; n < TLB_SIZE; n++)
        invalidate_index(c, n, true);
    forget_log(&c->tlb_log[TLB_OWN]);
    forget_log(&c->tlb_log[TLB_GLOBAL]);
    forget_parked(c);
    all_code_changed(c);
}

void tlb_create(Cpu *c)
{
    /* Where a table was never used it is all zeros: page 0 would match, for an access to it, or one that wraps around into it. */
    c->tlb_used[0] = c->tlb_used[TLB_SIZE - 1] = 0xff;
    tlb_clear(c);
}

static void flush_log(Cpu *c, TlbLog *log, bool global)
{
    for (uint32_t n = 0; n < log->small; n++) {
        unsigned at = index_of(log->page[n]);
        invalidate_index(c, at, global);
        clear_bit(log->logged, at);
    }
    for (uint32_t n = 1; n <= log->large; n++)
        invalidate_index(c, index_of(log->page[TLB_SIZE - n]), global);
    log->small = log->large = 0;
}

void tlb_flush_all(Cpu *c)
{
    if (c->tlb_log[TLB_OWN].lost || c->tlb_log[TLB_GLOBAL].lost) {
        tlb_clear(c);
        return;
    }
    flush_log(c, &c->tlb_log[TLB_OWN], true);
    flush_log(c, &c->tlb_log[TLB_GLOBAL], true);
    forget_parked(c);
    all_code_changed(c);
}

void tlb_flush_nonglobal(Cpu *c)
{
    if (c->tlb_log[TLB_OWN].lost) {
        tlb_clear(c);
        return;
    }
    flush_log(c, &c->tlb_log[TLB_OWN], false);
    own_code_changed(c);
}

/* Takes all pieces of the log's larger page that holds an address; gives whether code was fetched there: what leads to code without a
   look at the tables is as good as ever where it was not. */
static bool flush_large(Cpu *c, const TlbLog *log, uint64_t linear, bool global)
{
    bool fetched = false;
    for (uint32_t n = 1; n <= log->large; n++) {
        uint64_t page = log->page[TLB_SIZE - n];
        if ((page ^ linear) >> (page & 0x3f) == 0) {
            fetched |= bit(log->fetched, index_of(page));
            invalidate_index(c, index_of(page), global);
        }
    }
    return fetched;
}

static void flush_page(Cpu *c, uint64_t linear, bool global)
{
    const TlbLog *own = &c->tlb_log[TLB_OWN], *all = &c->tlb_log[TLB_GLOBAL];
    unsigned n = index_of(linear);
    if (own->lost || (global && all->lost)) {
        tlb_clear(c);
        return;
    }
    invalidate_index(c, n, global);
    bool own_code = bit(own->fetched, n) || c->code_own & CODE_UNLOGGED, global_code = global && bit(all->fetched, n);
    if (own->large)
        own_code |= flush_large(c, own, linear, global);
    if (global && all->large)
        global_code |= flush_large(c, all, linear, true);
    if (global_code)
        all_code_changed(c);
    else if (own_code)
        own_code_changed(c);
}

void tlb_flush_page(Cpu *c, uint64_t linear) { flush_page(c, linear, true); }

static void flush_phys_index(Cpu *c, unsigned n, uint64_t page)
{
    for (unsigned used = c->tlb_used[n]; used; used &= used - 1) {
        TlbEntry *e = entry_at(c, (unsigned)__builtin_ctz(used), n);
        if (e->linear != TLB_INVALID && e->phys == page)
            invalidate(e, n);
    }
}

static void flush_phys(Cpu *c, const TlbLog *log, uint64_t page)
{
    for (uint32_t n = 0; n < log->small; n++)
        flush_phys_index(c, index_of(log->page[n]), page);
    for (uint32_t n = 1; n <= log->large; n++)
        flush_phys_index(c, index_of(log->page[TLB_SIZE - n]), page);
}

/* Takes the pages out of a parked address space that `goes` says. */
static void drop_pages(Space *s, bool (*goes)(const Packed *p, uint64_t what), uint64_t what)
{
    uint32_t kept = 0;
    for (uint32_t n = 0; n < s->count; n++)
        if (!goes(&s->page[n], what))
            s->page[kept++] = s->page[n];
    s->count = kept;
}

static bool is_phys(const Packed *p, uint64_t page) { return (p->phys ^ page) >> 12 == 0; }
static bool is_linear(const Packed *p, uint64_t linear) { return (p->linear ^ linear) >> PACKED_SHIFT(p) == 0; }

void tlb_flush_phys(Vm *vm, uint64_t phys)
{
    uint64_t page = phys & ~0xfffull;
    core_stop(vm);
    for (uint32_t k = 0; k < vm->cpu_count; k++) {
        Cpu *c = vm->cpu[k];
        if (!c)
            continue;
        if (c->tlb_log[TLB_OWN].lost || c->tlb_log[TLB_GLOBAL].lost) {
            for (unsigned n = 0; n < TLB_SIZE; n++)
                flush_phys_index(c, n, page);
        } else {
            flush_phys(c, &c->tlb_log[TLB_OWN], page);
            flush_phys(c, &c->tlb_log[TLB_GLOBAL], page);
        }
        for (unsigned n = 0; c->parked && n < PARKED; n++)
            if (c->parked->space[n].pcid != NO_PCID)
                drop_pages(&c->parked->space[n], is_phys, page);
    }
}

/* ---- address spaces of other PCIDs ---- */

static Space *space_of(const Cpu *c, uint32_t pcid)
{
    for (unsigned n = 0; c->parked && n < PARKED; n++)
        if (c->parked->space[n].pcid == pcid)
            return &c->parked->space[n];
    return NULL;
}

void tlb_flush_pcid(Cpu *c, uint32_t pcid)
{
    Space *s = space_of(c, pcid);
    if (pcid == present_pcid(c))
        tlb_flush_nonglobal(c);
    else if (s)
        s->pcid = NO_PCID;
}

void tlb_flush_pcid_page(Cpu *c, uint32_t pcid, uint64_t linear)
{
    Space *s = space_of(c, pcid);
    if (pcid == present_pcid(c)) {
        flush_page(c, linear, false);
    } else if (s) {
        drop_pages(s, is_linear, linear);
        s->code_own = 0; /* how its code is found anew */
    }
}

void tlb_flush_pcids(Cpu *c)
{
    forget_parked(c);
    tlb_flush_nonglobal(c);
}

/* The place for an address space: one that is free, or the one that was left first; not that of `but`. NULL: no memory. */
static Space *room(Cpu *c, const Space *but)
{
    if (!c->parked) {
        if (!(c->parked = calloc(1, sizeof *c->parked)))
            return NULL;
        forget_parked(c);
    }
    Space *first = NULL;
    for (unsigned n = 0; n < PARKED; n++) {
        Space *s = &c->parked->space[n];
        if (s->pcid == NO_PCID)
            return s;
        if (s != but && (!first || s->left < first->left))
            first = s;
    }
    return first;
}

static void pack(Space *s, const TlbEntry *e, unsigned table)
{
    if (s->count == PARKED_PAGES)
        return;
    uint64_t tags = (e->read == e->linear ? PACKED_READ : 0) | (e->write == e->linear ? PACKED_WRITE : 0) |
                    (e->exec == e->linear ? PACKED_EXEC : 0);
    s->page[s->count++] = (Packed){e->linear | tags | table << 3 | (uint64_t)e->shift << 5, e->phys | e->flags, e->host};
}

/* Takes what is not global from an index of the tables. */
static void park_index(Cpu *c, Space *s, unsigned n)
{
    unsigned kept = 0;
    for (unsigned used = c->tlb_used[n]; used; used &= used - 1) {
        unsigned k = (unsigned)__builtin_ctz(used);
        TlbEntry *e = entry_at(c, k, n);
        if (e->linear == TLB_INVALID || index_of(e->linear) != n) /* zeros: the verifier has put an unused entry back */
            continue;
        if (e->flags & TLBF_GLOBAL) {
            kept |= 1u << k;
            continue;
        }
        pack(s, e, k & (TLB_TABLES - 1));
        invalidate(e, n);
    }
    c->tlb_used[n] = (uint8_t)kept;
}

static void park(Cpu *c, Space *s, uint32_t pcid)
{
    TlbLog *log = &c->tlb_log[TLB_OWN];
    s->pcid = pcid;
    s->count = 0;
    s->left = ++c->parked->clock;
    for (uint32_t n = log->small; n-- > 0;) {
        unsigned at = index_of(log->page[n]);
        park_index(c, s, at);
        clear_bit(log->logged, at);
    }
    for (uint32_t n = log->large; n > 0; n--)
        park_index(c, s, index_of(log->page[TLB_SIZE - n]));
    log->small = log->large = 0;
    /* numbers that nobody else uses from now on stay with it */
    s->code_own = c->code_own;
    memcpy(s->generation, c->generation, sizeof s->generation);
    memcpy(s->fetched, log->fetched, sizeof s->fetched);
    own_code_changed(c);
}

static void unpack(Cpu *c, const Packed *p)
{
    uint64_t page = p->linear & ~0xfffull;
    unsigned n = index_of(page), table = PACKED_TABLE(p), bits = 1u << table;
    TlbEntry *e = &c->tlb_table[table][n];
    if (c->tlb_used[n] & bits && e->linear != TLB_INVALID) {
        bits <<= WAYS;
        e += TLB_SIZE;
        if (c->tlb_used[n] & bits && e->linear != TLB_INVALID)
            return;
    }
    uint64_t none = tlb_no_tag(n);
    *e = (TlbEntry){.read = p->linear & PACKED_READ ? page : none, .write = p->linear & PACKED_WRITE ? page : none,
                    .exec = p->linear & PACKED_EXEC ? page : none, .addend = (uintptr_t)p->host - (uintptr_t)page,
                    .phys = p->phys & ~0xfffull, .linear = page, .host = p->host, .flags = (uint32_t)p->phys & 0xfff,
                    .shift = (uint8_t)PACKED_SHIFT(p)};
    c->tlb_used[n] |= (uint8_t)bits;
    log_page(c, page, e->shift, false);
}

static void unpark(Cpu *c, Space *s)
{
    s->pcid = NO_PCID;
    for (uint32_t n = s->count; n-- > 0;)
        unpack(c, &s->page[n]);
    c->code_own = s->code_own | (s->code_own & CODE_LARGE ? CODE_UNLOGGED : 0);
    memcpy(c->tlb_log[TLB_OWN].fetched, s->fetched, sizeof s->fetched);
    for (unsigned privilege = 0; privilege < 2; privilege++)
        if (s->code_own & CODE_OWN(privilege))
            c->generation[privilege] = s->generation[privilege];
    use_generations(c);
}

void tlb_load_cr3(Cpu *c, uint64_t value, bool keep)
{
    uint32_t from = present_pcid(c), to = c->cr4 & CR4_PCIDE ? value & 0xfff : 0;
    c->cr3 = value;
    if (from == to) {
        if (!keep)
            tlb_flush_nonglobal(c);
        return;
    }
    if (c->tlb_log[TLB_OWN].lost) {
        tlb_clear(c);
        return;
    }
    Space *there = space_of(c, to);
    if (there && !keep) {
        there->pcid = NO_PCID;
        there = NULL;
    }
    Space *here = room(c, there);
    if (here)
        park(c, here, from);
    else
        tlb_flush_nonglobal(c);
    if (there)
        unpark(c, there);
}

void tlb_destroy(Cpu *c) { free(c->parked); }
