/* Messages between APICs: who is addressed, who takes it, and the interrupt command register (SDM 3A 10.6). */
#include "chips_state.h"

static bool match_physical(const Lapic *l, const Message *m, bool ipi)
{
    if (lapic_x2apic(l))
        return m->destination == 0xffffffff || (!ipi && m->destination == 0xff) || m->destination == l->cpu->index;
    return m->destination == 0xff || m->destination == l->reg[APIC_ID] >> 24;
}

static bool match_logical(const Lapic *l, const Message *m, bool ipi)
{
    uint32_t to = m->destination, ldr = l->reg[APIC_LDR];
    if (lapic_x2apic(l)) {
        if (to == 0xffffffff || (!ipi && to == 0xff))
            return true;
        return ldr >> 16 == to >> 16 && ldr & to & 0xffff;
    }
    if (to == 0xff)
        return true;
    if (to > 0xff)
        return false;
    ldr >>= 24;
    if (l->reg[APIC_DFR] >> 28 == 0xf) /* flat model */
        return ldr & to;
    return ldr >> 4 == to >> 4 && ldr & to & 15;
}

static bool match(const Lapic *l, const Cpu *source, const Message *m)
{
    switch (m->shorthand) {
    case SHORTHAND_SELF:
        return l->cpu == source;
    case SHORTHAND_ALL:
        return true;
    case SHORTHAND_OTHERS:
        return l->cpu != source;
    default:
        return m->logical ? match_logical(l, m, source != NULL) : match_physical(l, m, source != NULL);
    }
}

/* A message that one of several may take goes to one chosen by its vector, among those enabled by software: spread as KVM
   spreads it, and the same on every run. */
int chips_deliver(Chips *chips, const Cpu *source, const Message *m)
{
    bool lowest = m->mode == DM_LOWEST || m->redirect;
    Vm *vm = chips->vm;
    int count = 0;
    uint32_t candidates = 0;
    for (uint32_t n = 0; n < vm->cpu_count; n++) {
        Lapic *l = vm->cpu[n] ? vm->cpu[n]->lapic : NULL;
        if (!l || !lapic_hw_enabled(l) || !match(l, source, m))
            continue;
        if (!lowest)
            count += lapic_accept(l, m);
        else if (lapic_enabled(l))
            candidates++;
    }
    if (!candidates)
        return count;
    uint32_t chosen = m->vector % candidates;
    for (uint32_t n = 0; n < vm->cpu_count; n++) {
        Lapic *l = vm->cpu[n] ? vm->cpu[n]->lapic : NULL;
        if (l && lapic_enabled(l) && match(l, source, m) && chosen-- == 0)
            return lapic_accept(l, m);
    }
    return 0;
}

void lapic_send(Lapic *l, uint32_t command, uint32_t destination)
{
    Message m = {
        .vector = (uint8_t)command, .mode = command >> 8 & 7, .logical = command & 0x800, .assert = command & 0x4000,
        .level = command & 0x8000, .shorthand = command >> 18 & 3, .destination = destination,
    };
    if (m.mode <= DM_LOWEST && m.vector < 16) {
        lapic_error(l, ESR_SEND_ILLEGAL_VECTOR);
        return;
    }
    if (m.mode != DM_RESERVED && m.mode != DM_EXTINT)
        chips_deliver(l->chips, l->cpu, &m);
}

/* Address FEExxxxx: destination in bits 12-19, redirection hint in bit 3, logical mode in bit 2 (SDM 3A 10.11). */
int chips_signal_msi(Chips *chips, uint64_t address, uint32_t data)
{
    Message m = {
        .vector = (uint8_t)data, .mode = data >> 8 & 7, .level = data & 0x8000, .assert = true,
        .destination = address >> 12 & 0xff, .redirect = address & 8, .logical = address & 4,
    };
    chips_lock(chips);
    int count = chips_deliver(chips, NULL, &m);
    chips_unlock(chips);
    return count;
}
