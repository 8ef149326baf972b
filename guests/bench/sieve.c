/* Sieve of Eratosthenes over half a million odd numbers per unit. */
#include "bench.h"

u64 sieve(u32 work) {
    enum { SIZE = 500000 };
    u64 sum = 0;
    for (u32 round = 0; round < work; round++) {
        u8 *composite = arena;
        for (u32 n = 0; n < SIZE; n++) composite[n] = 0;
        u32 count = 1;
        for (u32 n = 1; n < SIZE; n++) { /* stands for 2n + 1 */
            if (composite[n]) continue;
            count++;
            const u32 prime = 2 * n + 1;
            for (u32 m = n + prime; m < SIZE; m += prime) composite[m] = 1;
        }
        sum = sum * 3 + count + round;
    }
    return sum;
}
