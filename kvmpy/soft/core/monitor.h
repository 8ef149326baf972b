/* MONITOR and MWAIT. */
#ifndef KP_MONITOR_H
#define KP_MONITOR_H

#include "vm.h"

#define MONITOR_LINE 64u /* bytes; CPUID leaf 5 */

void monitor_arm(Cpu *c, uint64_t phys);
void monitor_disarm(Cpu *c);
/* Does a vCPU monitor a line of this physical page? Then stores into it take the slow path. */
bool page_monitored(const Vm *vm, uint64_t phys);
/* A store has reached memory. */
void monitor_stored(Vm *vm, uint64_t phys, uint64_t size);
/* A waiting vCPU goes on: the line was stored to, or an interrupt is pending that MWAIT was told to break at. Interrupts that
   are taken end the wait by their delivery. */
bool mwait_over(Cpu *c);
static inline void mwait_end(Cpu *c)
{
    if (c->waiting)
        c->monitor_armed = false; /* the next MWAIT needs a MONITOR of its own */
    c->waiting = MWAIT_NONE;
}

#endif
