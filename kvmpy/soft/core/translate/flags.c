/* Where the arithmetic flags are while a block is translated. They are saved only where a check is about to destroy them and they
   could not be found again: in most code the instruction that set them can be repeated, off the hot path, from its registers. */
#include "emit.h"

typedef enum { NOT_REPEATABLE, OP_ADD, OP_LOGIC, OP_SUB, OP_CMP, OP_TEST, OP_NEG } Operation;

/* A full writer of flags on registers: `to` op `from`, or with an immediate. */
typedef struct {
    Operation operation;
    unsigned size, to, from;
    bool immediate;
} Source;

static Source parse(const Insn *i)
{
    uint64_t key = insn_table[i->id].key;
    unsigned op = key & 0xff, extension = i->modrm >> 3 & 7, group;
    Source s = {.size = op & 1 ? i->osize : 1, .to = i->rm, .from = i->reg};
    if (i->flags & INSN_MEM || K_MAP(key) || K_PFX(key) || key & K_VEX)
        return s;
    if (op < 0x40 && (op & 7) < 6) {
        group = op >> 3;
        if ((op & 6) == 2)
            s.to = i->reg, s.from = i->rm;
        s.immediate = op & 4;
        if (s.immediate)
            s.to = RAX;
    } else if (op >= 0x80 && op <= 0x83) {
        group = extension;
        s.immediate = true;
    } else if (op == 0x84 || op == 0x85) {
        group = 8;
    } else if (op == 0xa8 || op == 0xa9) {
        group = 8;
        s.to = RAX;
        s.immediate = true;
    } else if ((op == 0xf6 || op == 0xf7) && extension <= 1) {
        group = 8;
        s.immediate = true;
    } else if ((op == 0xf6 || op == 0xf7) && extension == 3) {
        group = 9;
        s.from = s.to;
    } else {
        return s;
    }
    if (s.size == 1 && !(s.immediate && (op & 7) >= 4 && op < 0x40) && op != 0xa8) {
        if (high_byte(s.to) || (!s.immediate && high_byte(s.from)))
            return s;
        s.to >>= 3;
        s.from >>= 3;
    }
    static const Operation of_group[] = {OP_ADD, OP_LOGIC, NOT_REPEATABLE, NOT_REPEATABLE, OP_LOGIC, OP_SUB, OP_LOGIC, OP_CMP, OP_TEST, OP_NEG};
    s.operation = of_group[group];
    if (s.operation == OP_ADD && !s.immediate && s.to == s.from)
        s.operation = NOT_REPEATABLE; /* the carry is lost */
    return s;
}

bool flags_repeatable(const Insn *i) { return parse(i).operation != NOT_REPEATABLE; }

uint32_t flags_registers(const Insn *i)
{
    Source s = parse(i);
    return 1u << s.to | (s.immediate ? 0 : 1u << s.from);
}

/* ALU operation `group` (0 add, 5 sub, 7 cmp) on a host register and the source's second operand. */
static void alu(Emit *e, const Source *s, const Insn *i, unsigned group, int to)
{
    Code *o = &e->code;
    if (!s->immediate) {
        emit_op(o, (group << 3 | (s->size == 1 ? 2u : 3u)) | size_op(s->size), to, guest_rm(s->from));
        return;
    }
    emit_op(o, (s->size == 1 ? 0x80u : 0x81u) | size_op(s->size), (int)group, rm_reg(to));
    put8(o, (unsigned)i->imm & 0xff);
    if (s->size == 1)
        return;
    put8(o, (unsigned)(i->imm >> 8) & 0xff);
    if (s->size == 2)
        return;
    put8(o, (unsigned)(i->imm >> 16) & 0xff);
    put8(o, (unsigned)(i->imm >> 24) & 0xff);
}

void flags_repeat(Emit *e, const Insn *i)
{
    Code *o = &e->code;
    Source s = parse(i);
    unsigned byte = s.size == 1 ? 0 : 1;
    bool in_place = s.operation == OP_CMP || s.operation == OP_TEST || s.operation == OP_LOGIC;
    int to = host_register[s.to];
    if (to == IN_MEMORY || !in_place) {
        emit_load(o, H_RAX, guest_rm(s.to));
        to = H_RAX;
    }
    switch (s.operation) {
    case OP_CMP:
        alu(e, &s, i, 7, to);
        break;
    case OP_TEST:
        if (s.immediate) {
            emit_op(o, (0xf6u | byte) | size_op(s.size), 0, rm_reg(to));
            put8(o, (unsigned)i->imm & 0xff);
            for (unsigned n = 1; n < (s.size == 8 ? 4 : s.size); n++)
                put8(o, (unsigned)(i->imm >> 8 * n) & 0xff);
        } else {
            emit_op(o, (0x84u | byte) | size_op(s.size), to, guest_rm(s.from));
        }
        break;
    case OP_LOGIC:
        emit_op(o, (0x84u | byte) | size_op(s.size), to, rm_reg(to));
        break;
    case OP_ADD: /* the result less the operand is what was there before */
        alu(e, &s, i, 5, to);
        alu(e, &s, i, 0, to);
        break;
    case OP_SUB:
        if (!s.immediate && s.to == s.from) { /* 0, whatever was there */
            emit_op(o, 0x39, H_RAX, rm_reg(H_RAX));
            break;
        }
        alu(e, &s, i, 0, to);
        alu(e, &s, i, 5, to);
        break;
    default:
        emit_op(o, (0xf6u | byte) | size_op(s.size), 3, rm_reg(to));
        emit_op(o, (0xf6u | byte) | size_op(s.size), 3, rm_reg(to));
        break;
    }
    e->flags.where |= FLAGS_HOST;
}

void flags_to_memory(Emit *e)
{
    if (e->flags.where & FLAGS_MEMORY)
        return;
    if (!(e->flags.where & FLAGS_HOST)) {
        if (!e->flags.source)
            return;
        flags_repeat(e, e->flags.source);
    }
    emit_save_flags(&e->code, 0);
    e->flags.where |= FLAGS_MEMORY;
}

void flags_keep(Emit *e)
{
    if (!e->flags.source)
        flags_to_memory(e);
}

void flags_to_host(Emit *e)
{
    if (e->flags.where & FLAGS_HOST)
        return;
    if (e->flags.source) {
        flags_repeat(e, e->flags.source);
    } else {
        emit_load32(&e->code, H_RAX, rm_slot(SLOT_FLAGS));
        emit_flags_to_host(&e->code);
    }
    e->flags.where |= FLAGS_HOST;
}

void flags_written(Emit *e) { e->flags = (Flags){FLAGS_HOST, flags_repeatable(e->i) ? e->i : NULL}; }

static bool leaves(emit_fn fn)
{
    return fn == translate_string || fn == translate_pushf || fn == translate_cli || fn == translate_swapgs || fn == translate_base ||
           fn == translate_xlat || fn == translate_pause;
}

bool may_leave(const Insn *i)
{
    return i->flags & INSN_MEM || emitter[i->id] == NULL || insn_table[i->id].attributes & A_END || i->id == INSN_push_Zv ||
           i->id == INSN_pop_Zv || i->id == INSN_push_Iz || i->id == INSN_push_Ib || i->id == INSN_leave || i->id == INSN_div_Ev ||
           i->id == INSN_div_Eb || i->id == INSN_push_Ev || i->id == INSN_idiv_Ev || leaves(emitter[i->id]);
}

bool flags_dead_after(const Emit *e, uint32_t mask)
{
    for (const Insn *i = e->i + 1; i->left; i++) {
        const InsnInfo *info = &insn_table[i->id];
        if (info->flags_read & mask || may_leave(i))
            return false;
        mask &= ~(info->flags_written | info->flags_undefined);
        if (!mask)
            return true;
    }
    return false;
}

static uint32_t bit(unsigned reg, bool byte) { return 1u << (byte ? reg >> 3 : reg); }

uint32_t written_registers(const Insn *i)
{
    const char *s = insn_table[i->id].operands;
    emit_fn fn = emitter[i->id];
    uint32_t both = bit(i->reg & 15, false) | bit(i->rm & 15, false);
    if (fn == translate_compare || fn == translate_compare_rax || fn == translate_jcc || fn == translate_jmp || fn == translate_jmp_ev ||
        fn == translate_nothing || fn == translate_pause)
        return 0;
    if (fn == translate_sahf || fn == translate_carry || fn == translate_direction || fn == translate_jcxz)
        return 0;
    if (fn == translate_string)
        return 1u << RAX | 1u << RCX | 1u << RSI | 1u << RDI;
    if (fn == translate_lahf)
        return 1u << RAX;
    if (fn == translate_loop)
        return 1u << RCX;
    if (fn == translate_bmi)
        return (s[0] == 'G' ? 1u << i->reg : 0) | (s[0] == 'B' || i->id == INSN_mulx ? 1u << i->vvvv : 0);
    if (fn == translate_cli || fn == translate_swapgs || fn == translate_fence || (fn == translate_bit_string && i->flags & INSN_MEM))
        return 0;
    if (i->id == INSN_bt_EvGv)
        return 0;
    if (fn == translate_base || fn == translate_bit_string)
        return 1u << i->rm;
    if (fn == translate_moffs)
        return i->id == INSN_mov_ALOb || i->id == INSN_mov_rAXOv ? 1u << RAX : 0;
    if (fn == translate_xlat || fn == translate_cmpxchg_pair)
        return 1u << RAX | 1u << RDX;
    if (fn == translate_pushf || fn == translate_push_rm || fn == translate_push || fn == translate_push_imm || fn == translate_call || fn == translate_call_ev || fn == translate_ret)
        return 1u << RSP;
    if (fn == translate_pop)
        return 1u << RSP | 1u << i->rm;
    if (fn == translate_leave)
        return 1u << RSP | 1u << RBP;
    if (fn == translate_mul || fn == translate_div || fn == translate_idiv || fn == translate_cbw || fn == translate_cwd ||
        fn == translate_cmpxchg || fn == translate_copy_rax)
        return 1u << RAX | 1u << RDX;
    if (fn == translate_xchg_row)
        return 1u << RAX | 1u << i->rm;
    if (fn == translate_vector)
        return s[0] == 'G' || s[0] == 'E' || s[0] == 'R' ? both : 0;
    /* the others are copied: their first operand, or both of an exchange */
    bool byte_reg = strstr(s, "Gb"), byte_rm = (s[0] == 'E' || s[0] == 'Z') && s[1] == 'b';
    uint32_t reg = bit(i->reg, byte_reg), rm = i->flags & INSN_MEM ? 0 : bit(i->rm, byte_rm || strstr(s, ",Eb"));
    if (i->id == INSN_xchg_EbGb || i->id == INSN_xchg_EvGv || i->id == INSN_xadd_EbGb || i->id == INSN_xadd_EvGv)
        return reg | rm;
    return s[0] == 'G' ? reg : rm;
}
