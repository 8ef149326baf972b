/* Durations by the PIT's counter 2, which needs no interrupt: gate and output are bits of port 61h. */
#include "guest.h"

enum { PIT_HZ = 1193182, PIT_COUNTER2 = 0x42, PIT_CONTROL = 0x43, PORT61 = 0x61 };

static void wait_ticks(u32 ticks) {
    outb(PORT61, (inb(PORT61) & 0xFC) | 1); /* gate on, speaker off */
    outb(PIT_CONTROL, 0xB0);                /* counter 2, both bytes, mode 0: output rises at the end */
    outb(PIT_COUNTER2, (u8)ticks);
    outb(PIT_COUNTER2, (u8)(ticks >> 8));
    while (!(inb(PORT61) & 0x20)) cpu_pause();
}

void delay_us(u32 us) {
    for (; us > 50000; us -= 50000) wait_ticks(50000u * (PIT_HZ / 1000) / 1000);
    wait_ticks(us * (PIT_HZ / 1000) / 1000 + 1);
}

/* The least of five tries: what disturbs the guest makes a try longer, never shorter. */
u64 tsc_per_ms(void) {
    u64 least = ~0ull;
    for (int n = 0; n < 5; n++) {
        const u64 before = rdtsc();
        wait_ticks(10 * PIT_HZ / 1000);
        const u64 ticks = rdtsc() - before;
        if (ticks < least) least = ticks;
    }
#ifdef __x86_64__
    return least / 10;
#else
    return (u32)least / 10;
#endif
}
