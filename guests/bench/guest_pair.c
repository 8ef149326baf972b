/* The same work by one processor and by two at once, each in memory of its own: equal times show that they run at the same time. */
#include "guest.h"

#include "bench_guest.h"

enum { TRAMPOLINE = 0x8000, SIZE = 1 << 18, OTHER = 1 };

extern const u8 trampoline_start[], trampoline_end[];
u64 trampoline_stack;
static u8 stack[8192] __attribute__((aligned(16)));
static volatile u32 online, wanted, finished;
static u64 other_sum;

/* A unit: a table of 64 KiB words stirred: loads, stores, arithmetic and jumps that depend on it. */
static u64 stir(u32 *data, u32 work) {
    u64 sum = 0;
    for (u32 n = 0; n < SIZE / 4; n++) data[n] = n * 2654435761u;
    for (u32 round = 0; round < work; round++)
        for (u32 n = 0; n < SIZE / 4; n++) {
            const u32 value = data[n];
            data[value % (SIZE / 4)] += value >> 7;
            if (value & 64) sum += value;
            else sum ^= n;
        }
    return sum;
}

u64 alone(u32 work) { return stir((u32 *)arena, work); }

/* Where the trampoline arrives. */
void processor_main(void) {
    online = 1;
    for (u32 done = 0;;) {
        while (wanted == done) cpu_pause();
        other_sum = stir((u32 *)(arena + SIZE), finished);
        done++;
        __atomic_store_n(&finished, 0, __ATOMIC_RELEASE);
    }
}

void pair_prepare(void) {
    memcpy((void *)TRAMPOLINE, trampoline_start, (size_t)(trampoline_end - trampoline_start));
    trampoline_stack = (u64)stack + sizeof stack;
    apic_send(OTHER, 0x4500); /* INIT */
    delay_us(10000);
    for (int tries = 0; tries < 50 && !online; tries++) {
        apic_send(OTHER, 0x4600 | TRAMPOLINE >> 12);
        delay_us(10000);
    }
    if (!online) {
        print("pair: there is no second processor\n");
        leave(255);
    }
}

u64 pair(u32 work) {
    finished = work;
    __atomic_fetch_add(&wanted, 1, __ATOMIC_SEQ_CST);
    const u64 sum = stir((u32 *)arena, work);
    while (finished) cpu_pause();
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return sum + other_sum;
}
