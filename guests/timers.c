/* Timers, 64-bit mode: the PIT through the 8259s and through the I/O APIC, the RTC, the local APIC's timer in its three modes. Ticks are counted and
   set against the TSC. */
#include "guest.h"

static volatile u32 ticks[256];
static u64 tsc_ms;
static bool exact;

static void pic_tick(struct frame *f) {
    ticks[f->vector & 255]++;
    const unsigned irq = (unsigned)f->vector - 0x20;
    if (irq == 8) {
        outb(0x70, 0x0C); /* register C must be read, or no further interrupt comes */
        inb(0x71);
    }
    pic_eoi(irq);
}

/* A line that fell before it was acknowledged: no EOI to the 8259 that says so, but the first one has the second one in service. */
static void spurious(struct frame *f) {
    if (f->vector == 0x2F) outb(0x20, 0x20);
}

static void apic_tick(struct frame *f) {
    ticks[f->vector & 255]++;
    apic_write(APIC_EOI, 0);
}

/* Milliseconds from `start`, a time before the timer was set, until `count` ticks have come: the host may do other things between the two.
   Without ticks it waits for good, and the host's time limit says so. */
static u32 wait_for(unsigned vector, u32 count, u64 start) {
    while (ticks[vector] < count) {
        sti_hlt();
        cli();
    }
    return (u32)((rdtsc() - start) / tsc_ms);
}

/* Lets in what is pending. */
static void let_in(void) {
    sti();
    for (int n = 0; n < 200; n++) cpu_pause();
    cli();
}

/* A busy host is late, and then hands over the PIT's missed ticks at once: only on time of its own ("exact") can ticks be too early. */
static void in_time(u32 took, u32 least, const char *what) {
    print("%u ms: ", took);
    check((!exact || 4 * took + 8 >= 3 * least) && took < 20 * least + 2000, what);
}

static void pit(void) {
    enum { COUNT = 11932 }; /* 10 ms */
    on_trap(0x20, pic_tick);
    u64 start = rdtsc();
    outb(0x43, 0x34); /* counter 0, both bytes, mode 2 */
    outb(0x40, COUNT & 255);
    outb(0x40, COUNT >> 8);
    pic_unmask(0);
    ticks[0x20] = 0;
    in_time(wait_for(0x20, 20, start), 190, "PIT: 20 ticks of 10 ms by the 8259");
    outb(0x21, 0xFF);
    outb(0x43, 0x30); /* mode 0: counts once, when it has a count */
    pic_unmask(0);
    for (int n = 0; n < 20; n++) {
        delay_us(1000);
        let_in(); /* ticks of before, which a host may have kept */
    }
    ticks[0x20] = 0;
    outb(0x40, COUNT & 255);
    outb(0x40, COUNT >> 8);
    wait_for(0x20, 1, rdtsc());
    delay_us(30000);
    let_in();
    check(ticks[0x20] == 1 || !exact, "PIT: mode 0 ticks once");
    outb(0x21, 0xFF);
    outb(0x43, 0x00); /* latch counter 0 */
    const u32 low = inb(0x40), high = inb(0x40);
    print("counter latched at %u\n", low | high << 8);
}

static void rtc(void) {
    on_trap(0x28, pic_tick);
    outb(0x70, 0x0A);
    outb(0x71, 0x26); /* 1024 Hz */
    outb(0x70, 0x0B);
    outb(0x71, 0x42); /* periodic interrupt, 24 h */
    outb(0x70, 0x0C);
    inb(0x71);
    ticks[0x28] = 0;
    const u64 start = rdtsc();
    pic_unmask(8);
    in_time(wait_for(0x28, 102, start), 95, "RTC: 102 ticks at 1024 Hz");
    outb(0xA1, 0xFF);
    outb(0x70, 0x0B);
    outb(0x71, 0x02);
    outb(0x70, 0x00);
    const u8 second = inb(0x71);
    check((second >> 4) < 6 && (second & 15) < 10, "RTC: the second is BCD");
}

static void apic(void) {
    enum { VECTOR = 0x50, PERIODIC = 0x20000, DEADLINE = 0x40000, MASKED = 0x10000 };
    on_trap(VECTOR, apic_tick);
    apic_write(APIC_TIMER_DIVIDE, 0xB); /* by 1 */
    /* Its frequency, against the PIT. */
    apic_write(APIC_LVT_TIMER, MASKED | VECTOR);
    apic_write(APIC_TIMER_COUNT, 0xFFFFFFFF);
    delay_us(20000);
    const u32 per_ms = (0xFFFFFFFF - apic_read(APIC_TIMER_NOW)) / 20;
    apic_write(APIC_TIMER_COUNT, 0);
    print("APIC timer: %u counts each ms\n", per_ms);
    check(per_ms > 10000, "APIC timer counts");
    ticks[VECTOR] = 0;
    apic_write(APIC_LVT_TIMER, VECTOR);
    u64 start = rdtsc();
    apic_write(APIC_TIMER_COUNT, per_ms * 20);
    in_time(wait_for(VECTOR, 1, start), 19, "APIC timer: one shot of 20 ms");
    delay_us(30000);
    let_in();
    check_equal(ticks[VECTOR], 1, "APIC timer: one shot is one");
    check_equal(apic_read(APIC_TIMER_NOW), 0, "APIC timer: stands at 0 afterwards");
    ticks[VECTOR] = 0;
    apic_write(APIC_LVT_TIMER, PERIODIC | VECTOR);
    start = rdtsc();
    apic_write(APIC_TIMER_COUNT, per_ms * 5);
    in_time(wait_for(VECTOR, 20, start), 95, "APIC timer: 20 periods of 5 ms");
    apic_write(APIC_LVT_TIMER, MASKED | VECTOR);
    apic_write(APIC_TIMER_COUNT, 0);
    if (cpuid(1, 0).c >> 24 & 1) {
        apic_write(APIC_LVT_TIMER, DEADLINE | VECTOR);
        __asm__ volatile("mfence" : : : "memory"); /* SDM 3A 10.5.4.1: the LVT write comes before the MSR's */
        delay_us(2000);
        let_in(); /* a period that ended before, delivered late */
        ticks[VECTOR] = 0;
        start = rdtsc();
        wrmsr(MSR_TSC_DEADLINE, start + 20 * tsc_ms);
        in_time(wait_for(VECTOR, 1, start), 19, "APIC timer: TSC deadline in 20 ms");
        check_equal(rdmsr(MSR_TSC_DEADLINE), 0, "APIC timer: the deadline is 0 when met");
        start = rdtsc();
        wrmsr(MSR_TSC_DEADLINE, 1);
        in_time(wait_for(VECTOR, 2, start), 1, "APIC timer: a deadline in the past comes at once");
    }
    apic_write(APIC_LVT_TIMER, MASKED | VECTOR);
}

/* The PIT stands at pin 0 or, on machines with the usual override, at pin 2. */
static void io_apic(void) {
    volatile u32 *const select = (volatile u32 *)0xFEC00000u, *const data = (volatile u32 *)0xFEC00010u;
    enum { VECTOR = 0x58, MASKED = 0x10000 };
    on_trap(VECTOR, apic_tick);
    const u32 id = apic_read(APIC_ID) >> 24;
    for (u32 pin = 0; pin <= 2; pin += 2) {
        *select = 0x11 + 2 * pin;
        *data = id << 24;
        *select = 0x10 + 2 * pin;
        *data = VECTOR; /* edge, fixed, physical */
    }
    *select = 1;
    print("I/O APIC with %u pins\n", (*data >> 16 & 255) + 1);
    ticks[VECTOR] = 0;
    const u64 start = rdtsc();
    outb(0x43, 0x34);
    outb(0x40, 11932 & 255);
    outb(0x40, 11932 >> 8);
    in_time(wait_for(VECTOR, 10, start), 90, "PIT: 10 ticks of 10 ms by the I/O APIC");
    for (u32 pin = 0; pin <= 2; pin += 2) {
        *select = 0x10 + 2 * pin;
        *data = MASKED;
    }
}

void guest_main(void) {
    traps_open();
    pic_open();
    apic_open();
    apic_write(APIC_LVT_LINT0, 0x700); /* the 8259s come in here */
    on_trap(0x27, spurious);
    on_trap(0x2F, spurious);
    on_trap(0xFF, apic_tick);
    exact = option_given("exact");
    tsc_ms = tsc_per_ms();
    print("TSC: %u kHz\n", (u32)tsc_ms);
    pit();
    rtc();
    apic();
    io_apic();
    all_good("timers");
}
