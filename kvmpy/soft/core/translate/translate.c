/* Translation of a region: its entry, its instructions one after the other, its ways out. */
#include <stdlib.h>

#include "emit.h"
#include "exec.h"
#include "parallel.h"
#include "run.h"
#include "run_translated.h"


/* ---- checks and stubs ---- */

/* One for the checks of each instruction, one for the budget, one for the vectors, two for exits at the end of a part. */
_Static_assert(BLOCK_MAX + 2 + 2 * REGION_PARTS <= STUBS, "stubs of a region");
_Static_assert(BLOCK_MAX <= 127, "the budget is taken by an immediate of 8 bits");

static Stub *new_stub(Emit *e)
{
    Stub *s = &e->stub[e->stub_count++];
    *s = (Stub){.insn = e->i};
    return s;
}

/* Gives the jump's place in the open stub's list. */
static unsigned add_guard(Emit *e, unsigned condition)
{
    if (!e->open) {
        e->open = new_stub(e);
        e->open->flags = e->flags;
        e->open->flags.where &= ~FLAGS_HOST; /* what is compared has overwritten them */
    }
    uint8_t *place = emit_jcc(&e->code, condition);
    unsigned n = 0; /* the most: CALL through memory has four, of its operand, of the target (two) and of the push */
    while (e->open->from[n])
        n++;
    e->open->from[n] = place;
    return n;
}

void emit_guard(Emit *e, unsigned condition) { add_guard(e, condition); }

void emit_resume(Emit *e)
{
    if (e->open && !e->open->shared)
        e->open->resume = e->code.p;
    e->open = NULL;
}

void emit_interpret(Emit *e) { e->open = NULL; }

/* Which table the accesses of the region's mode go by. */
static unsigned table_of(const Emit *e)
{
    return e->b->mode & MODE_USER ? TABLE_USER : e->b->mode & MODE_AC ? TABLE_SUPER_AC : TABLE_SUPER;
}

Rm emit_tlb_field(const Emit *e, size_t field) { return rm_gs_index(H_RAX, field + tlb_tables[table_of(e)]); }

void emit_page(Emit *e, int kind)
{
    Code *o = &e->code;
    _Static_assert(sizeof(TlbEntry) == 64, "the index is the page number times 64");
    _Static_assert(sizeof(Cpu) < 1u << 31, "its parts are reached by displacements of 32 bits");
    if (host_has(FEAT_BMI2)) {
        emit_vex(o, 0xf0 | K_0F3A | OP_F2, H_RAX, 0, rm_reg(H_RCX)); /* rorx eax, ecx, 6 */
    } else {
        emit_op(o, 0x89, H_RCX, rm_reg(H_RAX)); /* mov eax, ecx */
        emit_op(o, 0xc1, 5, rm_reg(H_RAX));     /* shr eax, 6 */
    }
    put8(o, 6);
    put8(o, 0x25); /* and eax */
    put32(o, (TLB_SIZE - 1) << 6);
    /* the offset in the page, or a large number: also what crosses the page's end fails the compare. An empty entry's tag is a page
       of another index (tlb_no_tag): no address that leads to the entry lies in it. */
    emit_op(o, 0x2b | OP_W, H_RCX, emit_tlb_field(e, tlb_tags[kind]));
}

void emit_check(Emit *e, unsigned size, int kind)
{
    Code *o = &e->code;
    emit_page(e, kind);
    emit_compare_offset(&e->code, size);
    unsigned which = add_guard(e, CC_A);
    emit_load(o, H_RAX, emit_tlb_field(e, offsetof(TlbEntry, host)));
    if (e->second_count < SECONDS) /* the others have their handler */
        e->second[e->second_count++] = (Second){e->open, which, o->p, kind, size};
    flags_clobbered(e);
}

/* rcx or, for LEA, another register = the effective address; not yet cut to the address size. */
static void emit_effective(Emit *e, int to)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    bool based = i->base != ZERO_REG, indexed = i->index != ZERO_REG;
    bool narrow = i->amask == 0xffffffff;
    if (!based && !indexed) {
        emit_constant(o, to, i->disp & i->amask);
        return;
    }
    Rm m = {.kind = RM_MEM, .base = -1, .index = -1, .disp = (int32_t)i->disp}; /* 64 bits it has only without registers */
    if (based && i->base != ZERO_REG)
        m.base = (int8_t)guest_value(e, i->base, H_RCX);
    if (indexed) {
        m.index = (int8_t)guest_value(e, i->index, H_RAX);
        m.scale = i->scale;
    }
    if (m.base < 0) { /* index alone: a base of rbp with mod 0 means none, with a 32-bit displacement */
        put8(o, narrow ? 0x40u | (to & 8 ? 4u : 0) | (m.index & 8 ? 2u : 0) : 0x48u | (to & 8 ? 4u : 0) | (m.index & 8 ? 2u : 0));
        put8(o, 0x8d);
        put8(o, 0x04u | ((unsigned)to & 7) << 3);
        put8(o, (unsigned)m.scale << 6 | ((unsigned)m.index & 7) << 3 | 5);
        put32(o, (uint32_t)m.disp);
        return;
    }
    if (m.index < 0 && m.disp == 0) {
        emit_op(o, narrow ? 0x8b : 0x8b | OP_W, to, rm_reg(m.base));
        return;
    }
    emit_op(o, narrow ? 0x8d : 0x8d | OP_W, to, m);
}

bool emit_addressable(const Insn *i)
{
    return !(i->flags & INSN_CHECK) && i->amask != 0xffff && !(i->index != ZERO_REG && i->index == RSP);
}

void emit_address(Emit *e)
{
    const Insn *i = e->i;
    emit_effective(e, H_RCX);
    if (i->seg >= SEG_FS) /* in 64-bit mode: all others are flat */
        emit_op(&e->code, 0x03 | OP_W, H_RCX, rm_gs(offsetof(Cpu, seg_base) + 8u * i->seg));
}

bool emit_operand(Emit *e, unsigned size, int kind, Rm *out)
{
    const Insn *i = e->i;
    if (!emit_addressable(i))
        return false;
    if (i->index == ZERO_REG && (i->amask == ~0ull || stack_size(e) == 4) && i->seg < SEG_FS &&
        emit_shared(e, i->base, (int64_t)i->disp, size, kind, out))
        return true;
    *out = rm_mem2(H_RAX, H_RCX);
    flags_keep(e);
    emit_address(e);
    emit_check(e, size, kind);
    return true;
}

EMITTER(translate_lea)
{
    const Insn *i = e->i;
    if (i->amask == 0xffff || i->osize == 2)
        return false;
    int to = host_register[i->reg] == IN_MEMORY ? H_RCX : host_register[i->reg];
    emit_effective(e, to);
    if (i->osize == 4 && i->amask != 0xffffffff)
        emit_op(&e->code, 0x89, to, rm_reg(to));
    guest_assign(e, i->reg, to);
    return true;
}

/* ---- ways out ---- */

/* The flags of a stub are in RFLAGS then, or in their slot where it says FLAGS_SAVED: which entry of a piece to take. */
static unsigned stub_flags(Emit *e, Flags flags)
{
    if (flags.where & FLAGS_MEMORY || !(flags.where & FLAGS_HOST || flags.source))
        return FLAGS_SAVED;
    Flags now = e->flags;
    e->flags = flags;
    flags_to_host(e);
    e->flags = now;
    return FLAGS_LIVE;
}

/* Leaves with the flags of a stub in their slot. */
static void recover_flags(Emit *e, Flags flags)
{
    Flags now = e->flags;
    e->flags = flags;
    flags_to_memory(e);
    e->flags = now;
}

/* The budget of the parts behind the present instruction's. Flags stay where they are in RFLAGS alone; rax is lost. */
static void emit_budget_back(Emit *e, unsigned count, bool keep_flags)
{
    if (!count)
        return;
    if (!keep_flags) {
        emit_op(&e->code, 0x83 | OP_W, 0, rm_slot(SLOT_BUDGET)); /* add */
        put8(&e->code, count);
        return;
    }
    emit_load(&e->code, H_RAX, rm_slot(SLOT_BUDGET));
    emit_lea(&e->code, H_RAX, rm_mem(H_RAX, (int32_t)count));
    emit_store(&e->code, rm_slot(SLOT_BUDGET), H_RAX);
}

/* What the jump at `patch` leads to until it is linked. */
static void emit_unlinked(Emit *e, const Insn *i, uint64_t target, bool way, uint8_t *patch, uint8_t *key, Flags flags)
{
    Exit *x = &e->t->exits[e->t->exit_count++];
    *x = (Exit){
        .from = region_insn(e, i)->origin->block, .target = target, .way = way, .patch = patch, .key = key, .by_memory = flags.where & FLAGS_MEMORY,
    };
    x->stub = e->code.p;
    if (patch)
        set_rel32(patch, x->stub);
    unsigned where = stub_flags(e, flags);
    emit_constant(&e->code, H_RCX, (uint64_t)(x - e->t->exits));
    emit_jump(&e->code, e->t, e->t->piece[PIECE_EXIT][where]);
}

/* As block_chain() decides: inside the page a link holds as long as the block; between pages under one set of translations. */
static bool inside_page(const Emit *e, uint64_t target)
{
    return ((target ^ e->b->rip) & ~0xfffull) == 0 && e->b->phys2 == NO_PAGE && (e->c->seg_base[SEG_CS] & 0xfff) == 0;
}

/* A jump that is linked later: where vCPUs run in parallel others may execute it meanwhile, and its rel32 is changed by one store. */
static uint8_t *emit_linked_jump(Emit *e, int condition)
{
    Code *o = &e->code;
    while (e->c->parallel && ((uintptr_t)o->p + (condition >= 0 ? 2 : 1)) & 3)
        put8(o, 0x90);
    return condition >= 0 ? emit_jcc(o, (unsigned)condition) : emit_jump(o, e->t, NULL);
}

/* To another page where vCPUs run in parallel, flags in their slot: each finds its own way, by code_target. */
static void emit_exit_by_table(Emit *e, const Insn *i, uint64_t target, bool way)
{
    Code *o = &e->code;
    size_t place = offsetof(Cpu, code_target) + target % CODE_TARGETS * sizeof(CodeTarget);
    emit_constant(o, H_RCX, target);
    emit_op(o, 0x33 | OP_W, H_RCX, rm_gs(offsetof(Cpu, code_key))); /* xor */
    emit_op(o, 0x39 | OP_W, H_RCX, rm_gs(place + offsetof(CodeTarget, tag)));
    uint8_t *other = emit_jcc(o, CC_NE);
    emit_op(o, 0xff, 4, rm_gs(place + offsetof(CodeTarget, code))); /* jmp */
    set_rel32(other, o->p);
    emit_unlinked(e, i, target, way, NULL, NULL, (Flags){FLAGS_MEMORY, NULL});
}

/* Leads to another page, flags in their slot: the key it holds under stands in the code. */
static void emit_far_exit(Emit *e, const Insn *i, uint64_t target, bool way)
{
    Code *o = &e->code;
    if (e->c->parallel) {
        emit_exit_by_table(e, i, target, way);
        return;
    }
    put8(o, 0x48); /* mov rcx, the key */
    put8(o, 0xb9);
    uint8_t *key = o->p;
    put64(o, 0);
    emit_op(o, 0x3b | OP_W, H_RCX, rm_gs(offsetof(Cpu, code_key)));
    uint8_t *patch = emit_jcc(o, CC_E);
    emit_unlinked(e, i, target, way, patch, key, (Flags){FLAGS_MEMORY, NULL});
}

void emit_exit(Emit *e, uint64_t target, int condition)
{
    bool near = inside_page(e, target), way = condition < 0 || follows(e) == FOLLOWS_JUMP;
    if (near && !(e->flags.where & FLAGS_MEMORY))
        flags_to_host(e);
    if (!near && condition < 0) {
        flags_to_memory(e);
        emit_far_exit(e, e->i, target, way);
        return;
    }
    Stub *s = new_stub(e);
    s->from[0] = emit_linked_jump(e, condition);
    s->exits = true;
    s->target = target;
    s->way = way;
    s->flags = e->flags;
}

static void emit_exit_stub(Emit *e, const Stub *s)
{
    uint8_t *patch = s->from[0];
    unsigned behind = region_insn(e, s->insn)->behind;
    if (!inside_page(e, s->target)) {
        set_rel32(patch, e->code.p);
        recover_flags(e, s->flags);
        emit_budget_back(e, behind, false);
        emit_far_exit(e, s->insn, s->target, s->way);
        return;
    }
    if (behind) {
        set_rel32(patch, e->code.p);
        emit_budget_back(e, behind, !(s->flags.where & FLAGS_MEMORY));
        patch = emit_linked_jump(e, -1);
    }
    emit_unlinked(e, s->insn, s->target, s->way, patch, NULL, s->flags);
}

/* Of the CodeTarget that emit_lookup found. */
static Rm target_field(size_t field)
{
    Rm m = rm_gs_index(H_RAX, offsetof(Cpu, code_target) + field);
    m.scale = 3;
    return m;
}

void emit_lookup(Emit *e)
{
    Code *o = &e->code;
    _Static_assert(sizeof(CodeTarget) == 16, "the index below, in units of 8 bytes");
    emit_op(o, 0x8d, H_RAX, rm_mem2(H_RCX, H_RCX)); /* lea eax, [rcx + rcx] */
    put8(o, 0x25); /* and eax */
    put32(o, 2 * (CODE_TARGETS - 1));
    emit_op(o, 0x33 | OP_W, H_RCX, rm_gs(offsetof(Cpu, code_key))); /* xor */
    emit_op(o, 0x39 | OP_W, H_RCX, target_field(offsetof(CodeTarget, tag)));
    emit_guard(e, CC_NE);
    flags_clobbered(e);
}

void emit_jump_found(Emit *e) { emit_op(&e->code, 0xff, 4, target_field(offsetof(CodeTarget, code))); }

/* ecx = the instruction, as the pieces want it. */
static void emit_insn_number(Emit *e, const Insn *i)
{
    const RegionInsn *of = region_insn(e, i);
    emit_constant(&e->code, H_RCX, (uint64_t)((const uint8_t *)of->origin - e->t->insns) | of->behind);
}

/* `where`: the flags, as stub_flags() gives it. */
static void emit_call_handler(Emit *e, const Insn *i, unsigned where)
{
    emit_insn_number(e, i);
    emit_call(&e->code, e->t, e->t->piece[PIECE_HANDLER][where]);
}

static void emit_to_interpreter(Emit *e, const Insn *i, unsigned piece, unsigned where)
{
    emit_insn_number(e, i);
    emit_jump(&e->code, e->t, e->t->piece[piece][where]);
}

/* Loads the vector registers and goes on; refused or unmasked: the handlers know what to do. Flags are in memory. */
static void emit_vectors_stub(Emit *e, const Stub *s)
{
    Code *o = &e->code;
    if (s->vectors == VECTORS_WHOLE) {
        _Static_assert(offsetof(Cpu, trap_avx) == offsetof(Cpu, trap_sse) + 1, "both are compared at once");
        emit_op(o, 0x83 | OP_66, 7, rm_gs(offsetof(Cpu, trap_sse)));
    } else {
        emit_op(o, 0x80, 7, rm_gs(offsetof(Cpu, trap_sse)));
    }
    put8(o, 0);
    uint8_t *trapped = emit_jcc(o, CC_NE);
    emit_call(o, e->t, e->t->load_vectors[s->vectors]);
    emit_jump(o, e->t, executable(e->t, s->resume));
    set_rel32(trapped, o->p);
    emit_to_interpreter(e, s->insn, PIECE_LEAVE, FLAGS_SAVED);
}

/* Those of a stub, beginning with `n`, before it: rax has the index and rcx the distance from the first way's tag, still. Gives the
   next one. */
static unsigned emit_seconds(Emit *e, Stub *stub, unsigned n)
{
    Code *o = &e->code;
    for (; n < e->second_count && e->second[n].stub == stub; n++) {
        const Second *s = &e->second[n];
        uint8_t **from = &stub->from[s->which];
        bool last = n + 1 == e->second_count || e->second[n + 1].stub != stub;
        bool usual_size = !stub->shared && s->size <= 32 && !(s->size & (s->size - 1));
        set_rel32(*from, o->p);
        emit_call(o, e->t, e->t->second[table_of(e)][s->kind][usual_size ? (unsigned)__builtin_ctz(s->size) : SECOND_SIZES]);
        if (!usual_size)
            emit_compare_offset(o, s->size);
        set_rel32(emit_jcc(o, CC_BE), s->resume);
        *from = last ? NULL : emit_jump(o, e->t, NULL);
    }
    return n;
}

static void emit_stub(Emit *e, Stub *s)
{
    for (unsigned k = 0; k < ARRAY_SIZE(s->from); k++)
        if (s->from[k])
            set_rel32(s->from[k], e->code.p);
    if (s->before) { /* a full writer of flags: with it done, they are known */
        e->i = s->before;
        e->flags = (Flags){0};
        emitter[e->i->id](e);
        s->flags = e->flags;
    }
    if (s->vectors) {
        recover_flags(e, s->flags);
        emit_vectors_stub(e, s);
        return;
    }
    unsigned where = stub_flags(e, s->flags);
    if (s->resume) {
        emit_call_handler(e, s->insn, where);
        emit_jump(&e->code, e->t, executable(e->t, s->resume));
    } else {
        emit_to_interpreter(e, s->insn, s->shared ? PIECE_LEAVE_SHARED : PIECE_LEAVE, where);
    }
}

static void emit_stubs(Emit *e)
{
    for (unsigned n = 0, second = 0; n < e->stub_count; n++) {
        Stub *s = &e->stub[n];
        if (s->exits) {
            emit_exit_stub(e, s);
            continue;
        }
        second = emit_seconds(e, s, second);
        emit_stub(e, s);
    }
}

/* ---- the region ---- */

static void emit_handler(Emit *e)
{
    emit_call_handler(e, e->i, stub_flags(e, e->flags));
    e->flags = (Flags){FLAGS_MEMORY | FLAGS_HOST, NULL};
}

unsigned block_vectors(const Block *b)
{
    unsigned most = VECTORS_NONE;
    for (unsigned n = 0; n < b->count; n++)
        if (vectors_wanted(&b->insn[n]) > most)
            most = vectors_wanted(&b->insn[n]);
    return most;
}

/* The first instruction before which nobody can see the flags that the block was entered with: it sets them all. NULL: there is
   none, the block may be left or read flags before. */
static const Insn *first_writer(const Emit *e)
{
    if (block_vectors(e->b))
        return NULL;
    for (const Insn *i = e->region.insn; i->left; i++) {
        const InsnInfo *info = &insn_table[i->id];
        uint32_t changed = info->flags_written | info->flags_undefined;
        if (info->flags_read || may_leave(i))
            return NULL;
        if (changed == FL_OSZAPC)
            return i;
        if (changed)
            return NULL;
    }
    return NULL;
}

/* The budget of the region is taken, and looked at with BLOCK_MAX less than there is: the next block can be entered without a look.
   Where too little is left, the interpreter goes on at `insn`, once `before` is done. */
static void emit_budget(Emit *e, const Insn *insn, const Insn *before)
{
    emit_op(&e->code, 0x83 | OP_W, 5, rm_slot(SLOT_BUDGET)); /* sub */
    put8(&e->code, e->region.count);
    emit_guard(e, CC_S);
    e->open->insn = insn;
    e->open->before = before;
    emit_interpret(e);
    flags_clobbered(e);
}

/* What is live has been allowed: what forbids it (trap_sse, trap_avx) changes in handlers alone, which have it spilled. */
static void emit_vectors_entry(Emit *e, unsigned wanted)
{
    Code *o = &e->code;
    emit_op(o, 0x80, 7, rm_gs(offsetof(Cpu, vectors_live))); /* cmp */
    put8(o, wanted);
    emit_guard(e, CC_B);
    e->open->vectors = (uint8_t)wanted;
    emit_resume(e);
}

static void emit_refusals(Emit *e)
{
    Code *o = &e->code;
    Block *b = e->b;
    b->refusal = (uint16_t)(o->p - b->code);
    emit_save_flags(o, 0);
    b->refusal_by_memory = (uint16_t)(o->p - b->code);
    emit_constant(o, H_RCX, b->rip);
    emit_jump(o, e->t, e->t->refuse);
}

/* The present instruction changes registers by which flags could be found again: they are saved now, or nobody will ask. */
static void before_registers_change(Emit *e)
{
    const Insn *i = e->i, *source = e->flags.source;
    if (!source || !(flags_registers(source) & written_registers(i)))
        return;
    bool unseen = flags_dead_after(e, FL_OSZAPC);
    if (e->flags.where & FLAGS_MEMORY)
        e->flags.source = NULL;
    else if (unseen)
        e->forget = true;
    else if (may_leave(i) || !(e->flags.where & FLAGS_HOST)) {
        flags_to_memory(e);
        e->flags.source = NULL;
    } else if (!(insn_table[i->id].flags_written | insn_table[i->id].flags_undefined)) {
        e->flags.source = NULL;
    }
}

static bool emit_insn(Emit *e)
{
    const Insn *i = e->i;
    emit_fn fn = emitter[i->id];
    Code start = e->code;
    Flags flags = e->flags;
    Held held = e->held;
    unsigned stubs = e->stub_count, seconds = e->second_count;
    e->open = NULL;
    e->forget = false;
    if (fn) {
        before_registers_change(e);
        if (fn(e)) {
            if (e->forget && e->flags.source == flags.source)
                e->flags = (Flags){0};
            return true;
        }
        e->code = start;
        e->flags = flags;
        e->held = held;
        e->stub_count = stubs;
        e->second_count = seconds;
    }
    return false;
}

static void note_start(Emit *e)
{
    const Insn *i = e->i, *origin = region_insn(e, i)->origin;
    const Block *b = origin->block;
    e->t->start[e->b->starts + (unsigned)(i - e->region.insn)] = (Start){
        .code = (uint16_t)(e->code.p - e->b->code), .length = i->len,
        .place = (uint16_t)((b->phys + (i->next_rip - i->len - b->rip)) & 0xfff),
    };
}

/* Writes the region with the budget taken at `writer`, or NULL: at the entry. False where the writer has no code of its own. */
static bool emit_region(Emit *e, const Insn *writer)
{
    Block *b = e->b;
    const Region *r = &e->region;
    if (writer) {
        static const uint8_t nop5[] = {0x0f, 0x1f, 0x44, 0x00, 0x00}; /* room for the jump of translation_drop() */
        memcpy(e->code.p, nop5, sizeof nop5);
        e->code.p += sizeof nop5;
        e->flags = (Flags){0};
    } else {
        flags_to_memory(e);
        e->flags = (Flags){FLAGS_MEMORY, NULL};
    }
    b->by_memory = (uint16_t)(e->code.p - b->code);
    if (!writer)
        emit_budget(e, r->insn, NULL);
    unsigned vectors = block_vectors(b);
    if (vectors)
        emit_vectors_entry(e, vectors);
    for (e->i = r->insn; e->i->left; e->i++) {
        e->open = NULL;
        note_start(e);
        bool end = insn_table[e->i->id].attributes & A_END;
        if (e->i == writer)
            emit_budget(e, e->i + 1, e->i);
        if (emit_insn(e)) {
            if (end && !follows(e))
                return true;
            held_after(e);
            continue;
        }
        if (e->i == writer)
            return false;
        if (end) { /* its handler knows where to go on */
            emit_to_interpreter(e, e->i, handler_chains(e->i) ? PIECE_LEAVE : PIECE_FINISH, stub_flags(e, e->flags));
            return true;
        }
        emit_handler(e);
        e->held.valid = false;
    }
    emit_exit(e, e->i->next_rip, -1);
    return true;
}

static void begin(Emit *e)
{
    e->code.p = e->t->next;
    e->i = e->region.insn;
    e->flags = (Flags){FLAGS_HOST, NULL};
    e->held.valid = false;
    e->stub_count = e->second_count = 0;
    e->open = NULL;
}

bool translate_block(Cpu *c, Block *b)
{
    struct Translator *t = c->vm->translator;
    if (!(b->mode & MODE_FLAT) || b->mode & ~MODE_KEY || (b->mode & MODE_SIZE) == MODE_16 || (b->mode & MODE_VM86) ||
        ((b->mode & MODE_USER) && (b->mode & MODE_AC)) || (!in_64bit(c) && !(b->mode & MODE_SS32)))
        return false;
    t->next = (uint8_t *)(((uintptr_t)t->next + 15) & ~(uintptr_t)15);
    Emit emit, *e = &emit;
    e->t = t;
    e->c = c;
    e->b = b;
    region_form(c, b, &e->region);
    b->code = t->next;
    b->incoming = NULL;
    b->starts = t->start_count;
    b->translated = (uint16_t)e->region.count;
    uint32_t exits = t->exit_count;
    begin(e);
    if (!emit_region(e, first_writer(e))) {
        t->exit_count = exits;
        begin(e);
        emit_region(e, NULL);
    }
    t->start[b->starts + b->translated] = (Start){.code = (uint16_t)(e->code.p - b->code)};
    emit_stubs(e);
    emit_refusals(e);
    b->code_size = (uint32_t)(e->code.p - b->code);
    t->next = e->code.p;
    t->start_count += b->translated + 1u;
    return true;
}

void exit_unlink(Exit *x)
{
    if (!x->linked)
        return;
    *x->place = x->next;
    if (x->next)
        x->next->place = x->place;
    x->linked = false;
}

void exit_link(Exit *x, Block *to)
{
    exit_unlink(x); /* between pages: another block was there */
    x->next = to->incoming;
    x->place = &to->incoming;
    if (x->next)
        x->next->place = &x->next;
    to->incoming = x;
    x->linked = true;
    set_rel32(x->patch, to->code + (x->by_memory ? to->by_memory : 0));
}

bool translation_covers(const Vm *vm, const Block *b, unsigned first, unsigned last)
{
    const Start *s = vm->translator->start + b->starts;
    for (unsigned n = 0; n < b->translated; n++)
        if (s[n].place <= last && s[n].place + s[n].length > first)
            return true;
    return false;
}

bool translation_meets(const Vm *vm, const Block *b, const uint64_t places[64])
{
    const Start *s = vm->translator->start + b->starts;
    for (unsigned n = 0; n < b->translated; n++)
        if (places[s[n].place >> 6] >> (s[n].place & 63) & 1)
            return true;
    return false;
}

void translation_drop(Vm *vm, Block *b)
{
    for (Exit *x; (x = b->incoming);) {
        set_rel32(x->patch, x->stub);
        exit_unlink(x);
    }
    /* who finds the code by code_target gets RIP set and the run loop: over the entries stand jumps to the refusals */
    Code o = {b->code};
    set_rel32(emit_jump(&o, vm->translator, NULL), b->code + b->refusal);
    o.p = b->code + b->by_memory;
    set_rel32(emit_jump(&o, vm->translator, NULL), b->code + b->refusal_by_memory);
    b->code = NULL;
    vm->translator->drops++;
    core_code_changed(vm);
    vm_count(vm, STAT_TRANSLATIONS_DROPPED);
}
