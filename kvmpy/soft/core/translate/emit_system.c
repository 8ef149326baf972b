/* What operating systems use often: RFLAGS and its interrupt flag, the bases of FS and GS, fences. */
#include "emit.h"
#include "run.h"

/* CPL 0 to 2; which of them, only guard_cpl0 knows. */
static bool kernel_mode(const Emit *e) { return (e->b->mode & (MODE_PROT | MODE_USER)) == MODE_PROT; }

static void compare_byte(Emit *e, Rm with)
{
    emit_op(&e->code, 0x80, 7, with);
    put8(&e->code, 0);
}

static void guard_cpl0(Emit *e)
{
    flags_keep(e);
    compare_byte(e, rm_gs(offsetof(Cpu, cpl)));
    emit_guard(e, CC_NE);
    flags_clobbered(e);
}

/* Nothing waits for the interrupt flag. What comes later ends the budget, and of that more is left than the next instruction needs:
   so where STI holds interrupts back for one instruction none comes in any case. */
static void guard_quiet(Emit *e)
{
    Code *o = &e->code;
    emit_op(o, 0x83, 7, rm_gs(offsetof(Cpu, attention))); /* cmp */
    put8(o, 0);
    emit_guard(e, CC_NE);
    emit_load(o, H_RAX, rm_gs(offsetof(Cpu, run)));
    compare_byte(e, rm_mem(H_RAX, (int32_t)offsetof(struct RunState, check)));
    emit_guard(e, CC_NE);
    emit_op(o, 0x83 | OP_66, 7, rm_gs(offsetof(Cpu, queued_interrupt)));
    put8(o, 0);
    emit_guard(e, CC_NS);
}

static void and_eflags(Emit *e, uint32_t mask)
{
    emit_op(&e->code, 0x81, 4, rm_gs(offsetof(Cpu, eflags)));
    put32(&e->code, mask);
}

EMITTER(translate_cli)
{
    if (!kernel_mode(e))
        return false;
    guard_cpl0(e);
    and_eflags(e, ~FL_IF);
    emit_resume(e);
    return true;
}

EMITTER(translate_sti)
{
    if (!kernel_mode(e) || !e->c->lapic)
        return false;
    guard_cpl0(e);
    guard_quiet(e);
    emit_op(&e->code, 0x81, 1, rm_gs(offsetof(Cpu, eflags))); /* or */
    put32(&e->code, FL_IF);
    emit_interpret(e);
    emit_exit(e, e->i->next_rip, -1);
    return true;
}

EMITTER(translate_pushf)
{
    Code *o = &e->code;
    if (!usual(e))
        return false;
    flags_to_memory(e);
    Rm to = push_place(e), low = rm_slot(SLOT_FLAGS);
    emit_join(e, &to);
    emit_load32(o, H_RAX, low); /* OF in bit 0, the others from bit 8 on */
    emit_op(o, 0x83, 4, rm_reg(H_RAX));
    put8(o, 1);
    emit_op(o, 0xc1, 4, rm_reg(H_RAX)); /* shl */
    put8(o, 11);
    low.disp++;
    emit_op(o, 0x0a, H_RAX, low); /* or al */
    emit_op(o, 0x0b, H_RAX, rm_gs(offsetof(Cpu, eflags)));
    put8(o, 0x25); /* and eax */
    put32(o, ~(FL_RF | FL_VM));
    emit_op(o, 0x89 | size_op(stack_size(e)), H_RAX, to);
    flags_clobbered(e);
    move_sp(e, -(int32_t)stack_size(e));
    emit_resume(e);
    return true;
}

/* Where no bit changes but the arithmetic ones, DF and, in the kernel, IF. */
EMITTER(translate_popf)
{
    Code *o = &e->code;
    bool kernel = kernel_mode(e);
    unsigned size = stack_size(e);
    uint32_t copied = FL_DF | (kernel ? FL_IF : 0), same = FL_TF | FL_NT | FL_AC | FL_ID | (kernel ? FL_IOPL : 0);
    if (!usual(e) || (kernel ? !e->c->lapic : !(e->b->mode & MODE_USER)))
        return false;
    flags_keep(e);
    emit_op(o, 0x89 | size_op(size), host_register[RSP], rm_reg(H_RCX));
    emit_check(e, size, CHECK_READ);
    emit_op(o, 0x8b, H_RAX, rm_mem2(H_RAX, H_RCX));
    emit_store(o, rm_slot(SLOT_SCRATCH), H_RAX);
    emit_op(o, 0x33, H_RAX, rm_gs(offsetof(Cpu, eflags))); /* xor */
    put8(o, 0xa9);                                         /* test eax */
    put32(o, same);
    emit_guard(e, CC_NE);
    if (kernel) {
        guard_cpl0(e);
        guard_quiet(e);
    } else { /* with IOPL 3 it has IF */
        emit_op(o, 0xf6, 0, rm_gs(offsetof(Cpu, eflags) + 1)); /* test */
        put8(o, FL_IOPL >> 8);
        emit_guard(e, CC_NE);
    }
    emit_load32(o, H_RAX, rm_slot(SLOT_SCRATCH));
    put8(o, 0x25); /* and eax */
    put32(o, copied);
    and_eflags(e, ~copied);
    emit_op(o, 0x09, H_RAX, rm_gs(offsetof(Cpu, eflags))); /* or */
    emit_load32(o, H_RCX, rm_slot(SLOT_SCRATCH));
    emit_op(o, 0x89, H_RCX, rm_reg(H_RAX));
    emit_op(o, 0xc1, 4, rm_reg(H_RAX)); /* shl */
    put8(o, 8);
    put8(o, 0x25);
    put32(o, (FL_OSZAPC & 0xff) << 8);
    emit_op(o, 0xc1, 5, rm_reg(H_RCX)); /* shr */
    put8(o, 11);
    emit_op(o, 0x83, 4, rm_reg(H_RCX));
    put8(o, 1);
    emit_op(o, 0x09, H_RCX, rm_reg(H_RAX));
    emit_store32(o, rm_slot(SLOT_FLAGS), H_RAX);
    e->flags = (Flags){FLAGS_MEMORY, NULL};
    move_sp(e, (int32_t)size);
    emit_interpret(e);
    emit_exit(e, e->i->next_rip, -1);
    return true;
}

static Rm base_of(unsigned seg) { return rm_gs(offsetof(Cpu, seg) + seg * sizeof(struct kvm_segment) + offsetof(struct kvm_segment, base)); }

/* The base of FS or GS in rax. */
static void set_base(Emit *e, unsigned seg)
{
    emit_store(&e->code, base_of(seg), H_RAX);
    emit_store(&e->code, rm_gs(offsetof(Cpu, seg_base) + 8u * seg), H_RAX);
}

EMITTER(translate_swapgs)
{
    Code *o = &e->code;
    if (!kernel_mode(e))
        return false;
    guard_cpl0(e);
    emit_load(o, H_RAX, rm_gs(offsetof(Cpu, kernel_gs_base)));
    emit_load(o, H_RCX, base_of(SEG_GS));
    emit_store(o, rm_gs(offsetof(Cpu, kernel_gs_base)), H_RCX);
    set_base(e, SEG_GS);
    emit_resume(e);
    return true;
}

/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE */
EMITTER(translate_base)
{
    const Insn *i = e->i;
    Code *o = &e->code;
    bool writes = i->id == INSN_wrfsbase || i->id == INSN_wrgsbase, wide = i->osize == 8;
    unsigned seg = i->id == INSN_rdfsbase || i->id == INSN_wrfsbase ? SEG_FS : SEG_GS;
    if (i->osize == 2)
        return false;
    flags_keep(e);
    emit_op(o, 0xf7, 0, rm_gs(offsetof(Cpu, cr4))); /* test */
    put32(o, CR4_FSGSBASE);
    emit_guard(e, CC_E);
    emit_op(o, wide ? 0x8b | OP_W : 0x8b, H_RAX, writes ? guest_rm(i->rm) : base_of(seg));
    if (writes && wide) { /* is it canonical? */
        emit_mov(o, H_RCX, H_RAX);
        emit_op(o, 0xc1 | OP_W, 4, rm_reg(H_RCX)); /* shl, sar */
        put8(o, 16);
        emit_op(o, 0xc1 | OP_W, 7, rm_reg(H_RCX));
        put8(o, 16);
        emit_op(o, 0x39 | OP_W, H_RCX, rm_reg(H_RAX));
        emit_guard(e, CC_NE);
    }
    flags_clobbered(e);
    if (writes)
        set_base(e, seg);
    else
        guest_assign(e, i->rm, H_RAX);
    emit_resume(e);
    return true;
}

/* As they are: other vCPUs may run on other processors. */
EMITTER(translate_fence)
{
    put8(&e->code, 0x0f);
    put8(&e->code, 0xae);
    put8(&e->code, e->i->modrm);
    return true;
}
