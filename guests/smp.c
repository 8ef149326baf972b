/* All processors, 64-bit mode: started by INIT-SIPI-SIPI, they count under a lock and by atomic additions, answer IPIs, and take part in a TLB
   shootdown. How many there are comes from the MADT. */
#include "guest.h"

enum { MOST = 16, TRAMPOLINE = 0x8000, ROUNDS = 2000, VECTOR_CALL = 0x70, VECTOR_FLUSH = 0x71 };

extern const u8 trampoline_start[], trampoline_end[];
extern u64 page_map[512];
u64 trampoline_stack; /* of the processor that starts next */
static u8 stacks[MOST][8192] __attribute__((aligned(16)));
static u32 ids[MOST], cpu_count;
static volatile u32 online, working, finished, called, flushed;
static volatile u32 lock;
static volatile u64 under_lock, by_addition;
static volatile u32 go, quit;
static u8 frames[2][4096] __attribute__((aligned(4096)));
static const ulong window = 0x30000000000ul;
static struct { u16 limit; ulong base; } __attribute__((packed)) idt_register;
static volatile u32 seen_before, seen_after;

struct table {
    char signature[4];
    u32 length;
    u8 rest[28];
} __attribute__((packed));

static const struct table *find_table(const char *signature) {
    const u8 *rsdp = (const u8 *)(ulong)start_info->rsdp;
    if (!rsdp) return 0;
    u64 xsdt;
    u32 rsdt;
    memcpy(&xsdt, rsdp + 24, 8);
    memcpy(&rsdt, rsdp + 16, 4);
    const bool wide = rsdp[15] >= 2 && xsdt;
    const struct table *root = (const struct table *)(wide ? xsdt : rsdt);
    const u32 size = wide ? 8 : 4;
    for (u32 at = 36; at + size <= root->length; at += size) {
        u64 address = 0;
        memcpy(&address, (const u8 *)root + at, size);
        if (!memcmp((const void *)address, signature, 4)) return (const struct table *)address;
    }
    return 0;
}

static void find_processors(void) {
    const struct table *madt = find_table("APIC");
    check(madt != 0, "MADT found");
    const u8 *entry = (const u8 *)madt + 44, *end = (const u8 *)madt + madt->length;
    for (; entry + 2 <= end && entry[1]; entry += entry[1])
        if (entry[0] == 0 && entry[4] & 1 && cpu_count < MOST) ids[cpu_count++] = entry[3]; /* local APIC, enabled */
}

static void work(void) {
    for (u32 n = 0; n < ROUNDS; n++) {
        while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
            while (lock) cpu_pause();
        under_lock++; /* load, add, store: only the lock makes them one */
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
        __atomic_fetch_add(&by_addition, n, __ATOMIC_RELAXED);
    }
}

static void on_call(struct frame *f) {
    (void)f;
    __atomic_fetch_add(&called, 1, __ATOMIC_RELAXED);
    apic_write(APIC_EOI, 0);
}

static void on_flush(struct frame *f) {
    (void)f;
    invlpg(window);
    __atomic_fetch_add(&flushed, 1, __ATOMIC_RELAXED);
    apic_write(APIC_EOI, 0);
}

/* Where the trampoline arrives, on a stack of its own, in 64-bit mode. */
void processor_main(void) {
    __asm__ volatile("lidt %0" : : "m"(idt_register));
    apic_open();
    __atomic_fetch_add(&online, 1, __ATOMIC_SEQ_CST);
    while (!go) cpu_pause();
    __atomic_fetch_add(&working, 1, __ATOMIC_RELAXED);
    work();
    __atomic_fetch_add(&seen_before, ((volatile u8 *)window)[7], __ATOMIC_RELAXED); /* now in this processor's TLB */
    __atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
    while (!quit) {
        sti_hlt();
        cli();
    }
    __atomic_fetch_add(&seen_after, ((volatile u8 *)window)[7], __ATOMIC_RELAXED);
    __atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        cli();
        hlt();
    }
}

static bool wait_until(volatile u32 *counter, u32 value) {
    for (u32 ms = 0; ms < 5000; ms++) {
        if (*counter == value) return true;
        delay_us(1000);
    }
    print("counter stands at %u, not %u: ", *counter, value);
    return false;
}

void guest_main(void) {
    traps_open();
    pic_open(); /* firmware may have left the PIT ticking */
    apic_open();
    __asm__ volatile("sidt %0" : "=m"(idt_register));
    on_trap(VECTOR_CALL, on_call);
    on_trap(VECTOR_FLUSH, on_flush);
    on_trap(0xFF, on_call);
    find_processors();
    const u32 self = apic_read(APIC_ID) >> 24;
    print("%u processors, this is APIC %u\n", cpu_count, self);
    map_page(window, (ulong)frames[0], PAGE_P | PAGE_RW);
    frames[0][7] = 1;
    frames[1][7] = 10;
    memcpy((void *)TRAMPOLINE, trampoline_start, (size_t)(trampoline_end - trampoline_start));
    u32 others = 0;
    for (u32 n = 0; n < cpu_count; n++) {
        if (ids[n] == self) continue;
        trampoline_stack = (ulong)stacks[n] + sizeof stacks[n];
        apic_send(ids[n], 0xC500); /* INIT, asserted */
        apic_send(ids[n], 0x8500); /* and released */
        delay_us(10000);
        for (int sipi = 0; sipi < 2 && online == others; sipi++) {
            apic_send(ids[n], 0x4600 | TRAMPOLINE >> 12);
            for (int ms = 0; ms < 200 && online == others; ms++) delay_us(1000);
        }
        others++;
        print("APIC %u: ", ids[n]);
        check(online == others, "started by INIT-SIPI-SIPI");
    }
    go = 1;
    work();
    const u32 mine = ((volatile u8 *)window)[7];
    check(wait_until(&finished, others), "all came to an end");
    check_equal(under_lock, (u64)ROUNDS * (others + 1), "counted under a lock");
    check_equal(by_addition, (u64)ROUNDS * (ROUNDS - 1) / 2 * (others + 1), "counted by atomic additions");
    check_equal(seen_before + mine, others + 1, "all see the first frame");
    for (u32 n = 0; n < cpu_count; n++)
        if (ids[n] != self) apic_send(ids[n], 0x4000 | VECTOR_CALL);
    check(wait_until(&called, others), "an IPI to each");
    called = 0;
    apic_send(0, 0xC4000 | VECTOR_CALL); /* all but self */
    check(wait_until(&called, others), "an IPI to all others");
    called = 0;
    sti();
    apic_send(0, 0x84000 | VECTOR_CALL); /* all */
    check(wait_until(&called, others + 1), "an IPI to all");
    cli();
    *page_entry(window) = (ulong)frames[1] | PAGE_P | PAGE_RW;
    invlpg(window);
    apic_send(0, 0xC4000 | VECTOR_FLUSH);
    check(wait_until(&flushed, others), "a shootdown reaches all others");
    finished = 0;
    quit = 1;
    apic_send(0, 0xC4000 | VECTOR_CALL);
    check(wait_until(&finished, others), "all are awake once more");
    check_equal(seen_after + ((volatile u8 *)window)[7], 10 * (others + 1), "all see the second frame");
    all_good("smp");
}
