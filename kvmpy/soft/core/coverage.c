/* Marks executed instructions by linear page, privilege and, where wanted, address space. */
#include "coverage.h"

#include <errno.h>
#include <stdlib.h>

#include "run.h"

#define PAGES_MOST 65536u /* 128 MiB: a guest that maps one page everywhere fills no more of the host's memory */
#define NO_INDEX UINT32_MAX

struct Coverage {
    struct kp_coverage_page *page;
    uint32_t count, room;
    uint32_t *slot; /* open hash of indices into page[]; four for each place of it */
    uint64_t lost;
};

static uint32_t hash_of(const struct Coverage *v, uint64_t linear, uint64_t space, uint32_t user)
{
    uint64_t h = (linear ^ space << 13 ^ user) * 0x9e3779b97f4a7c15ull;
    return (uint32_t)(h >> 32) & (4 * v->room - 1);
}

static uint32_t *find(struct Coverage *v, uint64_t linear, uint64_t space, uint32_t user)
{
    uint32_t at = hash_of(v, linear, space, user);
    for (;; at = (at + 1) & (4 * v->room - 1)) {
        uint32_t index = v->slot[at];
        if (index == NO_INDEX)
            return &v->slot[at];
        const struct kp_coverage_page *p = &v->page[index];
        if (p->linear == linear && p->space == space && p->user == user)
            return &v->slot[at];
    }
}

static bool grow(struct Coverage *v)
{
    uint32_t room = v->room ? 2 * v->room : 64;
    if (room > PAGES_MOST)
        return false;
    struct kp_coverage_page *page = realloc(v->page, room * sizeof *page);
    if (!page)
        return false;
    v->page = page;
    uint32_t *slot = malloc(4 * (size_t)room * sizeof *slot);
    if (!slot)
        return false;
    free(v->slot);
    v->slot = slot;
    v->room = room;
    memset(slot, 0xff, 4 * (size_t)room * sizeof *slot);
    for (uint32_t n = 0; n < v->count; n++)
        *find(v, page[n].linear, page[n].space, page[n].user) = n;
    return true;
}

/* The record of the page that an address lies in; NULL: there is no room for another one. */
static struct kp_coverage_page *page_of(Cpu *c, uint64_t linear)
{
    struct Coverage *v = c->vm->coverage;
    uint64_t base = linear & ~0xfffull, space = code_space(c);
    uint32_t user = !!(c->mode & MODE_USER), *slot = v->room ? find(v, base, space, user) : NULL;
    if (slot && *slot != NO_INDEX)
        return &v->page[*slot];
    if (v->count == v->room) {
        if (!grow(v)) {
            v->lost++;
            return NULL;
        }
        slot = find(v, base, space, user);
    }
    struct kp_coverage_page *p = &v->page[v->count];
    *p = (struct kp_coverage_page){.linear = base, .space = space, .user = user};
    *slot = v->count++;
    return p;
}

static void set_bit(uint64_t *bits, uint64_t linear) { bits[(linear & 0xfff) >> 6] |= 1ull << (linear & 63); }

static void mark(Cpu *c, const Insn *i)
{
    uint64_t first = insn_address(c, i);
    struct kp_coverage_page *p = page_of(c, first);
    if (p)
        set_bit(p->start, first);
    for (unsigned n = 0; n < i->len; n++) {
        uint64_t at = in_64bit(c) ? first + n : (uint32_t)(first + n);
        if (n && !(at & 0xfff))
            p = page_of(c, at);
        if (p)
            set_bit(p->bytes, at);
    }
}

static bool conditional(const Insn *i)
{
    return (insn_table[i->id].attributes & A_JUMP) && i->id != INSN_jmp_Jb && i->id != INSN_jmp_Jz;
}

static void mark_edge(Cpu *c, const Insn *i, int n)
{
    uint64_t at = insn_address(c, i);
    struct kp_coverage_page *p = page_of(c, at);
    if (p)
        set_bit(n ? p->passed : p->taken, at);
}

static const Insn *exec_covered(Cpu *c, const Insn *i)
{
    Block *b = i->block;
    size_t n = (size_t)(i - b->insn);
    exec_fn own = block_own(b)[n];
    mark(c, i);
    *(i->exec == exec_covered ? &b->insn[n].exec : &block_originals(b)[n]) = own;
    if (!--b->uncovered && !b->told) { /* from here on it is the block that would have been built without coverage */
        block_improve(b);
        own = b->insn[n].exec;
        block_arm(c->vm, b);
    }
    return own(c, i);
}

void cover_block(Cpu *c, Block *b)
{
    for (unsigned n = 0; n < b->count; n++) {
        block_own(b)[n] = b->insn[n].exec;
        b->insn[n].exec = exec_covered;
    }
    b->uncovered = b->count;
    b->edges_left = (c->vm->covering & KP_COVERAGE_BRANCHES) && conditional(&b->insn[b->count - 1]) ? 3 : 0;
}

void cover_edge(Cpu *c, Block *b, int n)
{
    if (!(b->edges_left & 1u << n))
        return;
    mark_edge(c, &b->insn[b->count - 1], n);
    b->edges_left &= (uint8_t)~(1u << n);
}

void cover_alone(Cpu *c, const Insn *i) { mark(c, i); }

void cover_alone_end(Cpu *c, const Insn *i)
{
    if ((c->vm->covering & KP_COVERAGE_BRANCHES) && conditional(i)) /* one that leads behind itself has gone on */
        mark_edge(c, i, c->rip == i->next_rip);
}

/* ---- user space ---- */

static void forget(struct Coverage *v)
{
    free(v->page);
    free(v->slot);
    *v = (struct Coverage){0};
}

int kp_vm_set_coverage(Vm *vm, uint32_t flags)
{
    if (flags & ~(uint32_t)(KP_COVERAGE_ON | KP_COVERAGE_BRANCHES | KP_COVERAGE_SPACES))
        return -EINVAL;
    if (!(flags & KP_COVERAGE_ON))
        flags = 0;
    if (!vm->coverage && flags && !(vm->coverage = calloc(1, sizeof *vm->coverage)))
        return -ENOMEM;
    if (flags || vm->covering)
        code_drop_all(vm);
    vm->covering = flags;
    return 0;
}

void kp_vm_clear_coverage(Vm *vm)
{
    if (!vm->coverage)
        return;
    forget(vm->coverage);
    if (vm->covering)
        code_drop_all(vm);
}

uint32_t kp_vm_read_coverage(Vm *vm, uint32_t first, struct kp_coverage_page *out, uint32_t room)
{
    const struct Coverage *v = vm->coverage;
    if (!v || first >= v->count)
        return 0;
    uint32_t count = v->count - first < room ? v->count - first : room;
    memcpy(out, v->page + first, count * sizeof *out);
    return count;
}

uint64_t kp_vm_coverage_lost(Vm *vm) { return vm->coverage ? vm->coverage->lost : 0; }

void coverage_destroy(Vm *vm)
{
    if (!vm->coverage)
        return;
    forget(vm->coverage);
    free(vm->coverage);
    vm->coverage = NULL;
}
