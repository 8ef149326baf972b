/* Decoded blocks: straight runs of instructions inside a page, linked to their successors. */
#ifndef KP_BLOCK_H
#define KP_BLOCK_H

#include "insn.h"
#include "vm.h"

#define BLOCK_MAX KP_BLOCK_MAX

/* A successor: between pages valid only under the translations it was made with. */
typedef struct Link {
    Block *to;
    uint64_t generation; /* tlb_generation it holds under, or 0: always (same page). vCPUs in parallel have only such */
    struct Link *next, **place; /* in the list of the links to the same block */
} Link;

struct Block {
    uint64_t rip;   /* of the first instruction */
    uint64_t phys;  /* of its first byte */
    uint64_t space; /* code_space */
    uint64_t phys2; /* page of the bytes past the page end (only a block of one instruction has such), or NO_PAGE */
    Link link[2];   /* 0: taken branch; 1: fall-through */
    Link *from;     /* links to this block */
    Block *hash_next;
    Block *page_next[2]; /* next in the lists of the pages it lies in */
    exec_fn first;       /* handler of the first instruction where insn[0].exec counts runs or enters the translation */
    uint8_t *code;       /* its translation (writable address), or NULL */
    struct Exit *incoming; /* exits that are linked to its code */
    uint32_t mode;
    uint32_t size;       /* of this with its instructions */
    uint32_t heat;       /* runs left before the block is translated */
    uint32_t code_size;
    uint32_t starts;     /* index of its first instruction's in Translator.start */
    uint16_t translated; /* instructions of its translation, other blocks' that it goes on to among them */
    uint16_t count;      /* instructions, the closing pseudo-instruction not counted */
    uint16_t bytes;
    uint16_t by_memory;  /* offset of the entry for flags in native_flags; the one for flags in RFLAGS is at 0 */
    uint16_t refusal;    /* offset of what sets RIP to the block's and leaves, flags in RFLAGS */
    uint16_t refusal_by_memory;
    uint8_t uncovered;   /* coverage: instructions that were never begun since the block was built, */
    uint8_t edges_left;  /* ways of its conditional jump never gone: bit n for link[n] */
    uint8_t splits;      /* how often the translation went because of its other blocks: KP_REGION_SPLITS */
    uint8_t shared_misses; /* how often a check for several accesses has failed; many: each gets its own */
    bool told;           /* the trace has handlers in it */
    bool unshared;
    Insn insn[];
};
#define NO_PAGE 1ull

/* Indirect jumps find their block by RIP here. */
struct JumpCacheEntry {
    Block *block;
    uint64_t generation; /* tlb_generation the entry was made under */
};
#define JUMP_CACHE_BITS 12

/* The block at c->rip under the present mode and translations; built where there is none. May raise the fetch's fault. */
Block *block_find(Cpu *c);
/* Finds the block at c->rip and links it as successor n of b; gives its first instruction with the budget taken, or NULL. */
const Insn *block_chain(Cpu *c, Block *b, int n);
const Insn *block_indirect(Cpu *c);
/* Faster handlers for what the instructions do together; counts runs from then on where there is a translator. */
void block_improve(Block *b);
void block_arm(Vm *vm, Block *b);
/* Translations with the block among their parts go, to be made again when they are wanted next. */
void block_translate_anew(Vm *vm, const Block *part);
void block_arm_again(const Vm *vm, Block *b); /* its translation is gone */
/* Moves a block to where it stays, and gives its new address, or NULL: there must be made room. Emitted code points into kept
   blocks alone. */
Block *block_keep(Vm *vm, Block *b);
/* Gives frequent pairs of instructions one handler. */
void block_fuse(Block *b);
/* Takes handlers without flags where nobody sees them. */
void block_drop_dead_flags(Block *b);
/* Decodes the one instruction at c->rip into insn[0], with a closing pseudo-instruction behind it. */
void block_decode_alone(Cpu *c, Insn insn[2]);

/* Leaves before an instruction of a block, nothing of it done. */
const Insn *insn_leave(Cpu *c, const Insn *i);

/* The block under these, where it has been built; one over the page's end is not asked for its second page. */
Block *block_known(const Vm *vm, uint64_t phys, uint64_t space, uint64_t rip, uint32_t mode);
/* Drops what was decoded from a physical range; gives whether anything was. */
bool code_written(Vm *vm, uint64_t phys, uint64_t size);
/* Does the page hold decoded code? (then stores into it take the slow path) */
bool code_in_page(Vm *vm, uint64_t phys);
void code_drop_all(Vm *vm);
/* Memory of code runs short: code_make_room() is called before the next block. */
void code_want_room(Cpu *c);
/* The memory of what has been dropped, and of the oldest blocks and translations where it is short, is used anew.
   For whoever knows that no vCPU stands in a block: nothing is reused before, so that dropped blocks can be left at leisure. */
void code_make_room(Vm *vm);
/* All blocks one by one: the next after `b`, the first after NULL. */
Block *code_next(Vm *vm, const Block *b);
/* Changes when all blocks are dropped, and when memory of blocks is reused. */
uint64_t code_epoch(const Vm *vm);
/* Where the memory of blocks that stay begins: the same as long as there is code. */
uint8_t *code_kept_base(const Vm *vm);
int code_create(Vm *vm);
void code_destroy(Vm *vm);

/* The rest of a block that is left before its end goes back into the budget. */
static inline void refund(Cpu *c, const Insn *next)
{
    if (next->block)
        c->budget += next->left;
}

HOT_INLINE const Insn *enter_block(Cpu *c, Block *b)
{
    if (likely((c->budget -= b->count) >= 0 && !c->attention))
        return b->insn;
    c->budget += b->count;
    return NULL;
}

/* End of a direct branch or fall-through to `target`. */
HOT_INLINE const Insn *jump_to(Cpu *c, const Insn *i, uint64_t target, int n)
{
    Block *b = i->block;
    c->rip = target;
    if (unlikely(!b))
        return NULL;
    Link *l = &b->link[n];
    Block *to = __atomic_load_n(&l->to, __ATOMIC_RELAXED); /* another vCPU may set it meanwhile */
    if (likely(to && (l->generation == 0 || l->generation == c->tlb_generation)))
        return enter_block(c, to);
    return block_chain(c, b, n);
}

HOT_INLINE const Insn *jump_indirect(Cpu *c, const Insn *i, uint64_t target)
{
    c->rip = target;
    if (unlikely(!i->block))
        return NULL;
    const struct JumpCacheEntry *e = &c->jump[(target ^ target >> JUMP_CACHE_BITS) & ((1u << JUMP_CACHE_BITS) - 1)];
    if (likely(e->generation == c->tlb_generation && e->block->rip == target && e->block->mode == c->mode))
        return enter_block(c, e->block);
    return block_indirect(c);
}

#ifdef KP_NO_TAIL_CALLS
#define JUMP_TO(target, n) return jump_to(c, i, (target), (n))
#define JUMP_INDIRECT(target) return jump_indirect(c, i, (target))
#else
#define JUMP_TO(target, n) \
    do { \
        const Insn *to_ = jump_to(c, i, (target), (n)); \
        if (unlikely(!to_)) \
            return NULL; \
        return to_->exec(c, to_); \
    } while (0)
#define JUMP_INDIRECT(target) \
    do { \
        const Insn *to_ = jump_indirect(c, i, (target)); \
        if (unlikely(!to_)) \
            return NULL; \
        return to_->exec(c, to_); \
    } while (0)
#endif

/* Leaves a block in its middle, this instruction retired; execution goes on at `to`. */
#define LEAVE_EARLY_AT(to) \
    do { \
        if (i->block) \
            refund(c, i + 1); \
        c->rip = (to); \
        return NULL; \
    } while (0)

#endif
