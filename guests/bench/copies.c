/* Memory moved: by the string instructions (1 MiB per unit, each way of them), and by a loop of 64-bit words. */
#include "bench.h"

enum { SIZE = 1 << 20 };

static void move_quads(void *to, const void *from, u64 count) {
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}
static void move_bytes(void *to, const void *from, u64 count) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}
static void store_quads(void *to, u64 value, u64 count) {
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
}

static u64 fold(const u8 *data) {
    u64 sum = 0;
    for (u32 n = 0; n < SIZE; n += 4096) sum = sum * 31 + data[n] + data[n + 1001];
    return sum;
}

u64 strings(u32 work) {
    u8 *a = arena, *b = arena + SIZE;
    u64 sum = 0;
    for (u32 n = 0; n < work; n++) {
        store_quads(a, 0x0102030405060708ull * (n + 1), SIZE / 8);
        move_quads(b, a, SIZE / 8);
        move_bytes(a + 1, b, SIZE / 2);
        sum = sum * 7 + fold(a) + fold(b);
    }
    return sum;
}

u64 copy_loop(u32 work) {
    volatile u64 *unknown = (volatile u64 *)arena;
    unknown[0] = 5;
    u64 *a = (u64 *)arena, *b = (u64 *)(arena + SIZE);
    for (u32 n = 0; n < SIZE / 8; n++) a[n] = n * 0x9E3779B97F4A7C15ull;
    for (u32 round = 0; round < work; round++) {
        for (u32 n = 0; n < SIZE / 8; n++) b[n] = a[n];
        u64 *other = a;
        a = b;
        b = other;
        a[round & 0xFFFF] += round;
    }
    return fold((u8 *)a);
}
