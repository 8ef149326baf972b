/* Memory moved: by the string instructions (pieces of 1 MiB, 4 KiB and 64 bytes), and by a loop of 64-bit words. The loop's buffers lie next to each
   other, or 16 MiB apart: a software TLB that is a table by the low bits of the page number then has one place for both. */
#include "bench.h"

enum { SIZE = 1 << 20, FAR = 16 << 20 };

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

/* 1000 pieces per unit, each at another place: stored, moved by words, moved by bytes. */
static u64 pieces(u32 work, u32 size) {
    u8 *a = arena, *b = arena + SIZE;
    for (u32 n = 0; n < work * 1000; n++) {
        const u32 at = n * 4168 % (SIZE - 4096);
        store_quads(a + at, 0x0102030405060708ull * (n + 1), size / 8);
        move_quads(b + at, a + at, size / 8);
        move_bytes(a + at / 2, b + at, size);
    }
    return fold(a) * 31 + fold(b);
}

u64 strings4k(u32 work) { return pieces(work, 4096); }
u64 strings64(u32 work) { return pieces(work, 64); }

static u64 copy(u32 work, u32 apart) {
    volatile u64 *unknown = (volatile u64 *)arena;
    unknown[0] = 5;
    u64 *a = (u64 *)arena, *b = (u64 *)(arena + apart);
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

u64 copy_loop(u32 work) { return copy(work, SIZE + (SIZE >> 2)); }
u64 copy_far(u32 work) { return copy(work, FAR); }
