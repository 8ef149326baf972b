/* HLT, time-stamp counter, CPUID, random numbers, MONITOR and MWAIT, hypercalls. SDM 2. */
#include <sys/random.h>

#include "block.h"
#include "monitor.h"
#include "parallel.h"
#include "system.h"
#include "trace.h"

EXEC(halt)
{
    CHECK_CPL0();
    c->halted = true;
    LEAVE();
}
ONE(hlt, halt)

static void check_tsd(Cpu *c, const Insn *i)
{
    if (c->cr4 & CR4_TSD && c->cpl != 0)
        raise_gp0(c, i);
}

/* The budget is taken off for a whole block at its entry; virtual time counts up to this instruction. */
static void give_tsc(Cpu *c, const Insn *i)
{
    int64_t ahead = i->block && c->vm->virtual_clock ? i->left - 1 : 0;
    c->budget += ahead;
    uint64_t tsc = cpu_tsc(c);
    c->budget -= ahead;
    c->gpr[RAX] = (uint32_t)tsc;
    c->gpr[RDX] = tsc >> 32;
}

EXEC_VOID(read_tsc)
{
    check_tsd(c, i);
    give_tsc(c, i);
}
EXEC_VOID(read_tscp)
{
    check_tsd(c, i);
    give_tsc(c, i);
    c->gpr[RCX] = (uint32_t)c->tsc_aux;
}
/* No counters: every index is outside. */
EXEC(read_pmc) { raise_gp0(c, i); }
EXEC_VOID(read_pid)
{
    c->gpr[i->rm] = c->tsc_aux;
}
ONE(rdtsc, read_tsc)
ONE(rdtscp, read_tscp)
ONE(rdpmc, read_pmc)
ONE(rdpid, read_pid)

EXEC_VOID(cpu_id)
{
    uint32_t out[4];
    cpuid_read(c, (uint32_t)c->gpr[RAX], (uint32_t)c->gpr[RCX], out);
    if (traced(c, KP_TRACE_CPUID))
        trace_cpuid(c, i, (uint32_t)c->gpr[RAX], (uint32_t)c->gpr[RCX], out);
    c->gpr[RAX] = out[0];
    c->gpr[RBX] = out[1];
    c->gpr[RCX] = out[2];
    c->gpr[RDX] = out[3];
}
ONE(cpuid, cpu_id)

/* The host's generator; under virtual time a generator of our own (splitmix64) from a constant, the same in every run. */
static bool random_bits(Cpu *c, uint64_t *v)
{
    if (!c->vm->virtual_clock)
        return getrandom(v, sizeof *v, GRND_NONBLOCK) == sizeof *v;
    uint64_t z = c->random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    *v = z ^ z >> 31;
    return true;
}

EXEC_VOID(random_number)
{
    uint64_t v = 0;
    bool ok = random_bits(c, &v);
    set_reg(c, i->rm, i->osize, ok ? v : 0);
    cc_explicit(c, ok ? FL_CF : 0);
}
ONE(rdrand, random_number)
ONE(rdseed, random_number)

EXEC_VOID(monitor_address)
{
    if (c->cpl != 0)
        raise_ud(c, i);
    if ((uint32_t)c->gpr[RCX] != 0)
        raise_gp0(c, i);
    uint64_t linear = mem_linear(c, i, i->seg, c->gpr[RAX] & i->amask, 1, false), phys;
    bool writable, user;
    read8_linear(c, i, i->seg, linear);
    bool taken = core_take(c);
    if (!mmu_translate(c, linear, &phys, &writable, &user) && vm_slot(c->vm, phys))
        monitor_arm(c, phys);
    else
        monitor_disarm(c); /* memory that is not write-back: MWAIT ends at once */
    core_give(c, taken);
}
/* Without a local APIC interrupts come by user space, which knows nothing of this wait: it ends at once. */
EXEC(monitor_wait)
{
    if (c->cpl != 0)
        raise_ud(c, i);
    if ((uint32_t)c->gpr[RCX] & ~1u)
        raise_gp0(c, i);
    if (c->monitor_armed && c->lapic)
        c->waiting = c->gpr[RCX] & 1 ? MWAIT_BREAK : MWAIT_STORE;
    LEAVE();
}
ONE(monitor, monitor_address)
ONE(mwait, monitor_wait)

#define HYPERCALL_EPERM 1
#define HYPERCALL_ENOSYS 1000

/* None of KVM's hypercalls is offered in CPUID. */
EXEC_VOID(hypercall)
{
    int64_t result = c->cpl != 0 ? -HYPERCALL_EPERM : -HYPERCALL_ENOSYS;
    uint64_t answer = (uint64_t)result;
    if (traced(c, KP_TRACE_HYPERCALL))
        answer = trace_hypercall(c, i, answer);
    c->gpr[RAX] = in_64bit(c) ? answer : (uint32_t)answer;
}
ONE(vmcall, hypercall)
ONE(vmmcall, hypercall)
