/* One check for several accesses of a block that go off the same register: the host address that the register stands for is held in
   the frame, and the accesses behind the first need neither check nor exit. Only without index, and with addresses of the mode's own
   size, `word` bytes. */
#include "emit.h"

#define SPAN 2048 /* of the displacements that are checked together */

/* What an instruction does with the register that accesses go off. */
typedef struct {
    bool access, write;
    int64_t low; /* displacement from the register's value before the instruction */
    unsigned size;
    bool lost;     /* the register has another value behind it, nobody knows by how much */
    int64_t moved; /* else: by so much */
} Use;

static bool plain(const Insn *i, unsigned word)
{
    return i->flags & INSN_MEM && i->index == ZERO_REG && i->amask == (word == 8 ? ~0ull : 0xffffffff) && i->seg < SEG_FS && !(i->flags & INSN_CHECK);
}

static bool moves_by_constant(const Insn *i, unsigned base, unsigned word, int64_t *by)
{
    if (i->osize != word)
        return false;
    switch (i->id) {
    case INSN_add_EvIb:
    case INSN_add_EvIz: *by = (int64_t)i->imm; return !(i->flags & INSN_MEM) && i->rm == base;
    case INSN_sub_EvIb:
    case INSN_sub_EvIz: *by = -(int64_t)i->imm; return !(i->flags & INSN_MEM) && i->rm == base;
    case INSN_lea: *by = (int64_t)i->disp; return i->reg == base && i->base == base && plain(i, word);
    default: return false;
    }
}

static Use use_of(const Insn *i, unsigned base, unsigned word)
{
    emit_fn fn = emitter[i->id];
    Use u = {0};
    if (!fn) {
        u.lost = true;
        return u;
    }
    bool pushes = fn == translate_push || fn == translate_push_imm || fn == translate_pushf || fn == translate_call || fn == translate_call_ev;
    if (i->flags & INSN_MEM && fn != translate_lea && fn != translate_nothing && i->base == base && plain(i, word)) {
        u.access = emit_memory_operand(i, &u.size, &u.write);
        u.low = (int64_t)i->disp;
    } else if (base == RSP && pushes) {
        u = (Use){.access = i->osize == word, .write = true, .low = -(int64_t)word, .size = word};
    } else if ((base == RSP && (fn == translate_pop || fn == translate_ret)) || (base == RBP && fn == translate_leave)) {
        u = (Use){.access = i->osize == word, .size = word};
    }
    if (base == ZERO_REG || !(written_registers(i) & 1u << base))
        return u;
    if (base == RSP && i->osize == word && pushes)
        u.moved = -(int64_t)word;
    else if (base == RSP && i->osize == word && fn == translate_pop && i->rm != RSP)
        u.moved = word;
    else if (base == RSP && i->osize == word && fn == translate_ret)
        u.moved = word + (int64_t)i->imm;
    else
        u.lost = !moves_by_constant(i, base, word, &u.moved);
    return u;
}

void held_after(Emit *e)
{
    if (!e->held.valid)
        return;
    Use u = use_of(e->i, e->held.base, stack_size(e));
    e->held.moved += u.moved;
    e->held.valid = !u.lost;
}

/* The range that this and the following accesses off `base` want, from the register's present value. */
static unsigned gather(const Emit *e, unsigned base, int64_t *low, int64_t *high, bool *write)
{
    int64_t moved = 0;
    unsigned count = 0;
    for (const Insn *i = e->i; i->left; i++) {
        Use u = use_of(i, base, stack_size(e));
        if (u.access) {
            int64_t first, end; /* of absolute addresses anything that 64 bits hold */
            if (__builtin_add_overflow(u.low, moved, &first) || __builtin_add_overflow(first, (int64_t)u.size, &end))
                break;
            int64_t l = count && *low < first ? *low : first, h = count && *high > end ? *high : end;
            if ((uint64_t)h - (uint64_t)l > SPAN)
                break;
            *low = l;
            *high = h;
            *write |= u.write;
            count++;
        }
        if (u.lost)
            break;
        moved += u.moved;
    }
    return count;
}

/* Does the range from `low` to `high` hold `size` bytes at `at`? */
static bool inside(int64_t low, int64_t high, int64_t at, unsigned size)
{
    return at >= low && at <= high && (uint64_t)high - (uint64_t)at >= size;
}

bool emit_shared(Emit *e, unsigned base, int64_t disp, unsigned size, int kind, Rm *out)
{
    Held *h = &e->held;
    Code *o = &e->code;
    int64_t at;
    if (h->valid && h->base == base && !__builtin_add_overflow(disp, h->moved, &at) && inside(h->low, h->high, at, size) &&
        (kind == CHECK_READ || h->write)) {
        emit_load(o, H_RCX, rm_slot(SLOT_HELD));
        *out = rm_mem(H_RCX, (int32_t)(at - h->low));
        return true;
    }
    int64_t low = 0, high = 0;
    bool write = kind == CHECK_WRITE;
    if (region_insn(e, e->i)->origin->block->unshared || gather(e, base, &low, &high, &write) < 2 || !inside(low, high, disp, size))
        return false;
    if (base != ZERO_REG && low != (int32_t)low)
        return false; /* a register that has been moved: the sum fits no displacement */
    flags_keep(e);
    if (base == ZERO_REG)
        emit_constant(o, H_RCX, stack_size(e) == 8 ? (uint64_t)low : (uint32_t)low);
    else
        emit_op(o, stack_size(e) == 8 ? 0x8d | OP_W : 0x8d, H_RCX, rm_mem(guest_value(e, base, H_RCX), (int32_t)low));
    emit_check(e, (unsigned)(high - low), write ? CHECK_WRITE : CHECK_READ);
    e->open->shared = true;
    emit_join_registers(e);
    emit_store(o, rm_slot(SLOT_HELD), H_RCX);
    *h = (Held){.valid = true, .base = (uint8_t)base, .write = write, .low = low, .high = high};
    *out = rm_mem(H_RCX, (int32_t)(disp - low));
    return true;
}
