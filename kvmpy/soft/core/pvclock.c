/* kvmclock: the guest's pages that tell how to make nanoseconds of its TSC. Linux Documentation/virt/kvm/x86/msr.rst. */
#include <time.h>

#include "system.h"
#include "vm.h"

typedef struct {
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time; /* ns at that TSC */
    uint32_t mul;                        /* ns = ((tsc - tsc_timestamp) << shift) * mul >> 32 */
    int8_t shift;
    uint8_t flags, pad[2];
} TimeInfo;
_Static_assert(sizeof(TimeInfo) == 32, "pvclock_vcpu_time_info");

typedef struct { uint32_t version, sec, nsec; } WallClock;

#define TSC_STABLE 1 /* all vCPUs' clocks agree */

static void scale(uint64_t tsc_khz, TimeInfo *t)
{
    uint64_t hz = tsc_khz * 1000, ns = 1000000000;
    t->shift = 0;
    while (hz > 2 * ns) {
        hz >>= 1;
        t->shift--;
    }
    while (hz <= ns) {
        hz <<= 1;
        t->shift++;
    }
    t->mul = (uint32_t)((ns << 32) / hz);
}

void pvclock_update(Cpu *c)
{
    if (!(c->kvmclock_msr & 1) || !c->vm->tsc_khz)
        return;
    uint64_t phys = c->kvmclock_msr & ~1ull;
    if ((phys & 0xfff) > 0x1000 - sizeof(TimeInfo))
        return;
    uint8_t *page = phys_host(c, phys, sizeof(TimeInfo), true);
    if (!page)
        return;
    TimeInfo t;
    memcpy(&t, page, sizeof t);
    t.version = (t.version | 1) + 1; /* even: complete; no vCPU runs meanwhile */
    t.pad0 = 0;
    t.tsc_timestamp = cpu_tsc(c);
    t.system_time = vm_now(c->vm);
    t.flags = TSC_STABLE;
    t.pad[0] = t.pad[1] = 0;
    scale(c->vm->tsc_khz, &t);
    memcpy(page, &t, sizeof t);
}

/* Time of day of virtual clocks: it must be the same in every run. */
#define VIRTUAL_EPOCH 1577836800ull /* 2020-01-01 */

void pvclock_wall(Cpu *c, uint64_t phys)
{
    if ((phys & 0xfff) > 0x1000 - sizeof(WallClock))
        return;
    uint8_t *page = phys_host(c, phys, sizeof(WallClock), true);
    if (!page)
        return;
    uint64_t ns = VIRTUAL_EPOCH * 1000000000;
    if (!c->vm->virtual_clock) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec - vm_now(c->vm);
    }
    WallClock w;
    memcpy(&w, page, sizeof w);
    w.version = (w.version | 1) + 1;
    w.sec = (uint32_t)(ns / 1000000000);
    w.nsec = (uint32_t)(ns % 1000000000);
    memcpy(page, &w, sizeof w);
}
