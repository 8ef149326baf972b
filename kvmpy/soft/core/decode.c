/* The decoder. The table's lines are read once into lists of candidates per opcode; what else distinguishes them (mandatory
   prefix, ModRM, W, L, mode) is one word, the situation, compared under each line's mask. */
#include "decode.h"
#include "parallel.h"

/* The situation of an instruction. */
#define SIT_PFX 0x3u /* 0 none, 1 66, 2 F3, 3 F2 */
#define SIT_REG_SHIFT 2
#define SIT_RM_SHIFT 5
#define SIT_MOD3 0x100u
#define SIT_W 0x200u
#define SIT_L 0x400u
#define SIT_64 0x800u
#define SIT_REXB 0x1000u

/* The form of a line: how its operands are encoded. */
#define FORM_REG_BYTE 0x1u    /* ModRM.reg is an 8-bit register */
#define FORM_RM_BYTE 0x2u     /* ModRM.rm or the opcode's register is */
#define FORM_BYTE 0x4u        /* the instruction works on bytes: size index 0 */
#define FORM_Y 0x8u           /* operand size 4 or 8 by W alone */
#define FORM_REG3 0x10u       /* ModRM.reg is not extended by REX.R: segment or MMX register */
#define FORM_RM3 0x20u        /* ModRM.rm is not extended by REX.B: MMX register */
#define FORM_VVVV 0x40u       /* VEX.vvvv names an operand */
#define FORM_66 0x80u         /* 66 is part of the opcode, and no operand size besides (as with `v` operands: MOVBE) */
#define FORM_ROW 0x100u       /* the register stands in the opcode */
#define FORM_CONTROL 0x200u   /* control or debug register: ModRM.mod is ignored */

typedef struct {
    uint32_t mask, value; /* of the situation */
    uint16_t form;
    uint8_t imm[2];
    uint8_t size_rule; /* 0, or that of K_D64 (1), K_F64 (2) */
} Line;

typedef struct {
    uint16_t first, count; /* of candidates[] */
    bool modrm, any_mod;
} Opcode;

static Line lines[INSN_COUNT];
static uint16_t candidates[INSN_COUNT * 8];
static Opcode opcodes[2][4][256]; /* by VEX or legacy, map, opcode byte */

bool operand_is_method(const char *s)
{
    return s[0] && strchr(OPERAND_LETTERS, s[0]) && s[1] >= 'a' && s[1] <= 'z';
}

static void add_imm(Line *l, uint8_t kind) { l->imm[l->imm[0] != IMM_NONE] = kind; }

/* One operand token into the form; gives whether it asks for a ModRM byte. `first`: the first operand of the line. */
static bool read_operand(Line *l, const char *s, size_t length, bool first)
{
    char letter = s[0], size = length > 1 ? s[1] : 0;
    bool either = memchr(s, '/', length); /* as in Ry/Mb: register of one size, memory of another */
    if (length == 2 && s[0] == 'A' && s[1] == 'L') {
        l->form |= FORM_BYTE;
        return false;
    }
    if (length == 1 && s[0] == 'M')
        size = 'x';
    if (!(size >= 'a' && size <= 'z') || !strchr(OPERAND_LETTERS, letter))
        return false;
    if (size == 'y')
        l->form |= FORM_Y;
    if (size == 'b' && !either && ((first && strchr("EGZO", letter)) || letter == 'X' || letter == 'Y'))
        l->form |= FORM_BYTE;
    switch (letter) {
    case 'E':
        if (size == 'b' && !either)
            l->form |= FORM_RM_BYTE;
        return true;
    case 'G':
        if (size == 'b')
            l->form |= FORM_REG_BYTE;
        return true;
    case 'Z':
        if (size == 'b')
            l->form |= FORM_RM_BYTE;
        return false;
    case 'M':
        l->mask |= SIT_MOD3;
        return true;
    case 'R':
    case 'U':
        if (!either) {
            l->mask |= SIT_MOD3;
            l->value |= SIT_MOD3;
        }
        return true;
    case 'N':
        l->form |= FORM_RM3;
        l->mask |= SIT_MOD3;
        l->value |= SIT_MOD3;
        return true;
    case 'Q': l->form |= FORM_RM3; return true;
    case 'P':
    case 'S': l->form |= FORM_REG3; return true;
    case 'C':
    case 'D': l->form |= FORM_CONTROL; return true;
    case 'V':
    case 'W': return true;
    case 'H':
    case 'B': l->form |= FORM_VVVV; return false;
    case 'L': add_imm(l, IMM_IS4); return false;
    case 'A': add_imm(l, IMM_FAR); return false;
    case 'O': add_imm(l, IMM_OFFSET); return false;
    case 'J': add_imm(l, size == 'b' ? IMM_JB : IMM_JZ); return false;
    case 'I': add_imm(l, size == 'b' ? IMM_B : size == 'w' ? IMM_W : size == 'v' ? IMM_V : IMM_Z); return false;
    default: return false;
    }
}

/* Reads one line; gives whether it has a ModRM byte. */
static bool read_line(Line *l, const InsnInfo *info)
{
    uint64_t k = info->key;
    bool modrm = false, first = true, v = false;
    for (const char *s = info->operands; *s;) {
        size_t length = strcspn(s, ",");
        modrm |= read_operand(l, s, length, first);
        first = false;
        v |= length == 2 && s[1] == 'v';
        s += length + (s[length] == ',');
    }
    unsigned pfx = K_PFX(k);
    if (!pfx && k & K_VEX)
        pfx = K_PFX(K_NP);
    if (pfx) {
        l->mask |= SIT_PFX;
        l->value |= pfx - 1;
    }
    if (pfx == K_PFX(K_66) && !v)
        l->form |= FORM_66;
    if (k & K_REG(0)) {
        l->mask |= 7u << SIT_REG_SHIFT;
        l->value |= (uint32_t)(k >> 16 & 7) << SIT_REG_SHIFT;
    }
    if (k & K_RM(0)) {
        l->mask |= 7u << SIT_RM_SHIFT;
        l->value |= (uint32_t)(k >> 20 & 7) << SIT_RM_SHIFT;
    }
    if (k & (K_MOD3 | K_MEM) || k & K_RM(0)) {
        l->mask |= SIT_MOD3;
        if (!(k & K_MEM))
            l->value |= SIT_MOD3;
    }
    if (k & (K_W0 | K_W1)) {
        l->mask |= SIT_W;
        l->value |= k & K_W1 ? SIT_W : 0;
    }
    if (k & (K_L0 | K_L1)) {
        l->mask |= SIT_L;
        l->value |= k & K_L1 ? SIT_L : 0;
    }
    if (k & (K_O64 | K_NO64)) {
        l->mask |= SIT_64;
        l->value |= k & K_O64 ? SIT_64 : 0;
    }
    if (k & K_ROW8)
        l->form |= FORM_ROW;
    else if ((k & 0xff) == 0x90 && K_MAP(k) == 0)
        l->mask |= SIT_REXB; /* with REX.B it is XCHG R8, rAX */
    l->size_rule = k & K_D64 ? 1 : k & K_F64 ? 2 : 0;
    return modrm || k & (K_MODRM | K_REG(0) | K_RM(0) | K_MOD3 | K_MEM);
}

/* The more a line asks for, the earlier it is tried. */
static unsigned specificity(unsigned id)
{
    return 4 * (unsigned)__builtin_popcount(lines[id].mask) + 2 * (insn_table[id].feature != FEAT_ALWAYS) +
           !(lines[id].form & FORM_ROW);
}

static Opcode *opcode_of(uint64_t key, unsigned row) { return &opcodes[!!(key & K_VEX)][K_MAP(key)][(key + row) & 0xff]; }

__attribute__((constructor)) static void read_table(void)
{
    for (unsigned id = 0; id < INSN_COUNT; id++) {
        uint64_t key = insn_table[id].key;
        bool modrm = read_line(&lines[id], &insn_table[id]);
        for (unsigned row = 0; row < (key & K_ROW8 ? 8 : 1); row++) {
            Opcode *o = opcode_of(key, row);
            o->count++;
            o->modrm |= modrm;
            o->any_mod |= lines[id].form & FORM_CONTROL;
        }
    }
    unsigned at = 0;
    for (unsigned n = 0; n < 2 * 4 * 256; n++) {
        Opcode *o = &opcodes[0][0][0] + n;
        o->first = (uint16_t)at;
        at += o->count;
        o->count = 0;
    }
    for (unsigned id = 0; id < INSN_COUNT; id++) {
        uint64_t key = insn_table[id].key;
        for (unsigned row = 0; row < (key & K_ROW8 ? 8 : 1); row++) {
            Opcode *o = opcode_of(key, row);
            unsigned n = o->count++;
            for (; n > 0 && specificity(candidates[o->first + n - 1]) < specificity(id); n--)
                candidates[o->first + n] = candidates[o->first + n - 1];
            candidates[o->first + n] = (uint16_t)id;
        }
    }
}

static const Insn *exec_undefined(Cpu *c, const Insn *i) { raise_ud(c, i); }
static const Insn *exec_too_long(Cpu *c, const Insn *i) { raise_gp0(c, i); }

/* The bytes of one instruction as they are read. */
typedef struct {
    const uint8_t *bytes;
    unsigned at, avail;
    bool short_of, too_long;
} Reader;

static bool have(Reader *r, unsigned n)
{
    if (r->at + n > 15)
        r->too_long = true;
    else if (r->at + n > r->avail)
        r->short_of = true;
    else
        return true;
    return false;
}

/* Reads n bytes (1, 2, 4 or 8), zero-extended; 0 where they are not there, which finish() finds. */
static uint64_t take(Reader *r, unsigned n)
{
    uint64_t v = 0;
    if (r->too_long || r->short_of || !have(r, n))
        return 0;
    memcpy(&v, r->bytes + r->at, n);
    r->at += n;
    return v;
}

static uint64_t take_signed(Reader *r, unsigned n)
{
    uint64_t v = take(r, n);
    unsigned shift = 64 - 8 * n;
    return (uint64_t)((int64_t)(v << shift) >> shift);
}

static uint64_t size_mask(unsigned bytes) { return ~0ull >> (64 - 8 * bytes); }

/* What the prefixes say, inverted VEX bits turned to the sense of REX. */
typedef struct {
    uint8_t prefix;
    uint8_t rex; /* 0100WRXB or 0; W, R, X, B of VEX too */
    uint8_t map, vvvv, pp;
    bool vex, l;
    int8_t seg; /* override or -1 */
} Prefixes;

#define REX_W(p) ((p)->rex >> 3 & 1u)
#define REX_R(p) ((p)->rex << 1 & 8u)
#define REX_X(p) ((p)->rex << 2 & 8u)
#define REX_B(p) ((p)->rex << 3 & 8u)

/* Reads the prefixes and the opcode; gives the opcode byte. */
static uint8_t read_prefixes(Reader *r, Prefixes *p, bool mode64)
{
    uint8_t b;
    *p = (Prefixes){.seg = -1};
    for (;;) {
        b = (uint8_t)take(r, 1);
        if (r->too_long || r->short_of)
            return 0;
        if (mode64 && (b & 0xf0) == 0x40) {
            p->rex = b;
            continue;
        }
        uint8_t rex = p->rex;
        p->rex = 0; /* REX counts only directly before the opcode */
        switch (b) {
        case 0x66: p->prefix |= PFX_OPSIZE; continue;
        case 0x67: p->prefix |= PFX_ADSIZE; continue;
        case 0xf0: p->prefix |= PFX_LOCK; continue;
        case 0xf2: p->prefix = (uint8_t)((p->prefix & ~PFX_REP) | PFX_REPNE); continue;
        case 0xf3: p->prefix = (uint8_t)((p->prefix & ~PFX_REPNE) | PFX_REP); continue;
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
            if (!mode64)
                p->seg = b >> 3 & 3;
            continue;
        case 0x64: p->seg = SEG_FS; continue;
        case 0x65: p->seg = SEG_GS; continue;
        }
        p->rex = rex;
        if (rex)
            p->prefix |= PFX_REX;
        if (p->seg >= 0)
            p->prefix |= PFX_SEG;
        return b;
    }
}

/* The bytes after C4 or C5. False where they are no VEX prefix but the ModRM byte of LES or LDS. */
static bool read_vex(Reader *r, Prefixes *p, uint8_t *opcode, bool mode64)
{
    if (!mode64 && have(r, 1) && r->bytes[r->at] < 0xc0)
        return false;
    uint8_t three = *opcode == 0xc4, b = (uint8_t)take(r, 1);
    p->vex = true;
    if (three) {
        p->map = b & 31;
        p->rex = (uint8_t)(~b >> 5 & 7);
        b = (uint8_t)take(r, 1);
        p->rex |= b >> 4 & 8;
    } else {
        p->map = 1;
        p->rex = (uint8_t)(~b >> 5 & 4);
    }
    p->vvvv = ~b >> 3 & 15;
    p->l = b >> 2 & 1;
    p->pp = b & 3;
    if (!mode64) { /* eight registers: B and the top bit of vvvv are ignored */
        p->rex &= 8;
        p->vvvv &= 7;
    }
    *opcode = (uint8_t)take(r, 1);
    return true;
}

/* Base, index and displacement of the memory operand. asize: 2, 4 or 8. Gives whether it is relative to RIP. */
static bool read_memory(Reader *r, const Prefixes *p, Insn *i, unsigned asize, bool mode64)
{
    /* Base and index of the 16-bit forms by ModRM.rm. */
    static const uint8_t base16[8] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX};
    static const uint8_t index16[8] = {RSI, RDI, RSI, RDI, ZERO_REG, ZERO_REG, ZERO_REG, ZERO_REG};
    unsigned mod = i->modrm >> 6, rm = i->modrm & 7, size = mod == 1 ? 1 : mod == 2 ? (asize == 2 ? 2 : 4) : 0;
    bool relative = false;
    if (asize == 2) {
        i->base = base16[rm];
        i->index = index16[rm];
        if (mod == 0 && rm == 6) {
            i->base = ZERO_REG;
            size = 2;
        }
    } else if (rm == 4) {
        uint8_t sib = (uint8_t)take(r, 1);
        unsigned index = (sib >> 3 & 7) | REX_X(p);
        i->scale = sib >> 6;
        i->index = (uint8_t)(index == RSP ? ZERO_REG : index);
        i->base = (uint8_t)((sib & 7) | REX_B(p));
        if (mod == 0 && (sib & 7) == RBP) {
            i->base = ZERO_REG;
            size = 4;
        }
        if (insn_table[i->id].attributes & A_VSIB)
            i->index = (uint8_t)index;
    } else {
        i->base = (uint8_t)(rm | REX_B(p));
        if (mod == 0 && rm == 5) {
            i->base = ZERO_REG;
            size = 4;
            relative = mode64;
        }
    }
    i->seg = i->base == RSP || i->base == RBP ? SEG_SS : SEG_DS;
    i->disp = size ? take_signed(r, size) : 0;
    return relative;
}

static void read_immediate(Reader *r, Insn *i, unsigned kind, bool second, unsigned asize)
{
    uint64_t v;
    switch (kind) {
    case IMM_B:
    case IMM_JB: v = take_signed(r, 1); break;
    case IMM_W: v = take(r, 2); break;
    case IMM_V: v = take_signed(r, i->osize); break;
    case IMM_FAR:
        v = take(r, i->osize == 2 ? 2 : 4);
        i->disp = take(r, 2);
        break;
    case IMM_OFFSET:
        i->disp = take(r, asize);
        i->flags |= INSN_MEM;
        return;
    case IMM_IS4: v = take(r, 1) >> 4; break;
    default: v = take_signed(r, i->osize == 2 ? 2 : 4); break;
    }
    if (second || kind == IMM_IS4)
        i->imm2 = (uint8_t)v;
    else
        i->imm = v;
}

/* No instruction: i->exec raises the fault. */
static int refuse(Insn *i, unsigned length, uint64_t rip, int vector)
{
    i->exec = vector == EXC_GP ? exec_too_long : exec_undefined;
    i->id = INSN_ud2;
    i->len = (uint8_t)length;
    i->next_rip = rip + length;
    return -vector;
}

static const Line *find_line(const Cpu *c, const Opcode *o, uint32_t situation, uint32_t mode)
{
    for (unsigned n = 0; n < o->count; n++) {
        unsigned id = candidates[o->first + n];
        const Line *l = &lines[id];
        if ((situation & l->mask) != l->value)
            continue;
        const InsnInfo *info = &insn_table[id];
        if (info->feature != FEAT_ALWAYS && c && !has_feature(c, info->feature))
            continue;
        if (info->attributes & A_PROT && !(mode & MODE_PROT))
            continue;
        return l;
    }
    return NULL;
}

/* The register of an 8-bit operand as byte offset into gpr[]. */
static uint8_t byte_register(unsigned n, bool rex) { return (uint8_t)(n >= 4 && n < 8 && !rex ? (n - 4) * 8 + 1 : n * 8); }

static unsigned operand_size(const Prefixes *p, const Line *l, unsigned mode_size)
{
    bool w = REX_W(p) && mode_size == MODE_64, opsize = p->prefix & PFX_OPSIZE && !(l->form & FORM_66);
    if (l->form & FORM_Y || p->vex)
        return w ? 8 : 4;
    if (mode_size == MODE_64 && l->size_rule)
        return l->size_rule == 2 || w || !opsize ? 8 : 2;
    if (w)
        return 8;
    return opsize == (mode_size == MODE_16) ? 4 : 2;
}

int decode(const Cpu *c, const uint8_t *bytes, unsigned avail, uint64_t rip, uint32_t mode, Insn *i)
{
    unsigned mode_size = mode & MODE_SIZE;
    bool mode64 = mode_size == MODE_64, relative = false;
    Reader r = {.bytes = bytes, .avail = avail};
    Prefixes p;
    memset(i, 0, sizeof *i);
    i->base = i->index = ZERO_REG;
    uint8_t opcode = read_prefixes(&r, &p, mode64);
    bool prefixed = p.prefix & (PFX_OPSIZE | PFX_REP | PFX_REPNE | PFX_LOCK | PFX_REX);
    if (opcode == 0x0f) {
        opcode = (uint8_t)take(&r, 1);
        p.map = opcode == 0x38 ? 2 : opcode == 0x3a ? 3 : 1;
        if (p.map > 1)
            opcode = (uint8_t)take(&r, 1);
    } else if ((opcode & 0xfe) == 0xc4 && read_vex(&r, &p, &opcode, mode64) &&
               (prefixed || !(mode & MODE_PROT) || p.map < 1 || p.map > 3)) {
        return r.short_of ? 0 : refuse(i, r.at, rip, EXC_UD);
    }
    const Opcode *o = &opcodes[p.vex][p.map][opcode];
    i->prefix = p.prefix;
    if (o->count && o->modrm)
        i->modrm = (uint8_t)take(&r, 1);
    if (r.too_long)
        return refuse(i, 15, rip, EXC_GP);
    if (r.short_of)
        return 0;

    bool mod3 = i->modrm >= 0xc0 || o->any_mod;
    uint32_t situation = (uint32_t)(i->modrm >> 3 & 7) << SIT_REG_SHIFT | (uint32_t)(i->modrm & 7) << SIT_RM_SHIFT;
    situation |= p.vex ? p.pp : p.prefix & PFX_REPNE ? 3 : p.prefix & PFX_REP ? 2 : p.prefix & PFX_OPSIZE ? 1 : 0;
    situation |= (mod3 ? SIT_MOD3 : 0) | (REX_W(&p) ? SIT_W : 0) | (p.l ? SIT_L : 0) | (mode64 ? SIT_64 : 0) |
                 (REX_B(&p) ? SIT_REXB : 0);
    const Line *l = find_line(c, o, situation, mode);
    if (!l || (p.vex && p.vvvv && !(l->form & FORM_VVVV)))
        return refuse(i, r.at, rip, EXC_UD);
    i->id = (uint16_t)(l - lines);
    const InsnInfo *info = &insn_table[i->id];

    unsigned asize = mode64 ? (p.prefix & PFX_ADSIZE ? 4 : 8) : (mode_size == MODE_16) == !(p.prefix & PFX_ADSIZE) ? 2 : 4;
    i->amask = size_mask(asize);
    i->osize = (uint8_t)operand_size(&p, l, mode_size);
    i->flags = (uint8_t)((REX_W(&p) ? INSN_REXW : 0) | (p.l ? INSN_VEXL : 0) | (p.vex ? INSN_VEX : 0));
    i->vvvv = p.vvvv;
    i->seg = SEG_DS;
    if (o->modrm) {
        unsigned reg = i->modrm >> 3 & 7, rm = i->modrm & 7;
        if (!(l->form & FORM_REG3))
            reg |= REX_R(&p);
        if (!(l->form & FORM_RM3))
            rm |= REX_B(&p);
        i->reg = l->form & FORM_REG_BYTE ? byte_register(reg, p.rex) : (uint8_t)reg;
        i->rm = l->form & FORM_RM_BYTE ? byte_register(rm, p.rex) : (uint8_t)rm;
        if (!mod3) {
            i->flags |= INSN_MEM;
            relative = read_memory(&r, &p, i, asize, mode64);
        }
    } else if (l->form & FORM_ROW) {
        unsigned rm = (opcode & 7) | REX_B(&p);
        i->rm = l->form & FORM_RM_BYTE ? byte_register(rm, p.rex) : (uint8_t)rm;
    }
    for (unsigned n = 0; n < 2 && l->imm[n] != IMM_NONE; n++)
        read_immediate(&r, i, l->imm[n], n == 1, asize);

    if (r.too_long)
        return refuse(i, 15, rip, EXC_GP);
    if (r.short_of)
        return 0;
    if (p.prefix & PFX_LOCK && !(info->attributes & A_LOCK && i->flags & INSN_MEM))
        return refuse(i, r.at, rip, EXC_UD);
    if (info->attributes & A_VSIB && (i->modrm & 7) != 4)
        return refuse(i, r.at, rip, EXC_UD);
    i->len = (uint8_t)r.at;
    i->next_rip = (rip + r.at) & (mode64 ? ~0ull : mode_size == MODE_32 ? 0xffffffffull : 0xffffull);
    if (relative)
        i->disp += i->next_rip;
    if (!mode64 && (l->imm[0] == IMM_IS4 || l->imm[1] == IMM_IS4))
        i->imm2 &= 7;
    if (l->imm[0] == IMM_JB || l->imm[0] == IMM_JZ) {
        i->imm = (i->imm + i->next_rip) & size_mask(i->osize);
        if (mode64 && !is_canonical(i->imm))
            i->flags |= INSN_CHECK; /* the branch raises */
    }
    if (p.seg >= 0)
        i->seg = (uint8_t)p.seg;
    if (i->seg == SEG_SS)
        i->flags |= INSN_STACKSEG;
    if (!mode64 && (!(mode & MODE_FLAT) || i->seg == SEG_CS || i->seg >= SEG_FS))
        i->flags |= INSN_CHECK;
    if (c && c->parallel && i->flags & INSN_MEM && (p.prefix & PFX_LOCK || i->id == INSN_xchg_EbGb || i->id == INSN_xchg_EvGv))
        i->flags |= INSN_ATOMIC;
    i->exec = decode_handler(i);
    return i->len;
}

exec_fn decode_handler(const Insn *i)
{
    if (unlikely(i->flags & INSN_ATOMIC))
        return exec_atomic;
    unsigned size = lines[i->id].form & FORM_BYTE ? 0 : i->osize == 8 ? 3 : i->osize == 4 ? 2 : 1;
    return insn_table[i->id].exec[(i->flags & INSN_MEM ? 4 : 0) + size];
}
