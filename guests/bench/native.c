/* The compute benchmarks as a program of the host: native [scale=N] [repeat=N] [NAME...]. Prints what the guest prints. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "bench.h"

u8 *arena, *code_page;

static u64 nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec;
}

int main(int count, char **arguments) {
    u32 scale = 1000, repeat = 1;
    bool all = true;
    for (int n = 1; n < count; n++) {
        if (sscanf(arguments[n], "scale=%u", &scale) != 1 && sscanf(arguments[n], "repeat=%u", &repeat) != 1) all = false;
    }
    arena = mmap(0, 256u << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    code_page = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED || code_page == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    printf("tsc 1000000\n"); /* the ticks below are nanoseconds */
    for (unsigned n = 0; n < compute_count; n++) {
        bool wanted = all;
        for (int a = 1; a < count; a++) wanted |= !strcmp(arguments[a], compute[n].name);
        if (!wanted) continue;
        const u32 work = scaled(&compute[n], scale);
        if (compute[n].prepare) compute[n].prepare();
        for (u32 r = 0; r < repeat; r++) {
            const u64 start = nanoseconds();
            const u64 sum = compute[n].run(work);
            const u64 took = nanoseconds() - start;
            printf("end %s %016llx %llu %u\n", compute[n].name, (unsigned long long)sum, (unsigned long long)took, work);
        }
    }
    puts("done");
    return 0;
}
