/* Exercise: port I/O. Fill the four gaps. */
#include <kvmpy.h>

enum { COM1 = 0x3F8, LINE_STATUS = COM1 + 5, RECEIVED = 1 << 0, CAN_SEND = 1 << 5 };

static void out8(unsigned short port, unsigned char value) {
    /* GAP 1: one OUT instruction: __asm__ volatile("outb ..." : : ...) */
}

static unsigned char in8(unsigned short port) {
    /* GAP 2: one IN instruction */
    return 0;
}

static void put(char c) {
    /* GAP 3: wait until the port can send, then send c */
}

static char get(void) {
    /* GAP 4: wait for a byte, then take it */
    return 'q';
}

int main(void) {
    for (const char *at = "ready\n"; *at; at++) put(*at);
    for (;;) {
        char c = get();
        if (c == 'q') return 0;
        put(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
    }
}
