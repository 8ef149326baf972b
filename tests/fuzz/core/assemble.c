/* Instructions out of an input: a line of the table each, operands as the input says. Any bytes as code seldom give more than three
   instructions that do something; these do. */
#include "guest.h"
#include "insn.h"

static uint8_t *put(uint8_t *p, uint64_t value, unsigned size)
{
    memcpy(p, &value, size);
    return p + size;
}

static bool has_letter(const char *operands, const char *letters)
{
    for (const char *s = operands; s && *s; s = strchr(s, ',') ? strchr(s, ',') + 1 : NULL)
        if (strchr(letters, *s) && s[1] >= 'a' && s[1] <= 'z')
            return true;
    return false;
}

/* ModRM, SIB and displacement. */
static uint8_t *put_operand(uint8_t *p, const InsnInfo *info, Input *in)
{
    unsigned modrm = (unsigned)take(in, 1);
    if (info->key & K_REG(0))
        modrm = (modrm & 0xc7) | (unsigned)(info->key >> 16 & 7) << 3;
    if (info->key & K_RM(0))
        modrm = (modrm & 0xf8) | (unsigned)(info->key >> 20 & 7);
    if (info->key & K_MOD3)
        modrm |= 0xc0;
    else if (info->key & K_MEM && modrm >= 0xc0)
        modrm = (modrm & 0x3f) | 0x40;
    *p++ = (uint8_t)modrm;
    if (modrm >= 0xc0)
        return p;
    if ((modrm & 7) == 4)
        *p++ = (uint8_t)take(in, 1);
    if (modrm >> 6 == 1)
        return put(p, take(in, 1), 1);
    if (modrm >> 6 == 2 || (modrm & 7) == 5) {
        uint64_t disp = take_number(in);
        return put(p, modrm >> 6 ? disp : DATA_AT - CODE_AT + (disp & 0xfff), 4); /* RIP-relative */
    }
    return p;
}

static uint8_t *put_vex(uint8_t *p, uint64_t key, unsigned choice)
{
    *p++ = 0xc4;
    *p++ = (uint8_t)(0xe0 ^ (choice & 0xa0)) | (uint8_t)(K_MAP(key) ? K_MAP(key) : 1);
    unsigned pp = K_PFX(key) == 2 ? 1 : K_PFX(key) == 3 ? 2 : K_PFX(key) == 4 ? 3 : 0;
    bool l = key & K_L1 || (!(key & K_L0) && choice & 1), w = key & K_W1 || (!(key & K_W0) && choice & 2);
    *p++ = (uint8_t)((w ? 0x80u : 0) | (~(choice >> 1) & 0xf) << 3 | (l ? 4u : 0) | pp);
    return p;
}

static uint8_t *put_insn(uint8_t *p, const InsnInfo *info, unsigned mode, Input *in)
{
    uint64_t key = info->key;
    unsigned prefix = (unsigned)take(in, 1), rex = (unsigned)take(in, 1);
    if ((prefix & 0x0f) == 1)
        *p++ = 0x67;
    if ((prefix & 0x0e) == 2)
        *p++ = 0x64 | (prefix & 1);
    if ((prefix & 0x1c) == 4 && info->attributes & A_LOCK)
        *p++ = 0xf0;
    if (key & K_VEX) {
        p = put_vex(p, key, rex);
    } else {
        if (K_PFX(key) >= 2)
            *p++ = K_PFX(key) == 2 ? 0x66 : K_PFX(key) == 3 ? 0xf3 : 0xf2;
        else if (!K_PFX(key) && (prefix & 0x70) == 0x10)
            *p++ = 0x66;
        if (mode == LONG_MODE && (rex & 0x80 || key & K_W1))
            *p++ = (uint8_t)(0x40 | (rex & (key & K_W0 ? 7 : 15)) | (key & K_W1 ? 8 : 0));
        if (K_MAP(key))
            *p++ = 0x0f;
        if (K_MAP(key) > 1)
            *p++ = K_MAP(key) == 2 ? 0x38 : 0x3a;
    }
    *p++ = (uint8_t)(key | (key & K_ROW8 ? rex >> 4 & 7 : 0));
    if (key & (K_REG(0) | K_RM(0) | K_MOD3 | K_MEM | K_MODRM) || has_letter(info->operands, "EGMVWPQUNRCDS"))
        p = put_operand(p, info, in);
    for (const char *s = info->operands; s && *s; s = strchr(s, ',') ? strchr(s, ',') + 1 : NULL)
        if (*s == 'J')
            p = put(p, (uint64_t)(int64_t)(int8_t)take(in, 1) / 2, s[1] == 'b' ? 1 : 4);
        else if (*s == 'I' && (s[1] == 'b' || s[1] == 'w'))
            p = put(p, take(in, 1), s[1] == 'b' ? 1 : 2);
        else if (*s == 'I')
            p = put(p, take_number(in), (prefix & 0x70) == 0x10 ? 2 : s[1] == 'v' && rex & 0x80 && rex & 8 ? 8 : 4);
    return p;
}

size_t assemble(uint8_t *to, size_t room, unsigned mode, Input *in)
{
    static uint16_t plain[INSN_COUNT], count, integer;
    if (!count)
        for (uint16_t n = 0; n < INSN_COUNT; n++)
            if (!(insn_table[n].attributes & (A_NOTEST | A_X87))) {
                plain[count++] = n;
                integer += !(insn_table[n].attributes & A_VEC); /* these come first in the table */
            }
    uint8_t *p = to;
    while (more(in) && p + 32 < to + room) {
        unsigned which = (unsigned)take(in, 2);
        p = put_insn(p, &insn_table[plain[which & 0x8000 ? which % count : which % integer]], mode, in);
    }
    return (size_t)(p - to);
}
