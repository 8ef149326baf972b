/* Serial echo by interrupts: COM1's IRQ 4 through the 8259s, 64-bit mode. Says "ready", sends back what comes in upper case, ends at '!'. */
#include "guest.h"

enum { COM1 = 0x3F8, IER = 1, IIR = 2, FCR = 2, MCR = 4, LSR = 5 };
static volatile u32 received, interrupts;
static volatile bool finished;

static void serial(struct frame *f) {
    (void)f;
    interrupts++;
    for (;;) {
        const u8 cause = inb(COM1 + IIR);
        if (cause & 1) break; /* nothing pending */
        while (inb(COM1 + LSR) & 1) {
            const u8 c = inb(COM1);
            received++;
            console_put((char)(c >= 'a' && c <= 'z' ? c - 32 : c));
            if (c == '!') finished = true;
        }
    }
    pic_eoi(4);
}

void guest_main(void) {
    traps_open();
    pic_open();
    on_trap(0x24, serial);
    outb(COM1 + FCR, 0x07);
    outb(COM1 + MCR, 0x0B); /* OUT2 lets the interrupt out */
    outb(COM1 + IER, 0x01);
    pic_unmask(4);
    print("ready\n");
    while (!finished) {
        sti_hlt();
        cli();
    }
    outb(COM1 + IER, 0);
    print("\n");
    check(interrupts > 0 && interrupts <= received, "input came by interrupts");
    print("%u bytes\n", received);
    all_good("echo");
}
