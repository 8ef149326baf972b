/* Page walks over tables that the guest made, with every control bit: the walk stays inside RAM, agrees with the debugger's
   translation, keeps what it found when asked again, and rights grow with A and D set, never shrink. What they find goes into the TLB,
   between flushes and loads of CR3 with and without PCIDs: what a flush is asked for is gone from all tables. */
#include "fuzz.h"

#define TABLES 6

/* An entry that points somewhere useful: one of the tables, a page, or anything. */
static uint64_t entry(Input *in)
{
    uint64_t where = take(in, 1), rights = take(in, 1), high = take(in, 1);
    uint64_t value = rights | (high & 0x80) << 56 | (high & 1) << 12 | (high & 2 ? 1ull << 8 : 0);
    switch (where & 7) {
    case 0: return take(in, 8);
    case 1: return value | (where >> 3) << 21;
    case 2: return value | (where >> 3) << 30;
    case 3: return value | (uint64_t)ROM_AT;
    case 4: return value | (uint64_t)(where >> 3) << 40;
    default: return value | (LONG_AT + (where >> 3) % TABLES * 0x1000);
    }
}

static uint64_t linear_address(Input *in)
{
    uint64_t index = take(in, 4), low = take(in, 2), a = 0;
    for (unsigned level = 0; level < 4; level++) /* few entries of each table are made */
        a |= (index >> 8 * level & 7) << (12 + 9 * level);
    if (low & 0x8000)
        a |= (index >> 27 & 31) << 43;
    a |= low & 0xfff;
    return low & 0x4000 ? take(in, 8) : (uint64_t)((int64_t)(a << 16) >> 16);
}

static TlbEntry *slot_of(Cpu *c, unsigned table, uint64_t linear) { return &c->tlb_table[table][linear >> 12 & (TLB_SIZE - 1)]; }

enum { BY_PAGE, BY_PHYS, NOT_GLOBAL, ANY };

/* No entry of an index, or of all, is what a flush was asked to take. */
static void check_gone(Cpu *c, unsigned first, unsigned end, int what, uint64_t page)
{
    for (unsigned n = first; n < end; n++)
        for (unsigned table = 0; table < TLB_TABLES; table++)
            for (unsigned way = 0; way < 2; way++) {
                const TlbEntry *e = &c->tlb_table[table][way * TLB_SIZE + n];
                if (e->linear == TLB_INVALID || (e->linear >> 12 & (TLB_SIZE - 1)) != n)
                    continue;
                bool stays = what == ANY ? false : what == BY_PAGE ? e->linear != page : what == BY_PHYS ? e->phys != page : e->flags & TLBF_GLOBAL;
                CHECK(stays || !e->linear, "page %llx of table %u, way %u", (unsigned long long)e->linear, table, way);
            }
}

static void flush_somehow(Cpu *c, uint64_t linear, uint64_t how)
{
    uint32_t pcid = (uint32_t)(how >> 4);
    unsigned n = linear >> 12 & (TLB_SIZE - 1);
    uint64_t phys = slot_of(c, 0, linear)->phys;
    switch (how & 7) {
    case 0: tlb_flush_pcid(c, pcid); break;
    case 1: tlb_flush_pcid_page(c, pcid, linear); break;
    case 2:
        tlb_flush_pcids(c);
        check_gone(c, 0, TLB_SIZE, NOT_GLOBAL, 0);
        break;
    case 3:
        tlb_flush_all(c);
        check_gone(c, 0, TLB_SIZE, ANY, 0);
        break;
    case 4:
        tlb_flush_phys(c->vm, phys);
        check_gone(c, n, n + 1, BY_PHYS, phys & ~0xfffull);
        break;
    default:
        tlb_load_cr3(c, (c->cr3 & ~0xfffull) | (c->cr4 & CR4_PCIDE ? pcid : 0), c->cr4 & CR4_PCIDE && how & 8);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Input in = {data, data + size};
    Vm *vm = machine_new(false, 1, false);
    Cpu *c = vm->cpu[0];
    machine_tables();
    unsigned mode = PAGED32 + (unsigned)take(&in, 1) % 4;
    unsigned cpl = take(&in, 1) & 1 ? 3 : 0;
    machine_mode(c, mode, cpl);
    memset(ram + LONG_AT, 0, TABLES * 0x1000);
    struct kvm_sregs s;
    for (unsigned n = (unsigned)take(&in, 1) & 63; n > 0; n--) {
        uint64_t table = take(&in, 1), value = entry(&in), at = LONG_AT + (table >> 3) % TABLES * 0x1000 + (table & 7) * 8;
        memcpy(ram + at, &value, 8);
    }
    kp_vm_memory_written(vm, 0, RAM_SIZE);
    kp_vcpu_get_sregs(c, &s);
    uint64_t bits = take(&in, 2);
    s.cr3 = bits & 1 ? take(&in, 8) : LONG_AT + (bits >> 1 & 0x18);
    s.cr0 |= (bits & 0x100 ? CR0_WP : 0) | (bits & 0x200 ? CR0_AM : 0);
    s.cr4 ^= (bits & 0x400 ? CR4_PSE : 0) | (bits & 0x800 ? CR4_PGE : 0) | (bits & 0x1000 ? CR4_SMEP : 0)
        | (bits & 0x2000 ? CR4_SMAP : 0) | (bits & 0x4000 && mode > PAE_MODE ? CR4_PCIDE : 0);
    s.efer ^= bits & 0x8000 ? EFER_NXE : 0;
    (void)kp_vcpu_set_sregs(c, &s);
    struct kvm_regs r = {.rflags = 2 | (take(&in, 1) & 1 ? FL_AC : 0)};
    kp_vcpu_set_regs(c, &r);
    while (more(&in)) {
        uint64_t linear = linear_address(&in), what = take(&in, 1), phys;
        int access = (int)(what & 3) % 3;
        bool user = what & 4, writable, us, there = !mmu_translate(c, linear, &phys, &writable, &us);
        struct kvm_translation t = {.linear_address = linear};
        CHECK(!kp_vcpu_translate(c, &t), "translate");
        CHECK(t.valid == there && (!there || t.physical_address == phys), "two translations of %llx", (unsigned long long)linear);
        if (c->efer & EFER_LMA ? !is_canonical(linear) : linear >> 32)
            continue; /* such an address never comes to the walk */
        TlbEntry first = {0}, second = {0};
        uint32_t error = mmu_walk(c, linear, access, user, &first);
        if (!error) {
            CHECK(there && (phys & ~0xfffull) == first.phys, "walked %llx to %llx, translated to %llx (%d)", (unsigned long long)linear,
                  (unsigned long long)first.phys, (unsigned long long)phys, there);
            CHECK(first.flags & (access == ACCESS_WRITE ? TLBF_W : access == ACCESS_EXEC ? TLBF_X : TLBF_R), "flags %x", first.flags);
            CHECK(access != ACCESS_WRITE || writable || (!user && !(c->cr0 & CR0_WP)), "a write to a read-only page");
            CHECK(!user || us, "a user's access to a supervisor page");
            CHECK(!mmu_walk(c, linear, access, user, &second), "the second walk faults");
            CHECK(first.phys == second.phys, "the second walk leads elsewhere");
            TlbEntry *e = slot_of(c, user ? 0 : 1 + (what >> 7), linear);
            if (e[TLB_SIZE].linear == first.linear && e->linear != first.linear)
                tlb_swap_ways(c, e);
            tlb_take(c, e, &first);
            if (access == ACCESS_EXEC && user == (c->cpl == 3))
                tlb_fetched(c, e);
        } else if (there)
            CHECK(error & 1, "not present, though translated: %x", error);
        if (what & 8) {
            uint64_t value = entry(&in), table = take(&in, 1), at = LONG_AT + (table >> 3) % TABLES * 0x1000 + (table & 7) * 8;
            memcpy(ram + at, &value, 8);
        }
        if (what & 0x10) {
            tlb_flush_page(c, linear);
            check_gone(c, linear >> 12 & (TLB_SIZE - 1), (linear >> 12 & (TLB_SIZE - 1)) + 1, BY_PAGE, linear & ~0xfffull);
        }
        if (what & 0x20)
            tlb_flush_nonglobal(c);
        if (what & 0x40)
            flush_somehow(c, linear, take(&in, 1));
    }
    tlb_flush_all(c);
    return 0;
}
