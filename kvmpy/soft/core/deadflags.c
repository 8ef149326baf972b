/* Flags that nobody sees. A rotate changes CF and OF and keeps the other four, so it has to compute all of them: that costs more
   than the rotation. Where the instructions behind it in the block overwrite its flags before anything can see them, a handler
   without flags stands in. What can see them: an instruction that reads them, one that may fault or reach a device, the block's end. */
#include "exec_int.h"

#define ROTATIONS(bits) \
    EXEC(rol_dead##bits) \
    { \
        unsigned n = (unsigned)i->imm & (bits - 1); \
        UINT(bits) v = GET##bits(i->rm); \
        SET##bits(i->rm, v << n | v >> (-n & (bits - 1))); \
        NEXT(); \
    } \
    EXEC(ror_dead##bits) \
    { \
        unsigned n = (unsigned)i->imm & (bits - 1); \
        UINT(bits) v = GET##bits(i->rm); \
        SET##bits(i->rm, v >> n | v << (-n & (bits - 1))); \
        NEXT(); \
    }
ROTATIONS(32)
ROTATIONS(64)

static const struct {
    const exec_fn *exec; /* in an exec_<id> array: register forms of 32 and 64 bits */
    exec_fn dead;
} rotations[] = {
    {&exec_rol_EvIb[2], rol_dead32}, {&exec_rol_EvIb[3], rol_dead64},
    {&exec_ror_EvIb[2], ror_dead32}, {&exec_ror_EvIb[3], ror_dead64},
};

/* What an instruction of registers alone does to the flags: nothing visible, or it sets all that its table line says. */
enum { VISIBLE, QUIET, KILLS };
static uint8_t kind[INSN_COUNT];

__attribute__((constructor)) static void classify(void)
{
    static const char *const quiet[] = {"mov", "lea", "rol", "ror", "shl", "shr", "sar", "not", "bswap", "movzx", "movsx", "movsxd",
                                        "rorx", "imul"};
    static const char *const kills[] = {"add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test", "neg", "inc", "dec", "andn"};
    for (unsigned id = 0; id < INSN_COUNT; id++) {
        if (insn_table[id].attributes & (A_END | A_NOTEST | A_REP))
            continue;
        for (unsigned n = 0; n < ARRAY_SIZE(quiet); n++)
            if (!strcmp(insn_table[id].mnemonic, quiet[n]))
                kind[id] = QUIET;
        for (unsigned n = 0; n < ARRAY_SIZE(kills); n++)
            if (!strcmp(insn_table[id].mnemonic, kills[n]))
                kind[id] = KILLS;
    }
}

void block_drop_dead_flags(Block *b)
{
    uint32_t live = FL_OSZAPC;
    for (unsigned n = b->count; n-- > 0;) {
        Insn *i = &b->insn[n];
        const InsnInfo *info = &insn_table[i->id];
        bool memory = (i->flags & INSN_MEM) && strcmp(info->mnemonic, "lea") != 0;
        if (!live)
            for (unsigned r = 0; r < ARRAY_SIZE(rotations); r++)
                if (i->exec == *rotations[r].exec)
                    i->exec = rotations[r].dead;
        if (kind[i->id] == VISIBLE || memory)
            live = FL_OSZAPC;
        else
            live = (kind[i->id] == KILLS ? live & ~info->flags_written : live) | info->flags_read;
    }
}
