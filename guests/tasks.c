/* Hardware task switches in 32-bit protected mode: by JMP, by CALL and IRET, by an interrupt's task gate; busy bits, back links, CR0.TS, registers. */
#include "guest.h"

enum { SEL_TASK = SEL_FREE + 8, SEL_TASK2 = SEL_FREE + 16 };
static struct tss task, task2;
static u8 stacks[2][4096] __attribute__((aligned(16)));
static volatile u32 seen_ax, seen_flags, seen_link, seen_tr, runs;
static struct { u32 offset; u16 selector; } __attribute__((packed)) to_task = { 0, SEL_TASK }, to_main = { 0, SEL_TSS };

static u32 task_register(void) {
    u32 tr;
    __asm__ volatile("str %0" : "=r"(tr));
    return tr & 0xFFFF;
}

static unsigned type_of(u16 selector) { return gdt[selector / 8] >> 40 & 15; }

enum { AVAILABLE = 9, BUSY = 11 };

static void note(u32 ax) {
    seen_ax = ax;
    seen_flags = read_flags();
    seen_tr = task_register();
    seen_link = task.link;
    runs++;
}

/* By JMP: goes back the same way, and goes on behind it the next time. */
static void __attribute__((noreturn)) jumped(void) {
    u32 ax;
    __asm__ volatile("" : "=a"(ax));
    for (;;) {
        note(ax);
        __asm__ volatile("ljmp *%0" : : "m"(to_main) : "memory");
    }
}

/* By CALL or a gate: IRET with NT set goes back along the link. */
static void __attribute__((noreturn)) nested(void) {
    u32 ax;
    __asm__ volatile("" : "=a"(ax));
    for (;;) {
        note(ax);
        __asm__ volatile("iretl" : : : "memory");
    }
}

static void prepare(struct tss *t, u16 selector, void (*entry)(void), u8 *stack) {
    memset(t, 0, sizeof *t);
    t->eip = (u32)entry;
    t->esp = (u32)stack + 4000;
    t->eflags = 2;
    t->eax = 0x1234;
    t->cs = SEL_CODE;
    t->ds = t->es = t->ss = t->fs = t->gs = SEL_DATA;
    t->cr3 = read_cr3();
    t->io_map = sizeof *t;
    gdt[selector / 8] = descriptor((u32)t, sizeof *t - 1, 0x89, 0);
}

void guest_main(void) {
    traps_open();
    check(task_register() == SEL_TSS && type_of(SEL_TSS) == BUSY, "LTR makes the TSS busy");

    prepare(&task, SEL_TASK, jumped, stacks[0]);
    __asm__ volatile("clts");
    u32 kept = 0x5555;
    __asm__ volatile("ljmp *%1" : "+b"(kept) : "m"(to_task) : "ax", "cx", "dx", "memory");
    check(runs == 1 && seen_ax == 0x1234, "JMP to a task: its registers");
    check_equal(seen_tr, SEL_TASK, "  TR");
    check(!(seen_flags & FLAG_NT), "  NT clear");
    check_equal(kept, 0x5555, "  and back: registers of this task");
    check(task_register() == SEL_TSS && type_of(SEL_TASK) == AVAILABLE && type_of(SEL_TSS) == BUSY, "  busy bits");
    check(read_cr0() & CR0_TS, "  CR0.TS set");
    __asm__ volatile("ljmp *%0" : : "m"(to_task) : "ax", "cx", "dx", "memory");
    check_equal(runs, 2, "the task goes on where it left");

    prepare(&task, SEL_TASK, nested, stacks[0]);
    __asm__ volatile("lcall *%0" : : "m"(to_task) : "ax", "cx", "dx", "memory");
    check_equal(runs, 3, "CALL to a task");
    check(seen_flags & FLAG_NT, "  NT set");
    check_equal(seen_link, SEL_TSS, "  the back link");
    check(task_register() == SEL_TSS && type_of(SEL_TASK) == AVAILABLE && !(read_flags() & FLAG_NT), "  IRET goes back");

    prepare(&task, SEL_TASK, nested, stacks[0]);
    gdt[SEL_TASK2 / 8] = gdt[SEL_TASK / 8];
    set_gate(0x70, 0, SEL_TASK, 0x85, 0); /* a task gate */
    __asm__ volatile("int $0x70" : : : "ax", "cx", "dx", "memory");
    check_equal(runs, 4, "INT through a task gate");
    check(task_register() == SEL_TSS, "  and back");

    gdt[SEL_TASK / 8] |= 2ull << 40;
    TRY("ljmp *%0", : : "m"(to_task) : "ax", "memory");
    check_trap(GP, SEL_TASK, false, "#GP: JMP to a busy task");
    prepare(&task2, SEL_TASK2, nested, stacks[1]);
    gdt[SEL_TASK2 / 8] = descriptor((u32)&task2, 0x66, 0x89, 0);
    static struct { u32 offset; u16 selector; } __attribute__((packed)) small = { 0, SEL_TASK2 };
    TRY("ljmp *%0", : : "m"(small) : "ax", "memory");
    check_trap(TS, SEL_TASK2, false, "#TS: a TSS that is too small");
    gdt[SEL_TASK2 / 8] = descriptor((u32)&task2, sizeof task2 - 1, 0x09, 0);
    TRY("ljmp *%0", : : "m"(small) : "ax", "memory");
    check_trap(NP, SEL_TASK2, false, "#NP: a TSS that is not present");
    all_good("tasks");
}
