/* CPUID: the table with KVM's lookup, the bits that follow the vCPU's state, and what the core can do. */
#include <errno.h>

#include "cpu.h"
#include "vm.h"

static const struct kvm_cpuid_entry2 *find(const Cpu *c, uint32_t leaf, uint32_t subleaf)
{
    for (uint32_t n = 0; n < c->cpuid_count; n++) {
        const struct kvm_cpuid_entry2 *e = &c->cpuid[n];
        if (e->function == leaf && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == subleaf))
            return e;
    }
    return NULL;
}

bool cpuid_is_amd(const Cpu *c)
{
    const struct kvm_cpuid_entry2 *e = find(c, 0, 0);
    return e && ((e->ebx == 0x68747541 && e->edx == 0x69746e65 && e->ecx == 0x444d4163) || /* AuthenticAMD */
                 (e->ebx == 0x6f677948 && e->edx == 0x6e65476e && e->ecx == 0x656e6975));  /* HygonGenuine */
}

/* A leaf above its range's highest reads as the highest basic leaf on Intel, as zeros on AMD. */
static const struct kvm_cpuid_entry2 *out_of_range(const Cpu *c, uint32_t *leaf, uint32_t subleaf)
{
    const struct kvm_cpuid_entry2 *basic = find(c, 0, 0), *range;
    if (!basic || cpuid_is_amd(c))
        return NULL;
    if (*leaf >= 0x40000000 && *leaf < 0x50000000)
        range = find(c, *leaf & 0xffffff00, 0);
    else if (*leaf >= 0x80000000)
        range = find(c, *leaf & 0xffff0000, 0);
    else
        range = basic;
    if (range && *leaf <= range->eax)
        return NULL;
    *leaf = basic->eax;
    return find(c, basic->eax, subleaf);
}

static uint32_t xsave_size(uint64_t components) { return components & 4 ? 512 + 64 + 256 : 512 + 64; }

void cpuid_read(Cpu *c, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    const struct kvm_cpuid_entry2 *e = find(c, leaf, subleaf);
    if (!e)
        e = out_of_range(c, &leaf, subleaf);
    out[0] = e ? e->eax : 0;
    out[1] = e ? e->ebx : 0;
    out[2] = e ? e->ecx : 0;
    out[3] = e ? e->edx : 0;
    switch (leaf) {
    case 1:
        out[1] = (out[1] & 0xffffff) | c->index << 24;
        out[2] = (out[2] & ~(1u << 27)) | (c->cr4 & CR4_OSXSAVE ? 1u << 27 : 0);
        if (c->lapic && !(c->apic_base & 0x800))
            out[3] &= ~(1u << 9);
        break;
    case 0xb:
    case 0x1f:
        if (!e && (e = find(c, leaf, 1)) != NULL)
            out[2] = subleaf & 0xff;
        if (e)
            out[3] = c->index;
        break;
    case 0xd:
        if (e && subleaf == 0)
            out[1] = xsave_size(c->xcr0);
        else if (e && subleaf == 1 && out[0] & 0xa)
            out[1] = xsave_size(c->xcr0 | c->xss);
        break;
    case 0x15:
        /* crystal of 1 GHz, the local APIC's clock as in KVM; the ratio small enough for 32-bit arithmetic in kernels */
        if (e && !out[0] && c->vm && c->vm->tsc_khz && c->vm->tsc_khz % 1000 == 0 && c->vm->tsc_khz <= 4200000) {
            out[0] = 1000;
            out[1] = (uint32_t)(c->vm->tsc_khz / 1000);
            out[2] = 1000000000;
        }
        break;
    default:
        break;
    }
}

void cpuid_changed(Cpu *c)
{
    static const struct { uint32_t leaf; uint8_t reg, bit; } where[FEAT_COUNT] = {
#define FEATURE(name, leaf, reg, bit) {leaf, reg, bit},
#include "feature.def"
#undef FEATURE
    };
    /* CR4 bits that are there when a CPUID bit is. */
    static const struct { uint32_t leaf; uint8_t reg, bit; uint32_t cr4; } cr4_bits[] = {
        {1, 3, 1, CR4_VME | CR4_PVI}, {1, 3, 4, CR4_TSD}, {1, 3, 2, CR4_DE}, {1, 3, 3, CR4_PSE}, {1, 3, 6, CR4_PAE},
        {1, 3, 7, CR4_MCE}, {1, 3, 13, CR4_PGE}, {1, 3, 24, CR4_OSFXSR}, {1, 3, 25, CR4_OSXMMEXCPT}, {7, 2, 2, CR4_UMIP},
        {7, 1, 0, CR4_FSGSBASE}, {1, 2, 17, CR4_PCIDE}, {1, 2, 26, CR4_OSXSAVE}, {7, 1, 7, CR4_SMEP}, {7, 1, 20, CR4_SMAP},
    };
#define REGISTER(e, n) ((n) == 0 ? (e)->eax : (n) == 1 ? (e)->ebx : (n) == 2 ? (e)->ecx : (e)->edx)
    memset(c->features, 0, sizeof c->features);
    for (unsigned f = 0; f < FEAT_COUNT; f++) {
        uint32_t leaf = where[f].leaf, subleaf = leaf < 0x80000000 ? leaf >> 16 : 0;
        const struct kvm_cpuid_entry2 *e = find(c, leaf < 0x80000000 ? leaf & 0xffff : leaf, subleaf);
        if (f == FEAT_ALWAYS || (e && REGISTER(e, where[f].reg) >> where[f].bit & 1))
            c->features[f >> 6] |= 1ull << (f & 63);
    }
    c->cr4_allowed = CR4_PCE;
    for (unsigned n = 0; n < ARRAY_SIZE(cr4_bits); n++) {
        const struct kvm_cpuid_entry2 *e = find(c, cr4_bits[n].leaf, 0);
        if (e && REGISTER(e, cr4_bits[n].reg) >> cr4_bits[n].bit & 1)
            c->cr4_allowed |= cr4_bits[n].cr4;
    }
    c->efer_allowed = EFER_SCE;
    if (has_feature(c, FEAT_LM))
        c->efer_allowed |= EFER_LME | EFER_LMA;
    if (has_feature(c, FEAT_NX))
        c->efer_allowed |= EFER_NXE;
    const struct kvm_cpuid_entry2 *xsave = find(c, 0xd, 0), *sizes = find(c, 0x80000008, 0);
    c->xcr0_allowed = 3;
    if (xsave && has_feature(c, FEAT_XSAVE))
        c->xcr0_allowed = (xsave->eax & 7) | 1;
    unsigned bits = sizes ? sizes->eax & 0xff : 36;
    c->phys_bits = (uint8_t)(bits < 32 ? 32 : bits > 52 ? 52 : bits);
}

/* ---- what the core can do ---- */

/* A family 6 model 1C: an in-order processor. Nothing here speculates either, so kernels leave the mitigations of
   speculation side channels off, and look for no model-specific registers. */
#define SIGNATURE 0x000106ca

/* All bits of feature.def in one register of a leaf. */
static uint32_t feature_bits(uint32_t leaf, unsigned reg)
{
    uint32_t bits = 0;
#define FEATURE(name, leaf_, reg_, bit) \
    if (FEAT_##name != FEAT_ALWAYS && (leaf_) == leaf && (reg_) == reg) \
        bits |= 1u << (bit);
#include "feature.def"
#undef FEATURE
    return bits;
}

typedef struct {
    struct kvm_cpuid_entry2 *entries;
    uint32_t count, room;
} Table;

static void add(Table *t, uint32_t leaf, int subleaf, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx)
{
    if (t->count < t->room)
        t->entries[t->count] = (struct kvm_cpuid_entry2){
            .function = leaf, .index = subleaf < 0 ? 0 : (uint32_t)subleaf,
            .flags = subleaf < 0 ? 0 : KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .eax = eax, .ebx = ebx, .ecx = ecx, .edx = edx};
    t->count++;
}

static void add_text(Table *t, uint32_t leaf, const char *text)
{
    uint32_t r[4];
    memcpy(r, text, 16);
    add(t, leaf, -1, r[0], r[1], r[2], r[3]);
}

/* EAX, EBX, ECX of leaf 4 for a set-associative cache with lines of 64 bytes. */
static void add_cache(Table *t, int subleaf, uint32_t type, uint32_t level, uint32_t ways, uint32_t sets)
{
    add(t, 4, subleaf, type | level << 5 | 1 << 8, (ways - 1) << 22 | 63, sets - 1, 0);
}

int kp_supported_cpuid(struct kvm_cpuid_entry2 *entries, uint32_t room)
{
    Table t = {entries, 0, room};
    static const char brand[48] = "kvmpy software CPU";
    add(&t, 0, -1, 0x15, 0x756e6547, 0x6c65746e, 0x49656e69); /* GenuineIntel */
    /* beside the table's: VME DE PSE PAE MCE APIC MTRR PGE MCA PAT PSE36; hypervisor */
    add(&t, 1, -1, SIGNATURE, 0x00010800, feature_bits(1, 2) | 1u << 31, feature_bits(1, 3) | 0x000372ce);
    add(&t, 2, -1, 1, 0, 0, 0);
    add_cache(&t, 0, 1, 1, 8, 64);
    add_cache(&t, 1, 2, 1, 8, 64);
    add_cache(&t, 2, 3, 2, 8, 2048);
    add(&t, 4, 3, 0, 0, 0, 0);
    add(&t, 5, -1, 64, 64, 3, 0); /* MONITOR: lines of 64 bytes; MWAIT may break at interrupts that are not taken */
    add(&t, 6, -1, 4, 0, 0, 0); /* the APIC timer never stops */
    /* TSC_ADJUST, ERMS; FSRM, ARCH_CAPABILITIES */
    add(&t, 7, 0, 0, feature_bits(7, 1) | 1u << 1 | 1u << 9, feature_bits(7, 2), 1u << 4 | 1u << 29);
    add(&t, 0xb, 0, 0, 0, 0, 0);
    add(&t, 0xd, 0, 7, xsave_size(3), xsave_size(7), 0);
    add(&t, 0xd, 1, feature_bits(0x1000d, 0), xsave_size(3), 0, 0);
    add(&t, 0xd, 2, 256, 512 + 64, 0, 0);
    add(&t, 0x15, -1, 0, 0, 0, 0);
    add_text(&t, 0x40000000, "\1\0\0\x40KVMKVMKVM\0\0\0");
    add(&t, 0x40000001, -1, 0x0100000b, 0, 0, 0); /* kvmclock old and new, stable; no I/O delays */
    add(&t, 0x80000000, -1, 0x80000008, 0, 0, 0);
    add(&t, 0x80000001, -1, 0, 0, feature_bits(0x80000001, 2), feature_bits(0x80000001, 3));
    add_text(&t, 0x80000002, brand);
    add_text(&t, 0x80000003, brand + 16);
    add_text(&t, 0x80000004, brand + 32);
    add(&t, 0x80000006, -1, 0, 0, 0x04006040, 0);
    add(&t, 0x80000007, -1, 0, 0, 0, 1u << 8); /* invariant TSC */
    add(&t, 0x80000008, -1, 0x302e, 0, 0, 0);  /* 46 physical, 48 linear address bits */
    return t.count <= room ? (int)t.count : -E2BIG;
}
