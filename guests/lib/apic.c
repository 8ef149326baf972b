/* Local APIC (by MMIO) and the two 8259s. */
#include "guest.h"

static volatile u32 *const apic = (volatile u32 *)0xFEE00000u;

u32 apic_read(u32 reg) { return apic[reg / 4]; }
void apic_write(u32 reg, u32 value) { apic[reg / 4] = value; }

void apic_open(void) {
    wrmsr(MSR_APIC_BASE, (rdmsr(MSR_APIC_BASE) & ~0x400ull) | 0x800);
    apic_write(APIC_SPURIOUS, 0x1FF);
    apic_write(APIC_TPR, 0);
}

void apic_send(u32 id, u32 command) {
    apic_write(APIC_ICR_HIGH, id << 24);
    apic_write(APIC_ICR, command);
    while (apic_read(APIC_ICR) & 0x1000) cpu_pause(); /* delivery status */
}

enum { PIC1 = 0x20, PIC2 = 0xA0 };

void pic_open(void) {
    outb(PIC1, 0x11); /* ICW1: edge, cascade, ICW4 follows */
    outb(PIC2, 0x11);
    outb(PIC1 + 1, 0x20); /* ICW2: vectors */
    outb(PIC2 + 1, 0x28);
    outb(PIC1 + 1, 4); /* ICW3 */
    outb(PIC2 + 1, 2);
    outb(PIC1 + 1, 1); /* ICW4: 8086 */
    outb(PIC2 + 1, 1);
    outb(PIC1 + 1, 0xFF);
    outb(PIC2 + 1, 0xFF);
}

void pic_unmask(unsigned irq) {
    if (irq >= 8) {
        outb(PIC2 + 1, inb(PIC2 + 1) & (u8)~(1u << (irq - 8)));
        irq = 2;
    }
    outb(PIC1 + 1, inb(PIC1 + 1) & (u8)~(1u << irq));
}

void pic_eoi(unsigned irq) {
    if (irq >= 8) outb(PIC2, 0x20);
    outb(PIC1, 0x20);
}
