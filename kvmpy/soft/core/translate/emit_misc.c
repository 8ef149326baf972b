/* Instructions on the flags, and single reads of what stands in the Cpu. */
#include "emit.h"

/* LAHF: AH as the host gives it, past the other fifteen bits of the guest's AX. */
EMITTER(translate_lahf)
{
    Code *o = &e->code;
    int rax = host_register[RAX];
    flags_to_host(e);
    put8(o, 0x9f);
    emit_op(o, 0x8a | OP_BYTE, H_RAX, rm_reg(rax));
    emit_op(o, 0x89 | OP_66, H_RAX, rm_reg(rax));
    return true;
}

EMITTER(translate_sahf)
{
    const InsnInfo *info = &insn_table[e->i->id];
    if (wants_flags(e, info->flags_read, info->flags_written))
        flags_to_host(e);
    emit_op(&e->code, 0x89, host_register[RAX], rm_reg(H_RAX));
    put8(&e->code, 0x9e);
    flags_written(e);
    return true;
}

/* CLC, STC, CMC */
EMITTER(translate_carry)
{
    const InsnInfo *info = &insn_table[e->i->id];
    if (wants_flags(e, info->flags_read, info->flags_written))
        flags_to_host(e);
    put8(&e->code, info->key & 0xff);
    flags_written(e);
    return true;
}

EMITTER(translate_direction)
{
    bool set = e->i->id == INSN_std;
    flags_keep(e);
    emit_op(&e->code, 0x81, set ? 1 : 4, rm_gs(offsetof(Cpu, eflags))); /* or, and */
    put32(&e->code, set ? FL_DF : ~FL_DF);
    flags_clobbered(e);
    return true;
}

EMITTER(translate_fnstcw)
{
    Code *o = &e->code;
    Rm operand;
    if (!emit_addressable(e->i))
        return false;
    flags_keep(e);
    emit_op(o, 0x80, 7, rm_gs(offsetof(Cpu, deny_x87))); /* cmp */
    put8(o, EXC_NONE);
    emit_guard(e, CC_NE);
    flags_clobbered(e);
    emit_operand(e, 2, CHECK_WRITE, &operand); /* behind what refuses the instruction: a checked page is marked as written */
    emit_join(e, &operand);
    emit_op(o, 0xb7 | K_0F, H_RAX, rm_gs(offsetof(Cpu, x87.control)));
    emit_op(o, 0x89 | OP_66, H_RAX, operand);
    emit_resume(e);
    return true;
}

/* A selector into a register; into memory it is a store of 16 bits. */
EMITTER(translate_mov_selector)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    if (i->flags & INSN_MEM || i->reg > SEG_GS)
        return false;
    emit_op(o, 0xb7 | K_0F, H_RAX, rm_gs(offsetof(Cpu, seg) + i->reg * sizeof(struct kvm_segment) + offsetof(struct kvm_segment, selector)));
    if (i->osize == 2)
        emit_op(o, 0x89 | OP_66, H_RAX, guest_rm(i->rm));
    else
        guest_assign(e, i->rm, H_RAX);
    return true;
}
