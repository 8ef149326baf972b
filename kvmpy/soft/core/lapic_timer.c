/* Timer of the local APIC: one-shot, periodic, TSC deadline (SDM 3A 10.5.4). The bus clock is 1 GHz: one count is 1 ns times
   the divisor. */
#include "chips_state.h"

#define MIN_PERIOD 200000u /* ns; the shortest periodic interval, as KVM limits it */

static uint32_t divisor(uint32_t divide) { return 1u << ((((divide & 3) | (divide & 8) >> 1) + 1) & 7); }
static uint32_t mode_of(uint32_t lvt) { return lvt & LVT_TIMER_MODE; }
static bool periodic(const Lapic *l) { return mode_of(l->reg[APIC_LVT_TIMER]) == LVT_TIMER_PERIODIC; }
static bool tsc_deadline_mode(const Lapic *l) { return mode_of(l->reg[APIC_LVT_TIMER]) == LVT_TIMER_TSC_DEADLINE; }
static uint64_t now_of(const Lapic *l) { return vm_now(l->cpu->vm); }

static void limit_period(Lapic *l)
{
    if (periodic(l) && l->period && l->period < MIN_PERIOD)
        l->period = MIN_PERIOD;
}

static void set_deadline(Lapic *l, uint64_t deadline)
{
    if (l->deadline != deadline) {
        l->deadline = deadline;
        cpu_timer_changed(l->cpu);
    }
}

void lapic_timer_reset(Lapic *l)
{
    l->period = 0;
    set_deadline(l, NEVER);
}

/* Entering or leaving TSC-deadline mode disarms the timer; between one-shot and periodic the count goes on. */
void lapic_timer_mode(Lapic *l, uint32_t lvt_before)
{
    uint32_t mode = mode_of(l->reg[APIC_LVT_TIMER]);
    if ((mode == LVT_TIMER_TSC_DEADLINE) != (mode_of(lvt_before) == LVT_TIMER_TSC_DEADLINE)) {
        l->reg[APIC_INITIAL] = 0;
        l->cpu->tsc_deadline = 0;
        lapic_timer_reset(l);
    } else {
        limit_period(l);
    }
}

void lapic_timer_start(Lapic *l)
{
    l->period = (uint64_t)l->reg[APIC_INITIAL] * divisor(l->reg[APIC_DIVIDE]);
    limit_period(l);
    set_deadline(l, l->period ? now_of(l) + l->period : NEVER);
}

/* The counts that are left keep their number and take their new length. */
void lapic_timer_divide(Lapic *l, uint32_t divide_before)
{
    uint32_t before = divisor(divide_before), after = divisor(l->reg[APIC_DIVIDE]);
    if (before == after || tsc_deadline_mode(l) || !l->period)
        return;
    uint64_t now = now_of(l);
    l->period = (uint64_t)l->reg[APIC_INITIAL] * after;
    limit_period(l);
    if (l->deadline == NEVER)
        return;
    uint64_t left = l->deadline > now ? l->deadline - now : 0;
    set_deadline(l, now + (uint64_t)((unsigned __int128)left * after / before));
}

uint64_t lapic_timer_remaining(Lapic *l)
{
    if (tsc_deadline_mode(l) || !l->period || l->deadline == NEVER)
        return 0;
    uint64_t now = now_of(l);
    if (l->deadline > now)
        return l->deadline - now;
    return periodic(l) ? l->period - (now - l->deadline) % l->period : 0;
}

uint32_t lapic_timer_current(Lapic *l) { return (uint32_t)(lapic_timer_remaining(l) / divisor(l->reg[APIC_DIVIDE])); }

/* Goes on in the middle of a count, or with the TSC deadline in force; for state that is loaded. */
void lapic_timer_resume(Lapic *l, uint64_t remaining)
{
    if (tsc_deadline_mode(l)) {
        l->period = 0;
        lapic_timer_set_tsc_deadline(l, l->cpu->tsc_deadline);
        return;
    }
    l->period = (uint64_t)l->reg[APIC_INITIAL] * divisor(l->reg[APIC_DIVIDE]);
    limit_period(l);
    if (!remaining && periodic(l))
        remaining = l->period;
    set_deadline(l, remaining && l->period ? now_of(l) + remaining : NEVER);
}

/* The moment on vm_now when the TSC reaches the deadline: rounded up. */
static uint64_t tsc_moment(Lapic *l)
{
    Cpu *c = l->cpu;
    l->tsc_offset = c->tsc_offset;
    l->tsc_adjust = c->tsc_adjust;
    l->tsc_khz = c->vm->tsc_khz;
    uint64_t now = now_of(l), tsc = cpu_tsc(c);
    if (c->tsc_deadline <= tsc || !l->tsc_khz)
        return now;
    unsigned __int128 ns = ((unsigned __int128)(c->tsc_deadline - tsc) * 1000000 + l->tsc_khz - 1) / l->tsc_khz;
    return ns >= NEVER - 1 - now ? NEVER - 1 : now + (uint64_t)ns;
}

void lapic_timer_set_tsc_deadline(Lapic *l, uint64_t deadline)
{
    l->cpu->tsc_deadline = deadline;
    if (tsc_deadline_mode(l))
        set_deadline(l, deadline ? tsc_moment(l) : NEVER);
}

/* A TSC that was written since moves the deadline. */
uint64_t lapic_timer_deadline(Lapic *l)
{
    const Cpu *c = l->cpu;
    if (l->deadline != NEVER && tsc_deadline_mode(l) &&
        (l->tsc_offset != c->tsc_offset || l->tsc_adjust != c->tsc_adjust || l->tsc_khz != c->vm->tsc_khz))
        l->deadline = tsc_moment(l);
    return l->deadline;
}

void lapic_timer_tick(Lapic *l, uint64_t now)
{
    if (lapic_timer_deadline(l) > now)
        return;
    if (tsc_deadline_mode(l)) {
        if (cpu_tsc(l->cpu) < l->cpu->tsc_deadline) {
            uint64_t moment = tsc_moment(l);
            l->deadline = moment > now ? moment : now + 1;
            return;
        }
        l->cpu->tsc_deadline = 0;
        l->deadline = NEVER;
    } else if (periodic(l) && l->period) {
        l->deadline += ((now - l->deadline) / l->period + 1) * l->period;
    } else {
        l->deadline = NEVER;
    }
    lapic_local(l, APIC_LVT_TIMER);
}

void lapic_timer_clock_moved(Lapic *l, int64_t ns)
{
    if (l->deadline != NEVER)
        l->deadline = tsc_deadline_mode(l) ? tsc_moment(l) : l->deadline + (uint64_t)ns;
}
