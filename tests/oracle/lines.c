/* Which lines of the instruction table can be compared with a native run, and where. */
#include <cpuid.h>

#include "oracle.h"

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

/* Lines marked A_NOTEST of which user mode sees enough: flags, selectors, caches; and #GP where they need CPL 0. */
static const char *const user_visible[] = {
    "pushf", "popf", "mov_EvSw", "push_ES", "push_CS", "push_SS", "push_DS", "push_FS", "push_GS", "arpl", "clflush", "clflushopt",
    "clwb", "rdgsbase", "wrgsbase", "cli", "sti", "hlt", "mov_Rd_Cd", "mov_Rq_Cq", "mov_Rd_Dd", "mov_Rq_Dq", "mov_Cd_Rd", "mov_Cq_Rq",
    "mov_Dd_Rd", "mov_Dq_Rq", "clts", "lgdt", "lidt", "lldt", "ltr", "lmsw", "invlpg", "invd", "wbinvd", "rdmsr", "wrmsr", "swapgs",
    "FXSAVE", "FXRSTOR", "XSAVE", "XRSTOR", "XSAVEOPT", "XSAVEC", "XSAVES", "XRSTORS",
    "IN_ALIb", "IN_eAXIb", "OUT_IbAL", "OUT_IbeAX", "IN_ALDX", "IN_eAXDX", "OUT_DXAL", "OUT_DXeAX", "INSB", "INSZ", "OUTSB", "OUTSZ",
};

bool line_comparable(const InsnInfo *info)
{
    if (!host_has(info->feature))
        return false;
    if (!(info->attributes & A_NOTEST))
        return true;
    for (unsigned n = 0; n < ARRAY_SIZE(user_visible); n++)
        if (!strcmp(info->name, user_visible[n]))
            return true;
    return false;
}

bool line_in_mode(const InsnInfo *info, unsigned bits)
{
    unsigned only = info->key >> 34 & 3;
    bool rex = (info->key & K_W1) && !(info->key & K_VEX);
    return bits == 64 ? only != 2 : only != 1 && !rex && native_modes & (bits == 32 ? 1 : 2);
}

bool line_in_sequence(const InsnInfo *info)
{
    static const char *const alone[] = {"fnstenv", "fnsave", "ldmxcsr", "vldmxcsr", "fcomi", "fcomip", "fucomi", "fucomip"};
    for (unsigned n = 0; n < ARRAY_SIZE(alone); n++)
        if (!strcmp(info->mnemonic, alone[n]))
            return false;
    return host_has(info->feature) && !(info->attributes & A_NOTEST) && (!(info->attributes & A_END) || info->attributes & A_JUMP);
}
