/* Flags of shifts depend on the count, those of all others stand in the table. */
#include "undefined.h"

/* Operand width of a shift or rotate in bits, or 0; its count as the instruction takes it, or `any`. */
static unsigned shift_of(const Insn *i, const uint64_t *rcx, unsigned *count, bool *any)
{
    uint64_t key = insn_table[i->id].key;
    unsigned op = key & 0xff, map = K_MAP(key);
    bool twice = map == 1 && (op & 0xf6) == 0xa4 && (op & 7) >= 4 && (op & 7) <= 5;
    bool once = map == 0 && ((op & 0xfe) == 0xc0 || (op & 0xfc) == 0xd0);
    if ((!once && !twice) || key & K_VEX)
        return 0;
    unsigned bits = once && !(op & 1) ? 8 : 8u * i->osize;
    bool by_cl = once ? op >= 0xd2 : op & 1;
    uint64_t n = by_cl ? (rcx ? *rcx : 0) : once && op >= 0xd0 ? 1 : i->imm;
    *any = by_cl && !rcx;
    *count = (unsigned)n & (bits == 64 ? 63 : 31);
    return bits;
}

bool insn_flags(const Insn *i, const uint64_t *rcx, InsnFlags *f)
{
    const InsnInfo *info = &insn_table[i->id];
    *f = (InsnFlags){info->flags_read | (info->attributes & A_NOTEST && !(info->attributes & A_IO) ? FL_OSZAPC : 0), info->flags_written,
                     info->flags_undefined};
    bool any;
    unsigned count, bits = shift_of(i, rcx, &count, &any);
    if (!bits)
        return true;
    bool rotates = info->mnemonic[0] == 'r', twice = info->mnemonic[3] == 'd', through_carry = rotates && info->mnemonic[1] == 'c';
    if (any) { /* a count of 0 leaves all as it was, a large one more undefined */
        *f = (InsnFlags){through_carry ? FL_CF : 0, 0, info->flags_undefined | (!rotates && bits < 32 ? FL_CF : 0)};
        return !twice || bits >= 32;
    }
    if (!count)
        *f = (InsnFlags){0};
    else
        f->read = through_carry ? FL_CF : 0;
    if (count && !rotates && count >= bits)
        f->undefined |= FL_CF;
    return !twice || count <= bits;
}
