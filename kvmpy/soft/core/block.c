/* The cache of decoded blocks: building, finding, linking and dropping them. */
#include "block.h"

#include <errno.h>
#include <stdlib.h>

#include "arena.h"
#include "coverage.h"
#include "exec.h"
#include "parallel.h"
#include "run.h"
#include "translate/translate.h"
#include "translate/verify.h"

#define HASH_BITS 15
#define KEPT 64
/* Most code runs a few times and never again. So new blocks share little memory, whose oldest part is emptied when it is full;
   those that get hot enough to be translated are moved to where they stay. Without a translator all blocks stay where they are. */
#define YOUNG_SIZE (4u << 20)
#define KEPT_SIZE (32u << 20)
#define MOST_BLOCK (sizeof(Block) + (BLOCK_MAX + 1) * sizeof(Insn) + 2 * BLOCK_MAX * sizeof(exec_fn) + ARENA_ALIGN)

/* Blocks that have bytes in one physical page. */
struct CodePage {
    Block *first;
    uint64_t cleaned; /* epoch in which stale blocks were last taken out */
    uint32_t kept; /* stores that still take the slow path when the last block is gone: code that is patched comes back */
    uint64_t bytes[64]; /* bit n: byte n belongs to a block */
};

struct CodeMap {
    Arena young, kept;
    bool forgotten; /* all was dropped, and memory not yet reused */
    uint64_t epoch; /* changes when memory is reused, and when all is dropped */
    Block *hash[1u << HASH_BITS];
    uint16_t ran[1u << HASH_BITS]; /* how often blocks of that hash ran before their memory was reused */
};

uint64_t code_epoch(const Vm *vm) { return vm->code->epoch; }

uint8_t *code_kept_base(const Vm *vm) { return vm->code->kept.base; }

int code_create(Vm *vm)
{
    vm->code = calloc(1, sizeof *vm->code);
    if (!vm->code)
        return -ENOMEM;
    if (!arena_create(&vm->code->young, KEPT_SIZE) || !arena_create(&vm->code->kept, KEPT_SIZE)) {
        arena_destroy(&vm->code->young);
        free(vm->code);
        vm->code = NULL;
        return -ENOMEM;
    }
    return 0;
}

void code_destroy(Vm *vm)
{
    if (!vm->code)
        return;
    code_drop_all(vm);
    arena_destroy(&vm->code->young);
    arena_destroy(&vm->code->kept);
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

static unsigned slot_of(const Block *b) { return hash_of(b->phys, b->space, b->rip, b->mode); }

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

/* What points to a block that is not stale in its hash chain, and in the list of a page; NULL where the page has no list. */
static Block **place_in_hash(Vm *vm, const Block *b)
{
    Block **p = &vm->code->hash[slot_of(b)];
    while (*p != b)
        p = &(*p)->hash_next;
    return p;
}

static Block **place_in_page(Vm *vm, const Block *b, uint64_t page)
{
    struct CodePage **p = page == NO_PAGE ? NULL : code_page(vm, page);
    if (!p || !*p)
        return NULL;
    for (Block **q = &(*p)->first; *q; q = &(*q)->page_next[page_slot(*q, page)])
        if (*q == b)
            return q;
    return NULL;
}

/* `by` takes the place of the block in all lists, or with NULL what follows it. */
static void replace(Vm *vm, const Block *b, Block *by)
{
    Block **p = place_in_hash(vm, b);
    *p = by ? by : b->hash_next;
    const uint64_t pages[] = {b->phys & ~0xfffull, b->phys2};
    for (unsigned n = 0; n < ARRAY_SIZE(pages); n++)
        if ((p = place_in_page(vm, b, pages[n])))
            *p = by ? by : b->page_next[page_slot(b, pages[n])];
}

static void unlink_from(Link *l)
{
    if (!l->to)
        return;
    *l->place = l->next;
    if (l->next)
        l->next->place = l->place;
    l->to = NULL;
}

static void link_to(Link *l, Block *to, uint64_t generation)
{
    unlink_from(l);
    l->next = to->from;
    l->place = &to->from;
    if (l->next)
        l->next->place = &l->next;
    to->from = l;
    l->generation = generation;
    __atomic_store_n(&l->to, to, __ATOMIC_RELEASE); /* of parallel vCPUs another may be about to follow the link */
}

/* Nobody finds the block any more, and who stands in it leaves. */
static void make_stale(Block *b)
{
    while (b->from)
        unlink_from(b->from);
    unlink_from(&b->link[0]);
    unlink_from(&b->link[1]);
    b->mode = ~0u; /* no jump cache entry matches */
    for (unsigned n = 0; n <= b->count; n++)
        b->insn[n].exec = insn_leave;
}

static void drop(Vm *vm, Block *b)
{
    vm->code->ran[slot_of(b)] = 0;
    replace(vm, b, NULL);
    if (b->code)
        translation_drop(vm, b);
    make_stale(b);
}

static void translate_anew(Vm *vm, Block *b)
{
    translation_drop(vm, b);
    block_arm_again(vm, b);
    b->heat = 1;
}

void block_translate_anew(Vm *vm, const Block *part)
{
    unsigned first = part->phys & 0xfff;
    struct CodePage **p = code_page(vm, part->phys);
    if (!p || !*p)
        return;
    for (Block *b = (*p)->first; b; b = b->page_next[page_slot(b, part->phys & ~0xfffull)])
        if (b->code && translation_covers(vm, b, first, first))
            translate_anew(vm, b);
}

Block *code_next(Vm *vm, const Block *b)
{
    if (b && b->hash_next)
        return b->hash_next;
    for (unsigned h = b ? slot_of(b) + 1 : 0; h < 1u << HASH_BITS; h++)
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
    m->forgotten = vm->crowded = true;
    if (arena_is_empty(&m->young) && arena_is_empty(&m->kept))
        return;
    for (unsigned h = 0; h < 1u << HASH_BITS; h++) {
        for (Block *b = m->hash[h]; b; b = b->hash_next) {
            if (b->code)
                translation_drop(vm, b);
            make_stale(b);
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

/* ---- memory, and its reuse ---- */

void code_want_room(Cpu *c)
{
    c->vm->crowded = true;
    if (c->parallel)
        core_want_room(c);
    else
        c->attention = 1;
}

Block *block_keep(Vm *vm, Block *b)
{
    struct CodeMap *m = vm->code;
    if (arena_holds(&m->kept, b))
        return b;
    Block *to = arena_room(&m->kept, MOST_BLOCK);
    if (!to)
        return NULL;
    arena_take(&m->kept, b->size);
    memcpy(to, b, b->size);
    to->from = NULL;
    to->link[0] = to->link[1] = (Link){0};
    for (unsigned n = 0; n <= b->count; n++)
        to->insn[n].block = to;
    replace(vm, b, to);
    while (b->from)
        link_to(b->from, to, b->from->generation);
    make_stale(b);
    return to;
}

static Block *next_in_part(const Arena *a, unsigned part, Block *b)
{
    uint8_t *next = b ? (uint8_t *)b + b->size : arena_part(a, part);
    return next < arena_part(a, part) + a->used[part] ? (Block *)next : NULL;
}

/* Runs before a block was decoded last count less: code that runs now and then is not worth the memory of a translation. */
static uint32_t heat_of(const Vm *vm, const Block *b)
{
    uint32_t threshold = vm->translator->threshold, known = vm->code->ran[slot_of(b)] / 4u;
    return known < threshold ? threshold - known : 1;
}

static void note_runs(Vm *vm, const Block *b)
{
    if (b->insn[0].exec != exec_counted || heat_of(vm, b) < b->heat)
        return;
    uint16_t *ran = &vm->code->ran[slot_of(b)];
    uint32_t runs = *ran + heat_of(vm, b) - b->heat;
    *ran = runs < UINT16_MAX ? (uint16_t)runs : UINT16_MAX;
}

/* Stale blocks are taken out of a page's list, once in an epoch, and translations go that have them as parts. */
static void clean_page(Vm *vm, uint64_t at)
{
    struct CodePage **p = at == NO_PAGE ? NULL : code_page(vm, at), *page = p ? *p : NULL;
    if (!page || page->cleaned == vm->code->epoch)
        return;
    page->cleaned = vm->code->epoch;
    uint64_t gone[64] = {0};
    for (Block **q = &page->first; *q;) {
        Block *b = *q, **next = &b->page_next[page_slot(b, at)];
        if (b->mode == ~0u) {
            gone[(b->phys & 0xfff) >> 6] |= 1ull << (b->phys & 63);
            *q = *next;
        } else {
            q = next;
        }
    }
    for (Block *b = page->first; b; b = b->page_next[page_slot(b, at)])
        if (b->code && translation_meets(vm, b, gone))
            translate_anew(vm, b);
}

static void empty_oldest(Vm *vm, Arena *a)
{
    struct CodeMap *m = vm->code;
    unsigned part = arena_oldest(a);
    m->epoch++;
    for (Block *b = NULL; (b = next_in_part(a, part, b));)
        if (b->mode != ~0u) {
            *place_in_hash(vm, b) = b->hash_next;
            note_runs(vm, b);
            if (b->code)
                translation_drop(vm, b);
            make_stale(b);
        }
    for (Block *b = NULL; (b = next_in_part(a, part, b));) {
        clean_page(vm, b->phys & ~0xfffull);
        clean_page(vm, b->phys2);
    }
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        for (unsigned k = 0; vm->cpu[n] && k < 1u << JUMP_CACHE_BITS; k++)
            if ((uintptr_t)vm->cpu[n]->jump[k].block - (uintptr_t)arena_part(a, part) < a->part_size)
                vm->cpu[n]->jump[k] = (struct JumpCacheEntry){0};
    arena_begin(a, part);
    vm_count(vm, STAT_CODE_EVICTIONS);
}

void code_make_room(Vm *vm)
{
    struct CodeMap *m = vm->code;
    vm->crowded = false;
    if (m->forgotten) {
        code_drop_all(vm); /* what was built since */
        arena_reset(&m->young, vm->translator ? YOUNG_SIZE : KEPT_SIZE);
        arena_reset(&m->kept, KEPT_SIZE);
        memset(m->ran, 0, sizeof m->ran);
        if (vm->translator)
            translator_forget(vm->translator);
        m->forgotten = vm->crowded = false;
        return;
    }
    if (!arena_room(&m->young, MOST_BLOCK))
        empty_oldest(vm, &m->young);
    if (!arena_room(&m->kept, MOST_BLOCK))
        empty_oldest(vm, &m->kept);
    if (vm->translator && !translator_room(vm->translator))
        translator_empty_oldest(vm);
}

static Block *allocate(Cpu *c)
{
    Block *b = arena_room(&c->vm->code->young, MOST_BLOCK);
    if (b)
        return b;
    code_want_room(c);
    unwind(c, UNWIND_ROOM);
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
    if (!vm->translator)
        return;
    block_arm_again(vm, b);
    b->heat = heat_of(vm, b);
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
    b->link[0] = b->link[1] = (Link){0};
    b->from = NULL;
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
        bool apart = unlikely(c->vm->verifier) && len > 0 && verify_apart(i);
        if (apart && b->count)
            break;
        i->block = b;
        b->count++;
        if (len <= 0) {
            at += i->len ? i->len : 1;
            break;
        }
        at += (unsigned)len;
        info = &insn_table[i->id];
        bool end = (info->attributes & A_END) || b->count == BLOCK_MAX || at >= avail || b->phys2 != NO_PAGE || apart ||
                   wants_end(c, linear + at - (unsigned)len) || point || (breaking && point_at(c->vm, linear + at));
        rip = i->next_rip;
        if (end || rip < b->rip)
            break;
        i++;
    }
    Insn *last = &b->insn[b->count - 1];
    close_with(last + 1, last, exec_block_end, b);
    b->bytes = (uint16_t)at;
    b->size = (uint32_t)(sizeof(Block) + (b->count + 1u) * sizeof(Insn));
    add_to_page(c, b, b->phys & ~0xfffull);
    if (b->phys2 != NO_PAGE && b->phys2 != (b->phys & ~0xfffull))
        add_to_page(c, b, b->phys2);
    else if (b->phys2 != NO_PAGE)
        b->phys2 = NO_PAGE;
    Block **h = &c->vm->code->hash[slot_of(b)];
    b->hash_next = *h;
    *h = b;
    c->stat[STAT_BLOCKS_BUILT]++;
    bool covering = unlikely(c->vm->covering) && !point;
    b->uncovered = b->edges_left = 0;
    if (covering)
        cover_block(c, b);
    b->told = TRACE_IN && unlikely(c->vm->tracing & TRACE_CODE) && !point && trace_block(c, b, linear);
    if (b->told || covering)
        b->size += 2u * b->count * (uint32_t)sizeof(exec_fn);
    b->size = (b->size + ARENA_ALIGN - 1) & ~(ARENA_ALIGN - 1);
    arena_take(&c->vm->code->young, b->size);
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
    if (!point && !b->told && !covering) {
        if (unlikely(c->vm->verifier) && verify_apart(b->insn))
            b->first = b->insn[0].exec = insn_leave; /* the run loop does it */
        else
            block_arm(c->vm, b);
    }
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
    Block *b = block_find(c);
    if (from->mode != ~0u) {
        bool same_page = ((b->rip ^ from->rip) & ~0xfffull) == 0 && ((b->phys ^ from->phys) & ~0xfffull) == 0 &&
                         b->phys2 == NO_PAGE && from->phys2 == NO_PAGE && (fetch_address(c, 0) & 0xfff) == 0;
        if (!c->parallel || same_page)
            link_to(&from->link[n], b, same_page ? 0 : c->tlb_generation);
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
