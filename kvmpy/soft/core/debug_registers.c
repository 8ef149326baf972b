/* Breakpoints and watchpoints of the debug registers, the guest's or the host's (SDM 3B 18.2). */
#include "run.h"
#include "trace.h"

static bool break_enabled(unsigned n, uint64_t dr7) { return dr7 >> (2 * n) & 3; }

static uint64_t active_dr7(const Cpu *c)
{
    return c->guest_debug.control & KVM_GUESTDBG_USE_HW_BP ? c->guest_debug.arch.debugreg[7] : c->dr[7];
}
static uint64_t active_dr(const Cpu *c, unsigned n)
{
    return c->guest_debug.control & KVM_GUESTDBG_USE_HW_BP ? c->guest_debug.arch.debugreg[n] : c->dr[n];
}
static unsigned watch_size(unsigned len) { return len == 0 ? 1 : len == 1 ? 2 : len == 2 ? 8 : 4; }

bool watched_page(const Cpu *c, uint64_t linear)
{
    if (unlikely(c->vm->watching) && (points_in_page(c->vm, linear) || trace_page(c->vm, linear)))
        return true;
    uint64_t dr7 = active_dr7(c);
    if (likely(!(dr7 & 0xff)))
        return false;
    for (unsigned n = 0; n < 4; n++)
        if (break_enabled(n, dr7) && (dr7 >> (16 + 4 * n) & 3) != 0 && ((active_dr(c, n) ^ linear) & ~0xfffull) == 0)
            return true;
    return false;
}

void watch_access(Cpu *c, const Insn *i, uint64_t linear, unsigned size, bool write)
{
    uint64_t dr7 = active_dr7(c);
    if (unlikely(c->vm->watching)) {
        point_access(c, i, linear, size, write);
        if (traced(c, KP_TRACE_MEMORY))
            trace_before_access(c, i, linear, size, write);
    }
    for (unsigned n = 0; n < 4; n++) {
        unsigned kind = dr7 >> (16 + 4 * n) & 3, len = watch_size(dr7 >> (18 + 4 * n) & 3);
        uint64_t at = active_dr(c, n) & ~(uint64_t)(len - 1);
        if (!break_enabled(n, dr7) || !(kind == 3 || (kind == 1 && write)) || at >= linear + size || linear >= at + len)
            continue;
        require_alone(c, i); /* the trap comes right behind this instruction */
        c->pending_debug |= 1ull << n;
        c->attention = 1;
    }
}

bool breakpoint_page(const Cpu *c, uint64_t linear)
{
    uint64_t dr7 = active_dr7(c);
    for (unsigned n = 0; n < 4; n++)
        if (break_enabled(n, dr7) && (dr7 >> (16 + 4 * n) & 3) == 0 && ((active_dr(c, n) ^ linear) & ~0xfffull) == 0)
            return true;
    return false;
}

uint64_t breakpoints_at(const Cpu *c, uint64_t linear)
{
    uint64_t dr7 = active_dr7(c), hit = 0;
    for (unsigned n = 0; n < 4; n++)
        if (break_enabled(n, dr7) && (dr7 >> (16 + 4 * n) & 3) == 0 && active_dr(c, n) == linear)
            hit |= 1ull << n;
    return hit;
}

bool any_breakpoint(const Cpu *c)
{
    uint64_t dr7 = active_dr7(c);
    for (unsigned n = 0; n < 4; n++)
        if (break_enabled(n, dr7) && (dr7 >> (16 + 4 * n) & 3) == 0)
            return true;
    return false;
}
