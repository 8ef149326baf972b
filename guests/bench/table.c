/* The compute benchmarks, in the order of their report. */
#include "bench.h"

const struct benchmark compute[] = {
    { "mix", 0, mix, 1800, 1 },
    { "sieve", 0, sieve, 50, 1 },
    { "strings", 0, strings, 1600, 3 },
    { "copyloop", 0, copy_loop, 1800, 3 },
    { "quicksort", 0, quicksort, 6, 2 },
    { "calls", 0, calls, 220, 1 },
    { "mandelbrot", 0, mandelbrot, 8000, 1 },
    { "nbody", 0, nbody, 120000, 1 },
    { "chase", chase_prepare, chase, 400, 256 },
    { "sha256", 0, sha256, 1000, 1 },
    { "muldiv", 0, muldiv, 11000, 1 },
    { "bytecode", bytecode_prepare, bytecode, 1400, 1 },
    { "patched", patched_prepare, patched, 1000, 1 },
};
const unsigned compute_count = sizeof compute / sizeof compute[0];
