/* Stretches: run by the interpreter, undone, run by translated code, compared. The memory is kept by pages: what each held before it
   was first written.

   Emitted code looks at the budget with BLOCK_MAX less than there is, and perhaps some instructions late: where the stretch has to end
   the translated run may be a few instructions further, and the interpreter then follows it there. While a verifier is there no entry of the TLB has a write tag, so that every store comes by verify_store, but for
   the translated run's stores into pages that the interpreted one has written. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "verify.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "exec.h"
#include "fpenv.h"
#include "run.h"
#include "undefined.h"
#include "verify_state.h"

#define LONGEST 300 /* instructions of a stretch, */
#define LONG 2400   /* and of every eighth */
#define BLOCKS (LONG + 4 * BLOCK_MAX)
#define PAGES 2048  /* a block writes fewer than half of them: 48 instructions, of which a repeated one changes nine pages */
#define FILLS 4096
#define ONE_BLOCK 2 /* c->attention: leave behind this block */

/* A page that was written in the stretch, or whose bits a walk has set. */
typedef struct {
    uint64_t phys;
    uint8_t *host;
    bool walked;     /* it holds a paging-structure entry */
    bool interpreted; /* the interpreter has changed it; else only translated code */
    uint8_t before[4096], end[2][4096]; /* by pass - INTERPRETED */
} Page;

struct Verifier {
    enum { IDLE, INTERPRETED, TRANSLATED } pass, last;
    jmp_buf unwind;
    uint64_t random;
    VerifyState start, end[2]; /* by pass - INTERPRETED */
    uint64_t stat[STAT_COUNT];
    struct { Block *block; int64_t budget; } block[BLOCKS]; /* those of the interpreted run, with the budget before each */
    uint32_t blocks;
    int64_t entered;           /* the budget when translated code was last entered */
    uint64_t epoch;            /* of the code when they ran */
    bool no_room;              /* for a block: a run was broken off */
    Page *page;
    uint32_t pages;
    struct { TlbEntry *entry, old[2]; } fill[FILLS]; /* of the first way, and what both held */
    uint32_t fills;            /* more than FILLS: some are lost */
    struct { TlbEntry *entry; uint64_t page; } tagged[FILLS]; /* entries that have got a write tag, in either way by now */
    uint32_t tags;
    struct { TlbEntry *entry; uint64_t linear; } stored[FILLS]; /* through which the interpreter has stored */
    uint32_t stored_count;
    struct kp_stretch found;
    struct kp_difference difference[KP_DIFFERENCES];
};

/* ---- which instructions can run twice ---- */

static const char *const apart[] = {"rdtsc", "rdtscp", "rdrand", "rdseed", "rdpmc", "cpuid", "int", "int3", "int1", "into", "vmcall",
                                    "vmmcall", "monitor", "mwait", "hlt"};
static bool runs_apart[INSN_COUNT];

static void choose_apart(void)
{
    for (unsigned n = 0; n < INSN_COUNT; n++) {
        const InsnInfo *info = &insn_table[n];
        runs_apart[n] = info->attributes & A_IO || (info->attributes & A_CPL0 && strcmp(info->mnemonic, "swapgs"));
        for (unsigned k = 0; k < ARRAY_SIZE(apart); k++)
            if (!strcmp(info->mnemonic, apart[k]))
                runs_apart[n] = true;
    }
}

bool verify_apart(const Insn *i) { return runs_apart[i->id]; }

/* ---- what the memory's slow paths tell ---- */

static Page *page_of(Verifier *v, uint64_t phys)
{
    for (uint32_t n = v->pages; n-- > 0;)
        if (v->page[n].phys == (phys & ~0xfffull))
            return &v->page[n];
    return NULL;
}

void verify_store(Vm *vm, uint64_t phys)
{
    Verifier *v = vm->verifier;
    if (v->pass == IDLE)
        return;
    Page *p = page_of(v, phys);
    if (p)
        p->interpreted |= v->pass == INTERPRETED;
    if (p || v->pages == PAGES)
        return;
    const Slot *slot = vm_slot(vm, phys);
    if (!slot)
        return;
    p = &v->page[v->pages++];
    p->phys = phys & ~0xfffull;
    p->host = slot->host + (p->phys - slot->gpa);
    p->walked = false;
    p->interpreted = v->pass == INTERPRETED;
    memcpy(p->before, p->host, sizeof p->before);
    memcpy(p->end[0], p->host, sizeof p->end[0]);
}

void verify_walk(Vm *vm, uint64_t phys)
{
    Page *p = vm->verifier->pass == IDLE ? NULL : page_of(vm->verifier, phys);
    if (p)
        p->walked = true;
}

void verify_fill(Vm *vm, TlbEntry *e)
{
    Verifier *v = vm->verifier;
    if (v->pass == IDLE)
        return;
    if (v->fills < FILLS) {
        v->fill[v->fills].entry = e;
        v->fill[v->fills].old[0] = e[0];
        v->fill[v->fills].old[1] = e[TLB_SIZE];
    }
    if (v->fills <= FILLS)
        v->fills++;
}

static void note_stored(Verifier *v, TlbEntry *e)
{
    for (uint32_t n = v->stored_count; n-- > 0;)
        if (v->stored[n].entry == e && v->stored[n].linear == e->linear)
            return;
    if (v->stored_count == FILLS)
        return;
    v->stored[v->stored_count].entry = e;
    v->stored[v->stored_count++].linear = e->linear;
}

/* Entries that the TLB had before the stretch, and that the interpreter has stored through: emitted code finds their tags. */
static void give_tags(Vm *vm, Verifier *v)
{
    for (uint32_t n = 0; n < v->stored_count; n++) {
        TlbEntry *e = v->stored[n].entry;
        if (e->linear != v->stored[n].linear || !(e->flags & TLBF_W) || e->flags & (TLBF_MMIO | TLBF_ROM) || code_in_page(vm, e->phys))
            continue;
        if (verify_unnoticed(vm, e))
            e->write = e->linear;
    }
}

bool verify_unnoticed(Vm *vm, TlbEntry *e)
{
    Verifier *v = vm->verifier;
    if (v->pass == INTERPRETED)
        note_stored(v, e);
    const Page *p = v->pass == TRANSLATED && v->tags < FILLS ? page_of(v, e->phys) : NULL;
    if (!p || !p->interpreted)
        return false;
    v->tagged[v->tags].entry = e;
    v->tagged[v->tags++].page = e->linear >> 12;
    return true;
}

jmp_buf *verify_unwinding(Vm *vm) { return vm->verifier && vm->verifier->pass != IDLE ? &vm->verifier->unwind : NULL; }

static void take_tags(Verifier *v)
{
    while (v->tags) {
        TlbEntry *e = v->tagged[--v->tags].entry;
        e[0].write = e[TLB_SIZE].write = tlb_no_tag(v->tagged[v->tags].page);
    }
}

/* ---- running ---- */

/* What the run loop looks at between blocks, as far as instructions change it. */
static bool wants_a_look(const Cpu *c)
{
    return c->shadow || c->halted || c->waiting || c->wait_sipi || c->pending_debug || c->eflags & (FL_TF | FL_RF) ||
           c->run->exit_pending || c->run->write_count;
}

static bool swap_attention(Cpu *c, uint32_t from, uint32_t to)
{
    return __atomic_compare_exchange_n(&c->attention, &from, to, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static void run_one(Cpu *c)
{
    block_decode_alone(c, c->run->alone);
    c->budget--;
    run_insns(c, c->run->alone);
}

static void note_block(Verifier *v, Block *b, int64_t budget)
{
    v->block[v->blocks].block = b;
    v->block[v->blocks++].budget = budget;
}

/* exact: to the last instruction of the budget, not only to the last block that fits. */
static void interpret(Cpu *c, Verifier *v, bool exact)
{
    c->attention = 0;
    while (c->budget > 0 && v->blocks < LONG && v->pages < PAGES / 2) {
        Block *b = block_find(c);
        bool whole = b->count <= c->budget;
        if (verify_apart(b->insn) || (!whole && !exact) || !swap_attention(c, 0, ONE_BLOCK))
            return;
        note_block(v, b, c->budget);
        if (whole) {
            c->budget -= b->count;
            const Insn *next = b->first(c, b->insn);
            if (next)
                run_insns(c, next);
        } else {
            run_one(c);
        }
        if (!swap_attention(c, ONE_BLOCK, 0) || wants_a_look(c))
            return;
    }
}

/* The same instruction by instruction, for as many as the budget says. */
static void follow_up(Cpu *c, Verifier *v)
{
    while (c->budget > 0 && v->blocks < BLOCKS) {
        Block *b = block_find(c);
        if (verify_apart(b->insn))
            return;
        note_block(v, b, c->budget);
        run_one(c);
    }
}

/* For all of the budget but BLOCK_MAX. */
static void translated(Cpu *c, Verifier *v)
{
    while (c->budget > BLOCK_MAX) {
        c->attention = 0;
        Block *b = block_find(c);
        if (verify_apart(b->insn))
            return;
        if (b->count <= c->budget - BLOCK_MAX) {
            v->entered = c->budget;
            c->budget -= b->count;
            run_insns(c, b->insn);
        } else {
            run_one(c);
        }
        if (wants_a_look(c))
            return;
    }
}

bool verify_ends(Cpu *c, const Insn *next)
{
    const Verifier *v = c->vm->verifier;
    return v->pass == TRANSLATED && next && c->budget < BLOCK_MAX && c->budget + next->left < v->entered;
}

/* Where the vCPU stands: between instructions, or before the one that unwound. */
static void take_end(Cpu *c, VerifyState *to, int why)
{
    const Insn *i = c->insn;
    cc_explicit(c, cc_flags(c));
    mxcsr_sync(c);
    to->why = why;
    to->unwound = 0;
    to->rip = c->rip;
    if (why && why != UNWIND_ROOM && i != &c->run->boundary[0]) { /* for want of room a run ends between two blocks */
        to->unwound = i->block ? i->left : 1;
        uint64_t rip = i->next_rip - i->len;
        to->rip = in_64bit(c) ? rip : (c->mode & MODE_SIZE) == MODE_16 ? (uint16_t)rip : (uint32_t)rip;
    }
    to->left = c->budget + to->unwound;
    verify_state_take(c, to);
}

enum { WHOLE_BLOCKS, EXACT, STEPS };

static void run_pass(Cpu *c, Verifier *v, int64_t budget, int how)
{
    VerifyState *end = &v->end[v->pass - INTERPRETED];
    c->budget = budget;
    int why = _setjmp(v->unwind);
    if (why == 0) {
        if (v->pass == TRANSLATED)
            translated(c, v);
        else if (how == STEPS)
            follow_up(c, v);
        else
            interpret(c, v, how == EXACT);
    }
    take_end(c, end, why);
    v->no_room |= why == UNWIND_ROOM;
    for (uint32_t n = 0; n < v->pages; n++)
        memcpy(v->page[n].end[v->pass - INTERPRETED], v->page[n].host, 4096);
}

/* Puts an earlier content back. */
static void put(Vm *vm, Page *p, const uint8_t *content)
{
    for (unsigned at = 0; at < 4096; at += 64)
        if (memcmp(p->host + at, content + at, 64)) {
            memcpy(p->host + at, content + at, 64);
            code_written(vm, p->phys + at, 64);
        }
}

/* All as it was before the stretch; pages are kept for the second run where `keep` says so. */
static void undo(Cpu *c, Verifier *v, bool keep)
{
    take_tags(v);
    for (uint32_t n = 0; n < v->pages; n++)
        put(c->vm, &v->page[n], v->page[n].before);
    bool flushed = !verify_state_same_generations(c, &v->start) || v->fills > FILLS;
    verify_state_restore(c, &v->start);
    memcpy(c->stat, v->stat, sizeof v->stat);
    if (flushed)
        tlb_flush_all(c);
    else
        while (v->fills) {
            v->fills--;
            v->fill[v->fills].entry[0] = v->fill[v->fills].old[0];
            v->fill[v->fills].entry[TLB_SIZE] = v->fill[v->fills].old[1];
        }
    v->fills = 0;
    if (!keep)
        v->pages = 0;
}

/* ---- comparing ---- */

typedef struct {
    uint32_t undefined;  /* flags that no manual defines at the end of the interpreted run */
    int64_t reader;      /* instructions before the first one that depends on such a flag, or -1 */
} Undefined;

static Undefined follow(Vm *vm, const Verifier *v)
{
    Undefined u = {.reader = -1};
    int64_t left = v->end[0].left, all = v->start.left;
    if (v->epoch != code_epoch(vm)) /* the blocks are gone */
        return (Undefined){FL_OSZAPC, -1};
    for (uint32_t n = 0; n < v->blocks; n++) {
        int64_t done = v->block[n].budget - (n + 1 < v->blocks ? v->block[n + 1].budget : left);
        for (int64_t k = 0; k < done; k++) {
            InsnFlags flags;
            bool defined = insn_flags(&v->block[n].block->insn[k], NULL, &flags);
            if (u.reader < 0 && (!defined || u.undefined & flags.read))
                u.reader = all - v->block[n].budget + k;
            u.undefined = flags_undefined_behind(u.undefined, &flags);
        }
    }
    return u;
}

static void note(Verifier *v, const char *name, const void *interpreted, const void *found, uint32_t size, uint64_t gpa)
{
    struct kp_stretch *s = &v->found;
    if (s->differences == KP_DIFFERENCES)
        return;
    struct kp_difference *d = &v->difference[s->differences++];
    *d = (struct kp_difference){.gpa = gpa, .size = size};
    snprintf(d->name, sizeof d->name, "%s", name);
    memcpy(d->interpreted, interpreted, size);
    memcpy(d->translated, found, size);
}

/* Which bits a walk sets depends on which entries the TLB has lost to others: of those, A may differ. */
static bool same_byte(const Page *p, unsigned at)
{
    uint8_t differs = p->end[0][at] ^ p->end[1][at];
    return p->walked && at % 4 == 0 ? !(differs & ~0x20u) : !differs;
}

static void compare_page(Verifier *v, const Page *p)
{
    uint32_t before = v->found.differences;
    for (unsigned at = 0; at < sizeof p->before; at++) {
        if (same_byte(p, at))
            continue;
        unsigned from = at & ~7u;
        note(v, "memory", p->end[0] + from, p->end[1] + from, 8, p->phys + from);
        at = from + 7;
    }
    if (!p->interpreted && !p->walked && v->found.differences == before) /* what was there already, but nobody else has stored it */
        note(v, "stored", p->end[0], p->end[1], 8, p->phys);
}

/* Emitted STI notes no shadow: more budget is left then than the next instruction needs. The interpreter's counts. */
static void take_shadow(Cpu *c, Verifier *v)
{
    uint8_t interpreted = v->end[0].cpu[offsetof(Cpu, shadow)], *found = &v->end[1].cpu[offsetof(Cpu, shadow)];
    if (interpreted == 1 && *found == 0)
        c->shadow = *found = 1;
}

static bool equal(Verifier *v, uint32_t undefined)
{
    v->found.differences = 0;
    const VerifyDifference *d;
    for (unsigned n = 0; (d = verify_state_compare(&v->end[0], &v->end[1], undefined, &n));)
        note(v, d->name, d->interpreted, d->translated, d->size, 0);
    for (uint32_t n = 0; n < v->pages; n++)
        compare_page(v, &v->page[n]);
    return v->found.differences == 0;
}

/* Translated code is some instructions ahead: the interpreter goes there too. */
static void catch_up(Cpu *c, Verifier *v)
{
    int64_t more = v->end[0].left - v->end[1].left + (v->end[1].why ? 1 : 0);
    take_tags(v);
    for (uint32_t n = 0; n < v->pages; n++)
        put(c->vm, &v->page[n], v->page[n].end[0]);
    verify_state_restore(c, &v->end[0]);
    int64_t left = v->end[0].left;
    v->pass = INTERPRETED;
    uint32_t first = v->blocks, known = v->pages;
    run_pass(c, v, more, STEPS);
    for (uint32_t n = known; n < v->pages; n++) /* translated code has not written these */
        memcpy(v->page[n].end[1], v->page[n].before, sizeof v->page[n].before);
    for (uint32_t n = first; n < v->blocks; n++)
        v->block[n].budget += left - more;
    v->end[0].left += left - more;
}

/* A run was broken off that an undisturbed one is not: all is as it was before the stretch, to be begun again once there is room. */
static bool broken_off(Cpu *c, Verifier *v)
{
    if (!v->no_room)
        return false;
    undo(c, v, false);
    v->pass = IDLE;
    return true;
}

/* Both runs from the start of the stretch; true: they end alike, or were broken off. */
static bool attempt(Cpu *c, Verifier *v, int64_t budget, int how)
{
    v->blocks = v->stored_count = 0;
    v->epoch = code_epoch(c->vm);
    v->start.left = budget;
    v->pass = INTERPRETED;
    run_pass(c, v, budget, how);
    if (broken_off(c, v))
        return true;
    undo(c, v, true);
    v->pass = TRANSLATED;
    give_tags(c->vm, v);
    /* What unwound the interpreter unwinds here too; else there are just as many instructions to do. */
    int64_t rest = v->end[0].why ? 0 : v->end[0].left;
    run_pass(c, v, budget - rest + BLOCK_MAX, how);
    v->end[1].left += rest - BLOCK_MAX;
    if (!v->no_room && !v->end[0].why && (v->end[1].why || v->end[1].left < v->end[0].left))
        catch_up(c, v);
    if (broken_off(c, v))
        return true;
    take_shadow(c, v);
    v->last = v->pass;
    v->pass = IDLE;
    return equal(v, 0) || equal(v, follow(c->vm, v).undefined);
}

/* The two have parted: up to where the interpreter depends on a flag that nobody defines, or else the first block that does it. */
static bool look_closer(Cpu *c, Verifier *v)
{
    int64_t reader = follow(c->vm, v).reader;
    if (reader > 0) {
        undo(c, v, false);
        if (attempt(c, v, reader, EXACT))
            return true;
    }
    struct kp_stretch whole = v->found;
    struct kp_difference difference[KP_DIFFERENCES];
    memcpy(difference, v->difference, sizeof difference);
    struct { uint64_t rip; int64_t end; } part[BLOCKS];
    uint32_t parts = v->blocks;
    for (uint32_t n = 0; n < parts; n++) {
        part[n].rip = v->block[n].block->rip;
        part[n].end = v->start.left - (n + 1 < parts ? v->block[n + 1].budget : v->end[0].why ? 0 : v->end[0].left);
    }
    for (uint32_t n = 0; n < parts; n++) {
        undo(c, v, false);
        if (!attempt(c, v, part[n].end, EXACT)) {
            v->found.again = 1;
            v->found.rip = part[n].rip;
            v->found.next = n + 1 < parts ? part[n + 1].rip : 0;
            return false;
        }
    }
    v->found = whole; /* it does not come again */
    v->found.again = 0;
    v->found.rip = part[parts - 1].rip;
    v->found.next = 0;
    memcpy(v->difference, difference, sizeof difference);
    return false;
}

static void tell(Cpu *c, Verifier *v)
{
    struct kp_stretch *s = &v->found;
    const VerifyState *end = v->end;
    s->vcpu = c->index;
    s->start = v->start.rip;
    s->interpreted = (uint64_t)(v->start.left - end[0].left);
    s->translated = (uint64_t)(v->start.left - end[1].left);
}

static bool comparable(const Cpu *c)
{
    const Vm *vm = c->vm;
    return vm->translator && !vm->tracing && !vm->covering && !vm->watching && !vm->breaking && !c->guest_debug.control &&
           !(c->dr[7] & 0xff) && c->resume_linear == NEVER;
}

bool verify_stretch(Cpu *c)
{
    Verifier *v = c->vm->verifier;
    if (!comparable(c))
        return false;
    v->random ^= v->random << 13;
    v->random ^= v->random >> 7;
    v->random ^= v->random << 17;
    int64_t budget = 1 + (int64_t)(v->random >> 8) % (v->random & 7 ? LONGEST : LONG), least = block_find(c)->count;
    budget = budget < least ? least : budget > c->budget ? c->budget : budget;
    int64_t hidden = c->budget - budget;
    c->run->slice -= hidden; /* virtual time stands by what is left of the budget */
    take_end(c, &v->start, 0);
    memcpy(v->stat, c->stat, sizeof v->stat);
    bool alike = attempt(c, v, budget, WHOLE_BLOCKS) || look_closer(c, v);
    if (unlikely(v->no_room)) {
        v->no_room = false;
        c->run->slice += hidden;
        c->budget = budget + hidden;
        unwind(c, UNWIND_ROOM);
    }
    int64_t done = v->start.left - v->end[1].left;
    if (alike)
        take_tags(v);
    else {
        tell(c, v);
        undo(c, v, false);
    }
    v->pages = v->fills = 0;
    c->run->slice += hidden;
    if (!alike) {
        c->budget = budget + hidden;
        cpu_exit_after(c, KP_EXIT_DIFFERS);
        return true;
    }
    const VerifyState *end = &v->end[v->last - INTERPRETED];
    c->budget = hidden + budget - done - end->unwound;
    c->stat[STAT_INSTRUCTIONS_VERIFIED] += (uint64_t)done;
    if (end->why)
        unwind(c, end->why);
    return true;
}

/* ---- from outside ---- */

int kp_vm_set_verifier(Vm *vm, int on)
{
    if (on && vm->parallel)
        return -EINVAL;
    if (!on == !vm->verifier)
        return 0;
    code_drop_all(vm);
    if (!on) {
        verify_destroy(vm);
    } else {
        choose_apart();
        Verifier *v = calloc(1, sizeof *v);
        void *pages = mmap(NULL, PAGES * sizeof(Page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (!v || pages == MAP_FAILED) {
            free(v);
            return -ENOMEM;
        }
        v->page = pages;
        v->random = 0x9e3779b97f4a7c15;
        vm->verifier = v;
    }
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n])
            tlb_flush_all(vm->cpu[n]);
    return 0;
}

void verify_destroy(Vm *vm)
{
    if (!vm->verifier)
        return;
    munmap(vm->verifier->page, PAGES * sizeof(Page));
    free(vm->verifier);
    vm->verifier = NULL;
}

uint32_t kp_vm_difference(Vm *vm, struct kp_stretch *stretch, struct kp_difference *out, uint32_t room)
{
    const Verifier *v = vm->verifier;
    if (!v || !v->found.differences)
        return 0;
    *stretch = v->found;
    uint32_t count = v->found.differences < room ? v->found.differences : room;
    memcpy(out, v->difference, count * sizeof *out);
    return count;
}
