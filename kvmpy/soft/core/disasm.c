/* Instructions as text, in Intel syntax, from the operand letters of the table; and the table itself for tests. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "decode.h"

typedef struct {
    char *text;
    size_t room, used;
    uint64_t target; /* of an operand relative to RIP */
    bool has_target;
} Text;

__attribute__((format(printf, 2, 3))) static void put(Text *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    size_t room = t->used < t->room ? t->room - t->used : 0;
    int n = vsnprintf(room ? t->text + t->used : NULL, room, format, arguments);
    va_end(arguments);
    t->used += n > 0 ? (size_t)n : 0;
}

/* One operand letter with its size. */
typedef struct {
    char letter;
    char size[3];
} Method;

static const char *const reg8[] = {"al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"};
static const char *const reg8_high[] = {"ah", "ch", "dh", "bh"};
static const char *const reg16[] = {"ax", "cx", "dx", "bx", "sp", "bp", "si", "di"};
static const char *const segments[] = {"es", "cs", "ss", "ds", "fs", "gs", "?", "?"};

static unsigned address_size(const Insn *i) { return i->amask == 0xffff ? 2 : i->amask == 0xffffffff ? 4 : 8; }

/* Bytes of an operand size code. */
static unsigned operand_bytes(const Insn *i, const char *size)
{
    bool w = i->osize == 8, wide = i->flags & INSN_VEXL;
    if (!strcmp(size, "dq"))
        return 16;
    if (!strcmp(size, "qq"))
        return 32;
    if (!strcmp(size, "ss"))
        return 4;
    if (!strcmp(size, "sd"))
        return 8;
    if (!strcmp(size, "ps") || !strcmp(size, "pd"))
        return wide ? 32 : 16;
    switch (size[0]) {
    case 'b': return 1;
    case 'w': return 2;
    case 'd': return 4;
    case 'q': return 8;
    case 'v': return i->osize;
    case 'z': return i->osize == 2 ? 2 : 4;
    case 'y': return w ? 8 : 4;
    case 'p': return i->osize + 2u;
    case 'a': return 2u * i->osize;
    case 't': return 10;
    case 'x':
    case 'o': return wide ? 32 : 16;
    default: return 0;
    }
}

static const char *pointer_name(unsigned bytes)
{
    switch (bytes) {
    case 1: return "BYTE PTR ";
    case 2: return "WORD PTR ";
    case 4: return "DWORD PTR ";
    case 6: return "FWORD PTR ";
    case 8: return "QWORD PTR ";
    case 10: return "TBYTE PTR ";
    case 16: return "XMMWORD PTR ";
    case 32: return "YMMWORD PTR ";
    default: return "";
    }
}

/* A general register of 2, 4 or 8 bytes by number; of 1 by its byte offset. */
static void put_register(Text *t, unsigned n, unsigned bytes)
{
    if (bytes == 1) {
        if (n & 7)
            put(t, "%s", reg8_high[n / 8 & 3]);
        else if (n / 8 < 8)
            put(t, "%s", reg8[n / 8]);
        else
            put(t, "r%ub", n / 8);
    } else if (n >= 8) {
        put(t, "r%u%s", n, bytes == 2 ? "w" : bytes == 4 ? "d" : "");
    } else {
        put(t, "%s%s", bytes == 2 ? "" : bytes == 4 ? "e" : "r", reg16[n & 7]);
    }
}

static void put_hex(Text *t, uint64_t v, unsigned bytes) { put(t, "0x%" PRIx64, bytes < 8 ? v & (((uint64_t)1 << 8 * bytes) - 1) : v); }

static void put_signed(Text *t, int64_t v)
{
    put(t, "%c0x%" PRIx64, v < 0 ? '-' : '+', v < 0 ? 0 - (uint64_t)v : (uint64_t)v);
}

static void put_memory(Text *t, const Insn *i, unsigned bytes, bool vector_index, uint32_t mode)
{
    unsigned asize = address_size(i);
    bool relative = (mode & MODE_SIZE) == MODE_64 && (i->modrm & 0xc7) == 5, index = vector_index || i->index != ZERO_REG;
    put(t, "%s", pointer_name(bytes));
    if (i->prefix & PFX_SEG)
        put(t, "%s:", segments[i->seg & 7]);
    if (relative) {
        put(t, "[%s+0x%" PRIx64 "]", asize == 8 ? "rip" : "eip", i->disp - i->next_rip);
        t->has_target = true;
        t->target = i->disp & i->amask;
        return;
    }
    if (i->base == ZERO_REG && !index) {
        put(t, i->prefix & PFX_SEG ? "" : "ds:");
        put_hex(t, i->disp, asize);
        return;
    }
    put(t, "[");
    if (i->base != ZERO_REG)
        put_register(t, i->base, asize);
    if (index) {
        put(t, "%s", i->base != ZERO_REG ? "+" : "");
        if (vector_index)
            put(t, "%cmm%u", i->flags & INSN_VEXL ? 'y' : 'x', i->index & 15u);
        else
            put_register(t, i->index, asize);
        if (asize != 2)
            put(t, "*%u", 1u << i->scale);
    } else if (asize != 2 && (i->modrm & 7) == 4 && (i->scale || (i->base & 7) != RSP)) {
        put(t, "+%s*%u", asize == 4 ? "eiz" : "riz", 1u << i->scale); /* a SIB byte that names no index */
    }
    if (i->modrm >= 0x40 || i->base == ZERO_REG)
        put_signed(t, (int64_t)i->disp);
    put(t, "]");
}

/* String operands: the source's segment can be overridden. */
static void put_string(Text *t, const Insn *i, unsigned bytes, bool source)
{
    put(t, "%s%s:[", pointer_name(bytes), source ? segments[i->seg & 7] : "es");
    put_register(t, source ? RSI : RDI, address_size(i));
    put(t, "]");
}

/* In which opcodes a byte immediate is extended to the operand size: PUSH, IMUL, group 1. */
static bool byte_is_extended(const InsnInfo *info)
{
    uint64_t op = info->key & 0xff;
    return K_MAP(info->key) == 0 && !(info->key & K_VEX) && (op == 0x6a || op == 0x6b || op == 0x83);
}

static void put_vector(Text *t, unsigned n, unsigned bytes) { put(t, "%cmm%u", bytes == 32 ? 'y' : 'x', n & 15); }

static void put_method(Text *t, const Insn *i, Method m, bool second_imm, uint32_t mode)
{
    const InsnInfo *info = &insn_table[i->id];
    unsigned bytes = operand_bytes(i, m.size), vector = bytes > 16 ? 32 : 16;
    bool memory = i->flags & INSN_MEM, vsib = info->attributes & A_VSIB;
    if (memory && strchr("EMQWRUN", m.letter)) {
        put_memory(t, i, bytes, vsib, mode);
        return;
    }
    switch (m.letter) {
    case 'E':
    case 'R':
    case 'M': put_register(t, i->rm, bytes ? bytes : i->osize); break;
    case 'Z': put_register(t, i->rm, bytes); break;
    case 'G': put_register(t, i->reg, bytes); break;
    case 'B': put_register(t, i->vvvv, bytes); break;
    case 'S': put(t, "%s", segments[i->reg & 7]); break;
    case 'C': put(t, "cr%u", i->reg); break;
    case 'D': put(t, "dr%u", i->reg); break;
    case 'P': put(t, "mm%u", i->reg & 7u); break;
    case 'Q':
    case 'N': put(t, "mm%u", i->rm & 7u); break;
    case 'V': put_vector(t, i->reg, vector); break;
    case 'W':
    case 'U': put_vector(t, i->rm, vector); break;
    case 'H': put_vector(t, i->vvvv, vector); break;
    case 'L': put_vector(t, i->imm2, vector); break;
    case 'X': put_string(t, i, bytes, true); break;
    case 'Y': put_string(t, i, bytes, false); break;
    case 'J': put_hex(t, i->imm, 8); break;
    case 'A':
        put_hex(t, i->disp, 2);
        put(t, ":");
        put_hex(t, i->imm, i->osize == 2 ? 2 : 4);
        break;
    case 'O':
        put(t, "%s:", segments[i->seg & 7]);
        put_hex(t, i->disp, address_size(i));
        break;
    case 'I':
        if (second_imm)
            put_hex(t, i->imm2, 1);
        else
            put_hex(t, i->imm, bytes == 1 && byte_is_extended(info) ? i->osize : m.size[0] == 'z' ? i->osize : bytes);
        break;
    }
}

/* A fixed register or number. */
static void put_fixed(Text *t, const Insn *i, const char *s, size_t length)
{
    if (length == 3 && (!memcmp(s, "rAX", 3) || !memcmp(s, "eAX", 3))) {
        put_register(t, RAX, s[0] == 'e' && i->osize == 8 ? 4 : i->osize);
        return;
    }
    if (length >= 2 && !memcmp(s, "ST", 2)) {
        if (s[length - 1] == 'i')
            put(t, "st(%u)", i->modrm & 7u);
        else
            put(t, "st");
        return;
    }
    for (size_t n = 0; n < length; n++)
        put(t, "%c", s[n] >= 'A' && s[n] <= 'Z' ? s[n] + 32 : s[n]);
}

/* Mnemonics that differ by operand or address size. */
static const char *mnemonic(const Insn *i, uint32_t mode)
{
    static const char *const cbw[] = {"cbw", "cwde", "cdqe"}, *const cwd[] = {"cwd", "cdq", "cqo"};
    static const char *const jcxz[] = {"jcxz", "jecxz", "jrcxz"};
    bool mode64 = (mode & MODE_SIZE) == MODE_64;
    unsigned size = i->osize == 2 ? 0 : i->osize == 4 ? 1 : 2, asize = address_size(i);
    switch (i->id) {
    case INSN_cbw: return cbw[size];
    case INSN_cwd: return cwd[size];
    case INSN_jcxz: return jcxz[asize == 2 ? 0 : asize == 4 ? 1 : 2];
    case INSN_mov_ZvIv: return size == 2 ? "movabs" : "mov";
    case INSN_mov_ALOb:
    case INSN_mov_rAXOv:
    case INSN_mov_ObAL:
    case INSN_mov_OvrAX: return mode64 && asize == 8 ? "movabs" : "mov";
    default: return insn_table[i->id].mnemonic;
    }
}

static const char *repeat_prefix(const Insn *i, const InsnInfo *info)
{
    if (!(info->attributes & A_REP) || !(i->prefix & (PFX_REP | PFX_REPNE)))
        return "";
    if (i->prefix & PFX_REPNE)
        return "repnz ";
    return info->flags_written ? "repz " : "rep "; /* CMPS and SCAS set flags */
}

static void put_operands(Text *t, const Insn *i, uint32_t mode)
{
    bool immediate = false;
    if (i->id == INSN_xlat) {
        put(t, "BYTE PTR %s:[", segments[i->seg & 7]);
        put_register(t, RBX, address_size(i));
        put(t, "]");
    }
    for (const char *s = insn_table[i->id].operands; *s;) {
        size_t length = strcspn(s, ",");
        const char *part = s, *slash = memchr(s, '/', length);
        size_t part_length = slash ? (size_t)(slash - s) : length;
        if (slash && i->flags & INSN_MEM) {
            part = slash + 1;
            part_length = length - part_length - 1;
        }
        if (operand_is_method(part) || (part_length == 1 && *part == 'M')) {
            Method m = {.letter = part[0]};
            for (size_t n = 1; n < part_length && n < sizeof m.size; n++)
                m.size[n - 1] = part[n];
            put_method(t, i, m, immediate, mode);
            immediate |= m.letter == 'I';
        } else {
            put_fixed(t, i, part, part_length);
        }
        s += length;
        if (*s) {
            put(t, ",");
            s++;
        }
    }
}

static uint32_t mode_of(uint32_t bits)
{
    return MODE_PROT | MODE_FLAT | (bits == 16 ? MODE_16 : bits == 32 ? MODE_32 : MODE_64 | MODE_LONG);
}

int kp_disassemble(const uint8_t *bytes, uint32_t size, uint32_t mode, uint64_t rip, char *text, uint32_t room)
{
    Insn i;
    Text t = {.text = text, .room = room};
    int length = decode(NULL, bytes, size, rip, mode_of(mode), &i);
    if (room)
        text[0] = 0;
    if (length <= 0) {
        put(&t, "(bad)");
        return -EINVAL;
    }
    const InsnInfo *info = &insn_table[i.id];
    put(&t, "%s%s", i.prefix & PFX_LOCK ? "lock " : "", repeat_prefix(&i, info));
    bool operands = *info->operands || i.id == INSN_xlat;
    put(&t, operands ? t.used ? "%s " : "%-6s " : "%s", mnemonic(&i, mode_of(mode)));
    put_operands(&t, &i, mode_of(mode));
    if (t.has_target)
        put(&t, "        # 0x%" PRIx64, t.target);
    return length;
}

int kp_insn_info(uint32_t index, struct kp_insn_info *info)
{
    if (index >= INSN_COUNT)
        return -ENOENT;
    const InsnInfo *l = &insn_table[index];
    *info = (struct kp_insn_info){
        .id = l->name, .mnemonic = l->mnemonic, .operands = l->operands, .key = l->key, .feature = l->feature,
        .flags_read = l->flags_read, .flags_written = l->flags_written, .flags_undefined = l->flags_undefined,
        .attributes = l->attributes,
    };
    return 0;
}

int kp_decode(const uint8_t *bytes, uint32_t size, uint32_t mode, uint32_t *length)
{
    Insn i;
    int n = decode(NULL, bytes, size, 0, mode_of(mode), &i);
    if (n <= 0)
        return -EINVAL;
    *length = (uint32_t)n;
    return i.id;
}
