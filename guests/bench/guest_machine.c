/* Pages, faults, system calls, interrupts, exits to devices. Each counts its operations; checksums are what must have happened. */
#include "guest.h"

#include "bench_guest.h"

/* One page, remapped between two frames: a store to the entry, INVLPG, a load. */
static const ulong window = 0x10000000000ul;
static u8 frames[2][4096] __attribute__((aligned(4096)));

static void remap_prepare(void) {
    frames[0][5] = 3;
    frames[1][5] = 4;
    map_page(window, (ulong)frames[0], PAGE_P | PAGE_RW);
}

static u64 remap(u32 work) {
    volatile u64 *entry = page_entry(window);
    u64 sum = 0;
    for (u32 n = 0; n < work; n++) {
        *entry = (ulong)frames[n & 1] | PAGE_P | PAGE_RW;
        invlpg(window);
        sum += ((volatile u8 *)window)[5];
    }
    return sum;
}

/* A CR3 reload, then 16 pages touched. */
static u64 reload(u32 work) {
    u64 sum = 0;
    for (u32 n = 0; n < work; n++) {
        write_cr3(read_cr3());
        for (u32 page = 0; page < 16; page++) sum += ((volatile u8 *)arena)[page * 4096] & 0;
    }
    return sum + work;
}

/* The same, but by turns to two address spaces with PCIDs, neither of which is flushed; without PCIDs, to two that are. */
extern u64 page_map[512];
static u64 other_map[512] __attribute__((aligned(4096)));
static ulong space[2];

static void switch_prepare(void) {
    ulong pcids = 0;
    if (cpuid(1, 0).c >> 17 & 1) {
        write_cr4(read_cr4() | CR4_PCIDE);
        pcids = 1ul << 63 | 1;
    }
    for (u32 n = 0; n < 512; n++) other_map[n] = page_map[n];
    space[0] = (ulong)page_map | (pcids & ~1ul);
    space[1] = (ulong)other_map | pcids;
}

static u64 switches(u32 work) {
    u64 sum = 0;
    for (u32 n = 0; n < work; n++) {
        write_cr3(space[~n & 1]);
        for (u32 page = 0; page < 16; page++) sum += ((volatile u8 *)arena)[page * 4096] & 0;
    }
    write_cr3((ulong)page_map);
    return sum + work;
}

/* A page fault, whose handler maps the page; then the page is taken away again. */
static volatile u64 faults;

static void fault_handler(struct frame *f) {
    if ((read_cr2() & ~0xFFFul) != window) {
        print("page fault at 0x%lx, address 0x%lx\n", f->ip, read_cr2());
        leave(255);
    }
    *page_entry(window) = (ulong)frames[0] | PAGE_P | PAGE_RW;
    faults++;
}

static u64 fault(u32 work) {
    faults = 0;
    on_trap(PF, fault_handler);
    for (u32 n = 0; n < work; n++) {
        *page_entry(window) = 0;
        invlpg(window);
        ((volatile u8 *)window)[5] = 3;
    }
    on_trap(PF, 0);
    return faults;
}

/* System calls from ring 3: each entry counts and returns. */
extern void syscall_entry(void), interrupt_entry(void);
extern ulong syscall_loop(ulong), interrupt_loop(ulong);
extern volatile u64 system_calls;

static void syscall_prepare(void) {
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
    wrmsr(MSR_STAR, (u64)SEL_USER_CODE32 << 48 | (u64)SEL_CODE << 32);
    wrmsr(MSR_LSTAR, (ulong)syscall_entry);
    wrmsr(MSR_SFMASK, FLAG_IF | FLAG_TF);
    set_gate(0x80, (ulong)interrupt_entry, SEL_CODE, 0xEE, 0);
}

static u64 syscalls(u32 work) {
    system_calls = 0;
    in_user_mode(syscall_loop, work);
    return system_calls;
}

static u64 interrupts80(u32 work) {
    system_calls = 0;
    in_user_mode(interrupt_loop, work);
    return system_calls;
}

/* The APIC timer in one-shot mode: armed, waited for in HLT, taken. */
enum { TIMER = 0x40 };
static volatile u64 timer_ticks;

static void timer_handler(struct frame *f) {
    (void)f;
    timer_ticks++;
    apic_write(APIC_EOI, 0);
}

static void timer_prepare(void) {
    on_trap(TIMER, timer_handler);
    apic_write(APIC_TIMER_DIVIDE, 0xB); /* by 1 */
    apic_write(APIC_LVT_TIMER, TIMER);
}

static u64 timers(u32 work) {
    timer_ticks = 0;
    for (u32 n = 0; n < work; n++) {
        const u64 before = timer_ticks;
        apic_write(APIC_TIMER_COUNT, 1000);
        while (timer_ticks == before) {
            sti_hlt();
            cli();
        }
    }
    return timer_ticks;
}

/* An interrupt by the processor itself: the APIC sends it to its sender. */
static u64 self_ipi(u32 work) {
    timer_ticks = 0;
    sti();
    for (u32 n = 0; n < work; n++) {
        const u64 before = timer_ticks;
        apic_write(APIC_ICR, 0x40000 | TIMER);
        while (timer_ticks == before) cpu_pause();
    }
    cli();
    return timer_ticks;
}

/* Exits. Port 80h is a device in Python, 5FFh nobody's; 21h is the 8259, FEE00080h the local APIC's TPR. */
static u64 port_write(u32 work) {
    for (u32 n = 0; n < work; n++) outb(0x80, (u8)n);
    return work;
}

static u64 port_read(u32 work) {
    u64 sum = 0;
    for (u32 n = 0; n < work; n++) sum += inb(0x5FF) == 0xFF;
    return sum;
}

static u64 chip_port(u32 work) {
    u64 sum = 0;
    for (u32 n = 0; n < work; n++) sum += inb(0x21);
    return sum;
}

static u64 chip_write(u32 work) {
    for (u32 n = 0; n < work; n++) outb(0x21, 0xFF);
    return work;
}

static u64 chip_mmio(u32 work) {
    u64 sum = 0;
    for (u32 n = 0; n < work; n++) sum += apic_read(APIC_TPR);
    return sum;
}

/* An address where no device stands: an MMIO exit. */
static u64 mmio_write(u32 work) {
    for (u32 n = 0; n < work; n++) *(volatile u32 *)0xD0000000ul = n;
    return work;
}

const struct benchmark machine_benchmarks[] = {
    { "remap", remap_prepare, remap, 200000, 0, 1 },
    { "reload", 0, reload, 50000, 1, 1 },
    { "switch", switch_prepare, switches, 50000, 1, 1 },
    { "fault", remap_prepare, fault, 50000, 0, 1 },
    { "syscall", syscall_prepare, syscalls, 300000, 0, 1 },
    { "int80", syscall_prepare, interrupts80, 200000, 0, 1 },
    { "timer", timer_prepare, timers, 2000, 0, 1 },
    { "selfipi", timer_prepare, self_ipi, 50000, 0, 1 },
    { "outb", 0, port_write, 100000, 0, 1 },
    { "inb", 0, port_read, 100000, 0, 1 },
    { "mmio", 0, mmio_write, 100000, 0, 1 },
    { "picport", 0, chip_port, 200000, 0, 1 },
    { "picwrite", 0, chip_write, 200000, 0, 1 },
    { "lapic", 0, chip_mmio, 200000, 0, 1 },
    { "alone", 0, alone, 500, 1, 1 },
    { "pair", pair_prepare, pair, 500, 2, 2 },
};
const unsigned machine_count = sizeof machine_benchmarks / sizeof machine_benchmarks[0];
