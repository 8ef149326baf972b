/* KVM_RUN, and the kick that ends it: immediate_exit for the next run, a thread-directed signal for the present one. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "kvm/glue.h"
#include "history.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic int kick_signal;
static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int unblocked;
static _Thread_local int32_t own_tid;

static void ignore(int number)
{
    (void)number;
}

/* A signal with the default disposition belongs to nobody: Python and the program's own handlers stay as they are. */
static int install(void)
{
    for (int number = SIGRTMAX - 2; number > SIGRTMIN + 2; number--) {
        struct sigaction old, mine = {.sa_handler = ignore, .sa_flags = SA_RESTART};
        if (sigaction(number, NULL, &old) == 0 && old.sa_handler == SIG_DFL && !(old.sa_flags & SA_SIGINFO)) {
            sigemptyset(&mine.sa_mask);
            return sigaction(number, &mine, NULL) == 0 ? number : -errno;
        }
    }
    return -EBUSY;
}

int kvm_kick_signal(void)
{
    int number = atomic_load(&kick_signal);
    if (number)
        return number;
    pthread_mutex_lock(&install_lock);
    number = atomic_load(&kick_signal);
    if (!number) {
        number = install();
        if (number > 0)
            atomic_store(&kick_signal, number);
    }
    pthread_mutex_unlock(&install_lock);
    return number;
}

/* Threads inherit their creator's signal mask: a program that blocks everything must not make the vCPU unstoppable. */
static int prepare_thread(void)
{
    int number = kvm_kick_signal();
    if (number < 0)
        return number;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    int error = pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    if (error)
        return -error;
    own_tid = (int32_t)syscall(SYS_gettid);
    unblocked = 1;
    return 0;
}

/*
 * A kick stores immediate_exit before it reads tid; here tid is stored before the kernel reads immediate_exit.
 * So a kick either finds the thread and sends the signal, or its immediate_exit is seen on entry.
 * The byte is cleared only where the run ends with INTR: a kick that met another exit ends the next run.
 */
int kvm_vcpu_run(int fd, struct kvm_run *run, struct kvm_runner *runner)
{
    if (!unblocked) {
        int error = prepare_thread();
        if (error)
            return error;
    }
    exits_answered(&runner->exits, run);
    __atomic_store_n(&runner->tid, own_tid, __ATOMIC_SEQ_CST);
    int error;
    do {
        error = ioctl(fd, KVM_RUN, 0) < 0 ? errno : 0;
    } while (error == EAGAIN && !__atomic_load_n(&run->immediate_exit, __ATOMIC_SEQ_CST));
    __atomic_store_n(&runner->tid, 0, __ATOMIC_SEQ_CST);
    if (!error) {
        exits_add(&runner->exits, run, run->kvm_valid_regs & KVM_SYNC_X86_REGS ? run->s.regs.regs.rip : 0);
        return (int)run->exit_reason;
    }
    if (error == EINTR || error == EAGAIN) {
        __atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
        run->exit_reason = KVM_EXIT_INTR;
        return KVM_EXIT_INTR;
    }
    return -error;
}

void kvm_vcpu_exits(const struct kvm_run *run, struct kvm_runner *runner, struct kp_exits *exits)
{
    exits_answered(&runner->exits, run);
    *exits = runner->exits;
}

void kvm_vcpu_kick(struct kvm_run *run, struct kvm_runner *runner)
{
    int saved = errno;
    __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    int32_t tid = __atomic_load_n(&runner->tid, __ATOMIC_SEQ_CST);
    int number = atomic_load(&kick_signal);
    if (tid && number > 0) {
        __atomic_add_fetch(&runner->kicks, 1, __ATOMIC_RELAXED);
        syscall(SYS_tgkill, (long)getpid(), (long)tid, (long)number);
    }
    errno = saved;
}
