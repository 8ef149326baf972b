/* The local APIC from outside its page: APIC_BASE and its transitions, x2APIC registers, CR8, and KVM's state struct. */
#include "chips_state.h"

#define MSR_APIC_BASE 0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC 0x800u
#define ICR_RESERVED 0xfff32000ull /* of the x2APIC's ICR */

/* In the gaps of the saved page, which KVM neither reads nor writes: what its registers cannot hold. */
#define PAGE_ERRORS (APIC_ESR * 16 + 4)
#define PAGE_REMAINING (APIC_CURRENT * 16 + 8)

enum { MODE_DISABLED, MODE_XAPIC, MODE_INVALID, MODE_X2APIC };
static unsigned mode_of(uint64_t base) { return (base & APIC_BASE_ENABLE ? 1 : 0) | (base & APIC_BASE_X2APIC ? 2 : 0); }

/* SDM 3A 10.12.5: x2APIC mode is entered from xAPIC mode and left by disabling; user space may set any state. */
static int write_base(Cpu *c, uint64_t value, bool host)
{
    unsigned from = mode_of(c->apic_base), to = mode_of(value);
    uint64_t reserved = 0x2ff | ~0ull << (c->phys_bits ? c->phys_bits : 52);
    if (!host && !has_feature(c, FEAT_X2APIC))
        reserved |= APIC_BASE_X2APIC;
    if (value & reserved || to == MODE_INVALID)
        return -1;
    if (!host && ((from == MODE_X2APIC && to == MODE_XAPIC) || (from == MODE_DISABLED && to == MODE_X2APIC)))
        return -1;
    c->apic_base = value;
    Lapic *l = c->lapic;
    if (!l || from == to)
        return 0;
    if (to == MODE_X2APIC) {
        l->reg[APIC_ID] = c->index;
        l->reg[APIC_LDR] = x2apic_ldr(c->index);
        l->reg[APIC_ICR2] = 0;
    } else if (to == MODE_XAPIC) {
        l->reg[APIC_ID] = c->index << 24;
        if (from == MODE_X2APIC)
            l->reg[APIC_LDR] = 0;
    }
    cpu_attention(c); /* the 8259s may have come through or gone */
    return 0;
}

static int x2apic_read(Lapic *l, unsigned reg, uint64_t *value)
{
    if (!lapic_x2apic(l) || reg >= APIC_REGISTERS || !lapic_readable(l, reg))
        return -1;
    *value = lapic_read(l, reg);
    if (reg == APIC_ICR)
        *value |= (uint64_t)l->reg[APIC_ICR2] << 32;
    return 0;
}

static int x2apic_write(Lapic *l, unsigned reg, uint64_t value)
{
    if (!lapic_x2apic(l) || reg >= APIC_REGISTERS)
        return -1;
    if (reg == APIC_ICR) {
        if (value & ICR_RESERVED)
            return -1;
        l->reg[APIC_ICR2] = (uint32_t)(value >> 32);
    } else if (value >> 32) {
        return -1;
    }
    return lapic_write(l, reg, (uint32_t)value);
}

int lapic_msr_read(Cpu *c, uint32_t index, uint64_t *value)
{
    Lapic *l = c->lapic;
    if (index == MSR_APIC_BASE) {
        *value = c->apic_base;
        return 0;
    }
    if (index == MSR_TSC_DEADLINE) {
        *value = l && (l->reg[APIC_LVT_TIMER] & LVT_TIMER_MODE) == LVT_TIMER_TSC_DEADLINE ? c->tsc_deadline : 0;
        return 0;
    }
    if (!l || index < MSR_X2APIC)
        return -1;
    chips_lock(l->chips);
    int result = x2apic_read(l, index - MSR_X2APIC, value);
    chips_unlock(l->chips);
    return result;
}

int lapic_msr_write(Cpu *c, uint32_t index, uint64_t value, bool host)
{
    Lapic *l = c->lapic;
    if (!l)
        return index == MSR_APIC_BASE ? write_base(c, value, host) : index == MSR_TSC_DEADLINE ? 0 : -1;
    int result = -1;
    chips_lock(l->chips);
    if (index == MSR_APIC_BASE) {
        result = write_base(c, value, host);
    } else if (index == MSR_TSC_DEADLINE) {
        /* Without effect in the other modes; from outside it may come before the table entry that sets the mode. */
        if (host || (l->reg[APIC_LVT_TIMER] & LVT_TIMER_MODE) == LVT_TIMER_TSC_DEADLINE)
            lapic_timer_set_tsc_deadline(l, value);
        result = 0;
    } else if (index >= MSR_X2APIC) {
        result = x2apic_write(l, index - MSR_X2APIC, value);
        chips_work(l->chips);
    }
    chips_unlock(l->chips);
    return result;
}

uint64_t lapic_get_cr8(const Cpu *c) { return c->lapic ? c->lapic->reg[APIC_TPR] >> 4 & 15 : c->cr8; }

void lapic_set_cr8(Cpu *c, uint64_t cr8)
{
    if (!c->lapic) {
        c->cr8 = cr8 & 15;
        return;
    }
    chips_lock(c->lapic->chips);
    c->lapic->reg[APIC_TPR] = (uint32_t)(cr8 & 15) << 4;
    if (cpu_pending(c) >= 0)
        cpu_attention(c);
    chips_unlock(c->lapic->chips);
}

/* In x2APIC mode the struct has the ID at the xAPIC's place, as KVM gives it by default. */
int lapic_get_state(Cpu *c, struct kvm_lapic_state *state)
{
    Lapic *l = c->lapic;
    memset(state, 0, sizeof(*state));
    if (!l)
        return -EINVAL;
    chips_lock(l->chips);
    uint64_t remaining = lapic_timer_remaining(l);
    for (unsigned reg = 0; reg < APIC_REGISTERS; reg++) {
        uint32_t value = reg == APIC_CURRENT || reg == APIC_PPR ? lapic_read(l, reg) : l->reg[reg];
        if (reg == APIC_ID && lapic_x2apic(l))
            value = c->index << 24;
        memcpy(&state->regs[reg * 16], &value, 4);
    }
    memcpy(&state->regs[PAGE_ERRORS], &l->errors, 4);
    memcpy(&state->regs[PAGE_REMAINING], &remaining, 8);
    chips_unlock(l->chips);
    return 0;
}

int lapic_set_state(Cpu *c, const struct kvm_lapic_state *state)
{
    Lapic *l = c->lapic;
    if (!l)
        return -EINVAL;
    chips_lock(l->chips);
    for (unsigned reg = 0; reg < APIC_REGISTERS; reg++)
        memcpy(&l->reg[reg], &state->regs[reg * 16], 4);
    if (lapic_x2apic(l)) {
        l->reg[APIC_ID] = c->index;
        l->reg[APIC_LDR] = x2apic_ldr(c->index);
    }
    lapic_set_version(l);
    l->reg[APIC_TPR] &= 0xff;
    l->reg[APIC_DIVIDE] &= 0xb;
    uint64_t remaining;
    memcpy(&l->errors, &state->regs[PAGE_ERRORS], 4);
    memcpy(&remaining, &state->regs[PAGE_REMAINING], 8);
    uint32_t shift = l->reg[APIC_DIVIDE], divisor = 1u << ((((shift & 3) | (shift & 8) >> 1) + 1) & 7);
    if (remaining / divisor != l->reg[APIC_CURRENT]) /* not ours: the register is all there is */
        remaining = (uint64_t)l->reg[APIC_CURRENT] * divisor;
    lapic_timer_resume(l, remaining);
    cpu_attention(c);
    chips_unlock(l->chips);
    return 0;
}
