/* 64-bit multiplications with 128-bit products and divisions, 1000 of each per unit. */
#include "bench.h"

u64 muldiv(u32 work) {
    u64 a = 0x123456789ABCDEFull, b = 0xFEDCBA987654321ull, sum = 0;
    for (u32 n = 0; n < work * 1000; n++) {
        const unsigned __int128 product = (unsigned __int128)a * b;
        a = (u64)(product >> 64) ^ (u64)product;
        b = (b >> 3 | 1) + n;
        const u64 quotient = a / b;
        const u64 rest = a % b;
        sum += quotient ^ (u64)((int64_t)rest * -7 / (int64_t)(n + 3));
        b ^= rest << 5;
    }
    return sum + a;
}
