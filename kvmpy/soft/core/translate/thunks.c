/* Pieces that all translated code shares, at the start of the code cache: the way in and out, registers to memory and back around a
   handler, what is long and off the hot path. */
#include "thunks.h"

#include "emit.h"
#include "run_translated.h"

#define GPR(n) rm_gs(offsetof(Cpu, gpr) + 8u * (unsigned)(n))
#define MOVAPS_LOAD (0x28u | K_0F)
#define MOVAPS_STORE (0x29u | K_0F)
#define VZEROUPPER (0x77u | K_0F)
#define VINSERTF128 (0x18u | K_0F3A | OP_66 | OP_L)

/* Copies between the Cpu and the frame, which begins at rsp + `above`; rcx is lost. */
static void each_slot(Code *e, bool load, int32_t above)
{
    static const struct { unsigned slot; size_t place; } slots[] = {
        {SLOT_BUDGET, offsetof(Cpu, budget)}, {SLOT_FLAGS, offsetof(Cpu, native_flags)}, {SLOT_R13, offsetof(Cpu, gpr[R13])},
        {SLOT_R14, offsetof(Cpu, gpr[R14])}, {SLOT_R15, offsetof(Cpu, gpr[R15])},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(slots); n++) {
        Rm slot = rm_slot(slots[n].slot), place = rm_gs(slots[n].place);
        slot.disp += above;
        emit_load(e, H_RCX, load ? place : slot);
        emit_store(e, load ? slot : place, H_RCX);
    }
}

/* Loads or spills everything but the vectors; rcx is lost. */
static void each_register(Code *e, bool load, int32_t above)
{
    each_slot(e, load, above);
    for (unsigned n = 0; n < 16; n++) {
        if (host_register[n] == IN_MEMORY)
            continue;
        if (load)
            emit_load(e, host_register[n], GPR(n));
        else
            emit_store(e, GPR(n), host_register[n]);
    }
}

static Rm ymm(unsigned n) { return rm_gs(offsetof(Cpu, ymm) + n * sizeof(Ymm)); }

static void set_live(Code *e, unsigned live)
{
    emit_op(e, 0xc6, 0, rm_gs(offsetof(Cpu, vectors_live)));
    put8(e, live);
}

static void load_lower(Code *e)
{
    for (unsigned n = 0; n < 16; n++)
        emit_op(e, MOVAPS_LOAD, (int)n, ymm(n));
    set_live(e, VECTORS_LOWER);
}

static void load_whole(Code *e)
{
    for (unsigned n = 0; n < 16; n++)
        emit_vex(e, MOVAPS_LOAD | OP_L, (int)n, 0, ymm(n));
    set_live(e, VECTORS_WHOLE);
}

/* The upper halves beside the lower ones, which are live. */
static void load_upper(Code *e)
{
    for (unsigned n = 0; n < 16; n++) {
        Rm upper = ymm(n);
        upper.disp += 16;
        emit_vex(e, VINSERTF128, (int)n, (int)n, upper);
        put8(e, 1);
    }
    set_live(e, VECTORS_WHOLE);
}

/* cmp with what is live */
static void compare_live(Code *e, unsigned live)
{
    emit_op(e, 0x80, 7, rm_gs(offsetof(Cpu, vectors_live)));
    put8(e, live);
}

/* Spills the vector registers that are live. Uses RFLAGS. */
static void spill_vectors(Code *e)
{
    compare_live(e, VECTORS_LOWER);
    uint8_t *none = emit_jcc(e, CC_B), *whole = NULL, *done = NULL;
    if (host_has(FEAT_AVX2))
        whole = emit_jcc(e, CC_A);
    for (unsigned n = 0; n < 16; n++)
        emit_op(e, MOVAPS_STORE, (int)n, ymm(n));
    set_live(e, VECTORS_NONE);
    if (whole) {
        done = emit_jump(e, NULL, NULL);
        set_rel32(whole, e->p);
        for (unsigned n = 0; n < 16; n++)
            emit_vex(e, MOVAPS_STORE | OP_L, (int)n, 0, ymm(n));
        emit_vex(e, VZEROUPPER, 0, 0, (Rm){.kind = RM_NONE}); /* compiled code is slower with upper halves in use */
        set_live(e, VECTORS_NONE);
        set_rel32(done, e->p);
    }
    set_rel32(none, e->p);
}

/* With six registers and the return address the stack is a multiple of 16 again. */
#define FRAME (8 * SLOT_COUNT + 8)

static const int saved[] = {H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15};

static void push(Code *e, int reg)
{
    if (reg & 8)
        put8(e, 0x41);
    put8(e, 0x50 | (reg & 7));
}
static void pop(Code *e, int reg)
{
    if (reg & 8)
        put8(e, 0x41);
    put8(e, 0x58 | (reg & 7));
}
static void call_rax(Code *e)
{
    put8(e, 0xff);
    put8(e, 0xd0);
}

static void jump_rax(Code *e)
{
    put8(e, 0xff);
    put8(e, 0xe0);
}

static void add_rsp(Code *e, int n)
{
    emit_op(e, 0x83 | OP_W, 0, rm_reg(H_RSP));
    put8(e, (unsigned)n);
}

const size_t tlb_tables[TABLES] = {
    [TABLE_USER] = offsetof(Cpu, tlb_user), [TABLE_SUPER] = offsetof(Cpu, tlb_super), [TABLE_SUPER_AC] = offsetof(Cpu, tlb_super_ac),
};
const size_t tlb_tags[CHECK_KINDS] = {[CHECK_READ] = offsetof(TlbEntry, read), [CHECK_WRITE] = offsetof(TlbEntry, write)};

/* What compiled code may change but rax and rcx. */
static const int volatiles[] = {H_RDX, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11};

/* rcx = the offset in its page of the address in rcx, and rax = the page's host address, by translated_fill; for where no vectors are
   live. rsp is 8 off a multiple of 16. */
static void emit_fill(Code *e, unsigned kind, bool unmarked)
{
    for (unsigned n = 0; n < ARRAY_SIZE(volatiles); n++)
        push(e, volatiles[n]);
    emit_load(e, H_RDI, rm_gs(offsetof(Cpu, self)));
    emit_mov(e, H_RSI, H_RCX);
    emit_constant(e, H_RDX, (kind == CHECK_READ ? ACCESS_READ : ACCESS_WRITE) | (unmarked ? ACCESS_UNMARKED : 0));
    emit_constant(e, H_RAX, (uintptr_t)translated_fill);
    call_rax(e);
    emit_mov(e, H_RCX, H_RDX);
    for (unsigned n = ARRAY_SIZE(volatiles); n-- > 0;)
        pop(e, volatiles[n]);
}

/* rcx: the address less the first way's tag; rax: the entry's index times its size. What the second way does not hold is walked for. */
static void emit_second_way(Code *e, unsigned table, unsigned kind, unsigned n)
{
    const unsigned size = n < SECOND_SIZES ? 1u << n : 1;
    const size_t first = tlb_tables[table] + tlb_tags[kind], way = TLB_SIZE * sizeof(TlbEntry);
    emit_op(e, 0x03 | OP_W, H_RCX, rm_gs_index(H_RAX, first)); /* add */
    emit_op(e, 0x2b | OP_W, H_RCX, rm_gs_index(H_RAX, way + first)); /* sub */
    emit_compare_offset(e, size);
    uint8_t *miss = emit_jcc(e, CC_A);
    emit_load(e, H_RAX, rm_gs_index(H_RAX, tlb_tables[table] + way + offsetof(TlbEntry, host)));
    put8(e, 0xc3);
    set_rel32(miss, e->p);
    compare_live(e, VECTORS_NONE);
    uint8_t *live = emit_jcc(e, CC_NE);
    emit_op(e, 0x03 | OP_W, H_RCX, rm_gs_index(H_RAX, way + first)); /* add */
    emit_fill(e, kind, n >= SECOND_SURE);
    set_rel32(live, e->p);
    emit_compare_offset(e, size);
    put8(e, 0xc3);
}

static void emit_second_ways(Code *e, struct Translator *t)
{
    for (unsigned table = 0; table < TABLES; table++)
        for (unsigned kind = 0; kind < CHECK_KINDS; kind++)
            for (unsigned n = 0; n <= SECOND_SIZES; n++) {
                t->second[table][kind][n] = executable(t, e->p);
                emit_second_way(e, table, kind, n);
            }
}

/* The two entries of a piece that wants the flags in their slot: the first one saves them. */
static void emit_entries(Code *e, struct Translator *t, unsigned n, int32_t above)
{
    t->piece[n][FLAGS_LIVE] = executable(t, e->p);
    emit_save_flags(e, above);
    t->piece[n][FLAGS_SAVED] = executable(t, e->p);
}

static void add_constant(Code *e, uint64_t value)
{
    emit_constant(e, H_RAX, value);
    emit_op(e, 0x03 | OP_W, H_RAX, rm_reg(H_RCX)); /* add rax, rcx */
}

/* Leaves with an instruction, or with an Exit. */
static void emit_leaves(Code *e, struct Translator *t)
{
    for (unsigned n = PIECE_LEAVE; n <= PIECE_LEAVE_SHARED; n++) {
        emit_entries(e, t, n, 0);
        emit_mov(e, H_RAX, H_RCX);
        _Static_assert(BLOCK_MAX < 64 && _Alignof(Insn) == 64, "the budget of what is behind stands below the offset");
        emit_op(e, 0x83, 4, rm_reg(H_RAX)); /* and eax */
        put8(e, 63);
        emit_op(e, 0x01 | OP_W, H_RAX, rm_slot(SLOT_BUDGET)); /* add */
        emit_op(e, 0x31, H_RAX, rm_reg(H_RCX));               /* xor ecx, eax */
        add_constant(e, (uintptr_t)t->insns | (n == PIECE_LEAVE_SHARED ? LEFT_SHARED : 0));
        emit_jump(e, t, t->exit);
    }
    emit_entries(e, t, PIECE_EXIT, 0);
    _Static_assert(sizeof(Exit) == 64, "shifted by 6");
    emit_op(e, 0xc1 | OP_W, 4, rm_reg(H_RCX)); /* shl rcx */
    put8(e, 6);
    add_constant(e, (uintptr_t)t->exits | LEFT_EXIT);
    emit_jump(e, t, t->exit);

    t->refuse = executable(t, e->p);
    emit_store(e, rm_gs(offsetof(Cpu, rip)), H_RCX);
    emit_constant(e, H_RAX, 0);
    emit_jump(e, t, t->exit);
}

static void emit_enter(Code *e, struct Translator *t)
{
    /* enter(rdi: Cpu, rsi: code): the stack is a multiple of 16 in translated code */
    t->enter = (uint64_t (*)(Cpu *, const uint8_t *))(uintptr_t)executable(t, e->p);
    for (unsigned n = 0; n < ARRAY_SIZE(saved); n++)
        push(e, saved[n]);
    add_rsp(e, -FRAME);
    emit_mov(e, H_RAX, H_RSI);
    each_register(e, true, 0);
    jump_rax(e);

    t->exit = executable(t, e->p);
    each_register(e, false, 0);
    spill_vectors(e);
    t->exit_saved = executable(t, e->p);
    add_rsp(e, FRAME);
    for (unsigned n = ARRAY_SIZE(saved); n-- > 0;)
        pop(e, saved[n]);
    put8(e, 0xc3);
}

static void emit_load_vectors(Code *e, struct Translator *t)
{
    t->load_vectors[VECTORS_LOWER] = executable(t, e->p);
    load_lower(e);
    put8(e, 0xc3);
    if (!host_has(FEAT_AVX2))
        return;
    t->load_vectors[VECTORS_WHOLE] = executable(t, e->p);
    compare_live(e, VECTORS_NONE);
    uint8_t *lower_live = emit_jcc(e, CC_NE);
    load_whole(e);
    put8(e, 0xc3);
    set_rel32(lower_live, e->p);
    load_upper(e);
    put8(e, 0xc3);
}

/* Executes an instruction by its handler and returns, the flags in RFLAGS and in their slot; or leaves. */
static void emit_handler_piece(Code *e, struct Translator *t)
{
    emit_entries(e, t, PIECE_HANDLER, 8);
    add_constant(e, (uintptr_t)t->insns);
    each_register(e, false, 8);
    emit_op(e, 0xb6 | K_0F, H_RCX, rm_gs(offsetof(Cpu, vectors_live))); /* movzx ecx, byte */
    push(e, H_RCX);
    spill_vectors(e);
    emit_load(e, H_RDI, rm_gs(offsetof(Cpu, self)));
    emit_mov(e, H_RSI, H_RAX);
    emit_constant(e, H_RAX, (uintptr_t)translated_fallback);
    call_rax(e);
    pop(e, H_RCX);
    emit_op(e, 0x85 | OP_W, H_RAX, rm_reg(H_RAX)); /* test: 0: go on behind the instruction */
    uint8_t *leave = emit_jcc(e, CC_NE);
    emit_op(e, 0x83, 7, rm_reg(H_RCX)); /* cmp */
    put8(e, VECTORS_LOWER);
    uint8_t *none = emit_jcc(e, CC_B), *whole = host_has(FEAT_AVX2) ? emit_jcc(e, CC_A) : NULL;
    load_lower(e);
    if (whole) {
        uint8_t *done = emit_jump(e, t, NULL);
        set_rel32(whole, e->p);
        load_whole(e);
        set_rel32(done, e->p);
    }
    set_rel32(none, e->p);
    each_register(e, true, 8);
    emit_load32(e, H_RAX, rm_gs(offsetof(Cpu, native_flags)));
    emit_flags_to_host(e);
    put8(e, 0xc3);
    set_rel32(leave, e->p);
    add_rsp(e, 8);
    /* LEFT_RIP: RIP is set, nothing to go on with */
    emit_op(e, 0x83 | OP_W, 7, rm_reg(H_RAX));
    put8(e, LEFT_RIP);
    uint8_t *other = emit_jcc(e, CC_NE);
    emit_constant(e, H_RAX, 0);
    set_rel32(other, e->p);
    emit_jump(e, t, t->exit_saved);
}

/* Executes the last instruction of a block by its handler, and goes on at the next one's code, or leaves. */
static void emit_finish(Code *e, struct Translator *t)
{
    emit_entries(e, t, PIECE_FINISH, 0);
    add_constant(e, (uintptr_t)t->insns);
    each_register(e, false, 0);
    spill_vectors(e);
    emit_load(e, H_RDI, rm_gs(offsetof(Cpu, self)));
    emit_mov(e, H_RSI, H_RAX);
    emit_constant(e, H_RAX, (uintptr_t)translated_finish);
    call_rax(e);
    emit_op(e, 0x85 | OP_W, H_RAX, rm_reg(H_RAX)); /* test: Way.code */
    uint8_t *out = emit_jcc(e, CC_E);
    each_register(e, true, 0);
    jump_rax(e);
    set_rel32(out, e->p);
    emit_mov(e, H_RAX, H_RDX);
    emit_jump(e, t, t->exit_saved);
}

void emit_thunks(struct Translator *t)
{
    Code e = {t->writable};
    emit_enter(&e, t);
    emit_leaves(&e, t);
    emit_second_ways(&e, t);
    emit_load_vectors(&e, t);
    emit_handler_piece(&e, t);
    emit_finish(&e, t);
    t->blocks = e.p;
}
