/* Switches the timing of vCPUs, and gives its units. */
#include "timing.h"

#include <time.h>

static uint64_t monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void kp_vm_set_timing(Vm *vm, int on)
{
    if (on && !vm->timed_tsc) {
        vm->timed_ns = monotonic_ns();
        vm->timed_tsc = __builtin_ia32_rdtsc();
    }
    vm->timed = on;
}

uint64_t timing_ns(const Vm *vm, uint64_t ticks)
{
    if (!vm->timed_tsc)
        return 0;
    uint64_t ns = monotonic_ns() - vm->timed_ns, past = __builtin_ia32_rdtsc() - vm->timed_tsc;
    return past ? (uint64_t)((unsigned __int128)ticks * ns / past) : 0;
}
