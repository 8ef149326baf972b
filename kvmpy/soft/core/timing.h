/* Where a vCPU's time goes, by the host's TSC: told apart where C enters and leaves, and only where somebody has asked (Vm.timed). */
#ifndef KP_TIMING_H
#define KP_TIMING_H

#include "run.h"

/* In the order of STAT_NS_INTERPRETED and those behind it. */
enum { TIME_INTERPRETED, TIME_TRANSLATING, TIME_TRANSLATED, TIME_OUTSIDE };

/* Ticks of the TSC as ns, by what both clocks say since the timing was asked for. */
uint64_t timing_ns(const Vm *vm, uint64_t ticks);

static inline void time_goes_to(Cpu *c, unsigned kind)
{
    struct RunState *r = c->run;
    if (likely(!c->vm->timed))
        return;
    uint64_t now = __builtin_ia32_rdtsc();
    if (r->time_kind != TIME_OUTSIDE)
        c->stat[STAT_NS_INTERPRETED + r->time_kind] += now - r->time_since;
    r->time_kind = kind;
    r->time_since = now;
}

#endif
