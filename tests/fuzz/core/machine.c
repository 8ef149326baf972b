/* The small machine of the fuzz targets. */
#include <errno.h>
#include <sys/mman.h>

#include "chips_state.h"
#include "fuzz.h"
#include "run.h"
#include "system.h"

#define PAGE 4096u
#define ALIAS_AT (PAGE * TLB_SIZE / 2)

uint8_t *ram;

static const uint64_t edges[] = {
    0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32, (1ull << 47) - 1, 1ull << 47,
    ~0ull << 47, (1ull << 63) - 1, 1ull << 63, 0xfee00000, 0xfec00000, RAM_SIZE, RAM_SIZE - 8, ROM_AT, 0x3ff0000000000000,
    0x7ff0000000000000, 0x7ff8000000000001, 0x3f80000000000000, 0x7f800000, 0x7fc00001, 0x8000000000000001, 0x0101010101010101,
    DATA_AT + PAGE, STACK_AT - PAGE, ALIAS_AT + DATA_AT + PAGE, 2 * ALIAS_AT + DATA_AT + PAGE, 0,
};

uint64_t take_number(Input *in)
{
    uint64_t kind = take(in, 1), small = take(in, 1);
    switch (kind & 7) {
    case 0: return small;
    case 1: return (uint64_t)(int64_t)(int8_t)small;
    case 2: return edges[small % ARRAY_SIZE(edges)];
    case 3: return edges[small % ARRAY_SIZE(edges)] + (uint64_t)((int64_t)kind >> 3) - 16;
    case 4: return CODE_AT + small;
    case 5: return DATA_AT + small * 16 + (kind >> 3);
    case 6: return 1ull << (small & 63);
    default: return take(in, 8);
    }
}

static void make_ram(void)
{
    uint8_t *pages = mmap(NULL, RAM_SIZE + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + PAGE, RAM_SIZE, PROT_READ | PROT_WRITE)) {
        perror("guest memory");
        exit(1);
    }
    ram = pages + PAGE;
}

/* A VM is made once for each configuration, and put back to how it was then: mapping and clearing a new one costs more than an
   input. Decoded code, translations and timers go; what counts generations goes on. */
typedef struct {
    Vm *vm, first;
    uint8_t *cpu[2], *lapic[2], *chips;
    struct RunState run[2];
} Kept;
#define COLD offsetof(Cpu, tlb_user) /* the tables behind are emptied by their log */

static void *copied(const void *from, size_t size)
{
    void *to = malloc(size);
    if (!to)
        exit(1);
    return memcpy(to, from, size);
}

static void keep(Kept *k, Vm *vm)
{
    k->vm = vm;
    k->first = *vm;
    for (unsigned n = 0; n < vm->cpu_count; n++) {
        k->cpu[n] = copied(vm->cpu[n], COLD);
        k->run[n] = *vm->cpu[n]->run;
        k->lapic[n] = vm->chips ? copied(vm->cpu[n]->lapic, sizeof(Lapic)) : NULL;
    }
    k->chips = vm->chips ? copied(vm->chips, sizeof(struct Chips)) : NULL;
}

static Vm *put_back(const Kept *k)
{
    Vm *vm = k->vm;
    uint64_t generation = vm->generation;
    free(vm->point);
    for (unsigned n = 0; n < vm->cpu_count; n++) {
        Cpu *c = vm->cpu[n];
        memcpy(c, k->cpu[n], COLD);
        *c->run = k->run[n];
        memset(c->record, 0, sizeof *c->record);
        if (c->lapic)
            memcpy(c->lapic, k->lapic[n], sizeof(Lapic));
    }
    if (vm->chips)
        memcpy(vm->chips, k->chips, sizeof(struct Chips));
    code_drop_all(vm);
    *vm = k->first;
    vm->generation = generation;
    for (unsigned n = 0; n < vm->cpu_count; n++)
        tlb_flush_all(vm->cpu[n]);
    return vm;
}

Vm *machine_new(bool chips, unsigned vcpus, unsigned threshold)
{
    static Kept kept[2][2][MOST_RUNS + 1];
    Kept *k = &kept[chips][vcpus - 1][threshold];
    if (!ram)
        make_ram();
    memset(ram, 0, RAM_SIZE);
    if (k->vm)
        return put_back(k);
    Vm *vm = kp_vm_create(1, 0);
    if (!vm || (chips && (kp_vm_create_irqchip(vm) || kp_vm_create_pit(vm)))
        || kp_vm_set_memory(vm, 0, 0, ram, RAM_SIZE, KVM_MEM_LOG_DIRTY_PAGES)
        || kp_vm_set_memory(vm, 1, ROM_AT, ram + DATA_AT, PAGE, KVM_MEM_READONLY)) {
        perror("VM");
        exit(1);
    }
    for (unsigned n = 0; n < vcpus; n++)
        if (!kp_vcpu_create(vm, n)) {
            perror("vCPU");
            exit(1);
        }
    if (threshold && kp_vm_set_translator(vm, threshold)) /* where the host allows no code, interpreted */
        fprintf(stderr, "no translator here\n");
    keep(k, vm);
    return vm;
}

static void put64(uint32_t at, uint64_t value) { memcpy(ram + at, &value, 8); }
static void put32(uint32_t at, uint32_t value) { memcpy(ram + at, &value, 4); }

/* The first 2 MiB once more: at the last of the address space, and where the TLB has a place's empty tag and the place itself. */
static bool aliased(unsigned n) { return n == 511 || n == ALIAS_AT >> 21 || n == 2 * ALIAS_AT >> 21; }

void machine_tables(void)
{
    static const uint64_t descriptors[] = {
        0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff, 0x00009b000000ffff, 0x00affb000000ffff, 0x00cff3000000ffff,
        0x00cffb000000ffff, 0x00008b0060000067, 0x0000000000000000, 0x0000ec0000088000, 0x0000000000000000, 0x00cf9f000000ffff,
        0x00cf97000000ffff, 0x0000890061000067,
    };
    for (unsigned n = 0; n < ARRAY_SIZE(descriptors); n++)
        put64(GDT_AT + 8 * n, descriptors[n]);
    for (unsigned n = 0; n < 256; n++)
        put32(IVT_AT + 4 * n, CODE_AT + n);
    for (unsigned n = 0; n < 512; n++) /* 32-bit gates, or pairs that make 64-bit ones */
        put64(IDT_AT + 8 * n, n & 1 ? 0 : 0x00008e0000088000ull + n);
    for (unsigned n = 0; n < 11; n++)
        put64(TSS_AT + 4 + 8 * n, STACK_AT - 256);
    put64(LONG_AT, (LONG_AT + 0x1000) | 7);
    put64(LONG_AT + 0x1000, (LONG_AT + 0x2000) | 7);
    put64(LONG_AT + 0x2000, LEAVES_AT | 7);
    put64(LONG_AT + 8 * 255, (LONG_AT + 0x1000) | 7); /* both borders of the hole, and the last page */
    put64(LONG_AT + 8 * 256, (LONG_AT + 0x1000) | 7);
    put64(LONG_AT + 8 * 511, (LONG_AT + 0x1000) | 7);
    put64(LONG_AT + 0x1000 + 8 * 511, (LONG_AT + 0x2000) | 7);
    for (unsigned n = 1; n < 512; n++)
        put64(LONG_AT + 0x2000 + 8 * n, aliased(n) ? LEAVES_AT | 7 : (uint64_t)n << 21 | 0x87);
    for (unsigned n = 0; n < 512; n++)
        put64(LEAVES_AT + 8 * n, (n == 511 ? 0x15000 : (uint64_t)n << 12) | 7);
    for (unsigned n = 0; n < 1024; n++)
        put32(LEGACY_AT + 4 * n, n << 22 | 0x87);
    for (unsigned n = 0; n < 4; n++)
        put64(POINTERS_AT + 8 * n, DIRECTORY_AT | 1);
    put64(DIRECTORY_AT, LEAVES_AT | 7);
    for (unsigned n = 1; n < 512; n++)
        put64(DIRECTORY_AT + 8 * n, aliased(n) ? LEAVES_AT | 7 : (uint64_t)n << 21 | 0x87);
}

void machine_mode(Cpu *c, unsigned mode, unsigned cpl)
{
    struct kvm_sregs s;
    kp_vcpu_get_sregs(c, &s);
    struct kvm_segment *data[] = {&s.ds, &s.es, &s.fs, &s.gs, &s.ss};
    bool wide = mode != REAL_MODE && mode != VM86_MODE;
    bool big = wide && mode != PROTECTED16;
    if (!wide)
        cpl = mode == VM86_MODE ? 3 : 0;
    uint16_t code = !wide ? 0 : mode == LONG_MODE ? (cpl ? 0x2b : 8) : (cpl ? 0x3b : 0x18), stack = !wide ? 0 : cpl ? 0x33 : 0x10;
    s.cs = (struct kvm_segment){.limit = wide ? 0xffffffff : 0xffff, .selector = code, .type = mode == VM86_MODE ? 3 : 11,
                                .present = 1, .s = 1, .dpl = (uint8_t)cpl, .g = wide, .db = big && mode != LONG_MODE, .l = mode == LONG_MODE};
    for (unsigned n = 0; n < ARRAY_SIZE(data); n++)
        *data[n] = (struct kvm_segment){.limit = wide ? 0xffffffff : 0xffff, .selector = stack, .type = 3, .present = 1, .s = 1,
                                        .dpl = (uint8_t)cpl, .g = wide, .db = big};
    s.tr = (struct kvm_segment){.base = TSS_AT, .limit = 0x67, .selector = 0x40, .type = 11, .present = 1};
    s.ldt = (struct kvm_segment){.limit = 0xffff, .type = 2, .present = 1};
    s.gdt = (struct kvm_dtable){.base = GDT_AT, .limit = 0xff};
    s.idt = (struct kvm_dtable){.base = mode == REAL_MODE ? IVT_AT : IDT_AT, .limit = mode == REAL_MODE ? 0x3ff : 0xfff};
    s.cr0 = CR0_ET | CR0_NE | (mode == REAL_MODE ? 0 : CR0_PE) | (mode >= PAGED32 ? CR0_PG : 0);
    s.cr4 = mode == PAGED32 ? CR4_PSE : mode > PAGED32 ? CR4_PAE : 0;
    s.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    s.cr3 = mode == PAGED32 ? LEGACY_AT : mode == PAE_MODE ? POINTERS_AT : mode > PAE_MODE ? LONG_AT : 0;
    s.efer = mode > PAE_MODE ? EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE : 0;
    CHECK(!kp_vcpu_set_sregs(c, &s), "mode %u", mode);
    struct kvm_regs r = {.rip = CODE_AT, .rsp = STACK_AT, .rflags = mode == VM86_MODE ? 0x23002 : 2};
    kp_vcpu_set_regs(c, &r);
    struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs = {{.value = c->xcr0_allowed}}};
    CHECK(!kp_vcpu_set_xcrs(c, &x), "XCR0");
}

void state_get(Cpu *c, State *s)
{
    memset(s, 0, sizeof *s);
    CHECK(!kp_vcpu_get_regs(c, &s->regs), "regs");
    CHECK(!kp_vcpu_get_sregs(c, &s->sregs), "sregs");
    CHECK(!kp_vcpu_get_xsave(c, &s->xsave), "xsave");
    CHECK(!kp_vcpu_get_debugregs(c, &s->debug), "debug registers");
    CHECK(!kp_vcpu_get_events(c, &s->events), "events");
    CHECK(!kp_vcpu_get_xcrs(c, &s->xcrs), "XCRs");
    CHECK(!kp_vcpu_get_mp_state(c, &s->mp), "mp_state");
}

void state_set(Cpu *c, const State *s)
{
    CHECK(!kp_vcpu_set_sregs(c, &s->sregs), "the core refuses its own sregs");
    CHECK(!kp_vcpu_set_regs(c, &s->regs), "the core refuses its own regs");
    CHECK(!kp_vcpu_set_xcrs(c, &s->xcrs), "the core refuses its own XCRs");
    CHECK(!kp_vcpu_set_xsave(c, &s->xsave), "the core refuses its own xsave");
    CHECK(!kp_vcpu_set_debugregs(c, &s->debug), "the core refuses its own debug registers");
    CHECK(!kp_vcpu_set_mp_state(c, &s->mp), "the core refuses its own mp_state");
    CHECK(!kp_vcpu_set_events(c, &s->events), "the core refuses its own events");
}

bool state_equal(const State *a, const State *b)
{
    static const struct { const char *name; size_t at, size; } part[] = {
#define PART(f) {#f, offsetof(State, f), sizeof ((State *)0)->f}
        PART(regs), PART(sregs), PART(xsave), PART(debug), PART(events), PART(xcrs), PART(mp),
#undef PART
    };
    for (unsigned n = 0; n < ARRAY_SIZE(part); n++)
        for (size_t at = part[n].at; at < part[n].at + part[n].size; at++)
            if (((const uint8_t *)a)[at] != ((const uint8_t *)b)[at]) {
                fprintf(stderr, "%s differs at byte %zu: %02x, %02x; rip %llx, %llx\n", part[n].name, at - part[n].at,
                        ((const uint8_t *)a)[at], ((const uint8_t *)b)[at], (unsigned long long)a->regs.rip, (unsigned long long)b->regs.rip);
                return false;
            }
    return true;
}

bool answer_exit(Cpu *c, uint64_t *seed)
{
    struct kvm_run *r = c->record;
    switch (r->exit_reason) {
    case KVM_EXIT_IO: {
        uint64_t bytes = (uint64_t)r->io.size * r->io.count;
        CHECK(bytes && bytes <= PAGE && r->io.data_offset == PAGE, "an I/O exit of %llu bytes", (unsigned long long)bytes);
        if (!r->io.direction)
            for (uint64_t n = 0; n < bytes; n++)
                ((uint8_t *)r)[r->io.data_offset + n] = (uint8_t)next_random(seed);
        return true;
    }
    case KVM_EXIT_MMIO:
        CHECK(r->mmio.len >= 1 && r->mmio.len <= 8, "an MMIO exit of %u bytes", r->mmio.len);
        if (!r->mmio.is_write) {
            uint64_t value = next_random(seed);
            memcpy(r->mmio.data, &value, 8);
        }
        return true;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        r->msr.data = next_random(seed);
        r->msr.error = r->msr.data >> 32 & 1;
        return true;
    case KVM_EXIT_DEBUG:
        return true;
    case KVM_EXIT_HLT:
    case KVM_EXIT_SHUTDOWN:
    case KVM_EXIT_INTR:
    case KVM_EXIT_INTERNAL_ERROR:
    case KVM_EXIT_HYPERCALL:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR:
    case KVM_EXIT_IOAPIC_EOI:
    case KVM_EXIT_SYSTEM_EVENT:
    case KVM_EXIT_FAIL_ENTRY:
        return false;
    default:
        CHECK(0, "exit reason %u", r->exit_reason);
        return false;
    }
}
