/* Exercise: a timer interrupt, 100 times a second. Fill the three gaps. */
#include <kernel.h>

static volatile u32 ticks;

__attribute__((interrupt)) static void on_timer(struct frame *frame) {
    (void)frame;
    /* GAP 3: count, and tell the 8259 */
}

static void set_gate(int vector, void *handler) {
    /* GAP 1: idt[vector] = ... (low, middle and high part of the address, selector, type) */
}

static void program_timer(u32 hertz) {
    /* GAP 2: the 8254 */
}

static void open_8259(void) {
    static const u8 words[][2] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 4}, {0x21, 1}, {0xA0, 0x11}, {0xA1, 0x28}, {0xA1, 2}, {0xA1, 1},
                                  {0x21, 0xFE}, {0xA1, 0xFF}}; /* vectors 0x20 and 0x28 on, IRQ 0 alone */
    for (unsigned n = 0; n < sizeof words / 2; n++) outb(words[n][0], words[n][1]);
    write32(0xFEE000F0, 0x1FF);  /* the local APIC is on, */
    write32(0xFEE00350, 0x700);  /* and its LINT0 passes the 8259's interrupts */
}

int main(void) {
    set_gate(0x20, on_timer);
    load_idt();
    open_8259();
    program_timer(100);
    __asm__ volatile("sti");
    while (ticks < 1) __asm__ volatile("pause");
    kvmpy_time("first tick");
    while (ticks < 11) __asm__ volatile("pause");
    kvmpy_time("last tick");
    return 0;
}
