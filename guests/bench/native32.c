/* native.c for 32 bits, by system calls alone: [scale=N] [repeat=N] [NAME...]. */
#include "bench.h"

enum { SYS_EXIT = 1, SYS_WRITE = 4, SYS_MMAP = 90, SYS_CLOCK_GETTIME = 265, CLOCK_MONOTONIC = 1 };
enum { PROT_READ_WRITE = 3, MAP_PRIVATE_ANONYMOUS = 0x22, ARENA = 16 << 20 };

u8 *arena;

static long call(long number, long b, long c, long d) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(number), "b"(b), "c"(c), "d"(d) : "memory");
    return result;
}

static char line[160];
static u32 length;

static void put(const char *text) {
    while (*text && length < sizeof line) line[length++] = *text++;
}
static void put_number(u32 value) {
    char digits[12], *at = digits + sizeof digits - 1;
    *at = 0;
    do *--at = (char)('0' + value % 10);
    while (value /= 10);
    put(at);
}
static void put_hex(u64 value) {
    for (int shift = 60; shift >= 0; shift -= 4) put((const char[]){ "0123456789abcdef"[value >> shift & 15], 0 });
}
static void end_line(void) {
    put("\n");
    call(SYS_WRITE, 1, (long)line, (long)length);
    length = 0;
}

/* Of the same clock, so that the difference is right however often it wraps: below 4 s. */
static u32 nanoseconds(void) {
    struct { long seconds, nanoseconds; } now;
    call(SYS_CLOCK_GETTIME, CLOCK_MONOTONIC, (long)&now, 0);
    return (u32)now.seconds * 1000000000u + (u32)now.nanoseconds;
}

static bool same(const char *a, const char *b) {
    for (; *a && *a == *b; a++, b++) {}
    return *a == *b;
}

/* The number behind `name`, or `otherwise`. */
static u32 number_of(const char *argument, const char *name, u32 otherwise) {
    for (; *name; argument++, name++)
        if (*argument != *name) return otherwise;
    u32 value = 0;
    for (; *argument >= '0' && *argument <= '9'; argument++) value = value * 10 + (u32)(*argument - '0');
    return value;
}

__attribute__((used)) void begin(long *stack) {
    char **arguments = (char **)(stack + 2);
    u32 scale = 1000, repeat = 1;
    bool all = true;
    for (char **a = arguments; *a; a++) {
        all &= number_of(*a, "scale=", ~0u) != ~0u || number_of(*a, "repeat=", ~0u) != ~0u;
        scale = number_of(*a, "scale=", scale);
        repeat = number_of(*a, "repeat=", repeat);
    }
    const long map[6] = { 0, ARENA, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0 };
    arena = (u8 *)call(SYS_MMAP, (long)map, 0, 0);
    put("tsc 1000000"); /* the ticks below are nanoseconds */
    end_line();
    for (unsigned n = 0; n < compute_count; n++) {
        bool wanted = all;
        for (char **a = arguments; *a; a++) wanted |= same(*a, compute[n].name);
        if (!wanted) continue;
        if (compute[n].prepare) compute[n].prepare();
        for (u32 r = 0; r < repeat; r++) {
            const u32 work = scaled(&compute[n], scale), start = nanoseconds();
            const u64 sum = compute[n].run(work);
            const u32 took = nanoseconds() - start;
            put("end "), put(compute[n].name), put(" "), put_hex(sum), put(" "), put_number(took), put(" "), put_number(work);
            end_line();
        }
    }
    put("done");
    end_line();
    call(SYS_EXIT, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %esp, %eax\n and $-16, %esp\n sub $12, %esp\n push %eax\n call begin");
