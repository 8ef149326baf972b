/* The chips of a VM as one: their lock, their addresses, the lines to them and their deadlines. */
#include <stdlib.h>

#include "chips_state.h"

Chips *chips_create(Vm *vm)
{
    Chips *chips = calloc(1, sizeof(*chips));
    if (!chips)
        return NULL;
    /* Recursive: what the chips call of the run loop may ask them for their deadline. */
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&chips->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    chips->vm = vm;
    pic_reset(chips);
    ioapic_reset(chips);
    pit_reset(chips);
    return chips;
}

void chips_destroy(Chips *chips)
{
    if (!chips)
        return;
    pthread_mutex_destroy(&chips->lock);
    free(chips);
}

void chips_create_pit(Chips *chips)
{
    chips_lock(chips);
    pit_reset(chips);
    chips->has_pit = true;
    chips_unlock(chips);
}

/* ---- lines: GSI 0-15 go to the 8259 pin and the I/O APIC pin of their number, 16-23 to the I/O APIC alone. KVM's default:
   GSI 0 is pin 0 of the I/O APIC, not pin 2. ---- */

void gsi_set(Chips *chips, uint32_t gsi, uint8_t source, int level)
{
    if (level)
        chips->sources[gsi] |= source;
    else
        chips->sources[gsi] &= (uint8_t)~source;
    level = chips->sources[gsi] != 0;
    if (gsi < PIC_PINS)
        pic_line(chips, gsi, level);
    ioapic_line(chips, gsi, level);
}

void gsi_acknowledged(Chips *chips, uint32_t gsi)
{
    if (gsi == 0 && chips->has_pit)
        pit_acknowledged(chips);
}

/* Edges that piled up behind a mask are dropped when it goes. */
void gsi_mask_changed(Chips *chips, uint32_t gsi, bool masked)
{
    if (gsi == 0 && !masked)
        pit_forget(chips);
}

void chips_work(Chips *chips) { pit_work(chips); }

void chips_irq_line(Chips *chips, uint32_t gsi, int level)
{
    if (gsi >= GSI_COUNT)
        return;
    chips_lock(chips);
    gsi_set(chips, gsi, SOURCE_USER, level);
    chips_unlock(chips);
}

/* ---- what a vCPU takes: the 8259s first, as in KVM ---- */

static bool extint(const Cpu *c) { return c->lapic->chips->pic_output && lapic_accepts_extint(c->lapic); }

int cpu_pending(Cpu *c)
{
    if (extint(c))
        return pic_pending(c->lapic->chips);
    return lapic_pending(c->lapic);
}

int chips_pending(Cpu *c)
{
    if (!c->lapic)
        return -1;
    chips_lock(c->lapic->chips);
    int vector = cpu_pending(c);
    chips_unlock(c->lapic->chips);
    return vector;
}

int chips_acknowledge(Cpu *c)
{
    if (!c->lapic)
        return -1;
    Chips *chips = c->lapic->chips;
    chips_lock(chips);
    int vector = extint(c) ? pic_acknowledge(chips) : lapic_acknowledge(c->lapic);
    chips_work(chips);
    chips_unlock(chips);
    return vector;
}

/* Messages can always come to an enabled local APIC; an 8259 line only where it is not masked. */
bool chips_pending_for_halted(Cpu *c)
{
    if (!c->lapic)
        return false;
    Chips *chips = c->lapic->chips;
    chips_lock(chips);
    bool wakes = lapic_enabled(c->lapic) || cpu_pending(c) >= 0 ||
                 (lapic_accepts_extint(c->lapic) && chips->pic[0].imr != 0xff);
    chips_unlock(chips);
    return wakes;
}

/* ---- time ---- */

uint64_t chips_deadline(Chips *chips)
{
    if (!chips)
        return NEVER;
    chips_lock(chips);
    uint64_t earliest = chips->has_pit ? chips->pit.deadline : NEVER;
    for (uint32_t n = 0; n < chips->vm->cpu_count; n++) {
        Cpu *c = chips->vm->cpu[n];
        if (!c || !c->lapic)
            continue;
        uint64_t deadline = lapic_timer_deadline(c->lapic);
        if (deadline < earliest)
            earliest = deadline;
    }
    chips_unlock(chips);
    return earliest;
}

void chips_tick(Chips *chips, uint64_t now)
{
    if (!chips)
        return;
    chips_lock(chips);
    if (chips->has_pit)
        pit_tick(chips, now);
    for (uint32_t n = 0; n < chips->vm->cpu_count; n++) {
        Cpu *c = chips->vm->cpu[n];
        if (c && c->lapic)
            lapic_timer_tick(c->lapic, now);
    }
    chips_unlock(chips);
}

void chips_clock_moved(Chips *chips, int64_t ns)
{
    chips_lock(chips);
    pit_clock_moved(chips, ns);
    for (uint32_t n = 0; n < chips->vm->cpu_count; n++) {
        Cpu *c = chips->vm->cpu[n];
        if (c && c->lapic)
            lapic_timer_clock_moved(c->lapic, ns);
    }
    chips_unlock(chips);
}

/* ---- ports and addresses ---- */

static bool pit_port(const Chips *chips, uint16_t port, unsigned size)
{
    return chips->has_pit && ((port >= 0x40 && port + size <= 0x44) || (port == 0x61 && size == 1));
}

bool chips_has_port(const Chips *chips, uint16_t port, unsigned size)
{
    return chips && (pic_port(port, size) || pit_port(chips, port, size));
}

/* The 8259s answer byte accesses only: wider ones read 0 and write nothing. */
bool chips_port_read(Chips *chips, uint16_t port, unsigned size, uint32_t *value)
{
    bool pic = pic_port(port, size);
    if (!chips || (!pic && !pit_port(chips, port, size)))
        return false;
    chips_lock(chips);
    if (!pic)
        *value = pit_read(chips, port);
    else
        *value = size == 1 ? pic_read(chips, port) : 0;
    chips_work(chips);
    chips_unlock(chips);
    return true;
}

bool chips_port_write(Chips *chips, uint16_t port, unsigned size, uint32_t value)
{
    bool pic = pic_port(port, size);
    if (!chips || (!pic && !pit_port(chips, port, size)))
        return false;
    chips_lock(chips);
    if (!pic)
        pit_write(chips, port, (uint8_t)value);
    else if (size == 1)
        pic_write(chips, port, (uint8_t)value);
    chips_work(chips);
    chips_unlock(chips);
    return true;
}

static bool in_lapic(const Cpu *c, uint64_t phys) { return c->lapic && phys >> 12 == c->apic_base >> 12; }

static bool in_ioapic(const Chips *chips, uint64_t phys)
{
    return phys >= chips->ioapic.base_address && phys - chips->ioapic.base_address < IOAPIC_BYTES;
}

bool chips_claims(Chips *chips, const Cpu *c, uint64_t phys)
{
    return chips && (in_lapic(c, phys) || in_ioapic(chips, phys));
}

uint64_t chips_mmio_read(Chips *chips, Cpu *c, uint64_t phys, unsigned size)
{
    uint64_t value, mask = size < 8 ? (1ull << size * 8) - 1 : ~0ull;
    chips_lock(chips);
    if (!in_lapic(c, phys))
        value = ioapic_read(chips, (uint32_t)(phys - chips->ioapic.base_address));
    else if (lapic_x2apic(c->lapic) || !lapic_hw_enabled(c->lapic))
        value = ~0ull;
    else
        value = lapic_mmio_read(c->lapic, phys & 0xfff, size);
    chips_unlock(chips);
    return value & mask;
}

void chips_mmio_write(Chips *chips, Cpu *c, uint64_t phys, unsigned size, uint64_t value)
{
    if (size < 4)
        value &= (1ull << size * 8) - 1;
    chips_lock(chips);
    if (in_lapic(c, phys))
        lapic_mmio_write(c->lapic, phys & 0xfff, size, (uint32_t)value);
    else
        ioapic_write(chips, (uint32_t)(phys - chips->ioapic.base_address), (uint32_t)value);
    chips_work(chips);
    chips_unlock(chips);
}

/* ---- state ---- */

int chips_get_irqchip(Chips *chips, struct kvm_irqchip *chip)
{
    uint32_t id = chip->chip_id;
    if (id > KVM_IRQCHIP_IOAPIC)
        return -EINVAL;
    memset(&chip->chip, 0, sizeof(chip->chip));
    chips_lock(chips);
    if (id == KVM_IRQCHIP_IOAPIC)
        ioapic_get(chips, &chip->chip.ioapic);
    else
        chip->chip.pic = chips->pic[id];
    chips_unlock(chips);
    return 0;
}

int chips_set_irqchip(Chips *chips, const struct kvm_irqchip *chip)
{
    if (chip->chip_id > KVM_IRQCHIP_IOAPIC)
        return -EINVAL;
    chips_lock(chips);
    if (chip->chip_id == KVM_IRQCHIP_IOAPIC)
        ioapic_set(chips, &chip->chip.ioapic);
    else
        pic_set(chips, chip->chip_id, &chip->chip.pic);
    chips_work(chips);
    chips_unlock(chips);
    return 0;
}

int chips_get_pit(Chips *chips, struct kvm_pit_state2 *pit)
{
    chips_lock(chips);
    if (chips->has_pit)
        pit_get(chips, pit);
    chips_unlock(chips);
    return chips->has_pit ? 0 : -ENXIO;
}

int chips_set_pit(Chips *chips, const struct kvm_pit_state2 *pit)
{
    chips_lock(chips);
    if (chips->has_pit)
        pit_set(chips, pit);
    chips_unlock(chips);
    return chips->has_pit ? 0 : -ENXIO;
}
