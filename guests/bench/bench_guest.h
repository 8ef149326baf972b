/* What only a guest can do: benchmarks of pages, traps, interrupts and exits. */
#ifndef BENCH_GUEST_H
#define BENCH_GUEST_H

#include "bench.h"

struct call {
    u64 (*run)(u32);
    u32 work;
};

/* Their work is a count of operations; the time of one is what matters. */
extern const struct benchmark machine_benchmarks[];
extern const unsigned machine_count;

/* guest_pair.c */
u64 alone(u32), pair(u32);
void pair_prepare(void);

#endif
