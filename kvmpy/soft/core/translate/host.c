/* What the host's processor has: instructions are copied only where it knows them. */
#include <cpuid.h>

#include "emit.h"

static uint64_t present[4]; /* by FEAT_* */

static bool has_bit(uint32_t leaf, unsigned reg, unsigned bit)
{
    /* each CPUID is an exit where this host is a guest itself */
    static struct { uint32_t leaf, out[4]; } seen[8];
    unsigned n = 0;
    while (n < ARRAY_SIZE(seen) - 1 && seen[n].leaf && seen[n].leaf != leaf)
        n++;
    if (seen[n].leaf != leaf) {
        memset(seen[n].out, 0, sizeof seen[n].out);
        seen[n].leaf = leaf;
        bool extended = leaf & 0x80000000;
        __get_cpuid_count(extended ? leaf : leaf & 0xffff, extended ? 0 : leaf >> 16, &seen[n].out[0], &seen[n].out[1], &seen[n].out[2], &seen[n].out[3]);
    }
    return seen[n].out[reg] >> bit & 1;
}

void host_prepare(void)
{
    static const struct { uint32_t leaf; uint8_t reg, bit; } where[] = {
#define FEATURE(name, leaf, reg, bit) [FEAT_##name] = {leaf, reg, bit},
#include "feature.def"
#undef FEATURE
    };
    bool whole = __builtin_cpu_supports("avx2"); /* with the system's support for the upper halves */
    for (unsigned f = 0; f < ARRAY_SIZE(where); f++) {
        bool wide = f == FEAT_AVX || f == FEAT_AVX2 || f == FEAT_FMA || f == FEAT_F16C;
        if (f == FEAT_ALWAYS || ((whole || !wide) && has_bit(where[f].leaf, where[f].reg, where[f].bit)))
            present[f >> 6] |= 1ull << (f & 63);
    }
}

bool host_has(unsigned feature) { return present[feature >> 6] >> (feature & 63) & 1; }
