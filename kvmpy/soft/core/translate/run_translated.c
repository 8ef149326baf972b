/* Entering and leaving translated code. */
#define _GNU_SOURCE /* syscall */
#include "run_translated.h"

#include <asm/prctl.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "coverage.h"
#include "encode.h"
#include "exec.h"
#include "parallel.h"
#include "run.h"
#include "timing.h"
#include "verify.h"

#define SHARED_MISSES 16

/* AX as LAHF and SETO AL leave it. */
static uint32_t to_native(uint32_t flags) { return (flags & 0xd5) << 8 | 0x200 | (flags >> 11 & 1); }
static uint32_t from_native(uint32_t ax) { return (ax >> 8 & 0xd5) | (ax & 1) << 11; }

static uint64_t mixed(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* A number that no other pair of generation and mode has, scattered over 64 bits: an indirect jump compares it together with RIP,
   as one number, and another RIP under another key gives the same with a probability of 2^-64. */
static void make_code_key(Cpu *c)
{
    c->code_key_generation = c->tlb_generation;
    c->code_key_mode = c->mode;
    c->code_key = mixed(mixed(c->tlb_generation + c->vm->translator->secret) ^ c->mode);
}

static void prepare(Cpu *c)
{
    c->native_flags = to_native(cc_flags(c));
    if (unlikely(c->code_key_generation != c->tlb_generation || c->code_key_mode != c->mode))
        make_code_key(c);
}

static const Insn *exec_resume(Cpu *c, const Insn *i)
{
    c->rip = i->next_rip;
    return i;
}

/* One instruction of a block by its handler; gives what translated_fallback does. */
static uint64_t single(Cpu *c, const Insn *i)
{
    struct RunState *r = c->run;
    Block *b = i->block;
    uint64_t epoch = code_epoch(c->vm), drops = c->vm->translator->drops;
    uint8_t trap_sse = c->trap_sse, trap_avx = c->trap_avx;
    cc_explicit(c, from_native(c->native_flags));
    r->single[0] = *i;
    r->single[0].exec = decode_handler(i);
    r->single[1] = (Insn){.exec = exec_resume, .next_rip = i->next_rip, .id = i->id, .block = b, .left = (uint8_t)(i->left - 1)};
    const Insn *next = r->single[0].exec(c, r->single);
#ifdef KP_NO_TAIL_CALLS
    if (next == r->single + 1)
        c->rip = i->next_rip;
#endif
    prepare(c);
    if (next == NULL)
        return LEFT_RIP;
    if (next != r->single + 1)
        return (uintptr_t)next;
    if (unlikely(code_epoch(c->vm) != epoch || c->vm->translator->drops != drops || r->stale)) { /* perhaps it has overwritten what follows */
        r->stale = false;
        c->budget += r->single[1].left;
        return LEFT_RIP;
    }
    if (unlikely(c->attention || c->trap_sse != trap_sse || c->trap_avx != trap_avx)) /* events are looked at where the block ends */
        return (uintptr_t)(i + 1);
    return 0;
}

/* Translated code has retired what it took off the budget since the last look, but for `rest` instructions taken and not yet done. */
static void count_retired(Cpu *c, unsigned rest)
{
    c->stat[STAT_INSTRUCTIONS_TRANSLATED] += (uint64_t)(c->run->entered - c->budget - rest);
}

static unsigned rest_of(uint64_t left)
{
    const Insn *next = (const Insn *)(uintptr_t)(left & ~(uint64_t)LEFT_SHARED);
    return next && next->block ? next->left : 0;
}

uint64_t translated_fallback(Cpu *c, uint64_t what)
{
    const unsigned behind = what % _Alignof(Insn);
    const Insn *i = (const Insn *)(uintptr_t)(what - behind);
    c->budget += BLOCK_MAX + behind;
    count_retired(c, i->left);
    c->stat[STAT_HANDLER_CALLS]++;
    time_goes_to(c, TIME_INTERPRETED);
    uint64_t left = single(c, i);
    time_goes_to(c, TIME_TRANSLATED);
    c->run->entered = c->budget + (left == 0 ? i->left - 1 : left == LEFT_RIP ? 0 : (int64_t)rest_of(left));
    c->budget -= BLOCK_MAX + (left == 0 ? behind : 0);
    return left;
}

Found translated_fill(Cpu *c, uint64_t linear, int access)
{
    const Found none = {0, ~0ull};
    bool taken = core_take(c);
    uint64_t drops = c->vm->translator->drops;
    /* another vCPU may have stopped this one: with the handler translated code is left, before it uses an address found earlier */
    const TlbEntry *e = c->attention ? NULL : mem_fill(c, linear, access);
    if (unlikely(c->vm->translator->drops != drops)) { /* accessed and dirty bits were set among code */
        c->run->stale = true;
        e = NULL;
    }
    core_give(c, taken);
    return e ? (Found){e->host, linear & 0xfff} : none;
}

/* The thread's GS base is c from now on: nothing else in a process of this ABI needs GS for long. */
static void take_gs(Cpu *c)
{
    if (likely(getauxval(AT_HWCAP2) & 2)) { /* HWCAP2_FSGSBASE */
        uint64_t base;
        __asm__ volatile("rdgsbase %0" : "=r"(base));
        if (unlikely(base != (uintptr_t)c))
            __asm__ volatile("wrgsbase %0" : : "r"(c));
    } else {
        syscall(SYS_arch_prctl, ARCH_SET_GS, c);
    }
}

static void set_target(Cpu *c, uint64_t rip, const uint8_t *code)
{
    c->code_target[rip % CODE_TARGETS] = (CodeTarget){rip ^ c->code_key, code};
}

/* A range that lies across a page's end fails whenever it is used: its block gets a check for each access from then on. */
static void count_shared_miss(Cpu *c, Block *b)
{
    if (b->unshared || ++b->shared_misses < SHARED_MISSES)
        return;
    bool taken = core_take(c);
    core_stop(c->vm);
    b->unshared = true;
    block_translate_anew(c->vm, b);
    core_give(c, taken);
}

/* Has the run loop nothing to do but to find the next block? What it looks at, in its order; all else sets attention. */
static bool nothing_else(const Cpu *c)
{
    const struct RunState *r = c->run;
    return !r->write_count && !r->exit_pending && !c->vm->timers_changed && !r->ending && c->budget > 0 && !c->pending_debug && !c->shadow &&
           !c->halted && !(r->check && c->eflags & FL_IF) && c->lapic && !(c->eflags & FL_TF) && !r->slow_steps && !c->guest_debug.control &&
           c->resume_linear == NEVER && !(c->dr[7] & 0xff);
}

/* The translated block at RIP, noted for indirect jumps; NULL: there is none, or the budget is too small for it. May raise the
   fetch's fault. */
static const uint8_t *next_code(Cpu *c, Block **found)
{
    const CodeTarget *target = &c->code_target[c->rip % CODE_TARGETS];
    bool resuming = c->eflags & FL_RF;
    if (target->tag == (c->rip ^ c->code_key) && c->budget >= BLOCK_MAX && !resuming) /* enough for any block */
        return target->code;
    Block *b = *found = block_find(c);
    if (b->insn[0].exec != exec_translated || b->count > c->budget) /* or it is not complete: another vCPU makes it */
        return NULL;
    if (unlikely(resuming) && (c->vm->verifier || !resume_flag_done(c, b))) /* a stretch that is compared ends there */
        return NULL;
    const uint8_t *code = executable(c->vm->translator, b->code + b->by_memory);
    set_target(c, b->rip, code);
    return code;
}

/* The last instruction of a block, by its handler; true: RIP is set, and the next block can be entered. */
static bool end_block(Cpu *c, const Insn *i, const Insn **next)
{
    enum { NO_CHAIN = 2 }; /* the handler must not run into the next block from here: attention stops it */
    uint32_t none = 0, mine = NO_CHAIN;
    if (!__atomic_compare_exchange_n(&c->attention, &none, NO_CHAIN, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        *next = i;
        return false;
    }
    *next = (i == i->block->insn ? i->block->first : i->exec)(c, i);
    bool quiet = __atomic_compare_exchange_n(&c->attention, &mine, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    if (*next || !quiet || !nothing_else(c) || c->eflags & FL_RF)
        return false;
    forget_accesses(c);
    return true;
}

Way translated_finish(Cpu *c, const Insn *i)
{
    c->budget += BLOCK_MAX;
    count_retired(c, 1);
    cc_explicit(c, from_native(c->native_flags));
    if (unlikely(c->attention)) {
        c->run->entered = c->budget + 1;
        c->budget -= BLOCK_MAX;
        return (Way){NULL, (uintptr_t)i};
    }
    c->stat[STAT_HANDLER_CALLS]++;
    const Block *b = i->block;
    (i == b->insn ? b->first : i->exec)(c, i);
    c->run->entered = c->budget;
    prepare(c);
    const uint8_t *code = NULL;
    if (likely(!c->attention && nothing_else(c))) {
        Block *found = NULL;
        forget_accesses(c);
        code = next_code(c, &found);
    }
    c->budget -= BLOCK_MAX;
    return (Way){code, 0};
}

/* Back to the run loop behind an exit. Emitted STI counts on the next instruction to follow at once: where something from outside
   has come between, interrupts are held back for it, or one would come before the HLT of STI and HLT. */
static const Insn *leave_behind(Cpu *c, const Exit *x)
{
    if (x->from->insn[x->from->count - 1].id == INSN_sti)
        c->shadow = 1;
    return NULL;
}

const Insn *exec_translated(Cpu *c, const Insn *i)
{
    struct Translator *t = c->vm->translator;
    Block *b = i->block;
    const uint8_t *entry = executable(t, b->code + b->by_memory);
    take_gs(c);
    prepare(c);
    set_target(c, b->rip, entry);
    c->budget += b->count; /* the code takes it itself */
    for (;;) {
        c->run->entered = c->budget;
        c->budget -= BLOCK_MAX;
        time_goes_to(c, TIME_TRANSLATED);
        uint64_t left = t->enter(c, entry);
        time_goes_to(c, TIME_INTERPRETED);
        c->budget += BLOCK_MAX;
        cc_explicit(c, from_native(c->native_flags));
        if (!(left & LEFT_EXIT)) {
            const Insn *next = (const Insn *)(uintptr_t)(left & ~(uint64_t)LEFT_SHARED);
            count_retired(c, rest_of(left));
            c->stat[next ? STAT_EXITS_TO_HANDLER : STAT_EXITS_TO_LOOP]++;
            if (unlikely(left & LEFT_SHARED))
                count_shared_miss(c, next->block);
            if (unlikely(c->vm->verifier) && verify_ends(c, next))
                return insn_leave(c, next);
            if (next && insn_table[next->id].attributes & A_END) {
                if (end_block(c, next, &next)) {
                    Block *to = NULL;
                    prepare(c);
                    entry = next_code(c, &to);
                    if (entry)
                        continue;
                    return enter_block(c, to);
                }
            }
            /* a first instruction that the translation does not do must not lead into it again */
            return next && next == next->block->insn ? next->block->first(c, next) : next;
        }
        Exit *x = (Exit *)(uintptr_t)(left & ~(uint64_t)LEFT_EXIT);
        count_retired(c, 0);
        c->stat[STAT_EXITS_UNLINKED]++;
        c->rip = x->target;
        if (unlikely(x->from->edges_left))
            cover_edge(c, x->from, x->way);
        if (c->budget <= 0 || c->attention || c->run->slow_steps)
            return leave_behind(c, x);
        bool taken = core_take(c);
        uint64_t epoch = code_epoch(c->vm);
        Block *from = x->from, *to = block_find(c);
        if (!to->code || code_epoch(c->vm) != epoch) {
            core_give(c, taken);
            const Insn *next = enter_block(c, to);
            return next ? next : leave_behind(c, x);
        }
        prepare(c);
        /* A block over the page's end holds only as long as the next page's translation: inside the page nothing would tell. */
        if (!x->patch) {
            set_target(c, to->rip, executable(t, to->code + to->by_memory));
        } else if (from->mode == to->mode && (x->key || to->phys2 == NO_PAGE)) {
            if (x->key)
                memcpy(x->key, &c->code_key, sizeof c->code_key);
            c->stat[STAT_LINKS] += !x->linked;
            exit_link(x, to);
        }
        entry = executable(t, to->code + to->by_memory);
        core_give(c, taken);
    }
}

const Insn *exec_counted(Cpu *c, const Insn *i)
{
    Block *b = i->block;
    if (--b->heat)
        return b->first(c, i);
    bool taken = core_take(c);
    if (unlikely(taken) && (b->mode == ~0u || b->code)) { /* dropped meanwhile, or translated by another vCPU */
        core_give(c, taken);
        return i->exec(c, i);
    }
    Block *kept = translator_room(c->vm->translator) ? block_keep(c->vm, b) : NULL;
    if (!kept) {
        code_want_room(c);
        b->heat = 1;
        core_give(c, taken);
        return b->first(c, i);
    }
    b = kept;
    i = b->insn;
    time_goes_to(c, TIME_TRANSLATING);
    bool done = translate_block(c, b);
    time_goes_to(c, TIME_INTERPRETED);
    if (!done) {
        c->stat[STAT_BLOCKS_UNTRANSLATABLE]++;
        b->insn[0].exec = b->first;
        core_give(c, taken);
        return b->first(c, i);
    }
    c->stat[STAT_BLOCKS_TRANSLATED]++;
    c->stat[STAT_CODE_BYTES] += b->code_size;
    if (unlikely(c->vm->translator->made))
        translation_remember(c->vm->translator, b);
    __atomic_store_n(&b->insn[0].exec, exec_translated, __ATOMIC_RELEASE);
    core_give(c, taken);
    return exec_translated(c, i);
}
