/* Two states side by side. */
#include <stdio.h>

#include "oracle.h"

unsigned differences(const State *core, const State *host, const Case *t, bool print)
{
    unsigned count = 0, registers = t->bits == 64 ? 16 : 8;
    uint64_t width = t->bits == 64 ? ~0ull : 0xffffffff;
#define DIFFER(...) do { count++; if (print) printf("    " __VA_ARGS__); } while (0)
    if (core->vector != host->vector)
        DIFFER("fault: core %d host %d\n", core->vector, host->vector);
    else if (core->cr2 != host->cr2 || core->error != host->error)
        DIFFER("fault: core %x at %lx host %x at %lx\n", core->error, core->cr2, host->error, host->cr2);
    if (core->rip != host->rip)
        DIFFER("rip: core %#lx host %#lx\n", core->rip, host->rip);
    for (unsigned n = 0; n < registers; n++)
        if ((core->gpr[n] ^ host->gpr[n]) & width)
            DIFFER("gpr %u: core %016lx host %016lx\n", n, core->gpr[n] & width, host->gpr[n] & width);
    uint64_t mask = (FL_OSZAPC | FL_DF) & ~(uint64_t)(host->vector >= 0 ? t->undefined_inside : t->undefined);
    if ((core->rflags ^ host->rflags) & mask)
        DIFFER("flags: core %04lx host %04lx\n", core->rflags & mask, host->rflags & mask);
    for (unsigned n = 0; n < registers; n++)
        if (memcmp(&core->ymm[n], &host->ymm[n], 32))
            for (int k = 3; k >= 0; k--)
                if (core->ymm[n].u64[k] != host->ymm[n].u64[k])
                    DIFFER("ymm %u[%d]: core %016lx host %016lx\n", n, k, core->ymm[n].u64[k], host->ymm[n].u64[k]);
    if (core->mxcsr != host->mxcsr)
        DIFFER("mxcsr: core %04x host %04x\n", core->mxcsr, host->mxcsr);
    for (unsigned n = 0; n < 8; n++)
        if (core->mant[n] != host->mant[n] || core->se[n] != host->se[n])
            DIFFER("x87 %u: core %04x %016lx host %04x %016lx\n", n, core->se[n], core->mant[n], host->se[n], host->mant[n]);
    if (core->control != host->control || core->status != host->status || core->tag != host->tag)
        DIFFER("x87: core %04x %04x %02x host %04x %04x %02x\n", core->control, core->status, core->tag, host->control,
               host->status, host->tag);
    if (core->counter != host->counter)
        DIFFER("loop counter: core %u host %u\n", core->counter, host->counter);
    if (memcmp(core->data, host->data, DATA_BYTES))
        for (unsigned k = 0; k < DATA_BYTES; k += 8)
            if (memcmp(core->data + k, host->data + k, 8)) {
                uint64_t x, y;
                memcpy(&x, core->data + k, 8);
                memcpy(&y, host->data + k, 8);
                DIFFER("memory +%x: core %016lx host %016lx\n", k, x, y);
            }
    return count;
}

/* The line that a RIP stands at. */
static const InsnInfo *line_at(const Case *t, uint64_t rip)
{
    uint64_t start = (t->bits == 16 ? 0 : CODE) + t->offset;
    for (unsigned n = 0; n < t->count; n++)
        if (start + t->at[n] == rip)
            return &insn_table[t->id[n]];
    return &insn_table[t->id[0]];
}

/* A masked load or store at `rip` whose mask chooses nothing. */
static bool masked_nothing(Cpu *c, const State *s, const Case *t, uint64_t rip)
{
    Insn i;
    unsigned at = (unsigned)(rip - (t->bits == 16 ? 0 : CODE)) - t->offset;
    core_mode(c, t->bits);
    if (at >= t->length || decode(c, t->bytes + at, t->length - at, rip, c->mode, &i) <= 0)
        return false;
    const char *name = insn_table[i.id].mnemonic;
    bool mmx = !strcmp(name, "maskmovq"), bytes = mmx || strstr(name, "dqu");
    unsigned size = bytes ? 1 : strstr(name, "ps") || !strcmp(name, "vpmaskmovd") ? 4 : 8;
    unsigned length = mmx ? 8 : i.flags & INSN_VEXL ? 32 : 16;
    const uint8_t *mask = mmx ? (const uint8_t *)&s->mant[i.rm & 7] : s->ymm[bytes ? i.rm : i.vvvv].u8;
    for (unsigned n = size - 1; n < length; n += size)
        if (mask[n] & 0x80)
            return false;
    return true;
}

/* Where processors differ by vendor, or stop at different places inside one instruction. Differences of the first kind end the
   comparison; the others are made good in *core. */
bool exempt(Cpu *c, State *core, State *host, const Case *t)
{
    const InsnInfo *info = line_at(t, core->vector >= 0 ? core->rip : host->rip);
    bool refused = core->vector == EXC_GP && host->vector != EXC_GP;
    if (core->vector == EXC_GP && info->feature == FEAT_SHA && (host->vector != EXC_GP || host->rip != core->rip || host->counter != core->counter))
        return true; /* AMD's take operands of any alignment */
    if (refused && host->vector < 0 && host->mxcsr & ~MXCSR_VALID)
        return true; /* AMD's have MXCSR.MM */
    if (core->vector == EXC_XM && host->vector == EXC_XM && strstr(info->mnemonic, "dpp"))
        core->mxcsr = host->mxcsr; /* flags of the products and of the sums */
    if (core->vector == EXC_XM && host->vector == EXC_XM && host->mxcsr & ~host->mxcsr >> 7 & (MXCSR_UE | MXCSR_OE))
        core->mxcsr = (core->mxcsr & ~MXCSR_PE) | (host->mxcsr & MXCSR_PE); /* exact were it not for the bounded exponent */
    uint64_t both = core->cr2 | host->cr2;
    uint64_t width = both >> 32 ? ~0ull : both >> 16 ? 0xffffffff : 0xffff; /* with 32-bit and 16-bit addresses operands wrap around */
    static const char *const piecewise[] = {"fldenv", "frstor", "fnstenv", "fnsave", "fxsave", "fxrstor",
                                            "xsave", "xrstor", "maskmov", "vmaskmov"};
    if (core->vector == EXC_PF && host->vector == EXC_PF && host->cr2 >> 47)
        core->error = host->error; /* Linux tells user mode nothing of what is mapped there */
    if (core->vector == EXC_PF && host->vector == EXC_PF && strstr(info->mnemonic, "xsave"))
        core->error = host->error; /* the header may be read first */
    bool maskmov = !strncmp(info->mnemonic, "maskmov", 7) || !strcmp(info->mnemonic, "vmaskmovdqu");
    if (core->vector == EXC_PF && host->vector == EXC_PF && maskmov && ((core->cr2 - host->cr2 + 16) & width) < 32)
        core->error = host->error; /* over the end of a page that is not there to one that is read-only, or the other way round */
    if (core->vector == EXC_PF && host->vector == EXC_PF && core->error == host->error)
        for (unsigned n = 0; n < ARRAY_SIZE(piecewise); n++)
            if (!strncmp(info->mnemonic, piecewise[n], strlen(piecewise[n])) && ((core->cr2 - host->cr2 + 1024) & width) < 2048)
                core->cr2 = host->cr2; /* which piece of the operand is accessed first */
    if ((core->vector == EXC_SS || core->vector == EXC_GP) && host->vector == EXC_PF &&
        (!strncmp(info->mnemonic, "fn", 2) || !strcmp(info->mnemonic, "fbstp") || !strcmp(info->name, "FSTP_m80")))
        return true; /* stored in pieces: the first cannot be written, the last is outside the segment */
    if (core->vector >= 0 && core->vector == host->vector && !strcmp(info->mnemonic, "maskmovq")) {
        core->status = host->status; /* AMD's enter MMX state before the fault */
        core->tag = host->tag;
    }
    if (strstr(info->mnemonic, "comi") && info->attributes & A_X87 && t->count == 1) {
        core->status = (core->status & ~0x200) | (host->status & 0x200); /* C1: cleared by Intel's, left by AMD's */
        if (host->status & ~host->control & 3)
            core->rflags = host->rflags; /* unmasked invalid operation or denormal: AMD's set the flags even so */
    }
    if (core->vector == EXC_SS && host->vector == EXC_GP && info->attributes & A_VEC)
        core->vector = EXC_GP; /* both misaligned and outside the segment */
    if (host->vector == EXC_PF && strstr(line_at(t, host->rip)->mnemonic, "maskmov") && masked_nothing(c, host, t, host->rip))
        return true; /* page faults with a mask of zeros are the implementation's choice */
    if (strstr(info->mnemonic, "xsave") && core->vector == host->vector && t->operand - DATA <= DATA_BYTES - 512) {
        uint8_t *ours = core->data + (t->operand - DATA), *theirs = host->data + (t->operand - DATA);
        memcpy(ours + 6, theirs + 6, 18); /* FOP, FIP, FDP: AMD's keep them only while an exception pends */
        memcpy(ours + 28, theirs + 28, 4); /* MXCSR_MASK: AMD's have MXCSR.MM */
    }
    if (t->bits == 32 && core->vector == EXC_PF && (host->vector == EXC_SS || host->vector == EXC_GP) &&
        (core->cr2 >= 0xfffff000 || core->cr2 < 32))
        return true; /* an operand that wraps around a flat segment's end: the implementation's choice */
    if (t->bits == 32 && core->vector < 0 && host->vector == EXC_GP &&
        maskmov && (uint32_t)host->gpr[RDI] > 0xfffffff0)
        return true; /* the same, with a mask that lets nothing be stored */
    if (core->vector == EXC_GP && (host->vector == EXC_PF || host->vector == EXC_SS) && info->attributes & A_CALL)
        return true; /* a target that is not canonical, or outside the segment, and a stack that cannot be written: AMD's push first */
    if (!strcmp(line_at(t, host->rip)->mnemonic, "movsxd") && host->vector == EXC_PF && (core->vector != EXC_PF || core->rip != host->rip))
        return true; /* with a 16-bit operand AMD's read 32 bits of it */
    if (!strncmp(info->mnemonic, "ud", 2) && core->vector == EXC_PF && host->vector == EXC_UD)
        return true; /* AMD's fetch no operand of UD1 */
    if (core->vector >= 0 && core->vector == host->vector && (!strcmp(info->mnemonic, "enter") || !strcmp(info->mnemonic, "pusha"))) {
        memcpy(core->data, host->data, DATA_BYTES); /* what was pushed before the fault */
        core->error = host->error;
        core->cr2 = host->cr2;
    }
    return false;
}
