/* SSE and AVX instructions, copied: vector registers are the host's own, general ones renamed, the memory operand replaced. Only
   in blocks that have found trap_sse, trap_avx 0: the unit is there, and every exception is masked. */
#include "emit.h"

typedef struct {
    bool reg_general, rm_general; /* the register, the ModRM operand in its register form: a general register */
    bool rm_first;                /* the ModRM operand is the destination */
    bool has_reg, has_vvvv, immediate, wide, scalar;
    unsigned size;                /* bytes of the memory operand */
} Form;

static unsigned size_of(const char *s, const Insn *i)
{
    if (s[0] == 's' && s[1] == 's')
        return 4;
    if ((s[0] == 's' && s[1] == 'd') || (s[0] == 'q' && s[1] != 'q'))
        return 8;
    switch (s[0]) {
    case 'b': return 1;
    case 'w': return 2;
    case 'd': return s[1] == 'q' ? 16 : 4;
    case 'y': return i->osize == 8 ? 8 : 4;
    default: return i->flags & INSN_VEXL ? 32 : 16; /* x, ps, pd, qq */
    }
}

static bool form_of(const Insn *i, Form *f)
{
    const InsnInfo *info = &insn_table[i->id];
    *f = (Form){.wide = (info->key & K_W1) != 0};
    for (const char *s = info->operands; *s; s++) {
        bool first = s == info->operands;
        f->scalar |= s[1] == 's';
        switch (*s) {
        case 'V':
            f->has_reg = true;
            break;
        case 'G':
            f->has_reg = f->reg_general = true;
            f->wide |= s[1] == 'y' && i->osize == 8;
            break;
        case 'H':
            f->has_vvvv = true;
            break;
        case 'L':
            break;
        case 'U':
        case 'W':
        case 'M':
            f->rm_first |= first;
            f->size = size_of(s + 1, i);
            break;
        case 'E':
        case 'R':
            f->rm_first |= first;
            f->rm_general = true;
            f->size = size_of(s + 1, i);
            f->wide |= s[1] == 'y' && i->osize == 8;
            break;
        case 'I':
            f->immediate = true;
            break;
        default:
            return false;
        }
        while (s[1] && s[1] != ',' && s[1] != '/')
            s++;
        if (s[1] == '/') { /* another size in memory */
            f->size = size_of(s + 3, i);
            s += 2;
            while (s[1] && s[1] != ',')
                s++;
        }
        if (s[1] == ',')
            s++;
    }
    if (i->id == INSN_vmovddup && !(i->flags & INSN_VEXL))
        f->size = 8; /* half of what is written */
    return true;
}

/* Must the memory operand be aligned to its size? Legacy operands of 16 bytes but for MOVU*; with VEX, the aligned moves. */
static bool aligned(const Insn *i, unsigned size)
{
    switch (i->id) {
    case INSN_movups_load:
    case INSN_movups_store:
    case INSN_movupd_load:
    case INSN_movupd_store:
    case INSN_movdqu_load:
    case INSN_movdqu_store:
    case INSN_lddqu: return false;
    case INSN_vmovaps_load:
    case INSN_vmovaps_store:
    case INSN_vmovapd_load:
    case INSN_vmovapd_store:
    case INSN_vmovdqa_load:
    case INSN_vmovdqa_store:
    case INSN_vmovntps:
    case INSN_vmovntpd:
    case INSN_vmovntdq:
    case INSN_vmovntdqa:
    case INSN_vmovntdqa_y: return true;
    default: return size == 16 && !(i->flags & INSN_VEX);
    }
}

/* What has a form here, but more than its operands say: implied memory or registers, masked faults, results that differ between
   processors. */
static bool special(unsigned id)
{
    switch (id) {
    case INSN_maskmovdqu:
    case INSN_pcmpestrm:
    case INSN_pcmpestri:
    case INSN_pcmpistrm:
    case INSN_pcmpistri:
    case INSN_ldmxcsr:
    case INSN_stmxcsr:
    case INSN_rcpps:
    case INSN_rcpss:
    case INSN_rsqrtps:
    case INSN_rsqrtss:
    case INSN_vmaskmovdqu:
    case INSN_vmaskmovps_load:
    case INSN_vmaskmovps_store:
    case INSN_vmaskmovpd_load:
    case INSN_vmaskmovpd_store:
    case INSN_vpmaskmovd_load:
    case INSN_vpmaskmovd_store:
    case INSN_vpmaskmovq_load:
    case INSN_vpmaskmovq_store:
    case INSN_vpcmpestrm:
    case INSN_vpcmpestri:
    case INSN_vpcmpistrm:
    case INSN_vpcmpistri:
    case INSN_vldmxcsr:
    case INSN_vstmxcsr:
    case INSN_vrcpps:
    case INSN_vrcpss:
    case INSN_vrsqrtps:
    case INSN_vrsqrtss: return true;
    default: return false;
    }
}

bool vector_instruction(unsigned id)
{
    const InsnInfo *info = &insn_table[id];
    bool vex = info->key & K_VEX;
    return info->attributes & A_VEC && !(info->attributes & A_VSIB) && (!vex || host_has(FEAT_AVX2)) &&
           (info->operands[0] || vex) && !strpbrk(info->operands, "PQN") && !special(id) && host_has(info->feature);
}

unsigned vectors_wanted(const Insn *i)
{
    return emitter[i->id] != translate_vector ? VECTORS_NONE : i->flags & INSN_VEX ? VECTORS_WHOLE : VECTORS_LOWER;
}

/* VZEROUPPER, VZEROALL: of the eight registers that there are outside 64-bit mode, the host would clear sixteen. */
static bool zero_vectors(Emit *e)
{
    if ((e->b->mode & MODE_SIZE) != MODE_64)
        return false;
    emit_vex(&e->code, 0x77 | K_0F | (e->i->flags & INSN_VEXL ? OP_L : 0), 0, 0, (Rm){.kind = RM_NONE});
    return true;
}

bool vector_operand(const Insn *i, unsigned *size, bool *write)
{
    Form f;
    if (!form_of(i, &f))
        return false;
    *size = f.size;
    *write = f.rm_first;
    return true;
}

EMITTER(translate_vector)
{
    const Insn *i = e->i;
    const InsnInfo *info = &insn_table[i->id];
    Code *o = &e->code;
    Form f;
    bool memory = i->flags & INSN_MEM, vex = i->flags & INSN_VEX;
    if (!info->operands[0])
        return zero_vectors(e);
    if (!form_of(i, &f) || (vex && f.rm_general && f.wide && (e->b->mode & MODE_SIZE) != MODE_64))
        return false;
    unsigned prefix = K_PFX(info->key);
    unsigned op = (unsigned)(info->key & 0x3ff) | (prefix == 2 ? OP_66 : prefix == 3 ? OP_F3 : prefix == 4 ? OP_F2 : 0) |
                  (f.wide ? OP_W : 0);
    Rm operand;
    bool through_rax = false; /* a general register that lives in memory */
    if (memory) {
        if (!emit_operand(e, f.size, f.rm_first ? CHECK_WRITE : CHECK_READ, &operand))
            return false;
        if (aligned(i, f.size)) {
            flags_keep(e);
            bool joined = operand.index < 0;
            if (joined)
                emit_lea(o, H_RAX, operand);
            put8(o, 0xf6); /* test cl or al: the offset in the page has the address's low bits, and so has the host's address */
            put8(o, joined ? 0xc0 : 0xc1);
            put8(o, f.size - 1);
            emit_guard(e, CC_NE);
            flags_clobbered(e);
        }
        if (f.reg_general && host_register[i->reg] == IN_MEMORY)
            emit_join(e, &operand);
    } else if (f.rm_general) {
        through_rax = host_register[i->rm] == IN_MEMORY;
        operand = rm_reg(through_rax ? H_RAX : host_register[i->rm]);
        if (through_rax && !f.rm_first)
            emit_load(o, H_RAX, guest_memory(i->rm));
    } else {
        operand = rm_reg(i->rm);
    }
    int reg = !f.has_reg ? i->modrm >> 3 & 7 : !f.reg_general ? i->reg : host_register[i->reg] == IN_MEMORY ? H_RAX : host_register[i->reg];
    if (vex)
        emit_vex(o, op | (i->flags & INSN_VEXL && !f.scalar ? OP_L : 0), reg, f.has_vvvv ? i->vvvv : 0, operand);
    else
        emit_op(o, op, reg, operand);
    if (info->attributes & A_VEX4)
        put8(o, (unsigned)i->imm2 << 4);
    else if (f.immediate)
        put8(o, (unsigned)i->imm & 0xff);
    if (f.reg_general && host_register[i->reg] == IN_MEMORY)
        emit_store(o, guest_memory(i->reg), H_RAX);
    if (through_rax && f.rm_first)
        emit_store(o, guest_memory(i->rm), H_RAX);
    if (info->flags_written)
        flags_written(e);
    emit_resume(e);
    return true;
}
