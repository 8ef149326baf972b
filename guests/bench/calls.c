/* Calls and returns: Fibonacci numbers the slow way; the work is how many times number 25 is computed (a quarter million calls). */
#include "bench.h"

__attribute__((noinline, noclone, optimize("no-optimize-sibling-calls"))) static u64 fibonacci(u64 n) {
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

u64 calls(u32 work) {
    u64 sum = 0;
    for (u32 n = 0; n < work; n++) {
        __asm__ volatile("" : "+r"(sum));
        sum = sum * 3 + fibonacci(25);
    }
    return sum;
}
