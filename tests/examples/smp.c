/* Solution: start the other processors. */
#include <kernel.h>

enum { APIC = 0xFEE00000u, SPURIOUS = APIC + 0xF0, COMMAND = APIC + 0x300, TRAMPOLINE = 0x8000, COUNTER = 0x9000 };

/* xor %ax, %ax; mov %ax, %ds; lock incw 0x9000; cli; 1: hlt; jmp 1b */
static const u8 trampoline[] = {0x31, 0xC0, 0x8E, 0xD8, 0xF0, 0xFF, 0x06, 0x00, 0x90, 0xFA, 0xF4, 0xEB, 0xFD};

static volatile u16 *const counter = (volatile u16 *)COUNTER;

static void start_others(void) {
    copy((void *)TRAMPOLINE, trampoline, sizeof trampoline);
    write32(COMMAND, 0xC4500); /* INIT to all but me */
    for (int n = 0; n < 10000; n++) __asm__ volatile("pause");
    write32(COMMAND, 0xC4600 | TRAMPOLINE >> 12);
}

int main(void) {
    *counter = 0;
    write32(SPURIOUS, 0x1FF);
    start_others();
    for (u32 n = 0; n < 2000000 && *counter < OTHERS; n++) __asm__ volatile("pause");
    kvmpy_show(*counter);
    kvmpy_assert_equal(*counter, OTHERS);
    return 0;
}
