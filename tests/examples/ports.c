/* Solution: port I/O. */
#include <kvmpy.h>

enum { COM1 = 0x3F8, LINE_STATUS = COM1 + 5, RECEIVED = 1 << 0, CAN_SEND = 1 << 5 };

static void out8(unsigned short port, unsigned char value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static unsigned char in8(unsigned short port) {
    unsigned char value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void put(char c) {
    while (!(in8(LINE_STATUS) & CAN_SEND)) ;
    out8(COM1, c);
}

static char get(void) {
    while (!(in8(LINE_STATUS) & RECEIVED)) ;
    return in8(COM1);
}

int main(void) {
    for (const char *at = "ready\n"; *at; at++) put(*at);
    for (;;) {
        char c = get();
        if (c == 'q') return 0;
        put(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
    }
}
