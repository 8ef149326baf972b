/* oracle [-n COUNT] [-s SEED] [-a] [-f] [ID...]: compares COUNT random cases of each vector instruction (-a: of every user-mode
   instruction that does not jump; ID: of the lines whose id starts so; -f: with the portable FMA). Prints what differs; exits
   with 1 where anything does. */
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "oracle.h"
#include "vec_fp.h"

static const struct { uint32_t leaf, reg, bit; } feature_bits[] = {
#define FEATURE(name, leaf, reg, bit) {leaf, reg, bit},
#include "feature.def"
#undef FEATURE
};

static bool host_has(unsigned feature)
{
    uint32_t r[4];
    if (feature == FEAT_ALWAYS)
        return true;
    uint32_t leaf = feature_bits[feature].leaf, subleaf = leaf == 0x1000d; /* subleaf 1 of leaf 0xD, see feature.def */
    return __get_cpuid_count(subleaf ? 0xd : leaf, subleaf, &r[0], &r[1], &r[2], &r[3]) &&
           r[feature_bits[feature].reg] >> feature_bits[feature].bit & 1;
}

static unsigned differences(const State *core, const State *host, const InsnInfo *info, bool print)
{
    unsigned count = 0;
#define DIFFER(...) do { count++; if (print) printf("    " __VA_ARGS__); } while (0)
    if (core->vector != host->vector)
        DIFFER("fault: core %d host %d\n", core->vector, host->vector);
    if (core->rip != host->rip)
        DIFFER("rip: core %#lx host %#lx\n", core->rip, host->rip);
    for (unsigned n = 0; n < 16; n++)
        if (core->gpr[n] != host->gpr[n])
            DIFFER("gpr %u: core %016lx host %016lx\n", n, core->gpr[n], host->gpr[n]);
    uint64_t mask = (FL_OSZAPC | FL_DF) & ~(uint64_t)info->flags_undefined;
    if ((core->rflags ^ host->rflags) & mask)
        DIFFER("flags: core %04lx host %04lx\n", core->rflags & mask, host->rflags & mask);
    for (unsigned n = 0; n < 16; n++)
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

/* Where processors differ by vendor, or a sequence of operations stops at an unmasked exception. */
static bool exempt(State *core, State *host, const InsnInfo *info)
{
    bool refused = core->vector == EXC_GP && host->vector < 0;
    if (core->vector == EXC_GP && host->vector != EXC_GP && info->feature == FEAT_SHA)
        return true; /* AMD's take operands of any alignment */
    if (refused && host->mxcsr & ~MXCSR_VALID)
        return true; /* AMD's have MXCSR.MM */
    if (core->vector == EXC_XM && host->vector == EXC_XM && strstr(info->mnemonic, "dpp"))
        core->mxcsr = host->mxcsr; /* flags of the products and of the sums */
    if (core->vector == EXC_XM && host->vector == EXC_XM && host->mxcsr & ~host->mxcsr >> 7 & (MXCSR_UE | MXCSR_OE))
        core->mxcsr = (core->mxcsr & ~MXCSR_PE) | (host->mxcsr & MXCSR_PE); /* exact were it not for the bounded exponent */
    return false;
}

static bool wanted(unsigned id, bool all, char **names, int count)
{
    const InsnInfo *info = &insn_table[id];
    if (count > 0) {
        for (int n = 0; n < count; n++)
            if (!strncmp(info->name, names[n], strlen(names[n])))
                return true;
        return false;
    }
    if (info->attributes & (A_NOTEST | A_END | A_CPL0 | A_IO | A_JUMP | A_CALL | A_RET))
        return false;
    if ((info->key & K_NO64) == K_NO64)
        return false;
    return all || info->attributes & A_VEC;
}

int main(int argc, char **argv)
{
    unsigned count = 100, failed = 0, compared = 0, lines = 0, absent = 0;
    uint64_t seed = 1;
    bool all = false;
    for (int option; (option = getopt(argc, argv, "n:s:af")) != -1;) {
        if (option == 'n')
            count = (unsigned)atoi(optarg);
        else if (option == 's')
            seed = strtoull(optarg, NULL, 0);
        else if (option == 'a')
            all = true;
        else if (option == 'f')
            fma_on_host = 0;
        else
            return 2;
    }
    Cpu *c = core_open();
    if (!c || native_open()) {
        fprintf(stderr, "the oracle cannot map its memory\n");
        return 2;
    }
    static State before, core, host;
    for (unsigned id = 0; id < INSN_COUNT; id++) {
        const InsnInfo *info = &insn_table[id];
        if (!wanted(id, all, argv + optind, argc - optind))
            continue;
        if (!host_has(info->feature)) {
            absent++;
            continue;
        }
        lines++;
        unsigned bad = 0;
        for (unsigned n = 0; n < count; n++) {
            uint8_t bytes[32] = {0};
            rnd_seed(seed * 1000003 + n * 7919 + (uint64_t)id * 104729);
            for (unsigned k = 0; k < 8; k++)
                rnd();
            unsigned length = generate(c, id, bytes, &before);
            if (!length) {
                printf("%s: no encoding found\n", info->name);
                bad++;
                break;
            }
            core = host = before;
            native_run(bytes, length, &host);
            core_run(c, bytes, length, &core);
            compared++;
            if (exempt(&core, &host, info) || !differences(&core, &host, info, false))
                continue;
            if (bad++ < 2) {
                printf("%s (%s): case %u, mxcsr %04x, bytes", info->name, info->operands, n, before.mxcsr);
                for (unsigned k = 0; k < length; k++)
                    printf(" %02x", bytes[k]);
                printf("\n");
                differences(&core, &host, info, true);
            }
        }
        if (bad)
            printf("%s: %u of %u cases differ\n", info->name, bad, count);
        failed += bad != 0;
    }
    printf("%u lines, %u cases compared, %u lines differ, %u lines are not on this host\n", lines, compared, failed, absent);
    return failed != 0;
}
