/* States of x87, SSE and AVX: images given by user space and by FXRSTOR and XRSTOR, then any instructions on them. */
#include "fuzz.h"

#define IMAGE_AT DATA_AT
#define IMAGE_SIZE 832u

/* What was set and read back stays the same when it is set again. */
static void settles(Cpu *c)
{
    struct kvm_xsave first, second;
    struct kvm_fpu fpu, again;
    CHECK(!kp_vcpu_get_xsave(c, &first) && !kp_vcpu_set_xsave(c, &first) && !kp_vcpu_get_xsave(c, &second), "xsave");
    for (unsigned n = 0; n < 1024; n++)
        CHECK(first.region[n] == second.region[n], "xsave area at %u: %x, then %x", n * 4, first.region[n], second.region[n]);
    memset(&fpu, 0, sizeof fpu);
    memset(&again, 0, sizeof again);
    CHECK(!kp_vcpu_get_fpu(c, &fpu) && !kp_vcpu_set_fpu(c, &fpu) && !kp_vcpu_get_fpu(c, &again), "fpu");
    CHECK(!memcmp(&fpu, &again, sizeof fpu), "kvm_fpu changes");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t loads[][5] = {{0x0f, 0xae, 0x0e}, {0x48, 0x0f, 0xae, 0x0e}, {0x0f, 0xae, 0x2e}, {0x48, 0x0f, 0xae, 0x2e},
                                       {0xdd, 0x26}, {0xd9, 0x26}, {0x0f, 0xae, 0x16}, {0x66, 0xdd, 0x26}};
    static const uint8_t saves[][5] = {{0x0f, 0xae, 0x07}, {0x48, 0x0f, 0xae, 0x07}, {0x0f, 0xae, 0x27}, {0x0f, 0xc7, 0x27},
                                       {0xdd, 0x37}, {0xd9, 0x37}, {0x0f, 0xae, 0x1f}, {0x48, 0x0f, 0xc7, 0x27}};
    Input in = {data, data + size};
    unsigned mode = (unsigned)take(&in, 1) % MODE_COUNT, options = (unsigned)take(&in, 2);
    Vm *vm = machine_new(false, 1, options >> 14 & 1);
    Cpu *c = vm->cpu[0];
    machine_tables();
    machine_mode(c, mode, options & 1 ? 3 : 0);
    struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs = {{.value = options >> 1 & 7}}};
    (void)kp_vcpu_set_xcrs(c, &x);
    struct kvm_sregs s;
    kp_vcpu_get_sregs(c, &s);
    s.cr0 ^= (options & 0x10 ? CR0_TS : 0) | (options & 0x20 ? CR0_NE : 0) | (options & 0x40 ? CR0_EM : 0);
    s.cr4 ^= (options & 0x80 ? CR4_OSXMMEXCPT : 0) | (options & 0x100 ? CR4_OSXSAVE : 0) | (options & 0x200 ? CR4_OSFXSR : 0);
    (void)kp_vcpu_set_sregs(c, &s);

    struct kvm_xsave image = {{0}};
    uint8_t *bytes = (uint8_t *)&image;
    uint64_t fill = take(&in, 1);
    for (unsigned n = 0; n < IMAGE_SIZE / 8; n++) /* numbers of a register file, then patches */
        ((uint64_t *)bytes)[n] = n % 2 ? fill * 0x0101010101010101u : 1ull << 63;
    uint32_t mxcsr = (uint32_t)take(&in, 2) & (options & 0x400 ? ~0u : 0xffbf), control = (uint32_t)take(&in, 2);
    memcpy(bytes + 24, &mxcsr, 4);
    memcpy(bytes, &control, 2);
    memset(bytes + 512, 0, 64);
    bytes[512] = (uint8_t)take(&in, 1);
    for (unsigned n = (unsigned)take(&in, 1) & 31; n > 0; n--) {
        unsigned at = (unsigned)take(&in, 2) % (IMAGE_SIZE - 8);
        uint64_t value = take_number(&in);
        memcpy(bytes + at, &value, 8);
    }
    if (!kp_vcpu_set_xsave(c, &image))
        settles(c);
    if (options & 0x800) {
        struct kvm_fpu fpu;
        memcpy(&fpu, bytes, sizeof fpu);
        if (!kp_vcpu_set_fpu(c, &fpu))
            settles(c);
    }
    memcpy(ram + IMAGE_AT, bytes, IMAGE_SIZE);
    if (mode != LONG_MODE && mode != PROTECTED32 && mode != PAGED32 && mode != PAE_MODE && mode != COMPATIBILITY)
        memcpy(ram + 0x2000, bytes, IMAGE_SIZE); /* 16-bit code reaches the first 64 KiB */
    struct kvm_regs r;
    kp_vcpu_get_regs(c, &r);
    r.rsi = mode == LONG_MODE || mode >= PROTECTED32 ? IMAGE_AT : 0x2000;
    r.rsi += options & 0x1000 ? 8 : 0;
    r.rdi = r.rsi + 0x400;
    r.rbx = options & 0x2000 ? RAM_SIZE - 64 : r.rdi; /* an area that leaves the RAM */
    r.rax = take(&in, 1);
    r.rbp = IMAGE_AT;
    kp_vcpu_set_regs(c, &r);
    unsigned at = CODE_AT;
    while (more(&in) && at < CODE_AT + 2000) {
        unsigned what = (unsigned)take(&in, 1);
        const uint8_t *code = what & 8 ? saves[what & 7] : loads[what & 7];
        unsigned length = (unsigned)strnlen((const char *)code, 5);
        if (what & 0x80) /* x87 on registers and memory, or SSE and AVX */
            length = (what >> 4 & 3) + 2;
        for (unsigned n = 0; n < length; n++)
            ram[at++] = what & 0x80 ? (uint8_t)take(&in, 1) : code[n];
    }
    ram[at] = 0xf4;
    kp_vm_memory_written(vm, 0, RAM_SIZE);
    kp_vm_set_deadline(vm, kp_vm_now(vm) + 1000);
    uint64_t seed = 1;
    for (unsigned n = 0; n < 8 && kp_vm_run(vm) >= 0 && answer_exit(c, &seed); n++)
        ;
    settles(c);
    return 0;
}
