/* SSE instructions, copied: vector registers are the host's own, general ones renamed, the memory operand replaced. Only in
   blocks that have found trap_sse 0: the unit is there, and every exception is masked. */
#include "emit.h"

typedef struct {
    bool reg_general, rm_general; /* the register, the ModRM operand in its register form: a general register */
    bool rm_first;                /* the ModRM operand is the destination */
    bool has_reg, immediate, wide;
    unsigned size;                /* bytes of the memory operand */
} Form;

static unsigned size_of(const char *s, const Insn *i)
{
    if (s[0] == 's' && s[1] == 's')
        return 4;
    if ((s[0] == 's' && s[1] == 'd') || s[0] == 'q')
        return 8;
    switch (s[0]) {
    case 'b': return 1;
    case 'w': return 2;
    case 'd': return s[1] == 'q' ? 16 : 4;
    case 'y': return i->osize == 8 ? 8 : 4;
    default: return 16; /* x, ps, pd */
    }
}

static bool form_of(const Insn *i, Form *f)
{
    const InsnInfo *info = &insn_table[i->id];
    *f = (Form){.wide = (info->key & K_W1) != 0};
    for (const char *s = info->operands; *s; s++) {
        bool first = s == info->operands;
        switch (*s) {
        case 'V':
            f->has_reg = true;
            break;
        case 'G':
            f->has_reg = f->reg_general = true;
            f->wide |= s[1] == 'y' && i->osize == 8;
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
    return true;
}

static bool unaligned(unsigned id)
{
    return id == INSN_movups_load || id == INSN_movups_store || id == INSN_movupd_load || id == INSN_movupd_store ||
           id == INSN_movdqu_load || id == INSN_movdqu_store || id == INSN_lddqu;
}

static bool host_has(unsigned feature)
{
    switch (feature) {
    case FEAT_SSE:
    case FEAT_SSE2: return true;
    case FEAT_SSE3: return __builtin_cpu_supports("sse3");
    case FEAT_SSSE3: return __builtin_cpu_supports("ssse3");
    case FEAT_SSE41: return __builtin_cpu_supports("sse4.1");
    case FEAT_SSE42: return __builtin_cpu_supports("sse4.2");
    case FEAT_AES: return __builtin_cpu_supports("aes");
    case FEAT_PCLMUL: return __builtin_cpu_supports("pclmul");
    default: return false;
    }
}

/* What has a form here, but more than its operands say: implied memory or registers, results that differ between processors. */
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
    case INSN_rsqrtss: return true;
    default: return false;
    }
}

bool vector_instruction(unsigned id)
{
    const InsnInfo *info = &insn_table[id];
    return info->attributes & A_VEC && !(info->key & K_VEX) && info->operands[0] && !strpbrk(info->operands, "PQN") && !special(id) &&
           host_has(info->feature);
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
    if (!form_of(i, &f))
        return false;
    bool memory = i->flags & INSN_MEM, aligned = f.size == 16 && !unaligned(i->id);
    unsigned prefix = K_PFX(info->key);
    unsigned op = (unsigned)(info->key & 0x3ff) | (prefix == 2 ? OP_66 : prefix == 3 ? OP_F3 : prefix == 4 ? OP_F2 : 0) |
                  (f.wide ? OP_W : 0);
    Rm operand;
    bool through_rax = false; /* a general register that lives in memory */
    if (memory) {
        if (!emit_operand(e, f.size, f.rm_first ? CHECK_WRITE : CHECK_READ, &operand))
            return false;
        if (aligned) {
            flags_keep(e);
            bool joined = operand.index < 0;
            if (joined)
                emit_lea(o, H_RAX, operand);
            put8(o, 0xf6); /* test cl or al, 15: the offset in the page has the address's low bits, and so has the host's address */
            put8(o, joined ? 0xc0 : 0xc1);
            put8(o, 15);
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
    emit_op(o, op, reg, operand);
    if (f.immediate)
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
