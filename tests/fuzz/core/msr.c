/* Model-specific registers, written by user space and by the guest's WRMSR: what was taken can be read, and goes into another
   vCPU as a snapshot does. */
#include "fuzz.h"

static const uint32_t known[] = {
    0x10, 0x11, 0x12, 0x1b, 0x3a, 0x3b, 0x79, 0x8b, 0xfe, 0x10a, 0x174, 0x175, 0x176, 0x179, 0x17a, 0x17b, 0x1a0, 0x1d9, 0x200, 0x201,
    0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x26f, 0x277, 0x2ff, 0x6e0, 0x802, 0x803, 0x808, 0x80b, 0x80d, 0x80f, 0x828, 0x82f, 0x830,
    0x832, 0x838, 0x83e, 0x83f, 0xda0, 0x400, 0x401, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03, 0x4b564d04, 0x4b564d05, 0xc0000080,
    0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103,
};
/* What the clock or an interrupt changes by itself, or what reads otherwise than it was written. */
static bool moves(uint32_t index) { return index == 0x10 || index == 0x3b || (index >= 0x800 && index < 0x900) || index == 0x6e0; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t wrmsr[] = {0x0f, 0x30, 0x0f, 0x32, 0xf4};
    Input in = {data, data + size};
    unsigned head = (unsigned)take(&in, 1);
    Vm *vm = machine_new(head & 1, 2, false);
    Cpu *c = vm->cpu[0], *twin = vm->cpu[1];
    machine_tables();
    machine_mode(c, head & 2 ? LONG_MODE : PROTECTED32, head & 4 ? 3 : 0);
    if (head & 8)
        kp_vm_set_user_msrs(vm, KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER, (const uint32_t[]){0xc0000080, 4, 3}, 1);
    uint64_t seed = head;
    while (more(&in)) {
        unsigned what = (unsigned)take(&in, 1);
        uint32_t index = what & 1 ? (uint32_t)take(&in, 4) : known[take(&in, 1) % ARRAY_SIZE(known)];
        uint64_t value = take_number(&in), got, again;
        if (what & 2) { /* the guest's own instruction */
            memcpy(ram + CODE_AT, wrmsr, sizeof wrmsr);
            kp_vm_memory_written(vm, CODE_AT, sizeof wrmsr);
            struct kvm_regs r = {.rip = CODE_AT, .rsp = STACK_AT, .rflags = 2, .rcx = index, .rax = (uint32_t)value, .rdx = value >> 32};
            kp_vcpu_set_regs(c, &r);
            kp_vm_set_deadline(vm, kp_vm_now(vm) + 40);
            for (unsigned n = 0; n < 6 && kp_vm_run(vm) >= 0 && answer_exit(c, &seed); n++)
                ;
        } else if (index == 0xc0000080 && (value ^ c->efer) & EFER_LME) {
            continue; /* user space may take long mode off under paging, as with KVM: a state that nobody takes back */
        } else if (!kp_vcpu_set_msr(c, index, value)) {
            CHECK(!kp_vcpu_get_msr(c, index, &got), "MSR %x takes a value and gives none", index);
            CHECK(!kp_vcpu_set_msr(c, index, got), "MSR %x refuses its own %llx", index, (unsigned long long)got);
            CHECK(!kp_vcpu_get_msr(c, index, &again) && (again == got || moves(index)), "MSR %x: %llx, then %llx", index,
                  (unsigned long long)got, (unsigned long long)again);
        } else
            (void)kp_vcpu_get_msr(c, index, &got);
        if (what & 4)
            vm->virtual_skip += (uint64_t)what << 10;
    }
    uint64_t value, got;
    struct kvm_sregs s;
    kp_vcpu_get_sregs(c, &s);
    s.apic_base &= ~0x100ull;
    CHECK(!kp_vcpu_set_sregs(twin, &s), "another vCPU refuses the sregs");
    for (unsigned n = 0; n < ARRAY_SIZE(known); n++)
        if (known[n] != 0x1b && !moves(known[n]) && !kp_vcpu_get_msr(c, known[n], &value) && !kp_vcpu_set_msr(twin, known[n], value))
            CHECK(!kp_vcpu_get_msr(twin, known[n], &got) && (got == value || known[n] == 0x12 || known[n] == 0x79), "MSR %x: %llx, in another vCPU %llx", known[n],
                  (unsigned long long)value, (unsigned long long)got);
    return 0;
}
