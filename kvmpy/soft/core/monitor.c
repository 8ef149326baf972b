/* MONITOR and MWAIT: a vCPU that waits for a store to a line of memory. SDM 3A 9.10.

   A page with a monitored line has no write tags, as one with decoded code: every store into it comes by write_part. It stays
   so until its vCPU monitors another page, so that an idle loop, which monitors one line for ever, arms it at no cost. */
#include "monitor.h"

#include <unistd.h>

#include "parallel.h"
#include "system.h"

bool page_monitored(const Vm *vm, uint64_t phys)
{
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n] && ((vm->cpu[n]->monitor_line ^ phys) & ~0xfffull) == 0)
            return true;
    return false;
}

void monitor_arm(Cpu *c, uint64_t phys)
{
    uint64_t line = phys & ~(MONITOR_LINE - 1ull);
    bool known = page_monitored(c->vm, phys);
    monitor_disarm(c);
    c->monitor_line = line;
    c->vm->monitors++;
    c->monitor_armed = true;
    if (!known)
        tlb_flush_phys(c->vm, phys);
}

void monitor_disarm(Cpu *c)
{
    if (c->monitor_line != NEVER)
        c->vm->monitors--;
    c->monitor_line = NEVER;
    c->monitor_armed = false;
    c->waiting = MWAIT_NONE;
}

void monitor_stored(Vm *vm, uint64_t phys, uint64_t size)
{
    for (uint32_t n = 0; n < vm->cpu_count; n++) {
        Cpu *c = vm->cpu[n];
        if (!c || !c->monitor_armed || phys >= c->monitor_line + MONITOR_LINE || c->monitor_line >= phys + size)
            continue;
        c->monitor_armed = false;
        if (c->parallel)
            cpu_attention(c);
        else if (c->waiting && !vm->current) { /* by a device: the thread may sleep */
            uint64_t one = 1;
            if (write(vm->wake_fd, &one, sizeof one) < 0)
                return; /* the counter is full: it is readable then anyway */
        }
    }
}

bool mwait_over(Cpu *c)
{
    return !c->monitor_armed || (c->waiting == MWAIT_BREAK && c->lapic && chips_pending(c) >= 0);
}
