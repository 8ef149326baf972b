/* Local APIC: registers, priorities, acceptance of interrupts, EOI (SDM 3A chapter 10). Version and odd corners as KVM's. */
#include <stdlib.h>

#include "chips_state.h"

#define VERSION 0x50014u /* six local vector table entries */

static int highest(const uint32_t *words)
{
    for (int n = 7; n >= 0; n--)
        if (words[n])
            return n * 32 + 31 - __builtin_clz(words[n]);
    return -1;
}

static bool test_bit(const uint32_t *words, unsigned n) { return words[n >> 5] >> (n & 31) & 1; }
static void set_bit(uint32_t *words, unsigned n) { words[n >> 5] |= 1u << (n & 31); }
static void clear_bit(uint32_t *words, unsigned n) { words[n >> 5] &= ~(1u << (n & 31)); }

/* ---- priorities ---- */

uint32_t lapic_ppr(const Lapic *l)
{
    int isr = highest(&l->reg[APIC_ISR]);
    uint32_t class = isr < 0 ? 0 : (uint32_t)isr & 0xf0, tpr = l->reg[APIC_TPR] & 0xff;
    return (tpr & 0xf0) >= class ? tpr : class;
}

int lapic_pending(const Lapic *l)
{
    if (!lapic_hw_enabled(l))
        return -1;
    int irr = highest(&l->reg[APIC_IRR]);
    return irr >= 0 && ((uint32_t)irr & 0xf0) > (lapic_ppr(l) & 0xf0) ? irr : -1;
}

int lapic_acknowledge(Lapic *l)
{
    int vector = lapic_pending(l);
    if (vector >= 0) {
        clear_bit(&l->reg[APIC_IRR], (unsigned)vector);
        set_bit(&l->reg[APIC_ISR], (unsigned)vector);
    }
    return vector;
}

/* Something that held interrupts back may have gone. */
static void look_again(Lapic *l)
{
    if (cpu_pending(l->cpu) >= 0)
        cpu_attention(l->cpu);
}

static void end_of_interrupt(Lapic *l)
{
    int vector = highest(&l->reg[APIC_ISR]);
    if (vector < 0)
        return;
    clear_bit(&l->reg[APIC_ISR], (unsigned)vector);
    ioapic_eoi(l->chips, (uint8_t)vector, test_bit(&l->reg[APIC_TMR], (unsigned)vector), !(l->reg[APIC_SVR] & SVR_NO_EOI_BROADCAST));
    look_again(l);
}

/* ---- acceptance ---- */

/* Without a local APIC in the way, or with LINT0 as ExtINT, the 8259s reach the processor (virtual wire). */
bool lapic_accepts_extint(const Lapic *l)
{
    uint32_t lint0 = l->reg[APIC_LVT_LINT0];
    return !lapic_hw_enabled(l) || (!(lint0 & LVT_MASKED) && (lint0 >> 8 & 7) == DM_EXTINT);
}

static bool accept_vector(Lapic *l, const Message *m)
{
    if ((m->level && !m->assert) || !lapic_enabled(l))
        return false;
    if (m->vector < 16) {
        lapic_error(l, ESR_RECEIVE_ILLEGAL_VECTOR);
        return true;
    }
    if (m->level)
        set_bit(&l->reg[APIC_TMR], m->vector);
    else
        clear_bit(&l->reg[APIC_TMR], m->vector);
    set_bit(&l->reg[APIC_IRR], m->vector);
    cpu_attention(l->cpu);
    return true;
}

bool lapic_accept(Lapic *l, const Message *m)
{
    Cpu *c = l->cpu;
    switch (m->mode) {
    case DM_FIXED:
    case DM_LOWEST:
        return accept_vector(l, m);
    case DM_NMI:
        c->nmi_pending = true;
        cpu_attention(c);
        return true;
    case DM_INIT:
        if (m->level && !m->assert) /* de-assertion: of old APICs' arbitration only */
            return false;
        c->sipi_pending = false;
        c->init_pending = true;
        cpu_attention(c);
        return true;
    case DM_STARTUP:
        if (c->wait_sipi || c->init_pending) {
            c->sipi_vector = m->vector;
            c->sipi_pending = true;
            cpu_attention(c);
        }
        return true;
    case DM_SMI: /* no system management mode: taken and forgotten */
        return true;
    default: /* ExtINT comes by the 8259's own line */
        return false;
    }
}

bool lapic_local(Lapic *l, unsigned lvt)
{
    uint32_t entry = l->reg[lvt];
    if (!lapic_hw_enabled(l) || entry & LVT_MASKED)
        return false;
    Message m = {
        .vector = (uint8_t)entry, .mode = entry >> 8 & 7, .level = (lvt == APIC_LVT_LINT0 || lvt == APIC_LVT_LINT1) && entry & LVT_LEVEL,
        .assert = true,
    };
    bool taken = lapic_accept(l, &m);
    if (taken && lvt == APIC_LVT_PMC)
        l->reg[lvt] |= LVT_MASKED;
    return taken;
}

void lapic_error(Lapic *l, uint32_t bits)
{
    bool news = bits & ~l->errors;
    l->errors |= bits;
    if (news)
        lapic_local(l, APIC_LVT_ERROR);
}

/* ---- registers ---- */

static bool is_lvt(unsigned reg) { return reg >= APIC_LVT_TIMER && reg <= APIC_LVT_ERROR; }

/* Bits of a local vector table entry that software can write; delivery status and Remote IRR are read-only. */
static uint32_t lvt_bits(const Lapic *l, unsigned reg)
{
    switch (reg) {
    case APIC_LVT_TIMER:
        return has_feature(l->cpu, FEAT_TSCDEADLINE) ? LVT_MASKED | LVT_TIMER_MODE | 0xff : LVT_MASKED | LVT_TIMER_PERIODIC | 0xff;
    case APIC_LVT_LINT0:
    case APIC_LVT_LINT1:
        return LVT_MASKED | LVT_LEVEL | 0x2000 | 0x7ff;
    case APIC_LVT_ERROR:
        return LVT_MASKED | 0xff;
    default:
        return LVT_MASKED | 0x7ff;
    }
}

bool lapic_readable(const Lapic *l, unsigned reg)
{
    switch (reg) {
    case APIC_ID: case APIC_VERSION: case APIC_TPR: case APIC_PPR: case APIC_LDR: case APIC_SVR: case APIC_ESR: case APIC_ICR:
    case APIC_INITIAL: case APIC_CURRENT: case APIC_DIVIDE:
        return true;
    case APIC_APR: case APIC_DFR: case APIC_ICR2:
        return !lapic_x2apic(l);
    default:
        return (reg >= APIC_ISR && reg < APIC_ISR + 24) || is_lvt(reg);
    }
}

uint32_t lapic_read(Lapic *l, unsigned reg)
{
    switch (reg) {
    case APIC_PPR:
        return lapic_ppr(l);
    case APIC_CURRENT:
        return lapic_timer_current(l);
    case APIC_APR: /* arbitration by bus is of the P6 and older */
        return 0;
    default:
        return l->reg[reg];
    }
}

static void write_svr(Lapic *l, uint32_t value)
{
    uint32_t bits = 0x3ff | (l->reg[APIC_VERSION] & VERSION_EOI_SUPPRESSION ? SVR_NO_EOI_BROADCAST : 0);
    l->reg[APIC_SVR] = value & bits;
    if (value & SVR_ENABLE)
        return;
    for (unsigned reg = APIC_LVT_TIMER; reg <= APIC_LVT_ERROR; reg++)
        l->reg[reg] |= LVT_MASKED;
}

static void write_lvt(Lapic *l, unsigned reg, uint32_t value)
{
    uint32_t before = l->reg[reg];
    if (!(l->reg[APIC_SVR] & SVR_ENABLE))
        value |= LVT_MASKED;
    l->reg[reg] = value & lvt_bits(l, reg);
    if (reg == APIC_LVT_TIMER)
        lapic_timer_mode(l, before);
    else if (reg == APIC_LVT_LINT0)
        look_again(l);
}

int lapic_write(Lapic *l, unsigned reg, uint32_t value)
{
    bool x2apic = lapic_x2apic(l);
    switch (reg) {
    case APIC_ID:
        if (x2apic)
            return -1;
        l->reg[reg] = value & 0xff000000;
        break;
    case APIC_TPR:
        if (x2apic && value >> 8)
            return -1;
        l->reg[reg] = value & 0xff;
        look_again(l);
        break;
    case APIC_EOI:
        if (x2apic && value)
            return -1;
        end_of_interrupt(l);
        break;
    case APIC_LDR:
        if (x2apic)
            return -1;
        l->reg[reg] = value & 0xff000000;
        break;
    case APIC_DFR:
        if (x2apic)
            return -1;
        l->reg[reg] = value | 0x0fffffff;
        break;
    case APIC_SVR:
        write_svr(l, value);
        look_again(l);
        break;
    case APIC_ESR: /* a write makes what was found since the last one readable */
        if (x2apic && value)
            return -1;
        l->reg[reg] = l->errors;
        l->errors = 0;
        break;
    case APIC_ICR:
        l->reg[reg] = value & ~0x1000u;
        lapic_send(l, l->reg[reg], x2apic ? l->reg[APIC_ICR2] : l->reg[APIC_ICR2] >> 24);
        break;
    case APIC_ICR2:
        if (x2apic)
            return -1;
        l->reg[reg] = value & 0xff000000;
        break;
    case APIC_INITIAL:
        if ((l->reg[APIC_LVT_TIMER] & LVT_TIMER_MODE) != LVT_TIMER_TSC_DEADLINE) {
            l->reg[reg] = value;
            lapic_timer_start(l);
        }
        break;
    case APIC_DIVIDE: {
        uint32_t before = l->reg[reg];
        l->reg[reg] = value & 0xb;
        lapic_timer_divide(l, before);
        break;
    }
    case APIC_SELF_IPI:
        if (!x2apic || value >> 8)
            return -1;
        lapic_send(l, (uint32_t)SHORTHAND_SELF << 18 | value, 0);
        break;
    default:
        if (!is_lvt(reg))
            return -1;
        write_lvt(l, reg, value);
        break;
    }
    return 0;
}

/* ---- the register page ---- */

uint32_t lapic_mmio_read(Lapic *l, uint32_t offset, unsigned size)
{
    if (!lapic_hw_enabled(l) || lapic_x2apic(l))
        return 0xffffffff;
    unsigned reg = offset >> 4, shift = offset & 15;
    if (shift + size > 4)
        return 0;
    if (reg >= APIC_REGISTERS || !lapic_readable(l, reg)) {
        if (reg != APIC_EOI) /* write-only, no error */
            lapic_error(l, ESR_ILLEGAL_REGISTER);
        return 0;
    }
    return lapic_read(l, reg) >> shift * 8;
}

/* Writes other than of whole aligned registers have no effect. */
void lapic_mmio_write(Lapic *l, uint32_t offset, unsigned size, uint32_t value)
{
    if (!lapic_hw_enabled(l) || lapic_x2apic(l) || size != 4 || offset & 15)
        return;
    unsigned reg = offset >> 4;
    bool known = reg < APIC_REGISTERS && (lapic_readable(l, reg) || reg == APIC_EOI);
    if (!known)
        lapic_error(l, ESR_ILLEGAL_REGISTER);
    else
        lapic_write(l, reg, value);
}

/* ---- reset ---- */

void lapic_set_version(Lapic *l) { l->reg[APIC_VERSION] = VERSION; }

void lapic_reset(Cpu *c, bool init)
{
    Lapic *l = c->lapic;
    if (!l)
        return;
    chips_lock(l->chips);
    if (!init) {
        c->apic_base = APIC_DEFAULT_BASE | APIC_BASE_ENABLE | (c->index == 0 ? APIC_BASE_BSP : 0);
        c->sipi_pending = false;
        c->tsc_deadline = 0;
    }
    uint32_t id = l->reg[APIC_ID];
    memset(l->reg, 0, sizeof(l->reg));
    bool x2apic = lapic_x2apic(l);
    l->reg[APIC_ID] = init ? id : c->index << 24;
    lapic_set_version(l);
    l->reg[APIC_LDR] = x2apic ? x2apic_ldr(c->index) : 0;
    l->reg[APIC_DFR] = 0xffffffff;
    l->reg[APIC_SVR] = 0xff;
    for (unsigned reg = APIC_LVT_TIMER; reg <= APIC_LVT_ERROR; reg++)
        l->reg[reg] = LVT_MASKED;
    if (c->index == 0) /* what a firmware sets up: the 8259s work from the start */
        l->reg[APIC_LVT_LINT0] = DM_EXTINT << 8;
    l->errors = 0;
    lapic_timer_reset(l);
    chips_unlock(l->chips);
}

struct Lapic *lapic_create(Cpu *c)
{
    if (!c->vm->chips)
        return NULL;
    Lapic *l = calloc(1, sizeof(*l));
    if (!l)
        return NULL;
    l->cpu = c;
    l->chips = c->vm->chips;
    c->lapic = l;
    lapic_reset(c, false);
    return l;
}

void lapic_destroy(struct Lapic *lapic) { free(lapic); }
