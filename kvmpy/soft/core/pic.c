/* Two cascaded 8259A interrupt controllers with the edge/level control registers of a PC chipset (Intel 8259A data sheet). */
#include "chips_state.h"

#define CASCADE 2u /* the slave's output is the master's IR2 */
static const uint8_t elcr_mask[2] = {0xf8, 0xde}; /* IRQ 0, 1, 2, 8 and 13 are always edge-triggered */

/* ICW1 bits kept in init4 until the initialisation sequence has ended. */
#define ICW1_IC4 1u
#define ICW1_SINGLE 2u

static void set_pin(struct kvm_pic_state *p, unsigned pin, int level)
{
    uint8_t bit = (uint8_t)(1u << pin);
    if (p->elcr & bit) {
        if (level) {
            p->irr |= bit;
            p->last_irr |= bit;
        } else {
            p->irr &= (uint8_t)~bit;
            p->last_irr &= (uint8_t)~bit;
        }
    } else if (level) {
        if (!(p->last_irr & bit))
            p->irr |= bit;
        p->last_irr |= bit;
    } else {
        p->last_irr &= (uint8_t)~bit;
    }
}

/* Distance of the highest-priority bit from the top of the present rotation; 8 where none is set. */
static unsigned priority(const struct kvm_pic_state *p, uint8_t bits)
{
    unsigned n = 0;
    while (n < 8 && !(bits >> ((n + p->priority_add) & 7) & 1))
        n++;
    return n;
}

/* The request that `which` would signal now, or -1. */
static int requested(const Chips *chips, unsigned which)
{
    const struct kvm_pic_state *p = &chips->pic[which];
    unsigned request = priority(p, p->irr & (uint8_t)~p->imr);
    if (request == 8)
        return -1;
    uint8_t service = p->isr;
    if (p->special_mask)
        service &= (uint8_t)~p->imr;
    if (p->special_fully_nested_mode && which == 0)
        service &= (uint8_t)~(1u << CASCADE);
    return request < priority(p, service) ? (int)((request + p->priority_add) & 7) : -1;
}

static void update(Chips *chips)
{
    if (requested(chips, 1) >= 0) { /* each new request of the slave is an edge of its own */
        set_pin(&chips->pic[0], CASCADE, 1);
        set_pin(&chips->pic[0], CASCADE, 0);
    }
    bool output = requested(chips, 0) >= 0;
    bool rises = output && !chips->pic_output;
    chips->pic_output = output;
    if (!output)
        return;
    for (uint32_t n = 0; n < chips->vm->cpu_count; n++) {
        Cpu *c = chips->vm->cpu[n];
        if (!c || !c->lapic)
            continue;
        uint32_t lint0 = c->lapic->reg[APIC_LVT_LINT0];
        if (rises && lapic_enabled(c->lapic) && !(lint0 & LVT_MASKED) && (lint0 >> 8 & 7) == DM_FIXED)
            lapic_local(c->lapic, APIC_LVT_LINT0);
        if (lapic_accepts_extint(c->lapic)) {
            cpu_attention(c);
            return;
        }
    }
}

static void end_of_interrupt(Chips *chips, unsigned which, unsigned irq)
{
    chips->pic[which].isr &= (uint8_t)~(1u << irq);
    gsi_acknowledged(chips, which * 8 + irq);
}

static void acknowledge(Chips *chips, unsigned which, unsigned irq)
{
    struct kvm_pic_state *p = &chips->pic[which];
    p->isr |= (uint8_t)(1u << irq);
    if (!(p->elcr >> irq & 1))
        p->irr &= (uint8_t)~(1u << irq);
    if (p->auto_eoi) {
        if (p->rotate_on_auto_eoi)
            p->priority_add = (irq + 1) & 7;
        end_of_interrupt(chips, which, irq);
    }
}

void pic_line(Chips *chips, uint32_t pin, int level)
{
    set_pin(&chips->pic[pin >> 3], pin & 7, level);
    update(chips);
}

int pic_pending(const Chips *chips)
{
    if (!chips->pic_output)
        return -1;
    int irq = requested(chips, 0);
    if (irq == CASCADE) {
        int slave = requested(chips, 1);
        return chips->pic[1].irq_base + (slave >= 0 ? slave : 7);
    }
    return chips->pic[0].irq_base + (irq >= 0 ? irq : 7);
}

/* The two INTA cycles. A request that has gone meanwhile gives IR7 of its chip, which does not enter service. */
int pic_acknowledge(Chips *chips)
{
    int vector, irq = requested(chips, 0);
    chips->pic_output = false;
    if (irq < 0) {
        vector = chips->pic[0].irq_base + 7;
    } else {
        acknowledge(chips, 0, (unsigned)irq);
        vector = chips->pic[0].irq_base + irq;
        if (irq == CASCADE) {
            int slave = requested(chips, 1);
            if (slave >= 0)
                acknowledge(chips, 1, (unsigned)slave);
            vector = chips->pic[1].irq_base + (slave >= 0 ? slave : 7);
        }
    }
    update(chips);
    return vector;
}

/* ICW1: edge detection, masks, priorities, special mask and read selection return to their start. */
static void initialize(Chips *chips, unsigned which, uint8_t icw1)
{
    struct kvm_pic_state *p = &chips->pic[which];
    uint8_t edges = p->irr & (uint8_t)~p->elcr;
    p->last_irr = 0;
    p->irr &= p->elcr;
    p->imr = 0;
    p->isr = 0;
    p->priority_add = 0;
    p->special_mask = 0;
    p->read_reg_select = 0;
    p->poll = 0;
    p->init4 = icw1 & (ICW1_IC4 | ICW1_SINGLE);
    if (!(icw1 & ICW1_IC4)) {
        p->special_fully_nested_mode = 0;
        p->auto_eoi = 0;
        p->rotate_on_auto_eoi = 0;
    }
    p->init_state = 1;
    for (unsigned irq = 0; irq < 8; irq++)
        if (edges >> irq & 1)
            end_of_interrupt(chips, which, irq);
    update(chips);
}

static void operation2(Chips *chips, unsigned which, uint8_t value)
{
    struct kvm_pic_state *p = &chips->pic[which];
    unsigned command = value >> 5, irq = value & 7, n;
    switch (command) {
    case 0: /* rotate in automatic EOI mode: clear, set */
    case 4:
        p->rotate_on_auto_eoi = command >> 2;
        break;
    case 1: /* non-specific EOI; 5: with rotation */
    case 5:
        n = priority(p, p->special_mask ? p->isr & (uint8_t)~p->imr : p->isr);
        if (n == 8)
            break;
        irq = (n + p->priority_add) & 7;
        if (command == 5)
            p->priority_add = (irq + 1) & 7;
        end_of_interrupt(chips, which, irq);
        update(chips);
        break;
    case 3: /* specific EOI; 7: with rotation */
    case 7:
        if (command == 7)
            p->priority_add = (irq + 1) & 7;
        end_of_interrupt(chips, which, irq);
        update(chips);
        break;
    case 6: /* set priority: irq becomes the lowest */
        p->priority_add = (irq + 1) & 7;
        update(chips);
        break;
    default:
        break;
    }
}

static void operation3(Chips *chips, unsigned which, uint8_t value)
{
    struct kvm_pic_state *p = &chips->pic[which];
    if (value & 4)
        p->poll = 1;
    if (value & 2)
        p->read_reg_select = value & 1;
    if (value & 0x40)
        p->special_mask = value >> 5 & 1;
    update(chips);
}

static void write_mask(Chips *chips, unsigned which, uint8_t value)
{
    uint8_t changed = chips->pic[which].imr ^ value;
    chips->pic[which].imr = value;
    for (unsigned irq = 0; irq < 8; irq++)
        if (changed >> irq & 1)
            gsi_mask_changed(chips, which * 8 + irq, value >> irq & 1);
    update(chips);
}

static void write_odd(Chips *chips, unsigned which, uint8_t value)
{
    struct kvm_pic_state *p = &chips->pic[which];
    uint8_t after_icw3 = p->init4 & ICW1_IC4 ? 3 : 0;
    switch (p->init_state) {
    case 1: /* ICW2 */
        p->irq_base = value & 0xf8;
        p->init_state = p->init4 & ICW1_SINGLE ? after_icw3 : 2;
        break;
    case 2: /* ICW3: the cascade is wired as in a PC */
        p->init_state = after_icw3;
        break;
    case 3: /* ICW4 */
        p->special_fully_nested_mode = value >> 4 & 1;
        p->auto_eoi = value >> 1 & 1;
        p->init_state = 0;
        break;
    default: /* OCW1 */
        write_mask(chips, which, value);
        break;
    }
}

/* Poll command: the read acknowledges like an INTA cycle and gives the request with bit 7 set, or 0 without one. */
static uint8_t poll(Chips *chips, unsigned which)
{
    int irq = requested(chips, which);
    if (irq < 0)
        return 0;
    acknowledge(chips, which, (unsigned)irq);
    update(chips);
    return (uint8_t)(0x80 | irq);
}

bool pic_port(uint16_t port, unsigned size)
{
    unsigned end = port + size;
    return (port >= 0x20 && end <= 0x22) || (port >= 0xa0 && end <= 0xa2) || (port >= 0x4d0 && end <= 0x4d2);
}

uint8_t pic_read(Chips *chips, uint16_t port)
{
    if (port >= 0x4d0)
        return chips->pic[port & 1].elcr;
    unsigned which = port >> 7 & 1;
    struct kvm_pic_state *p = &chips->pic[which];
    if (p->poll) {
        p->poll = 0;
        return poll(chips, which);
    }
    return port & 1 ? p->imr : p->read_reg_select ? p->isr : p->irr;
}

void pic_write(Chips *chips, uint16_t port, uint8_t value)
{
    if (port >= 0x4d0) {
        chips->pic[port & 1].elcr = value & elcr_mask[port & 1];
        return;
    }
    unsigned which = port >> 7 & 1;
    if (port & 1)
        write_odd(chips, which, value);
    else if (value & 0x10)
        initialize(chips, which, value);
    else if (value & 8)
        operation3(chips, which, value);
    else
        operation2(chips, which, value);
}

void pic_reset(Chips *chips)
{
    memset(chips->pic, 0, sizeof(chips->pic));
    chips->pic[0].elcr_mask = elcr_mask[0];
    chips->pic[1].elcr_mask = elcr_mask[1];
    chips->pic_output = false;
}

void pic_set(Chips *chips, unsigned which, const struct kvm_pic_state *state)
{
    struct kvm_pic_state *p = &chips->pic[which];
    *p = *state;
    p->priority_add &= 7;
    p->elcr &= elcr_mask[which];
    p->elcr_mask = elcr_mask[which];
    update(chips);
}
