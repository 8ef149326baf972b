/* The compute benchmarks, in the order of their report. A guest of 32 bits has those of integers. */
#include "bench.h"

const struct benchmark compute[] = {
    { "mix", 0, mix, 1800, 1, 1 },
    { "sieve", 0, sieve, 50, 1, 1 },
#ifdef __x86_64__
    { "strings", 0, strings, 120, 3, 1 },
    { "strings4k", 0, strings4k, 50, 3, 1 },
    { "strings64", 0, strings64, 800, 3, 1 },
    { "copyloop", 0, copy_loop, 1800, 3, 1 },
    { "copyfar", 0, copy_far, 300, 18, 1 },
#endif
    { "quicksort", 0, quicksort, 6, 2, 1 },
    { "calls", 0, calls, 220, 1, 1 },
#ifdef __x86_64__
    { "mandelbrot", 0, mandelbrot, 8000, 1, 1 },
    { "nbody", 0, nbody, 120000, 1, 1 },
    { "chase", chase_prepare, chase, 400, 256, 1 },
#endif
    { "sha256", 0, sha256, 1000, 1, 1 },
#ifdef __x86_64__
    { "muldiv", 0, muldiv, 11000, 1, 1 },
    { "wide64", wide64_prepare, wide64, 4000, 1, 1 },
#endif
    { "wide32", wide32_prepare, wide32, 15000, 1, 1 },
    { "bytecode", bytecode_prepare, bytecode, 1400, 1, 1 },
#ifdef __x86_64__
    { "patched", patched_prepare, patched, 1000, 1, 1 },
#endif
};
const unsigned compute_count = sizeof compute / sizeof compute[0];
