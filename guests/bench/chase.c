/* A chain of dependent loads through 256 MiB, one per cache line: every step misses the caches and the TLB. 1000 steps per unit. */
#include "bench.h"

enum { LINES = 1 << 22, STRIDE = 64 };

/* A full-period linear congruential sequence (odd increment, multiplier 1 modulo 4) makes one cycle of all lines. */
static u32 follower(u32 line) { return (line * 1664525u + 1013904223u) & (LINES - 1); }

void chase_prepare(void) {
    for (u32 n = 0; n < LINES; n++) *(u32 *)(arena + (u64)n * STRIDE) = follower(n);
}

u64 chase(u32 work) {
    u32 line = 1;
    u64 sum = 0;
    for (u32 step = 0; step < work * 1000; step++) {
        line = *(volatile u32 *)(arena + (u64)line * STRIDE);
        sum += line;
    }
    return sum * 3 + line;
}
