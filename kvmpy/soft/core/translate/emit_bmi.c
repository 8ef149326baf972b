/* BMI1 and BMI2: VEX-encoded instructions on general registers. */
#include "emit.h"

EMITTER(translate_bmi)
{
    const Insn *i = e->i;
    const InsnInfo *info = &insn_table[i->id];
    Code *o = &e->code;
    const char *s = info->operands;
    bool has_reg = s[0] == 'G', has_vvvv = strchr(s, 'B'), immediate = strchr(s, 'I'), two = i->id == INSN_mulx;
    bool reg_away = has_reg && host_register[i->reg] == IN_MEMORY, vvvv_away = has_vvvv && host_register[i->vvvv] == IN_MEMORY;
    unsigned prefix = K_PFX(info->key);
    unsigned op = (unsigned)(info->key & 0x3ff) | (prefix == 2 ? OP_66 : prefix == 3 ? OP_F3 : prefix == 4 ? OP_F2 : 0) |
                  (i->osize == 8 ? OP_W : 0);
    Rm operand;
    if (i->flags & INSN_MEM) {
        if (!emit_operand(e, i->osize == 8 ? 8 : 4, CHECK_READ, &operand))
            return false;
        if (reg_away || vvvv_away)
            emit_join(e, &operand);
    } else {
        operand = guest_rm(i->rm);
    }
    /* a register that lives in memory is rax; MULX, which has two results, may want rcx too: its operand is read before */
    int reg = !has_reg ? i->modrm >> 3 & 7 : reg_away ? H_RAX : host_register[i->reg];
    int vvvv = !has_vvvv ? 0 : !vvvv_away ? host_register[i->vvvv] : two && reg_away && i->vvvv != i->reg ? H_RCX : H_RAX;
    if (vvvv_away && has_reg && !two)
        emit_load(o, vvvv, guest_memory(i->vvvv));
    emit_vex(o, op, reg, vvvv, operand);
    if (immediate)
        put8(o, (unsigned)i->imm & 0xff);
    if (vvvv_away && (two || !has_reg))
        emit_store(o, guest_memory(i->vvvv), vvvv);
    if (reg_away)
        emit_store(o, guest_memory(i->reg), reg);
    if (info->flags_written)
        flags_written(e);
    emit_resume(e);
    return true;
}
