/* vCPUs on threads of their own. One lock, the core lock, covers everything of a VM that is not private to a vCPU: decoded and
   translated code, chips, exits, the run loop. A vCPU gives it back only while it executes guest code (it is "running" then) and takes
   it where that needs what is shared; whoever holds it can stop all others (core_stop), which makes their TLBs and the code they
   run his to change. So a running vCPU sees nothing of those change between two places where it takes the lock.
   Without parallel vCPUs nothing here does anything. docs/smp.md */
#ifndef KP_PARALLEL_H
#define KP_PARALLEL_H

#include "vm.h"

/* The lock for a vCPU's own thread inside a run; true: it was taken now, and has to be given back. An unwinding keeps it, for the run
   loop has it. */
bool core_take_now(Cpu *c);
void core_give_now(Cpu *c);
static inline bool core_take(Cpu *c) { return unlikely(c->parallel) && core_take_now(c); }
static inline void core_give(Cpu *c, bool taken)
{
    if (unlikely(taken))
        core_give_now(c);
}

/* The lock for all others: functions that user space calls, from any thread. */
void core_lock(Vm *vm);
void core_unlock(Vm *vm);

/* With the lock: no vCPU is running until it is given back. One that was stopped in the middle of a block goes on there, but leaves
   to the run loop before it uses what it has found in its TLB before. */
void core_stop_now(Vm *vm);
static inline void core_stop(Vm *vm)
{
    if (unlikely(vm->parallel))
        core_stop_now(vm);
}
/* Host code that vCPUs may have run was changed; they are stopped. */
void core_code_changed(Vm *vm);
/* code_make_room() is to be called, once no vCPU is in the middle of a block. */
void core_want_room(Cpu *c);

/* c's thread may sleep, and attention was set: wakes it. */
void core_wake(Cpu *c);

void core_pause(Cpu *c); /* PAUSE */
int run_parallel(Cpu *c);
void core_kick(Cpu *c);
void parallel_destroy(Vm *vm);

/* Locked instructions where vCPUs run in parallel. */
const Insn *exec_atomic(Cpu *c, const Insn *i);
/* One access of the host that nothing can come between; `p` need not be aligned. True: it held `old`, and holds `new` now. */
bool atomic_exchange_if(void *p, unsigned size, uint64_t old, uint64_t new);

#endif
