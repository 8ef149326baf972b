/* String instructions upwards: one element each, and REP MOVS and STOS inside one page on either side, which the host repeats as they
   are. All else is left to the handlers: the other direction, more than a page, comparisons and loads repeated. */
#include "emit.h"

/* The operation of a string instruction in the low bits of its opcode. */
enum { MOVS = 0xa4, CMPS = 0xa6, STOS = 0xaa, LODS = 0xac, SCAS = 0xae };

typedef struct {
    unsigned op;    /* as above */
    unsigned size;  /* bytes of an element */
    unsigned width; /* flags of a host instruction on an element */
    bool narrow;    /* 32-bit addresses */
} String;

static String string_of(const Insn *i)
{
    unsigned op = insn_table[i->id].key & 0xff, size = op & 1 ? i->osize : 1;
    return (String){.op = op & 0xfe, .size = size, .width = size_op(size), .narrow = i->amask != ~0ull};
}

/* An opcode whose low bit tells bytes from the rest. */
static unsigned sized(const String *s, unsigned op) { return op | (s->size > 1) | s->width; }

/* rcx = the linear address in RSI or RDI */
static void load_address(Emit *e, const String *s, int index)
{
    emit_op(&e->code, s->narrow ? 0x89 : 0x89 | OP_W, index, rm_reg(H_RCX));
    if (index == H_RSI && e->i->seg >= SEG_FS)
        emit_op(&e->code, 0x03 | OP_W, H_RCX, rm_gs(offsetof(Cpu, seg_base) + 8u * e->i->seg));
}

static void check_element(Emit *e, const String *s, int index, int kind)
{
    load_address(e, s, index);
    emit_check(e, s->size, kind);
}

static void advance(Emit *e, const String *s, int index)
{
    emit_op(&e->code, s->narrow ? 0x8d : 0x8d | OP_W, index, rm_mem(index, (int32_t)s->size));
}

static void once(Emit *e, const String *s)
{
    Code *o = &e->code;
    Rm at = rm_mem2(H_RAX, H_RCX);
    int rax = host_register[RAX];
    switch (s->op) {
    case STOS:
        check_element(e, s, H_RDI, CHECK_WRITE);
        emit_op(o, sized(s, 0x88), rax, at);
        break;
    case LODS:
        check_element(e, s, H_RSI, CHECK_READ);
        emit_op(o, sized(s, 0x8a), rax, at);
        break;
    case SCAS:
        check_element(e, s, H_RDI, CHECK_READ);
        emit_op(o, sized(s, 0x3a), rax, at);
        break;
    default:
        check_element(e, s, H_RSI, CHECK_READ);
        emit_op(o, sized(s, 0x8a), H_RAX, at);
        emit_store(o, rm_slot(SLOT_SCRATCH), H_RAX);
        check_element(e, s, H_RDI, s->op == MOVS ? CHECK_WRITE : CHECK_READ);
        emit_join_registers(e);
        emit_load(o, H_RAX, rm_slot(SLOT_SCRATCH));
        emit_op(o, sized(s, s->op == MOVS ? 0x88 : 0x3a), H_RAX, rm_mem(H_RCX, 0));
        break;
    }
    if (s->op != STOS && s->op != SCAS)
        advance(e, s, H_RSI);
    if (s->op != LODS)
        advance(e, s, H_RDI);
    if (s->op == SCAS || s->op == CMPS)
        flags_written(e);
}

/* rax = what makes a host address of RSI or RDI, whose page holds as many bytes as SLOT_SCRATCH says less than 1000h */
static void check_run(Emit *e, const String *s, int index, int kind)
{
    load_address(e, s, index);
    emit_page(e, kind);
    emit_op(&e->code, 0x3b | OP_W, H_RCX, rm_slot(SLOT_SCRATCH)); /* cmp */
    emit_guard(e, CC_A);
    emit_load(&e->code, H_RAX, emit_tlb_field(e, offsetof(TlbEntry, addend)));
}

static void repeated(Emit *e, const String *s)
{
    Code *o = &e->code;
    int count = host_register[RCX];
    unsigned wide = s->narrow ? 0 : OP_W, shift = s->size == 8 ? 3 : s->size == 4 ? 2 : s->size - 1;
    emit_op(o, 0x85 | wide, count, rm_reg(count)); /* test */
    uint8_t *none = emit_jcc(o, CC_E);
    emit_op(o, 0x81 | wide, 7, rm_reg(count)); /* cmp */
    put32(o, 0x1000u >> shift);
    emit_guard(e, CC_A);
    emit_op(o, 0x89, count, rm_reg(H_RAX));
    emit_op(o, 0xc1, 4, rm_reg(H_RAX)); /* shl */
    put8(o, shift);
    emit_op(o, 0xf7, 3, rm_reg(H_RAX)); /* neg */
    put8(o, 0x05);                      /* add eax */
    put32(o, 0x1000);
    emit_store(o, rm_slot(SLOT_SCRATCH), H_RAX);
    check_run(e, s, H_RDI, CHECK_WRITE);
    if (s->op == MOVS) {
        emit_store(o, rm_slot(SLOT_SCRATCH2), H_RAX);
        check_run(e, s, H_RSI, CHECK_READ);
    }
    /* from here on nothing leaves: the registers may change */
    Rm to = s->op == MOVS ? rm_slot(SLOT_SCRATCH2) : rm_slot(SLOT_SCRATCH);
    if (s->narrow) {
        emit_op(o, 0x89, H_RDI, rm_reg(H_RDI));
        if (s->op == MOVS)
            emit_op(o, 0x89, H_RSI, rm_reg(H_RSI));
    }
    if (s->op == MOVS) {
        emit_op(o, 0x01 | OP_W, H_RAX, rm_reg(H_RSI)); /* add */
        emit_op(o, 0x03 | OP_W, H_RDI, to);
    } else {
        emit_store(o, to, H_RAX);
        emit_op(o, 0x01 | OP_W, H_RAX, rm_reg(H_RDI));
        emit_mov(o, H_RAX, host_register[RAX]);
    }
    emit_op(o, 0x89, count, rm_reg(H_RCX));
    emit_op(o, 0x31, count, rm_reg(count)); /* xor */
    put8(o, 0xf3);
    if (s->size == 2)
        put8(o, 0x66);
    if (s->size == 8)
        put8(o, 0x48);
    put8(o, s->op | (s->size > 1));
    if (s->op == MOVS)
        emit_op(o, 0x29 | wide, H_RAX, rm_reg(H_RSI)); /* sub */
    emit_op(o, 0x2b | wide, H_RDI, to);
    set_rel32(none, o->p);
}

EMITTER(translate_string)
{
    const Insn *i = e->i;
    String s = string_of(i);
    bool rep = i->prefix & (PFX_REP | PFX_REPNE);
    if (i->flags & INSN_CHECK || i->amask == 0xffff || (rep && s.op != MOVS && s.op != STOS))
        return false;
    flags_keep(e);
    emit_op(&e->code, 0xf6, 0, rm_gs(offsetof(Cpu, eflags) + 1)); /* test */
    put8(&e->code, FL_DF >> 8);
    emit_guard(e, CC_NE);
    flags_clobbered(e);
    if (rep)
        repeated(e, &s);
    else
        once(e, &s);
    emit_resume(e);
    return true;
}
