/* I/O APIC with 24 pins (Intel 82093AA data sheet), version 0x11: no EOI register, EOIs come by broadcast. As in KVM the
   polarity bit is kept but a line's level 1 always means asserted. */
#include "chips_state.h"

#define VERSION 0x11u
enum { REG_ID, REG_VERSION, REG_ARBITRATION, REG_TABLE = 0x10 };

/* A redirection entry: data sheet 3.2.4. */
#define ENTRY_LOGICAL (1ull << 11)
#define ENTRY_STATUS (1ull << 12)
#define ENTRY_REMOTE_IRR (1ull << 14)
#define ENTRY_LEVEL (1ull << 15)
#define ENTRY_MASKED (1ull << 16)
#define ENTRY_READ_ONLY (ENTRY_STATUS | ENTRY_REMOTE_IRR)
#define ENTRY_BITS (0xff00000000000000ull | 0x1ffffull)

/* Sends the pin's interrupt unless it is masked or, level-triggered, waits for its EOI. */
static void service(Chips *chips, unsigned pin)
{
    uint64_t entry = chips->ioapic.redirtbl[pin].bits;
    if (entry & ENTRY_MASKED || (entry & ENTRY_LEVEL && entry & ENTRY_REMOTE_IRR))
        return;
    Message m = {
        .vector = (uint8_t)entry, .mode = entry >> 8 & 7, .logical = entry & ENTRY_LOGICAL, .level = entry & ENTRY_LEVEL,
        .assert = true, .destination = (uint32_t)(entry >> 56),
    };
    if (!m.level)
        chips->ioapic_delivered |= 1u << pin;
    if (chips_deliver(chips, NULL, &m) > 0 && m.level)
        chips->ioapic.redirtbl[pin].bits |= ENTRY_REMOTE_IRR;
}

void ioapic_line(Chips *chips, uint32_t pin, int level)
{
    uint32_t bit = 1u << pin;
    bool was = chips->ioapic.irr & bit;
    if (!level) {
        chips->ioapic.irr &= ~bit;
        return;
    }
    chips->ioapic.irr |= bit;
    if (!(chips->ioapic.redirtbl[pin].bits & ENTRY_LEVEL)) {
        if (was)
            return;
        chips->ioapic_delivered &= ~bit;
    }
    service(chips, pin);
}

/* EOI of a vector by a local APIC; level: its TMR bit; broadcast: not suppressed there. */
void ioapic_eoi(Chips *chips, uint8_t vector, bool level, bool broadcast)
{
    for (unsigned pin = 0; pin < GSI_COUNT; pin++) {
        uint64_t *entry = &chips->ioapic.redirtbl[pin].bits;
        if ((uint8_t)*entry != vector)
            continue;
        gsi_acknowledged(chips, pin);
        if (!level || !broadcast || !(*entry & ENTRY_LEVEL))
            continue;
        *entry &= ~ENTRY_REMOTE_IRR;
        if (chips->ioapic.irr >> pin & 1)
            service(chips, pin);
    }
}

static void write_entry(Chips *chips, unsigned pin, bool high, uint32_t value)
{
    uint64_t *entry = &chips->ioapic.redirtbl[pin].bits, before = *entry;
    if (high) {
        *entry = ((uint64_t)value << 32 | (uint32_t)before) & ENTRY_BITS;
    } else {
        *entry = ((before & ~0xffffffffull) | (value & ~ENTRY_READ_ONLY) | (before & ENTRY_READ_ONLY)) & ENTRY_BITS;
        if (!(*entry & ENTRY_LEVEL)) /* a way to clear a stuck Remote IRR that drivers count on */
            *entry &= ~ENTRY_REMOTE_IRR;
    }
    if ((before ^ *entry) & ENTRY_MASKED)
        gsi_mask_changed(chips, pin, *entry & ENTRY_MASKED);
    if (*entry & ENTRY_LEVEL && chips->ioapic.irr >> pin & 1)
        service(chips, pin);
}

static uint32_t read_register(const Chips *chips, uint32_t select)
{
    if (select == REG_ID || select == REG_ARBITRATION)
        return (chips->ioapic.id & 15) << 24;
    if (select == REG_VERSION)
        return (GSI_COUNT - 1) << 16 | VERSION;
    if (select < REG_TABLE || select >= REG_TABLE + 2 * GSI_COUNT)
        return select < REG_TABLE ? 0 : 0xffffffffu;
    uint64_t entry = chips->ioapic.redirtbl[(select - REG_TABLE) / 2].bits;
    return (uint32_t)(select & 1 ? entry >> 32 : entry);
}

uint32_t ioapic_read(Chips *chips, uint32_t offset)
{
    if (offset == 0)
        return chips->ioapic.ioregsel;
    return offset == 0x10 ? read_register(chips, chips->ioapic.ioregsel) : 0;
}

void ioapic_write(Chips *chips, uint32_t offset, uint32_t value)
{
    uint32_t select = chips->ioapic.ioregsel;
    if (offset == 0)
        chips->ioapic.ioregsel = value & 0xff;
    else if (offset == 0x10 && select == REG_ID)
        chips->ioapic.id = value >> 24 & 15;
    else if (offset == 0x10 && select >= REG_TABLE && select < REG_TABLE + 2 * GSI_COUNT)
        write_entry(chips, (select - REG_TABLE) / 2, select & 1, value);
}

void ioapic_reset(Chips *chips)
{
    memset(&chips->ioapic, 0, sizeof(chips->ioapic));
    chips->ioapic.base_address = IOAPIC_BASE;
    for (unsigned pin = 0; pin < GSI_COUNT; pin++)
        chips->ioapic.redirtbl[pin].bits = ENTRY_MASKED;
    chips->ioapic_delivered = 0;
}

void ioapic_get(const Chips *chips, struct kvm_ioapic_state *state)
{
    *state = chips->ioapic;
    state->irr &= ~chips->ioapic_delivered;
}

/* Requests that were not sent yet are raised again, as nothing tells whether they reached their local APIC. */
void ioapic_set(Chips *chips, const struct kvm_ioapic_state *state)
{
    chips->ioapic = *state;
    chips->ioapic.ioregsel &= 0xff;
    chips->ioapic.irr = 0;
    chips->ioapic_delivered = 0;
    for (unsigned pin = 0; pin < GSI_COUNT; pin++)
        if (state->irr >> pin & 1)
            ioapic_line(chips, pin, 1);
}
