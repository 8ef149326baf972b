/* The translator: hot blocks as host code. exec_<id> stays the meaning; emitted code is a faster way to the same state.

   In translated code guest registers live in host registers (host_register[]) but R13, R14 and R15, rax and rcx are temporaries,
   rsp is the host's stack and gs the Cpu. What changes often stands in the stack frame, not in the Cpu (SLOT_*): processors forward
   a store to a load behind it by name where both go by rsp (AMD's memory renaming: 0.36 ns for a decrement, 1.3 to 3 by gs).
   The guest's six arithmetic flags are in RFLAGS or in their slot, or an instruction that gives them can be repeated: flags.c. */
#ifndef KP_TRANSLATE_H
#define KP_TRANSLATE_H

#include "block.h"
#include "region.h"

/* A direct exit that is linked to its successor when it is first taken. */
typedef struct Exit {
    Block *from;
    uint64_t target;
    uint8_t *patch; /* writable address of the rel32 that leads to the exit's stub, or to the successor */
    uint8_t *stub;
    struct Exit *next, **place; /* in the list of the exits that lead to the same block, while linked */
    bool by_memory; /* the flags are in native_flags where it is taken */
    bool way;       /* as Block.link: 0 a jump taken, 1 gone on */
    bool linked;    /* it leads to a block, not to its stub */
    uint8_t *key;   /* between pages: the code_key the link holds under (writable address, not aligned); NULL inside a page */
} Exit;

/* Cpu.vectors_live: of the vector registers the host's hold nothing, the lower halves (the upper ones are zero, or whatever), or all. */
enum { VECTORS_NONE, VECTORS_LOWER, VECTORS_WHOLE };

/* Where an instruction begins in its translation's code, and which bytes of its page it is. */
typedef struct {
    uint16_t code;
    uint16_t place : 12, length : 4;
} Start;

/* The code cache with its tables is filled part by part, and emptied likewise, the oldest first. */
#define CACHE_PARTS 8u

/* What a check is for, and which table it goes by. */
enum { CHECK_READ, CHECK_WRITE, CHECK_KINDS };
enum { TABLE_USER, TABLE_SUPER, TABLE_SUPER_AC, TABLES };
extern const size_t tlb_tables[TABLES], tlb_tags[CHECK_KINDS]; /* offsets in Cpu, in TlbEntry */

/* Pieces with two entries, for flags in their slot and for flags in RFLAGS. ecx: of an instruction, how far it lies behind
   Translator.insns, plus how many instructions follow its block in the region, whose budget is given back; of an exit, its index. */
enum {
    PIECE_LEAVE,        /* the interpreter goes on with the instruction */
    PIECE_LEAVE_SHARED, /* the same: a check for several has failed there */
    PIECE_EXIT,         /* an exit that is not linked */
    PIECE_HANDLER,      /* the instruction is executed by its handler, and the piece returns */
    PIECE_FINISH,       /* the same with the last of a block: goes on at the next one's code */
    PIECES
};
enum { FLAGS_SAVED, FLAGS_LIVE };
/* Of the sizes with a piece of their own, 1 << n bytes, the smaller ones are sure to be accessed once they are checked; larger ones may
   be misaligned, and a check for several instructions comes before some that may not be reached. */
#define SECOND_SIZES 6u
#define SECOND_SURE 4u

struct Translator {
    uint8_t *writable;          /* the code cache as data */
    uint8_t *executable;        /* the same memory as code */
    uint8_t *next, *blocks;     /* first free byte; first byte behind the thunks (writable addresses) */
    Exit *exits;
    uint32_t exit_count;        /* first free index */
    struct kp_made *made;       /* NULL, or all translations that lie in the cache, dropped ones too; room for `made_room` */
    uint32_t made_count, made_room;
    uint64_t drops;             /* translations thrown away one by one */
    Start *start;               /* of the instructions of all translations */
    uint32_t start_count;
    unsigned part, parts;       /* the one that is being filled; how many there are */
    bool used[CACHE_PARTS];
    uint32_t exits_end[CACHE_PARTS]; /* behind the last exit of a part that is no more filled */
    size_t size;                /* bytes of the code cache */
    uint32_t threshold;         /* runs of a block before it is translated */
    uint64_t secret;            /* what code_key is made of beside the generation and the mode */
    uint64_t (*enter)(Cpu *c, const uint8_t *code); /* runs translated code; gives LEFT_* */
    uint8_t *insns;             /* instructions of blocks that stay lie behind here, within 32 bits */
    /* thunks, executable addresses: */
    const uint8_t *exit_saved;  /* leave, the state is in memory already */
    const uint8_t *exit;        /* spill registers, leave with rax */
    const uint8_t *refuse;      /* rcx: RIP is set to it; leave */
    const uint8_t *piece[PIECES][2];
    /* After a check that failed: the second way, then a walk. rcx = offset in the page, or a large number, compared as for accesses of
       1 << n bytes (the last: of one); rax = the page's host address. */
    const uint8_t *second[TABLES][CHECK_KINDS][SECOND_SIZES + 1];
    const uint8_t *load_vectors[VECTORS_WHOLE + 1]; /* by VECTORS_*: makes what is live be that */
};

/* What `enter` gives: 0: to the run loop, RIP is set; an Exit with LEFT_EXIT; else the instruction to go on with. */
#define LEFT_EXIT 1u
#define LEFT_SHARED 2u /* with an instruction: a check for several has failed there */

void emitters_prepare(void);
/* Makes the code cache; false where the host forbids executable memory. */
bool translator_create(Vm *vm, uint32_t threshold);
void translator_destroy(Vm *vm);
/* All translations are gone: blocks that had one are dropped by the caller. */
void translator_forget(struct Translator *t);
/* Is there room for one more translation? */
bool translator_room(struct Translator *t);
/* The oldest translations go; their blocks stay. No vCPU may be in translated code. */
void translator_empty_oldest(Vm *vm);
/* The exits in the part of the cache that holds an address: the first, and one behind the last. */
const Exit *translator_exits(const struct Translator *t, const uint8_t *code, const Exit **end);
static inline const uint8_t *executable(const struct Translator *t, const uint8_t *writable)
{
    return t->executable + (writable - t->writable);
}

/* Translates a block; false where it cannot be. */
bool translate_block(Cpu *c, Block *b);
#define MOST_CODE 32768 /* bytes of one translation, far above what its 48 instructions need */
void translation_remember(struct Translator *t, const Block *b);
/* Does its translation hold an instruction with a byte of its page from `first` to `last`? */
bool translation_covers(const Vm *vm, const Block *b, unsigned first, unsigned last);
/* Or one that begins at a marked byte of it? */
bool translation_meets(const Vm *vm, const Block *b, const uint64_t places[64]);
/* May the handler of this last instruction of a block run on into the next block? Jumps do; what leaves to the run loop does not. */
static inline bool handler_chains(const Insn *i)
{
    return insn_table[i->id].attributes & (A_JUMP | A_CALL | A_RET) || i->id == INSN_jmp_Ev;
}
void exit_link(Exit *x, Block *to);
void exit_unlink(Exit *x); /* its jump stays as it is */
/* What is linked to a block that is dropped goes through its stub again; who finds the block's code otherwise leaves. */
void translation_drop(Vm *vm, Block *b);
/* Handlers of a block's first instruction: counts runs until the block is hot; runs its translation. */
const Insn *exec_counted(Cpu *c, const Insn *i);
const Insn *exec_translated(Cpu *c, const Insn *i);

#endif
