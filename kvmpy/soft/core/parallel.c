/* vCPUs on threads of their own: the core lock, stopping them, sleeping, and the loop of one vCPU's thread. */
#define _GNU_SOURCE /* syscall, PTHREAD_MUTEX_ADAPTIVE_NP */
#include "parallel.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "block.h"
#include "run.h"
#include "translate/translate.h"

#define SLICE_PARALLEL 16384 /* instructions between looks at the lock: what a vCPU that wants to stop the others waits for */
#define PAUSES 64            /* of the guest, after which its thread lets others of the host run */
#define SPINS 4000           /* some 100 us: longer than a slice, where its thread has a processor */

struct Parallel {
    pthread_mutex_t lock;
    pthread_cond_t gate; /* there is room */
    bool crowded;        /* no vCPU begins to run before there is */
    bool code_changed;
};

/* RunState.running */
enum { STOPPED, RUNNING, AWAITED };

static void futex_wait(const volatile uint32_t *word, uint32_t value, const struct timespec *until)
{
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, value, until, NULL, FUTEX_BITSET_MATCH_ANY); /* whatever ends it: it is looked at again */
}

static void futex_wake(const volatile uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }

int kp_vm_set_parallel(Vm *vm)
{
#ifndef __x86_64__
    return -ENOSYS; /* loads and stores of the guest have the host's order */
#endif
    if (vm->parallel || vm->cpu_count)
        return -EBUSY;
    if (vm->virtual_clock)
        return -EINVAL;
    struct Parallel *p = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&p->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    pthread_cond_init(&p->gate, NULL);
    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
    vm->parallel = p;
    return 0;
}

void parallel_destroy(Vm *vm)
{
    struct Parallel *p = vm->parallel;
    if (!p)
        return;
    pthread_cond_destroy(&p->gate);
    pthread_mutex_destroy(&p->lock);
    free(p);
    vm->parallel = NULL;
}

/* ---- the lock ---- */

static void lock(Vm *vm) { pthread_mutex_lock(&vm->parallel->lock); }

static void unlock(Vm *vm)
{
    struct Parallel *p = vm->parallel;
    if (unlikely(p->code_changed)) { /* processors that have the old code in their pipelines read it anew (SDM 3A 8.1.3) */
        p->code_changed = false;
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
    }
    pthread_mutex_unlock(&p->lock);
}

void core_lock(Vm *vm)
{
    if (unlikely(vm->parallel))
        lock(vm);
}

void core_unlock(Vm *vm)
{
    if (unlikely(vm->parallel))
        unlock(vm);
}

void core_code_changed(Vm *vm)
{
    if (unlikely(vm->parallel))
        vm->parallel->code_changed = true;
}

bool core_take_now(Cpu *c)
{
    struct RunState *r = c->run;
    if (r->held)
        return false;
    if (__atomic_exchange_n(&r->running, STOPPED, __ATOMIC_ACQ_REL) == AWAITED)
        futex_wake(&r->running);
    lock(c->vm);
    r->held = true;
    return true;
}

void core_give_now(Cpu *c)
{
    c->run->held = false;
    __atomic_store_n(&c->run->running, RUNNING, __ATOMIC_RELAXED); /* nobody asks without the lock */
    unlock(c->vm);
}

static void await(Cpu *c)
{
    struct RunState *r = c->run;
    for (unsigned n = 0; n < SPINS; n++) {
        if (__atomic_load_n(&r->running, __ATOMIC_ACQUIRE) == STOPPED)
            return;
#ifdef __x86_64__
        __builtin_ia32_pause();
#endif
    }
    uint32_t running = RUNNING;
    if (__atomic_compare_exchange_n(&r->running, &running, AWAITED, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        running = AWAITED;
    while (running != STOPPED) {
        futex_wait(&r->running, AWAITED, NULL);
        running = __atomic_load_n(&r->running, __ATOMIC_ACQUIRE);
    }
}

void core_stop_now(Vm *vm)
{
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n] && vm->cpu[n]->run->inside)
            __atomic_store_n(&vm->cpu[n]->attention, 1, __ATOMIC_RELEASE);
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n])
            await(vm->cpu[n]);
}

/* ---- memory of code is used anew when no vCPU is in the middle of a block ---- */

void core_want_room(Cpu *c)
{
    Vm *vm = c->vm;
    vm->parallel->crowded = true;
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n] && vm->cpu[n]->run->inside)
            cpu_end_slice(vm->cpu[n]);
}

/* A vCPU has left its last block: where it was the one that others wait for, room is made now. */
static void left(Cpu *c)
{
    Vm *vm = c->vm;
    struct Parallel *p = vm->parallel;
    c->run->inside = false;
    if (likely(!p->crowded))
        return;
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n] && vm->cpu[n]->run->inside)
            return;
    code_make_room(vm);
    p->crowded = false;
    pthread_cond_broadcast(&p->gate);
}

/* ---- sleeping ---- */

void core_wake(Cpu *c)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&c->run->asleep, __ATOMIC_RELAXED))
        futex_wake(&c->attention);
}

/* Sleeps until attention is set or the host's clock shows `until`. */
static void sleep_until(Cpu *c, uint64_t until)
{
    struct RunState *r = c->run;
    struct timespec t = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
    __atomic_store_n(&r->asleep, true, __ATOMIC_SEQ_CST);
    r->held = false;
    unlock(c->vm);
    int slack = run_timer_slack(1);
    futex_wait(&c->attention, 0, &t);
    run_timer_slack(slack);
    lock(c->vm);
    r->held = true;
    __atomic_store_n(&r->asleep, false, __ATOMIC_RELAXED);
}

/* The guest waits for another vCPU, whose thread may wait for a processor of the host. */
void core_pause(Cpu *c)
{
    if (++c->run->pauses % PAUSES == 0)
        sched_yield();
}

/* ---- a vCPU's thread ---- */

void core_kick(Cpu *c)
{
    __atomic_store_n(&c->run->kicked, true, __ATOMIC_RELEASE);
    __atomic_store_n(&c->attention, 1, __ATOMIC_RELEASE);
    core_wake(c);
}

/* What is seen before the next slice; true: the run ends with *result. */
static bool look(Cpu *c, uint64_t now, int *result)
{
    Vm *vm = c->vm;
    struct RunState *r = c->run;
    if (vm->chips && chips_deadline(vm->chips) <= now)
        chips_tick(vm->chips, now);
    bool kicked = __atomic_exchange_n(&r->kicked, false, __ATOMIC_ACQ_REL), due = vm->deadline <= now;
    if (!kicked && !due && !r->rang && !c->record->immediate_exit)
        return false;
    if (due)
        vm->deadline = NEVER;
    r->rang = false;
    *result = run_interrupted(c);
    return true;
}

int run_parallel(Cpu *c)
{
    Vm *vm = c->vm;
    struct RunState *r = c->run;
    uint64_t visit = run_visit();
    int result = 0;
    lock(vm);
    r->held = true;
    for (;;) {
        while (unlikely(vm->parallel->crowded))
            pthread_cond_wait(&vm->parallel->gate, &vm->parallel->lock);
        r->ending = false;
        __atomic_store_n(&c->attention, 0, __ATOMIC_SEQ_CST); /* what comes from now on ends the sleep */
        uint64_t now = vm_now(vm);
        if (look(c, now, &result))
            break;
        if (now + vm->clock_base >= visit) {
            result = -EAGAIN;
            break;
        }
        if (!run_runnable(c)) {
            uint64_t deadline = run_deadline(vm);
            sleep_until(c, deadline != NEVER && deadline + vm->clock_base < visit ? deadline + vm->clock_base : visit);
            continue;
        }
        int64_t budget = SLICE_PARALLEL;
        if (run_step_done(c, &budget))
            break;
        r->inside = true;
        bool exits = run_slice(c, budget, budget < SLICE_PARALLEL) == SLICE_EXIT;
        left(c);
        if (exits || run_halt_exits(c)) {
            run_fill_record(c);
            break;
        }
    }
    r->held = false;
    unlock(vm);
    return result;
}
