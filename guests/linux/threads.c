/* threads ROUNDS: a thread on each CPU of this process; every round, memory that all of them have in their TLBs changes:
   - made read-only: a write of each thread must fault
   - unmapped, and fresh memory mapped there: each thread must read zeros
   Tells how many writes faulted and how many accesses saw what was no longer so. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 16
#define SIZE (PAGES * 4096)

static volatile unsigned *memory;
static pthread_barrier_t barrier;
static int rounds, count;
static atomic_int faults, wrong;
static _Thread_local sigjmp_buf back;

static void on_fault(int number) {
    (void)number;
    siglongjmp(back, 1);
}

static void change(int round, int step) {
    void *there = (void *)memory;
    if (step == 0) {
        for (int page = 0; page < PAGES; page++)
            memory[page * 1024] = (unsigned)round + 1;
    } else if (step == 1) {
        if (mprotect(there, SIZE, PROT_READ))
            abort();
    } else {
        if (munmap(there, SIZE))
            abort();
        if (mmap(there, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != there)
            abort();
    }
}

/* Whether a write is refused. */
static int refused(volatile unsigned *where) {
    if (sigsetjmp(back, 1))
        return 1;
    *where = 0;
    return 0;
}

static void *work(void *argument) {
    int self = (int)(long)argument;
    for (int round = 0; round < rounds; round++) {
        for (int step = 0; step < 3; step++) {
            if (round % count == self)
                change(round, step);
            pthread_barrier_wait(&barrier);
            for (int page = 0; page < PAGES; page++) {
                if (memory[page * 1024] != (step == 2 ? 0 : (unsigned)round + 1))
                    wrong++;
            }
            if (step == 1) {
                if (refused(&memory[(self + round) % PAGES * 1024]))
                    faults++;
                else
                    wrong++;
            }
            pthread_barrier_wait(&barrier);
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    cpu_set_t cpus;
    struct sigaction action = {.sa_handler = on_fault};
    pthread_t *threads;
    int at = 0;

    rounds = argc > 1 ? atoi(argv[1]) : 100;
    if (sched_getaffinity(0, sizeof cpus, &cpus))
        return 1;
    count = CPU_COUNT(&cpus);
    threads = calloc((size_t)count, sizeof *threads);
    memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!threads || memory == MAP_FAILED || pthread_barrier_init(&barrier, NULL, (unsigned)count))
        return 1;
    sigaction(SIGSEGV, &action, NULL);
    for (int cpu = 0; at < count; cpu++) {
        pthread_attr_t attributes;
        cpu_set_t one;
        if (!CPU_ISSET(cpu, &cpus))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_attr_init(&attributes);
        if (pthread_attr_setaffinity_np(&attributes, sizeof one, &one) || pthread_create(&threads[at], &attributes, work, (void *)(long)at))
            return 1;
        at++;
    }
    while (at)
        pthread_join(threads[--at], NULL);
    printf("%d threads, %d rounds: %d faults, %d stale\n", count, rounds, faults, wrong);
    return wrong != 0;
}
