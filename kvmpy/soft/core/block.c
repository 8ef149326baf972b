/* The cache of decoded blocks: building, finding, linking and dropping them. */
#include "block.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "coverage.h"
#include "exec.h"
#include "parallel.h"
#include "run.h"
#include "translate/translate.h"

#define HASH_BITS 15
#define KEPT 64
#define ARENA_SIZE (64u << 20) /* about 100 thousand blocks; full: all is dropped and decoded anew */

/* Blocks that have bytes in one physical page. */
struct CodePage {
    Block *first;
    uint32_t kept; /* stores that still take the slow path when the last block is gone: code that is patched comes back */
    uint64_t bytes[64]; /* bit n: byte n belongs to a block */
};

struct CodeMap {
    uint8_t *arena;
    size_t used;
    uint64_t epoch; /* counts how often all was dropped */
    Block *hash[1u << HASH_BITS];
};

uint64_t code_epoch(const Vm *vm) { return vm->code->epoch; }

int code_create(Vm *vm)
{
    vm->code = calloc(1, sizeof *vm->code);
    if (!vm->code)
        return -ENOMEM;
    void *p = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        free(vm->code);
        vm->code = NULL;
        return -ENOMEM;
    }
    vm->code->arena = p;
    return 0;
}

void code_destroy(Vm *vm)
{
    if (!vm->code)
        return;
    code_drop_all(vm);
    munmap(vm->code->arena, ARENA_SIZE);
    free(vm->code);
    vm->code = NULL;
}

static unsigned hash_of(uint64_t phys, uint64_t space, uint64_t rip, uint32_t mode)
{
    uint64_t h = (phys ^ space << 11 ^ rip << 7 ^ (uint64_t)mode << 40) * 0x9e3779b97f4a7c15ull;
    return (unsigned)(h >> (64 - HASH_BITS));
}

Block *block_known(const Vm *vm, uint64_t phys, uint64_t space, uint64_t rip, uint32_t mode)
{
    Block *b = vm->code->hash[hash_of(phys, space, rip, mode)];
    while (b && (b->phys != phys || b->space != space || b->rip != rip || b->mode != mode))
        b = b->hash_next;
    return b;
}

static struct CodePage **code_page(Vm *vm, uint64_t phys)
{
    Slot *slot = vm_slot(vm, phys);
    return slot ? &slot->code[(phys - slot->gpa) >> 12] : NULL;
}

bool code_in_page(Vm *vm, uint64_t phys)
{
    struct CodePage **p = code_page(vm, phys);
    return p && *p && ((*p)->first || (*p)->kept);
}

static void mark_bytes(struct CodePage *page, uint64_t phys, const Block *b)
{
    uint64_t first = b->phys, last = b->phys + b->bytes - 1;
    if (b->phys2 != NO_PAGE) { /* one instruction over the page's end */
        if ((b->phys & ~0xfffull) == phys)
            last = phys + 0xfff;
        else {
            first = b->phys2;
            last = b->phys2 + b->bytes - (0x1000 - (b->phys & 0xfff)) - 1;
        }
    }
    for (uint64_t n = first & 0xfff; n <= (last & 0xfff); n++)
        page->bytes[n >> 6] |= 1ull << (n & 63);
}

static int page_slot(const Block *b, uint64_t page) { return (b->phys & ~0xfffull) == page ? 0 : 1; }

/* Code is about to be read from a page: stores into it must take the slow path from now on. */
static void claim_page(Cpu *c, uint64_t page)
{
    struct CodePage **p = code_page(c->vm, page);
    if (!p)
        return;
    if (!*p) {
        *p = calloc(1, sizeof **p);
        if (!*p)
            return; /* without the note the page would keep stale code: block_build drops the block again */
    }
    if (!(*p)->first && !(*p)->kept)
        tlb_flush_phys(c->vm, page);
    (*p)->kept = KEPT;
}

static void add_to_page(Cpu *c, Block *b, uint64_t page)
{
    struct CodePage **p = code_page(c->vm, page);
    if (!p || !*p)
        return;
    b->page_next[page_slot(b, page)] = (*p)->first;
    (*p)->first = b;
    mark_bytes(*p, page, b);
}

/* Also the handler of a block that was dropped while links, or this very run, still lead into it. */
const Insn *insn_leave(Cpu *c, const Insn *i)
{
    refund(c, i);
    c->rip = i->next_rip - i->len;
    if (!(c->mode & MODE_LONG) || !in_64bit(c))
        c->rip = (uint32_t)c->rip;
    if ((c->mode & MODE_SIZE) == MODE_16)
        c->rip = (uint16_t)c->rip;
    return NULL;
}

static void unhash(Vm *vm, Block *b)
{
    Block **p = &vm->code->hash[hash_of(b->phys, b->space, b->rip, b->mode)];
    while (*p && *p != b)
        p = &(*p)->hash_next;
    if (*p)
        *p = b->hash_next;
}

static void remove_from_page(Vm *vm, Block *b, uint64_t page)
{
    struct CodePage **p = code_page(vm, page);
    if (!p || !*p)
        return;
    for (Block **q = &(*p)->first; *q; q = &(*q)->page_next[page_slot(*q, page)])
        if (*q == b) {
            *q = b->page_next[page_slot(b, page)];
            break;
        }
}

static void drop(Vm *vm, Block *b)
{
    unhash(vm, b);
    remove_from_page(vm, b, b->phys & ~0xfffull);
    if (b->phys2 != NO_PAGE)
        remove_from_page(vm, b, b->phys2);
    b->mode = ~0u; /* no jump cache entry matches any more */
    if (b->code)
        translation_drop(vm, b);
    for (unsigned n = 0; n <= b->count; n++)
        b->insn[n].exec = insn_leave;
}

void block_translate_anew(Vm *vm, const Block *part)
{
    unsigned first = part->phys & 0xfff;
    struct CodePage **p = code_page(vm, part->phys);
    if (!p || !*p)
        return;
    for (Block *b = (*p)->first; b; b = b->page_next[page_slot(b, part->phys & ~0xfffull)])
        if (b->code && translation_covers(vm, b, first, first)) {
            translation_drop(vm, b);
            block_arm_again(vm, b);
            b->heat = 1;
        }
}

Block *code_next(Vm *vm, const Block *b)
{
    if (b && b->hash_next)
        return b->hash_next;
    for (unsigned h = b ? hash_of(b->phys, b->space, b->rip, b->mode) + 1 : 0; h < 1u << HASH_BITS; h++)
        if (vm->code->hash[h])
            return vm->code->hash[h];
    return NULL;
}

static bool bytes_marked(const struct CodePage *page, unsigned first, unsigned last)
{
    for (unsigned n = first; n <= last;) {
        if (page->bytes[n >> 6] >> (n & 63) & 1)
            return true;
        n = page->bytes[n >> 6] ? n + 1 : (n | 63) + 1;
    }
    return false;
}

static bool page_written(Vm *vm, uint64_t phys, unsigned size)
{
    struct CodePage **p = code_page(vm, phys);
    uint64_t base = phys & ~0xfffull;
    unsigned first = phys & 0xfff, last = first + size - 1;
    if (p && *p && !(*p)->first && (*p)->kept)
        (*p)->kept--;
    if (!p || !*p || !(*p)->first || !bytes_marked(*p, first, last))
        return false;
    core_stop(vm);
    struct CodePage *page = *p;
    Block *next;
    for (Block *b = page->first; b; b = next) {
        next = b->page_next[page_slot(b, base)];
        struct CodePage only = {0};
        mark_bytes(&only, base, b);
        if (bytes_marked(&only, first, last)) {
            drop(vm, b);
            vm_count(vm, STAT_BLOCKS_DROPPED);
        } else if (b->code && translation_covers(vm, b, first, last)) {
            translation_drop(vm, b);
            b->splits++;
            block_arm_again(vm, b);
        }
    }
    memset(page->bytes, 0, sizeof page->bytes);
    for (Block *b = page->first; b; b = b->page_next[page_slot(b, base)])
        mark_bytes(page, base, b);
    return true;
}

bool code_written(Vm *vm, uint64_t phys, uint64_t size)
{
    bool any = false;
    while (size) {
        uint64_t room = 0x1000 - (phys & 0xfff), part = size < room ? size : room;
        any |= page_written(vm, phys, (unsigned)part);
        phys += part;
        size -= part;
    }
    return any;
}

void code_drop_all(Vm *vm)
{
    struct CodeMap *m = vm->code;
    core_stop(vm);
    for (unsigned h = 0; h < 1u << HASH_BITS; h++) {
        for (Block *b = m->hash[h]; b; b = b->hash_next) {
            b->mode = ~0u;
            if (b->code)
                translation_drop(vm, b);
            for (unsigned n = 0; n <= b->count; n++)
                b->insn[n].exec = insn_leave;
        }
        m->hash[h] = NULL;
    }
    for (uint32_t s = 0; s < vm->slot_count; s++)
        for (uint64_t n = 0; n < vm->slot[s].size >> 12; n++)
            if (vm->slot[s].code[n]) {
                free(vm->slot[s].code[n]);
                vm->slot[s].code[n] = NULL;
            }
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n]) {
            memset(vm->cpu[n]->jump, 0, sizeof(struct JumpCacheEntry) << JUMP_CACHE_BITS);
            memset(vm->cpu[n]->code_target, 0, sizeof vm->cpu[n]->code_target);
        }
    m->epoch++;
}

void code_flush(Vm *vm)
{
    code_drop_all(vm);
    vm->code->used = 0;
    if (vm->translator)
        translator_forget(vm->translator);
}

/* Makes room for a block; blocks in it go stale only when nothing runs in them any more: the arena is reused from its start,
   and what the present handler still reads of its own block is overwritten only by the block that is built now, after it. */
static Block *allocate(Cpu *c)
{
    struct CodeMap *m = c->vm->code;
    size_t need = sizeof(Block) + (BLOCK_MAX + 1) * sizeof(Insn) + 2 * BLOCK_MAX * sizeof(exec_fn) + 64;
    if (m->used + need > ARENA_SIZE) {
        if (c->parallel) { /* others may stand in blocks */
            core_want_flush(c);
            unwind(c, UNWIND_FLUSH);
        }
        code_drop_all(c->vm);
        c->stat[STAT_CODE_FLUSHES]++;
        m->used = 0;
    }
    m->used = (m->used + 63) & ~(size_t)63;
    return (Block *)(m->arena + m->used);
}

static const Insn *exec_block_end(Cpu *c, const Insn *i) { JUMP_TO(i->next_rip, 1); }

static const Insn *exec_alone_end(Cpu *c, const Insn *i)
{
    c->rip = i->next_rip;
    return NULL;
}

static void close_with(Insn *end, const Insn *last, exec_fn exec, Block *b)
{
    *end = (Insn){.exec = exec, .next_rip = last->next_rip, .block = b, .len = 0, .id = last->id};
}

uint64_t fetch_address(Cpu *c, uint64_t rip)
{
    return in_64bit(c) ? rip : (uint32_t)(rip + c->seg_base[SEG_CS]);
}

uint64_t insn_address(Cpu *c, const Insn *i)
{
    if (i == &c->run->boundary[0])
        return fetch_address(c, c->rip);
    uint64_t rip = i->next_rip - i->len;
    return fetch_address(c, (c->mode & MODE_SIZE) == MODE_16 ? (uint16_t)rip : rip);
}

static bool wants_end(Cpu *c, uint64_t linear) { return c->run->io_rip[linear % IO_RIPS] == linear; }

static void check_code_bounds(Cpu *c, uint64_t rip)
{
    if (in_64bit(c) ? !is_canonical(rip) : rip > c->seg[SEG_CS].limit)
        raise_error(c, &c->run->boundary[0], EXC_GP, 0);
}

void block_improve(Block *b)
{
    block_fuse(b);
    block_drop_dead_flags(b);
}

void block_arm_again(const Vm *vm, Block *b)
{
    b->heat = vm->translator->threshold;
    b->insn[0].exec = exec_counted;
}

void block_arm(Vm *vm, Block *b)
{
    b->first = b->insn[0].exec;
    if (vm->translator)
        block_arm_again(vm, b);
}

static Block *build(Cpu *c, const TlbEntry *e, uint64_t linear)
{
    Block *b = allocate(c);
    const uint8_t *bytes = (const uint8_t *)(uintptr_t)(linear + e->addend); /* which stay valid, unlike the entry */
    unsigned avail = 0x1000 - (unsigned)(linear & 0xfff), at = 0;
    uint64_t rip = c->rip;
    b->rip = rip;
    b->phys = e->phys + (linear & 0xfff);
    claim_page(c, b->phys & ~0xfffull);
    b->space = code_space(c);
    b->phys2 = NO_PAGE;
    b->mode = c->mode;
    b->count = 0;
    memset(b->link, 0, sizeof b->link);
    if (!in_64bit(c) && (uint64_t)c->seg[SEG_CS].limit - rip + 1 < avail)
        avail = (unsigned)(c->seg[SEG_CS].limit - rip + 1);
    const InsnInfo *info = NULL;
    Insn *i = b->insn;
    bool breaking = unlikely(c->vm->breaking), point = breaking && point_at(c->vm, linear);
    for (;;) {
        int len = decode(c, bytes + at, avail - at, rip, c->mode, i);
        if (len == 0) {
            if (b->count)
                break; /* the instruction over the page's end begins the next block */
            uint8_t joined[15];
            unsigned here = avail - at;
            if (!in_64bit(c) && (rip + here) > c->seg[SEG_CS].limit)
                raise_error(c, &c->run->boundary[0], EXC_GP, 0);
            memcpy(joined, bytes + at, here);
            const TlbEntry *e2 = mem_fetch(c, in_64bit(c) ? linear + here : (uint32_t)(linear + here));
            uint64_t next = in_64bit(c) ? linear + here : (uint32_t)(linear + here);
            b->phys2 = e2->phys;
            claim_page(c, b->phys2);
            memcpy(joined + here, (const void *)(uintptr_t)(next + e2->addend), 15 - here);
            len = decode(c, joined, 15, rip, c->mode, i);
        }
        i->block = b;
        b->count++;
        if (len <= 0) {
            at += i->len ? i->len : 1;
            break;
        }
        at += (unsigned)len;
        info = &insn_table[i->id];
        bool end = (info->attributes & A_END) || b->count == BLOCK_MAX || at >= avail || b->phys2 != NO_PAGE ||
                   wants_end(c, linear + at - (unsigned)len) || point || (breaking && point_at(c->vm, linear + at));
        rip = i->next_rip;
        if (end || rip < b->rip)
            break;
        i++;
    }
    Insn *last = &b->insn[b->count - 1];
    close_with(last + 1, last, exec_block_end, b);
    b->bytes = (uint16_t)at;
    c->vm->code->used += sizeof(Block) + (b->count + 1u) * sizeof(Insn);
    add_to_page(c, b, b->phys & ~0xfffull);
    if (b->phys2 != NO_PAGE && b->phys2 != (b->phys & ~0xfffull))
        add_to_page(c, b, b->phys2);
    else if (b->phys2 != NO_PAGE)
        b->phys2 = NO_PAGE;
    Block **h = &c->vm->code->hash[hash_of(b->phys, b->space, b->rip, b->mode)];
    b->hash_next = *h;
    *h = b;
    c->stat[STAT_BLOCKS_BUILT]++;
    bool covering = unlikely(c->vm->covering) && !point;
    b->uncovered = b->edges_left = 0;
    if (covering)
        cover_block(c, b);
    b->told = unlikely(c->vm->tracing & TRACE_CODE) && !point && trace_block(c, b, linear);
    if (b->told || covering)
        c->vm->code->used += 2u * b->count * sizeof(exec_fn);
    if (point)
        b->insn[0].exec = exec_point; /* runs its instruction alone, which tells it */
    else if (!b->told && !covering)
        block_improve(b);
    for (unsigned n = 0; n < b->count; n++)
        b->insn[n].left = (uint8_t)(b->count - n);
    b->code = NULL;
    b->heat = 0;
    b->shared_misses = b->splits = 0;
    b->unshared = false;
    b->first = b->insn[0].exec;
    if (!point && !b->told && !covering)
        block_arm(c->vm, b);
    return b;
}

Block *block_find(Cpu *c)
{
    struct JumpCacheEntry *j = &c->jump[(c->rip ^ c->rip >> JUMP_CACHE_BITS) & ((1u << JUMP_CACHE_BITS) - 1)];
    if (j->generation == c->tlb_generation && j->block->rip == c->rip && j->block->mode == c->mode)
        return j->block;
    bool taken = core_take(c);
    check_code_bounds(c, c->rip);
    uint64_t linear = fetch_address(c, c->rip);
    const TlbEntry *e = mem_fetch(c, linear);
    uint64_t phys = e->phys + (linear & 0xfff), space = code_space(c);
    Block *b;
    for (b = c->vm->code->hash[hash_of(phys, space, c->rip, c->mode)]; b; b = b->hash_next)
        if (b->phys == phys && b->space == space && b->rip == c->rip && b->mode == c->mode) {
            if (b->phys2 == NO_PAGE)
                break;
            uint64_t next = (linear | 0xfff) + 1;
            if (!in_64bit(c))
                next = (uint32_t)next;
            if (mem_fetch(c, next)->phys == b->phys2)
                break;
        }
    if (!b)
        b = build(c, mem_fetch(c, linear), linear);
    j->block = b;
    j->generation = c->tlb_generation;
    core_give(c, taken);
    return b;
}

const Insn *block_chain(Cpu *c, Block *from, int n)
{
    if (unlikely(from->edges_left))
        cover_edge(c, from, n);
    if (c->budget <= 0 || c->attention || c->run->slow_steps)
        return NULL;
    bool taken = core_take(c);
    uint64_t epoch = c->vm->code->epoch, from_rip = from->rip;
    uint32_t mode = from->mode;
    Block *b = block_find(c);
    if (c->vm->code->epoch == epoch && mode != ~0u) {
        bool same_page = ((b->rip ^ from_rip) & ~0xfffull) == 0 && ((b->phys ^ from->phys) & ~0xfffull) == 0 &&
                         b->phys2 == NO_PAGE && from->phys2 == NO_PAGE && (fetch_address(c, 0) & 0xfff) == 0;
        if (!c->parallel)
            from->link[n] = (Link){b, same_page ? 0 : c->tlb_generation};
        else if (same_page)
            __atomic_store_n(&from->link[n].to, b, __ATOMIC_RELEASE);
    }
    core_give(c, taken);
    return enter_block(c, b);
}

const Insn *block_indirect(Cpu *c)
{
    if (c->budget <= 0 || c->attention || c->run->slow_steps)
        return NULL;
    return enter_block(c, block_find(c));
}

void block_decode_alone(Cpu *c, Insn insn[2])
{
    check_code_bounds(c, c->rip);
    uint64_t linear = fetch_address(c, c->rip);
    const TlbEntry *e = mem_fetch(c, linear);
    uint8_t bytes[15];
    unsigned avail = 0x1000 - (unsigned)(linear & 0xfff);
    if (avail > 15)
        avail = 15;
    if (!in_64bit(c) && (uint64_t)c->seg[SEG_CS].limit - c->rip + 1 < avail)
        avail = (unsigned)(c->seg[SEG_CS].limit - c->rip + 1);
    memcpy(bytes, (const void *)(uintptr_t)(linear + e->addend), avail);
    int len = decode(c, bytes, avail, c->rip, c->mode, &insn[0]);
    if (len == 0) {
        if (!in_64bit(c) && c->rip + avail > c->seg[SEG_CS].limit)
            raise_error(c, &c->run->boundary[0], EXC_GP, 0);
        uint64_t next = linear + avail;
        if (!in_64bit(c))
            next = (uint32_t)next;
        e = mem_fetch(c, next);
        memcpy(bytes + avail, (const void *)(uintptr_t)(next + e->addend), 15 - avail);
        decode(c, bytes, 15, c->rip, c->mode, &insn[0]);
    }
    insn[0].block = NULL;
    close_with(&insn[1], &insn[0], exec_alone_end, NULL);
}
