/* COM1, polled: every guest's voice. */
#include "guest.h"

enum { COM1 = 0x3F8, THR = 0, IER = 1, FCR = 2, LCR = 3, MCR = 4, LSR = 5, LSR_THRE = 0x20 };

void console_open(void) {
    outb(COM1 + IER, 0);
    outb(COM1 + LCR, 0x83); /* 8 bits, no parity; divisor latch */
    outb(COM1 + THR, 1);    /* 115200 baud */
    outb(COM1 + IER, 0);
    outb(COM1 + LCR, 3);
    outb(COM1 + FCR, 7);
    outb(COM1 + MCR, 3);
}

void console_put(char c) {
    while (!(inb(COM1 + LSR) & LSR_THRE)) {}
    outb(COM1 + THR, (u8)c);
}

#ifdef __x86_64__
static u32 divide(u64 *value, u32 base) {
    const u32 rest = (u32)(*value % base);
    *value /= base;
    return rest;
}
#else
/* In two steps of the processor's own division: 32-bit guests have no library for it. */
static u32 divide(u64 *value, u32 base) {
    u32 high = (u32)(*value >> 32), low = (u32)*value, rest = 0;
    __asm__("divl %2" : "+a"(high), "+d"(rest) : "r"(base) : "cc");
    __asm__("divl %2" : "+a"(low), "+d"(rest) : "r"(base) : "cc");
    *value = (u64)high << 32 | low;
    return rest;
}
#endif

static void put_number(u64 value, u32 base, bool minus, int width, char fill) {
    char digits[24];
    int n = 0;
    do {
        digits[n++] = "0123456789abcdef"[divide(&value, base)];
    } while (value);
    if (minus) digits[n++] = '-';
    for (; width > n; width--) console_put(fill);
    while (n) console_put(digits[--n]);
}

void print(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            console_put(*format);
            continue;
        }
        format++;
        char fill = ' ';
        int width = 0, longs = 0;
        bool left = false;
        if (*format == '-') left = true, format++;
        if (*format == '0') fill = '0';
        while (*format >= '0' && *format <= '9') width = 10 * width + *format++ - '0';
        while (*format == 'l') longs++, format++;
        switch (*format) {
        case 's': {
            const char *s = va_arg(arguments, const char *);
            int length = (int)strlen(s);
            if (!left) for (int n = length; n < width; n++) console_put(' ');
            while (*s) console_put(*s++);
            if (left) for (int n = length; n < width; n++) console_put(' ');
            break;
        }
        case 'c': console_put((char)va_arg(arguments, int)); break;
        case 'd': {
            long long v = longs == 2 ? va_arg(arguments, long long) : longs ? va_arg(arguments, long) : va_arg(arguments, int);
            put_number(v < 0 ? -(u64)v : (u64)v, 10, v < 0, width, fill);
            break;
        }
        case 'u':
        case 'x': {
            u64 v = longs == 2 ? va_arg(arguments, unsigned long long) : longs ? va_arg(arguments, ulong) : va_arg(arguments, unsigned);
            put_number(v, *format == 'u' ? 10 : 16, false, width, fill);
            break;
        }
        default: console_put(*format);
        }
    }
    va_end(arguments);
}
