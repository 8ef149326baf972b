/* Instructions of general registers that the host executes as they are: registers renamed, the memory operand replaced. */
#include "emit.h"

/* What the operand letters of the instruction table say: of the ModRM operand (E, M), the register operand (G), the immediate. */
typedef struct {
    unsigned rm_size, reg_size; /* bytes; 0: no such operand */
    unsigned imm_size;
    bool rm_first; /* the ModRM operand is the destination */
} Form;

static unsigned letter_size(char letter, const Insn *i)
{
    switch (letter) {
    case 'b': return 1;
    case 'w': return 2;
    case 'd': return 4;
    case 'q': return 8;
    case 'y': return i->osize == 8 ? 8 : 4;
    default: return i->osize;
    }
}

static Form form_of(const Insn *i)
{
    const char *s = insn_table[i->id].operands;
    Form f = {.rm_first = s[0] == 'E' || s[0] == 'M'};
    for (; *s; s++) {
        if (*s == 'E' || *s == 'M')
            f.rm_size = letter_size(*++s, i);
        else if (*s == 'G')
            f.reg_size = letter_size(*++s, i);
        else if (*s == 'I')
            f.imm_size = *++s == 'b' ? 1 : i->osize == 2 ? 2 : 4;
    }
    return f;
}

static unsigned opcode_of(const Insn *i)
{
    uint64_t key = insn_table[i->id].key;
    unsigned prefix = K_PFX(key) == 2 ? OP_66 : K_PFX(key) == 3 ? OP_F3 : K_PFX(key) == 4 ? OP_F2 : 0;
    unsigned op = key & 0x3ff;
    return (op == 0x82 ? 0x80 : op) | prefix; /* 82 is no instruction in 64-bit mode, and means the same */
}

static void put_immediate(Emit *e, unsigned size, uint64_t value)
{
    if (size == 1)
        put8(&e->code, (unsigned)value & 0xff);
    else if (size == 2) {
        put8(&e->code, (unsigned)value & 0xff);
        put8(&e->code, (unsigned)(value >> 8) & 0xff);
    } else if (size == 4)
        put32(&e->code, (uint32_t)value);
}

bool wants_flags(const Emit *e, uint32_t read, uint32_t changed)
{
    uint32_t kept = FL_OSZAPC & ~changed;
    return read || (changed && kept && !flags_dead_after(e, kept));
}

/* A 32-bit result in a register that lives in memory: the upper half is cleared as the host does for its own. */
static void clear_upper(Emit *e, unsigned n, unsigned size)
{
    if (size != 4 || host_register[n] != IN_MEMORY)
        return;
    Rm upper = guest_memory(n);
    upper.disp += 4;
    emit_op(&e->code, 0xc7, 0, upper);
    put32(&e->code, 0);
}

enum { WRITES_RM = 1, WRITES_REG = 2 };

/* AH, CH, DH, BH. No register that needs a REX prefix goes with them: both operands are copied, the destination to the second byte
   of rcx or rax, the source to AL. */
static bool copy_high(Emit *e, unsigned op, const Form *f, int extension, unsigned writes, uint32_t read, uint32_t changed)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    bool memory = i->flags & INSN_MEM, two = f->reg_size != 0;
    if (writes == (WRITES_RM | WRITES_REG) || (two && f->reg_size != f->rm_size))
        return false;
    bool host_flags = wants_flags(e, read, changed);
    Rm operand;
    if (memory) {
        if (!emit_operand(e, 1, writes & WRITES_RM ? CHECK_WRITE : CHECK_READ, &operand))
            return false;
        emit_join(e, &operand);
        if (i->prefix & PFX_LOCK)
            op |= OP_LOCK;
    }
    if (host_flags)
        flags_to_host(e);
    bool to_rm = f->rm_first || !two;
    unsigned to = to_rm ? i->rm : i->reg, from = to_rm ? i->reg : i->rm;
    if (two && !(memory && !to_rm)) { /* the source in al */
        emit_op(o, 0x8b, H_RAX, guest_rm(from >> 3));
        if (high_byte(from))
            emit_op(o, 0xb6 | K_0F, H_RAX, rm_reg(H_RAX + 4)); /* movzx eax, ah */
    }
    if (memory && to_rm) {
        emit_op(o, op, H_RAX, operand);
    } else {
        int copied = memory ? H_RAX : H_RCX, byte = copied + (high_byte(to) ? 4 : 0);
        emit_op(o, 0x8b, copied, guest_rm(to >> 3));
        if (memory)
            emit_op(o, op, byte, operand);
        else if (to_rm)
            emit_op(o, op, two ? H_RAX : extension, rm_reg(byte));
        else
            emit_op(o, op, byte, rm_reg(H_RAX));
        put_immediate(e, f->imm_size, i->imm);
        if (writes)
            emit_op(o, 0x89 | OP_66, copied, guest_rm(to >> 3));
    }
    if (changed)
        flags_written(e);
    emit_resume(e);
    return true;
}

/* op reg_or_extension, rm [, immediate] */
static bool copy(Emit *e, unsigned op, const Form *f, int extension, unsigned writes, uint32_t read, uint32_t changed)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    bool memory = i->flags & INSN_MEM, has_reg = f->reg_size != 0;
    unsigned reg = i->reg, rm = i->rm;
    if ((f->reg_size == 1 && high_byte(reg)) || (!memory && f->rm_size == 1 && high_byte(rm)))
        return copy_high(e, op, f, extension, writes, read, changed);
    if (f->reg_size == 1)
        reg >>= 3;
    if (!memory && f->rm_size == 1)
        rm >>= 3;
    bool host_flags = wants_flags(e, read, changed);
    op |= f->rm_size == 1 || f->reg_size == 1 ? OP_BYTE : 0;
    unsigned width = f->reg_size ? f->reg_size : f->rm_size; /* where they differ, the register is what is extended to */
    op |= width == 8 ? OP_W : width == 2 ? OP_66 : 0;
    Rm operand;
    if (memory) {
        if (!emit_operand(e, f->rm_size, writes & WRITES_RM ? CHECK_WRITE : CHECK_READ, &operand))
            return false;
        if (host_flags || (has_reg && host_register[reg] == IN_MEMORY))
            emit_join(e, &operand);
        if (i->prefix & PFX_LOCK)
            op |= OP_LOCK;
    } else {
        operand = guest_rm(rm);
    }
    if (host_flags)
        flags_to_host(e);
    int from = has_reg ? guest_value(e, reg, H_RAX) : extension;
    emit_op(o, op, from, operand);
    put_immediate(e, f->imm_size, i->imm);
    if (writes & WRITES_REG && host_register[reg] == IN_MEMORY)
        emit_store(o, guest_memory(reg), H_RAX);
    if (writes & WRITES_RM && !memory)
        clear_upper(e, rm, f->rm_size);
    if (changed)
        flags_written(e);
    emit_resume(e);
    return true;
}

static bool copy_insn(Emit *e, bool compare)
{
    const Insn *i = e->i;
    const InsnInfo *info = &insn_table[i->id];
    Form f = form_of(i);
    unsigned op = opcode_of(i), extension = i->modrm >> 3 & 7;
    uint32_t read = info->flags_read, changed = info->flags_written | info->flags_undefined;
    bool exchange = i->id == INSN_xchg_EbGb || i->id == INSN_xchg_EvGv || i->id == INSN_xadd_EbGb || i->id == INSN_xadd_EvGv;
    if ((op & 0x3fe) == 0xc0) { /* shifts by an immediate: only a count of 0 leaves the flags alone */
        if (i->imm & (i->osize == 8 && f.rm_size == 8 ? 63 : 31))
            read = extension == 2 || extension == 3 ? FL_CF : 0;
    }
    if (i->id == INSN_crc32_Ev)
        f.reg_size = i->osize; /* what tells the size is the source */
    if (exchange && !(i->flags & INSN_MEM) && i->reg == i->rm)
        return false; /* both results are for one register */
    unsigned writes = compare ? 0 : exchange ? WRITES_RM | WRITES_REG : f.rm_first ? WRITES_RM : WRITES_REG;
    return copy(e, op, &f, (int)extension, writes, read, changed);
}

bool copy_operand(const Insn *i, unsigned *size, bool *write)
{
    Form f = form_of(i);
    bool exchange = i->id == INSN_xchg_EbGb || i->id == INSN_xchg_EvGv || i->id == INSN_xadd_EbGb || i->id == INSN_xadd_EvGv;
    *size = f.rm_size;
    *write = exchange || (f.rm_first && emitter[i->id] != translate_compare);
    return f.rm_size != 0;
}

EMITTER(translate_copy) { return copy_insn(e, false); }
EMITTER(translate_compare)
{
    return copy_insn(e, true);
}

/* AL or rAX and an immediate: the register is not the host's RAX here. */
static bool copy_rax(Emit *e, bool compare)
{
    const Insn *i = e->i;
    const InsnInfo *info = &insn_table[i->id];
    unsigned op = opcode_of(i);
    bool byte = !(op & 1), test = (op & 0xfe) == 0xa8;
    Form f = {.rm_size = byte ? 1 : i->osize, .imm_size = byte ? 1 : i->osize == 2 ? 2 : 4, .rm_first = true};
    return copy(e, (test ? 0xf6u : 0x80u) | (op & 1), &f, test ? 0 : (int)(op >> 3 & 7), compare ? 0 : WRITES_RM,
                info->flags_read, info->flags_written | info->flags_undefined);
}

EMITTER(translate_copy_rax) { return copy_rax(e, false); }
EMITTER(translate_compare_rax) { return copy_rax(e, true); }

EMITTER(translate_incdec_row)
{
    const InsnInfo *info = &insn_table[e->i->id];
    Form f = {.rm_size = e->i->osize, .rm_first = true};
    return copy(e, 0xff, &f, e->i->id == INSN_dec_Zv, WRITES_RM, 0, info->flags_written);
}

/* The count stands in rcx, so the address takes the place of RDX meanwhile. */
static bool shift_memory(Emit *e, const Form *f, uint32_t read)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    unsigned size = f->rm_size;
    Rm operand;
    if (!emit_operand(e, size, CHECK_WRITE, &operand))
        return false;
    emit_join(e, &operand);
    if (read)
        flags_to_host(e);
    emit_store(o, rm_slot(SLOT_SCRATCH), H_RDX);
    emit_lea(o, H_RDX, operand);
    if (f->reg_size)
        emit_load(o, H_RAX, i->reg == RDX ? rm_slot(SLOT_SCRATCH) : guest_rm(i->reg));
    emit_op(o, 0x89, host_register[RCX], rm_reg(H_RCX));
    emit_op(o, opcode_of(i) | size_op(size), f->reg_size ? H_RAX : (int)(i->modrm >> 3 & 7), rm_mem(H_RDX, 0));
    emit_load(o, H_RDX, rm_slot(SLOT_SCRATCH));
    flags_written(e);
    emit_resume(e);
    return true;
}

/* The count may be 0: then the flags stay. */
EMITTER(translate_shift_cl)
{
    const Insn *i = e->i;
    const InsnInfo *info = &insn_table[i->id];
    Form f = form_of(i);
    if (!(i->flags & INSN_MEM) && f.rm_size == 1 && high_byte(i->rm))
        return false;
    bool unseen = flags_dead_after(e, FL_OSZAPC);
    unsigned extension = i->modrm >> 3 & 7;
    bool through_carry = !f.reg_size && (extension == 2 || extension == 3);
    uint32_t read = !unseen ? FL_OSZAPC : through_carry ? FL_CF : 0;
    if (i->flags & INSN_MEM)
        return shift_memory(e, &f, read);
    emit_op(&e->code, 0x89, host_register[RCX], rm_reg(H_RCX));
    return copy(e, opcode_of(i), &f, (int)extension, WRITES_RM, read, unseen ? FL_OSZAPC : info->flags_written | info->flags_undefined);
}

EMITTER(translate_movzx)
{
    const Insn *i = e->i;
    if (i->flags & INSN_MEM || !high_byte(i->rm) || i->osize == 2)
        return copy_insn(e, false);
    unsigned n = i->rm >> 3; /* AH, CH, DH, BH */
    int from = host_register[n];
    if (from >= 4) {
        emit_op(&e->code, 0x89, from, rm_reg(H_RAX));
        from = H_RAX;
    }
    bool sign = i->id == INSN_movsx_GvEb;
    put8(&e->code, 0x0f); /* movzx ecx, ah and its like: without REX */
    put8(&e->code, sign ? 0xbe : 0xb6);
    put8(&e->code, 0xc0 | H_RCX << 3 | (unsigned)(from + 4));
    if (sign && i->osize == 8)
        emit_op(&e->code, 0x63 | OP_W, H_RCX, rm_reg(H_RCX));
    guest_assign(e, i->reg, H_RCX);
    return true;
}

EMITTER(translate_mov_row)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    if (i->id == INSN_mov_ZbIb) {
        if (high_byte(i->rm))
            return false;
        emit_op(o, 0xc6 | OP_BYTE, 0, guest_rm(i->rm >> 3));
        put8(o, (unsigned)i->imm & 0xff);
    } else if (i->osize == 2) {
        emit_op(o, 0xc7 | OP_66, 0, guest_rm(i->rm));
        put_immediate(e, 2, i->imm);
    } else {
        uint64_t value = i->osize == 4 ? (uint32_t)i->imm : i->imm;
        if (host_register[i->rm] == IN_MEMORY)
            emit_store_constant(o, guest_memory(i->rm), value);
        else
            emit_constant(o, host_register[i->rm], value);
    }
    return true;
}

EMITTER(translate_bswap)
{
    const Insn *i = e->i;
    if (i->osize == 2)
        return false;
    int reg = guest_value(e, i->rm, H_RAX);
    put8(&e->code, (i->osize == 8 ? 0x48u : 0x40u) | (reg & 8 ? 1u : 0));
    put8(&e->code, 0x0f);
    put8(&e->code, 0xc8u | ((unsigned)reg & 7));
    guest_assign(e, i->rm, reg);
    return true;
}

EMITTER(translate_xchg_row)
{
    const Insn *i = e->i;
    if (i->osize == 2 || host_register[i->rm] == IN_MEMORY)
        return false;
    unsigned op = 0x89 | size_op(i->osize);
    int a = host_register[RAX], b = host_register[i->rm];
    emit_op(&e->code, op, a, rm_reg(H_RAX));
    emit_op(&e->code, op, b, rm_reg(a));
    emit_op(&e->code, op, H_RAX, rm_reg(b));
    return true;
}

EMITTER(translate_cbw)
{
    const Insn *i = e->i;
    int rax = host_register[RAX];
    unsigned op = i->osize == 8 ? 0x63u | OP_W : i->osize == 4 ? 0xbfu | K_0F : 0xbeu | K_0F | OP_66 | OP_BYTE;
    emit_op(&e->code, op, rax, rm_reg(rax));
    return true;
}

EMITTER(translate_cwd)
{
    const Insn *i = e->i;
    emit_mov(&e->code, H_RAX, host_register[RAX]);
    if (i->osize == 2)
        put8(&e->code, 0x66);
    if (i->osize == 8)
        put8(&e->code, 0x48);
    put8(&e->code, 0x99); /* the guest's RDX is the host's */
    return true;
}

/* Parallel vCPUs give the host's processor away by it. */
EMITTER(translate_pause) { return !e->c->parallel; }

EMITTER(translate_nothing)
{
    (void)e;
    return true;
}

/* AL or rAX at a constant address. */
EMITTER(translate_moffs)
{
    unsigned size;
    bool write;
    Rm operand;
    emit_memory_operand(e->i, &size, &write);
    if (!emit_operand(e, size, write ? CHECK_WRITE : CHECK_READ, &operand))
        return false;
    emit_op(&e->code, (write ? 0x88 : 0x8a) | (size > 1) | size_op(size), host_register[RAX], operand);
    emit_resume(e);
    return true;
}

/* BT to BTC with a register: in memory its upper bits move the address. */
EMITTER(translate_bit_string)
{
    const Insn *i = e->i;
    const InsnInfo *info = &insn_table[i->id];
    Code *o = &e->code;
    bool changes = i->id != INSN_bt_EvGv, narrow = i->amask != ~0ull;
    unsigned op = opcode_of(i) | size_op(i->osize), log = i->osize == 8 ? 3 : i->osize == 4 ? 2 : 1;
    bool host_flags = wants_flags(e, 0, info->flags_written | info->flags_undefined);
    if (!(i->flags & INSN_MEM)) {
        if (host_register[i->rm] != IN_MEMORY)
            return copy_insn(e, !changes);
        if (host_flags)
            flags_to_host(e);
        emit_load(o, H_RCX, guest_memory(i->rm));
        emit_op(o, op, guest_value(e, i->reg, H_RAX), rm_reg(H_RCX));
        if (changes)
            emit_store(o, guest_memory(i->rm), H_RCX);
        flags_written(e);
        return true;
    }
    if (!emit_addressable(i) || (narrow && i->seg >= SEG_FS))
        return false;
    flags_keep(e);
    emit_address(e);
    emit_op(o, i->osize == 8 ? 0x8b | OP_W : i->osize == 4 ? 0x63 | OP_W : 0xbf | K_0F | OP_W, H_RAX, guest_rm(i->reg)); /* signed */
    emit_op(o, 0xc1 | OP_W, 7, rm_reg(H_RAX)); /* sar */
    put8(o, log + 3);
    Rm at = rm_mem2(H_RCX, H_RAX);
    at.scale = (uint8_t)log;
    emit_op(o, narrow ? 0x8d : 0x8d | OP_W, H_RCX, at);
    emit_check(e, i->osize, changes ? CHECK_WRITE : CHECK_READ);
    if (changes) {
        emit_join_registers(e);
        emit_op(o, 0x8b, H_RAX, guest_rm(i->reg));
        emit_op(o, 0x83, 4, rm_reg(H_RAX)); /* and: the bit of this place */
        put8(o, i->osize * 8 - 1);
        emit_store(o, rm_slot(SLOT_SCRATCH), H_RAX);
        if (host_flags)
            flags_to_host(e);
        emit_load(o, H_RAX, rm_slot(SLOT_SCRATCH));
        emit_op(o, op | (i->prefix & PFX_LOCK ? OP_LOCK : 0), H_RAX, rm_mem(H_RCX, 0));
    } else {
        emit_op(o, 0x8b | size_op(i->osize), H_RCX, rm_mem2(H_RAX, H_RCX));
        if (host_flags)
            flags_to_host(e);
        emit_op(o, op, guest_value(e, i->reg, H_RAX), rm_reg(H_RCX));
    }
    flags_written(e);
    emit_resume(e);
    return true;
}

EMITTER(translate_xlat)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    if (i->flags & INSN_CHECK || i->amask == 0xffff)
        return false;
    flags_keep(e);
    emit_op(o, 0xb6 | K_0F | OP_BYTE, H_RAX, rm_reg(host_register[RAX])); /* movzx */
    emit_op(o, i->amask == ~0ull ? 0x8d | OP_W : 0x8d, H_RCX, rm_mem2(H_RBX, H_RAX));
    if (i->seg >= SEG_FS)
        emit_op(o, 0x03 | OP_W, H_RCX, rm_gs(offsetof(Cpu, seg_base) + 8u * i->seg));
    emit_check(e, 1, CHECK_READ);
    emit_op(o, 0x8a | OP_BYTE, host_register[RAX], rm_mem2(H_RAX, H_RCX));
    emit_resume(e);
    return true;
}
