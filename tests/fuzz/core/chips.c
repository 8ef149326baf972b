/* The interrupt chips: any traffic from two vCPUs, lines, messages and time; saved and restored in between. */
#include "fuzz.h"

#define CHIPS 3

typedef struct {
    struct kvm_irqchip chip[CHIPS];
    struct kvm_pit_state2 pit;
    struct kvm_lapic_state lapic[2];
    uint64_t base[2], deadline[2];
} Saved;

static void save(Vm *vm, Saved *s)
{
    memset(s, 0, sizeof *s);
    for (unsigned n = 0; n < CHIPS; n++) {
        s->chip[n].chip_id = n;
        CHECK(!kp_vm_get_irqchip(vm, &s->chip[n]), "chip %u", n);
    }
    CHECK(!kp_vm_get_pit(vm, &s->pit), "8254");
    for (unsigned n = 0; n < 2; n++) {
        CHECK(!kp_vcpu_get_lapic(vm->cpu[n], &s->lapic[n]), "local APIC %u", n);
        CHECK(!kp_vcpu_get_msr(vm->cpu[n], 0x1b, &s->base[n]) && !kp_vcpu_get_msr(vm->cpu[n], 0x6e0, &s->deadline[n]), "its MSRs");
    }
}

static void restore(Vm *vm, const Saved *s)
{
    for (unsigned n = 0; n < 2; n++) {
        CHECK(!kp_vcpu_set_msr(vm->cpu[n], 0x1b, s->base[n]), "APIC_BASE %llx is refused", (unsigned long long)s->base[n]);
        CHECK(!kp_vcpu_set_lapic(vm->cpu[n], &s->lapic[n]), "its own local APIC %u is refused", n);
        CHECK(!kp_vcpu_set_msr(vm->cpu[n], 0x6e0, s->deadline[n]), "TSC_DEADLINE is refused");
    }
    for (unsigned n = 0; n < CHIPS; n++)
        CHECK(!kp_vm_set_irqchip(vm, &s->chip[n]), "its own chip %u is refused", n);
    CHECK(!kp_vm_set_pit(vm, &s->pit), "its own 8254 is refused");
}

/* What is saved, restored and saved again is the same, once requests that wait have been raised again (ioapic_set). */
static void save_and_restore(Vm *vm)
{
    Saved first, second;
    save(vm, &first);
    restore(vm, &first);
    save(vm, &first);
    restore(vm, &first);
    save(vm, &second);
    for (unsigned n = 0; n < CHIPS; n++)
        for (unsigned at = 0; at < sizeof first.chip[n]; at++)
            CHECK(((uint8_t *)&first.chip[n])[at] == ((uint8_t *)&second.chip[n])[at], "chip %u, byte %u", n, at);
    for (unsigned at = 0; at < sizeof first.pit; at++)
        CHECK(((uint8_t *)&first.pit)[at] == ((uint8_t *)&second.pit)[at], "8254, byte %u", at);
    for (unsigned n = 0; n < 2; n++) {
        for (unsigned at = 0; at < sizeof first.lapic[n]; at++)
            CHECK(first.lapic[n].regs[at] == second.lapic[n].regs[at], "local APIC %u, byte %x", n, at);
        CHECK(first.base[n] == second.base[n] && first.deadline[n] == second.deadline[n], "MSRs of local APIC %u", n);
    }
}

/* Time goes on; every deadline on the way fires at its moment, none for ever. */
static void pass(Vm *vm, uint64_t ns)
{
    uint64_t end = vm_now(vm) + ns, deadline;
    unsigned fired = 0;
    while ((deadline = chips_deadline(vm->chips)) <= end && fired++ < 200) {
        uint64_t now = vm_now(vm);
        if (deadline > now)
            vm->virtual_skip += deadline - now;
        chips_tick(vm->chips, vm_now(vm));
        CHECK(chips_deadline(vm->chips) > vm_now(vm), "a deadline of the past is left");
    }
    if (vm_now(vm) < end)
        vm->virtual_skip += end - vm_now(vm);
    chips_tick(vm->chips, vm_now(vm));
}

/* A state of chips as a hostile snapshot has it: taken or refused, whatever stands in it. */
static void hostile(Vm *vm, Input *in)
{
    Saved s;
    save(vm, &s);
    for (unsigned n = (unsigned)take(in, 1) & 15; n > 0; n--)
        ((uint8_t *)&s)[take(in, 2) % sizeof s] = (uint8_t)take(in, 1);
    for (unsigned n = 0; n < CHIPS; n++)
        (void)kp_vm_set_irqchip(vm, &s.chip[n]);
    (void)kp_vm_set_pit(vm, &s.pit);
    for (unsigned n = 0; n < 2; n++) {
        (void)kp_vcpu_set_msr(vm->cpu[n], 0x1b, s.base[n]);
        (void)kp_vcpu_set_lapic(vm->cpu[n], &s.lapic[n]);
        (void)kp_vcpu_set_msr(vm->cpu[n], 0x6e0, s.deadline[n]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x43};
    static const uint8_t sizes[] = {1, 2, 4, 8};
    Input in = {data, data + size};
    Vm *vm = machine_new(true, 2, false);
    Chips *chips = vm->chips;
    while (more(&in)) {
        unsigned what = (unsigned)take(&in, 1);
        Cpu *c = vm->cpu[what >> 7];
        uint64_t value;
        uint32_t answer;
        switch (what & 15) {
        case 0: case 1: {
            uint16_t port = ports[take(&in, 1) % ARRAY_SIZE(ports)];
            chips_port_write(chips, port, 1, (uint32_t)take(&in, 1));
            break;
        }
        case 2:
            chips_port_read(chips, ports[take(&in, 1) % ARRAY_SIZE(ports)], 1, &answer);
            break;
        case 3: case 4: {
            uint64_t reg = take(&in, 1);
            chips_mmio_write(chips, c, (c->apic_base & ~0xfffull) + (reg & 63) * 16, 4, take(&in, 4));
            break;
        }
        case 5: {
            uint64_t offset = take(&in, 2) & 0xfff;
            unsigned bytes = sizes[what >> 4 & 3];
            value = chips_mmio_read(chips, c, 0xfee00000 + offset, bytes);
            break;
        }
        case 6: {
            uint32_t reg = (uint32_t)take(&in, 1);
            chips_mmio_write(chips, c, 0xfec00000, 4, reg & 0x3f);
            chips_mmio_write(chips, c, 0xfec00010, 4, take(&in, 4));
            break;
        }
        case 7: {
            uint64_t offset = take(&in, 1);
            unsigned bytes = sizes[what >> 4 & 3];
            if (what & 0x40)
                chips_mmio_write(chips, c, 0xfec00000 + offset, bytes, take(&in, 8));
            else
                chips_mmio_read(chips, c, 0xfec00000 + offset, bytes);
            break;
        }
        case 8: chips_irq_line(chips, (uint32_t)take(&in, 1) & 31, (int)(what >> 4 & 1)); break;
        case 9: {
            uint64_t address = 0xfee00000 | take(&in, 3);
            chips_signal_msi(chips, address, (uint32_t)take(&in, 2));
            break;
        }
        case 10: {
            int pending = chips_pending(c);
            CHECK(pending >= -1 && pending < 256, "pending %d", pending);
            if (what & 0x10 && pending >= 0) {
                int vector = chips_acknowledge(c);
                CHECK(vector >= -1 && vector < 256, "acknowledged %d", vector);
            }
            break;
        }
        case 11: {
            uint32_t index = 0x800 + (uint32_t)take(&in, 1);
            if (lapic_msr_write(c, what & 0x10 ? 0x6e0 : what & 0x20 ? 0x1b : index, take(&in, what & 0x20 ? 5 : 4), what & 0x40))
                break;
            break;
        }
        case 12: (void)lapic_msr_read(c, 0x800 + (uint32_t)take(&in, 1), &value); break;
        case 13: lapic_set_cr8(c, take(&in, 1) & 15); (void)lapic_get_cr8(c); (void)chips_pending_for_halted(c); break;
        case 14: pass(vm, what & 0x10 ? take(&in, 4) : take(&in, 2)); break;
        default:
            if (what & 0x10)
                hostile(vm, &in);
            else if (what & 0x20)
                lapic_reset(c, what & 0x40);
            else
                save_and_restore(vm);
        }
    }
    return 0;
}
