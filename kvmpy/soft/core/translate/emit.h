/* State of the translation of one block, and what the emitters share. */
#ifndef KP_EMIT_H
#define KP_EMIT_H

#include "encode.h"

/* Where the arithmetic flags are at this point. With neither they are those that `source`, an instruction whose registers have
   not changed since, gives when it is done once more; without a source nobody can see them. */
#define FLAGS_MEMORY 1u /* in their slot, as LAHF and SETO give them in AX */
#define FLAGS_HOST 2u   /* in RFLAGS */
typedef struct {
    unsigned where;
    const Insn *source;
} Flags;

#define STUBS 128
typedef struct {
    uint8_t *from[6]; /* rel32 that lead here; NULL: none */
    uint8_t *resume;  /* where to go on; NULL: the interpreter goes on with the instruction */
    const Insn *insn; /* of the region; */
    bool exits;       /* to `target`, behind it */
    uint64_t target;
    bool way;         /* of that exit */
    const Insn *before; /* done first, in the stub; NULL: nothing */
    bool shared;      /* it checks for several instructions: no way back */
    uint8_t vectors;  /* it makes these live, VECTORS_*, and comes back */
    Flags flags;      /* where they are where the stub is entered */
} Stub;

/* A check whose page may stand in the second way of the TLB: its stub looks there before the instruction's. */
#define SECONDS (2 * BLOCK_MAX)
typedef struct {
    Stub *stub;      /* of the instruction */
    unsigned which;  /* of its `from`: the check's */
    uint8_t *resume; /* behind the check */
    int kind;        /* CHECK_* */
    unsigned size;
} Second;

/* A check that holds for more than one instruction, see share.c: SLOT_HELD has the host address of `base` + low. */
typedef struct {
    bool valid, write;
    uint8_t base;      /* guest register, or ZERO_REG */
    int64_t low, high; /* what was checked, from the register's value then */
    int64_t moved;     /* what the register has been moved by since */
} Held;

typedef struct Emit {
    Code code;
    struct Translator *t;
    Cpu *c;
    Block *b; /* the region's first */
    Region region;
    const Insn *i; /* the present instruction, one of the region */
    Flags flags;
    Held held;
    Stub stub[STUBS];
    unsigned stub_count;
    Second second[SECONDS];
    unsigned second_count;
    bool forget; /* nobody sees the flags behind the present instruction that were there before it */
    Stub *open; /* stub of the present instruction's memory accesses */
} Emit;

/* An emitter writes the present instruction and gives true, or writes nothing and gives false: then its handler is called. */
typedef bool (*emit_fn)(Emit *e);

/* ---- flags ---- */
/* All of these use rax where they write code. */
void flags_keep(Emit *e);      /* before a check: a stub will find them, though RFLAGS are lost */
void flags_to_memory(Emit *e); /* before a handler or an exit that wants them in their slot, as LAHF and SETO give them in AX */
void flags_to_host(Emit *e);   /* before what reads or keeps them */
static inline void flags_clobbered(Emit *e) { e->flags.where &= ~FLAGS_HOST; }
void flags_written(Emit *e);   /* the present instruction has set all that anybody will see */
bool flags_repeatable(const Insn *i);
uint32_t flags_registers(const Insn *i); /* of a repeatable instruction, as a mask of guest registers */
uint32_t written_registers(const Insn *i); /* by the code that an instruction's emitter writes */
void flags_repeat(Emit *e, const Insn *i);
/* May the code of an instruction leave the block before the instruction is done? */
bool may_leave(const Insn *i);
/* Nobody can see these flags of the present instruction: they are overwritten before anything reads them or may leave. */
bool flags_dead_after(const Emit *e, uint32_t mask);

/* Must RFLAGS hold the guest's flags before the instruction: does it read some, or leave some alone that somebody reads later? */
bool wants_flags(const Emit *e, uint32_t read, uint32_t changed);

/* ---- memory ---- */
/* The linear address in rcx checked for `size` bytes: then the host address is rax + rcx. What fails goes to the instruction's
   handler (emit_resume and emit_interpret tell where that goes on). RFLAGS are lost: flags_keep must have been called. */
void emit_check(Emit *e, unsigned size, int kind);
/* Its first half: rcx = the offset in the page, or a large number where a TLB entry does not hold the page. eax leads to the
   entry's fields. */
void emit_page(Emit *e, int kind);
Rm emit_tlb_field(const Emit *e, size_t field);
/* Is there a form for the ModRM operand's address? */
bool emit_addressable(const Insn *i);
void emit_address(Emit *e); /* rcx = its linear address; rax and flags are lost */
/* The ModRM operand, checked; false where there is no form for it, and nothing is written then. It is where `out` says,
   [rax + rcx] or [rcx + n]; once joined it is the latter, and rax is free. */
bool emit_operand(Emit *e, unsigned size, int kind, Rm *out);
static inline void emit_join_registers(Emit *e) { emit_lea(&e->code, H_RCX, rm_mem2(H_RAX, H_RCX)); }
static inline void emit_join(Emit *e, Rm *operand)
{
    if (operand->index < 0)
        return;
    emit_join_registers(e);
    *operand = rm_mem(H_RCX, 0);
}
/* An operand at base + disp by a check that is shared; false: there is none, and nothing to share it with. */
bool emit_shared(Emit *e, unsigned base, int64_t disp, unsigned size, int kind, Rm *out);
void held_after(Emit *e); /* the present instruction is written */
/* Size and direction of the ModRM memory operand of an instruction that has an emitter. */
bool emit_memory_operand(const Insn *i, unsigned *size, bool *write);
bool copy_operand(const Insn *i, unsigned *size, bool *write);
bool vector_operand(const Insn *i, unsigned *size, bool *write);
/* Failing checks of this instruction come back here. */
void emit_resume(Emit *e);
/* Failing checks of this instruction let the interpreter do it, and go on from there. */
void emit_interpret(Emit *e);
void emit_guard(Emit *e, unsigned condition); /* a jump of the same kind as a failing check */

/* ---- registers ---- */
static inline Rm guest_memory(unsigned n) { return rm_slot(SLOT_R13 + n - R13); }
static inline Rm guest_rm(unsigned n) { return host_register[n] == IN_MEMORY ? guest_memory(n) : rm_reg(host_register[n]); }
/* The whole register in a host register: its own, or `temporary` after a load. */
static inline int guest_value(Emit *e, unsigned n, int temporary)
{
    if (host_register[n] != IN_MEMORY)
        return host_register[n];
    emit_load(&e->code, temporary, guest_memory(n));
    return temporary;
}
static inline void guest_assign(Emit *e, unsigned n, int from)
{
    if (host_register[n] == IN_MEMORY)
        emit_store(&e->code, guest_memory(n), from);
    else if (host_register[n] != from)
        emit_mov(&e->code, host_register[n], from);
}
static inline unsigned size_op(unsigned size) { return size == 8 ? OP_W : size == 2 ? OP_66 : size == 1 ? OP_BYTE : 0; }
static inline bool high_byte(unsigned offset) { return offset & 7; }

static inline const RegionInsn *region_insn(const Emit *e, const Insn *i) { return &e->region.of[i - e->region.insn]; }
/* How the region goes on behind the present instruction, the last of a block. */
static inline unsigned follows(const Emit *e) { return region_insn(e, e->i)->follows; }

/* ---- leaving ---- */
/* To code at a constant RIP; `condition`: a jcc (RFLAGS hold the flags then), or -1 for a jmp. */
void emit_exit(Emit *e, uint64_t target, int condition);
/* Finds the code for the RIP in rcx, which is lost; the flags must be in memory. What is not found is left to the interpreter.
   Then eax tells where the code's address stands, for emit_jump_found. */
void emit_lookup(Emit *e);
void emit_jump_found(Emit *e);

/* ---- the stack ---- */
unsigned stack_size(const Emit *e); /* also of addresses in this mode */
bool usual(const Emit *e); /* the operand has the stack's size */
void move_sp(Emit *e, int32_t by);
Rm push_place(Emit *e);
Rm top_place(Emit *e, unsigned base); /* what RSP or RBP points to */

/* ---- vectors ---- */
void host_prepare(void);
bool host_has(unsigned feature); /* AVX and what builds on it: only where there is AVX2 */
/* What of the vector registers the instruction's emitter wants live: VECTORS_*. */
unsigned vectors_wanted(const Insn *i);

/* By INSN_*; NULL: the handler does it. Complete once emitters_prepare has been called. */
extern emit_fn emitter[INSN_COUNT];
bool vector_instruction(unsigned id);
unsigned block_vectors(const Block *b); /* what it wants live: VECTORS_* */
#define EMITTER(name) bool name(Emit *e)
EMITTER(translate_copy);
EMITTER(translate_copy_rax);
EMITTER(translate_compare);
EMITTER(translate_compare_rax);
EMITTER(translate_shift_cl);
EMITTER(translate_incdec_row);
EMITTER(translate_mov_row);
EMITTER(translate_bswap);
EMITTER(translate_lea);
EMITTER(translate_movzx);
EMITTER(translate_mul);
EMITTER(translate_div);
EMITTER(translate_idiv);
EMITTER(translate_cbw);
EMITTER(translate_cwd);
EMITTER(translate_xchg_row);
EMITTER(translate_cmpxchg);
EMITTER(translate_nothing);
EMITTER(translate_pause);
EMITTER(translate_push);
EMITTER(translate_push_imm);
EMITTER(translate_pop);
EMITTER(translate_leave);
EMITTER(translate_jcc);
EMITTER(translate_jmp);
EMITTER(translate_jmp_ev);
EMITTER(translate_call);
EMITTER(translate_call_ev);
EMITTER(translate_ret);
EMITTER(translate_push_rm);
EMITTER(translate_loop);
EMITTER(translate_jcxz);
EMITTER(translate_bmi);
EMITTER(translate_lahf);
EMITTER(translate_sahf);
EMITTER(translate_carry);
EMITTER(translate_direction);
EMITTER(translate_fnstcw);
EMITTER(translate_mov_selector);
EMITTER(translate_string);
EMITTER(translate_pushf);
EMITTER(translate_popf);
EMITTER(translate_cli);
EMITTER(translate_sti);
EMITTER(translate_swapgs);
EMITTER(translate_base);
EMITTER(translate_fence);
EMITTER(translate_bit_string);
EMITTER(translate_cmpxchg_pair);
EMITTER(translate_xlat);
EMITTER(translate_moffs);
EMITTER(translate_vector);

#endif
