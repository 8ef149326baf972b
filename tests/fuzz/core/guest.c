/* Makes a guest out of an input. */
#include "guest.h"

#define CODE_ROOM (STACK_AT - CODE_AT - 0x1000 - 512)

Guest guest_head(Input *in)
{
    Guest g = {0};
    g.mode = (unsigned)take(in, 1);
    g.assembled = g.mode & 0x80;
    g.mode %= MODE_COUNT;
    g.options = take(in, 2);
    if (g.options & 0x8000) /* where most is translated */
        g.mode = LONG_MODE;
    g.chips = g.options & 1;
    g.cpl = g.options & 2 ? 3 : 0;
    g.seed = take(in, 1);
    return g;
}

/* Bits of CR0, CR4 and EFER that the mode does not stand on; what the core refuses stays as it was. */
static void control_bits(Cpu *c, uint64_t bits)
{
    static const uint32_t cr0[] = {CR0_WP, CR0_TS, CR0_AM, CR0_EM, CR0_MP, CR0_NE, CR0_CD, CR0_NW};
    static const uint32_t cr4[] = {CR4_VME, CR4_PVI, CR4_TSD, CR4_DE, CR4_PGE, CR4_PCE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_UMIP,
                                   CR4_FSGSBASE, CR4_PCIDE, CR4_OSXSAVE, CR4_SMEP, CR4_SMAP};
    struct kvm_sregs s;
    kp_vcpu_get_sregs(c, &s);
    for (unsigned n = 0; n < ARRAY_SIZE(cr0); n++)
        if (bits >> n & 1)
            s.cr0 ^= cr0[n];
    for (unsigned n = 0; n < ARRAY_SIZE(cr4); n++)
        if (bits >> (8 + n) & 1)
            s.cr4 ^= cr4[n];
    s.efer ^= (bits >> 22 & 1 ? EFER_NXE : 0) | (bits >> 23 & 1 ? EFER_SCE : 0);
    (void)kp_vcpu_set_sregs(c, &s);
}

/* What lies behind the pages of code, stack and data, where the mode has pages of 4 KiB; bases of FS and GS. */
static void put_pages(Cpu *c, Input *in)
{
    static const uint8_t page[] = {0x9, 0xa, 0xf, 0x10, 0x11, 0x12, 0x13, 0x14};
    static const uint64_t behind[16] = { /* 0: what is there */
        0, 0x12006, 0x12005, 0x200007, ROM_AT | 7, CODE_AT | 7, DATA_AT | 7, 0x12003, 1ull << 63 | 0x12007, LEAVES_AT | 7, 0x13007, 0x15007,
        STACK_AT | 7, 0x3f007, 0x40007, 0xfee00007,
    };
    for (uint64_t kinds = take(in, 4), n = 0; n < ARRAY_SIZE(page); n++, kinds >>= 4)
        if (kinds & 15)
            memcpy(ram + LEAVES_AT + 8 * page[n], &behind[kinds & 15], 8);
    uint64_t which = take(in, 1);
    struct kvm_sregs s;
    kp_vcpu_get_sregs(c, &s);
    if (which & 1)
        s.fs.base = take_number(in);
    if (which & 2)
        s.gs.base = take_number(in);
    (void)kp_vcpu_set_sregs(c, &s);
}

/* Places in the code wherever the stack or a pointer may be: returns and indirect jumps go on in it. */
static void put_targets(uint64_t first, uint64_t seed)
{
    for (uint32_t at = 0; at < 0x400; at += 8) {
        uint64_t target = first + next_random(&seed) % 48;
        memcpy(ram + STACK_AT - 0x200 + at, &target, 8);
        memcpy(ram + DATA_AT + 0xe00 + at, &target, 8);
    }
}

void guest_put(const Guest *g, Cpu *c, Input *in)
{
    machine_tables();
    machine_mode(c, g->mode, g->cpl);
    control_bits(c, take(in, 3));
    struct kvm_regs r;
    kp_vcpu_get_regs(c, &r);
    if (g->assembled) {
        r.rbx = r.rsi = DATA_AT;
        r.rdi = r.r8 = DATA_AT + 0x1000 - 24;
        r.rbp = r.r12 = r.r13 = STACK_AT - 64;
        r.rcx = r.r9 = 2;
    }
    uint64_t *gpr[] = {&r.rax, &r.rbx, &r.rcx, &r.rdx, &r.rsi, &r.rdi, &r.rbp, &r.rsp, &r.r8, &r.r9, &r.r10, &r.r11, &r.r12, &r.r13,
                       &r.r14, &r.r15};
    for (uint64_t set = take(in, 2), n = 0; n < 16; n++)
        if (set >> n & 1)
            *gpr[n] = take_number(in);
    r.rflags ^= take(in, 3) & (g->options & 4 ? 0x3f7fd5 : 0x247ed5) & ~FL_VM; /* TF and RF are seldom wanted */
    kp_vcpu_set_regs(c, &r);
    if (g->options & 8) { /* state of the FPU, debug registers, and a segment as a hostile snapshot has it */
        struct kvm_xsave x;
        kp_vcpu_get_xsave(c, &x);
        for (unsigned n = 0; n < 576 / 4; n++)
            x.region[n] = (uint32_t)next_random(&(uint64_t){g->seed + n});
        x.region[0] = (uint32_t)take(in, 4);
        x.region[1] = (uint32_t)take(in, 1);
        x.region[6] = (uint32_t)take(in, 2) & 0xffbf;
        memset(x.region + 128, 0, 64);
        x.region[128] = 7;
        (void)kp_vcpu_set_xsave(c, &x);
    }
    if (g->options & 0x10) {
        struct kvm_debugregs d = {.dr6 = 0xffff0ff0, .dr7 = 0x400 | (take(in, 4) & 0xffff2bff)};
        for (unsigned n = 0; n < 4; n++)
            d.db[n] = take_number(in);
        (void)kp_vcpu_set_debugregs(c, &d);
    }
    if (g->options & 0x20) {
        struct kvm_sregs s;
        kp_vcpu_get_sregs(c, &s);
        for (unsigned n = (unsigned)take(in, 1) & 7; n > 0; n--) {
            uint64_t at = take(in, 2) % sizeof s;
            ((uint8_t *)&s)[at] = (uint8_t)take(in, 1);
        }
        (void)kp_vcpu_set_sregs(c, &s);
    }
    if (g->options & 0x40) {
        struct kvm_guest_debug debug = {.control = (uint32_t)take(in, 1) & 3};
        (void)kp_vcpu_set_guest_debug(c, &debug);
    }
    if (g->options & 0x80) {
        struct kp_debug_point point[2];
        for (unsigned n = 0; n < 2; n++)
            point[n] = (struct kp_debug_point){.linear = take_number(in), .size = take(in, 1), .kind = (uint32_t)take(in, 1) & 7};
        (void)kp_vm_set_debug_points(c->vm, point, 2);
    }
    if (g->options & 0x100)
        kp_vm_set_user_msrs(c->vm, KVM_MSR_EXIT_REASON_UNKNOWN, NULL, 0);
    if (g->options & 0x2000)
        put_pages(c, in);
    uint32_t code = CODE_AT;
    if (g->options & 0x4000) { /* over the end of a page */
        code += 0x1000 - (uint32_t)take(in, 1);
        put_targets(code, g->seed);
        kp_vcpu_get_regs(c, &r);
        r.rip = code;
        kp_vcpu_set_regs(c, &r);
    }
    for (unsigned n = (unsigned)take(in, 1) & 15; n > 0; n--) { /* tables, gates, page entries */
        uint64_t at = take(in, 3) % (RAM_SIZE - 8), value = take_number(in);
        memcpy(ram + at, &value, 8);
    }
    size_t size = left(in) < CODE_ROOM ? left(in) : CODE_ROOM;
    if (g->assembled) {
        size = assemble(ram + code, CODE_ROOM, g->mode, in);
    } else {
        memcpy(ram + code, in->at, size);
        in->at += size;
    }
    uint32_t back = code - (uint32_t)(code + size + 5); /* what comes through runs again, translated and linked by then */
    ram[code + size] = 0xe9;
    memcpy(ram + code + size + 1, &back, 4);
    kp_vm_memory_written(c->vm, 0, RAM_SIZE);
}
