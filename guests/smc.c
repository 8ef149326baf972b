/* Code that changes: patched before it is called, ahead within the block that runs, across a page boundary, through another mapping, by a string
   instruction, by a port's string input. PVH; 32 and 64 bits. */
#include "guest.h"

static u8 room[3][4096] __attribute__((aligned(4096)));

static u32 call(const void *code) {
    u32 (*function)(void);
    memcpy(&function, &code, sizeof function);
    return function();
}

/* mov eax, value; ret */
static void put(u8 *at, u32 value) {
    const u8 code[] = { 0xB8, (u8)value, (u8)(value >> 8), (u8)(value >> 16), (u8)(value >> 24), 0xC3 };
    for (u32 n = 0; n < sizeof code; n++) ((volatile u8 *)at)[n] = code[n];
}

static void simple(void) {
    bool good = true;
    for (u32 n = 0; n < 1000; n++) {
        put(room[0], n * 77);
        good &= call(room[0]) == n * 77;
    }
    check(good, "a function rewritten 1000 times");
    good = true;
    put(room[0], 5);
    for (u32 n = 0; n < 1000; n++) {
        *(volatile u8 *)(room[0] + 1) = (u8)n; /* one byte of the constant */
        good &= call(room[0]) == (u8)n;
    }
    check(good, "one byte of it patched 1000 times");
}

static void boundary(void) {
    bool good = true;
    for (u32 n = 0; n < 6; n++) {
        u8 *at = room[0] + 4096 - n; /* n bytes in the first page, the rest in the second */
        put(at, 0x11111111);
        good &= call(at) == 0x11111111;
        put(at, 0x22334455 + n);
        good &= call(at) == 0x22334455 + n;
    }
    check(good, "an instruction across two pages");
    put(room[0] + 4093, 0x01020304);
    call(room[0] + 4093);
    ((volatile u8 *)room[1])[1] = 0x99; /* only the second page is written */
    check_equal(call(room[0] + 4093), 0x99020304, "its part in the second page patched");
}

/* The store and what it changes lie in one block, with nothing between that would serialise: processors of today see it, too (SDM 3A 11.6). */
static void ahead(void) {
    u32 value;
    static const u8 code[] = {
#ifdef __x86_64__
        0x48, 0x8D, 0x0D, 0x05, 0, 0, 0,        /* lea rcx, [rip + 5]: the constant below */
        0xC6, 0x01, 0x2A,                       /* mov byte [rcx], 42 */
        0x90,
        0xB8, 0x07, 0, 0, 0,                    /* mov eax, 7 */
#else
        0xE8, 0, 0, 0, 0,                       /* call the next: its address */
        0x59,                                   /* pop ecx */
        0xC6, 0x41, 0x07, 0x2A,                 /* mov byte [ecx + 7], 42 */
        0x90,
        0xB8, 0x07, 0, 0, 0,                    /* mov eax, 7 */
#endif
        0xC3,
    };
    bool good = true;
    for (u32 n = 0; n < 100; n++) {
        for (u32 k = 0; k < sizeof code; k++) ((volatile u8 *)room[2])[k] = code[k];
        value = call(room[2]);
        good &= value == 42;
    }
    check_equal(value, 42, "a constant patched by the instruction before it");
    check(good, "  100 times");
}

/* A loop whose body rewrites itself with each round. */
static void loop(void) {
    static const u8 code[] = {
        0x31, 0xC0,                         /* xor eax, eax */
        0xB9, 10, 0, 0, 0,                  /* mov ecx, 10 */
        0x05, 1, 0, 0, 0,                   /* again: add eax, 1: this constant grows */
#ifdef __x86_64__
        0xFE, 0x05, 0xF6, 0xFF, 0xFF, 0xFF, /* inc byte [rip - 10] */
        0xFF, 0xC9,                         /* dec ecx */
        0x75, 0xF1,                         /* jnz again */
#else
        0xFE, 0x05, 0, 0, 0, 0,             /* inc byte [the constant] */
        0xFF, 0xC9,
        0x75, 0xF1,
#endif
        0xC3,
    };
    for (u32 k = 0; k < sizeof code; k++) ((volatile u8 *)room[2])[k] = code[k];
#ifndef __x86_64__
    const u32 constant = (u32)(room[2] + 8);
    memcpy(room[2] + 14, &constant, 4);
#endif
    check_equal(call(room[2]), 55, "a loop that patches itself");
}

static void by_strings(void) {
    put(room[0], 1);
    put(room[1], 2);
    check(call(room[0]) == 1 && call(room[1]) == 2, "two functions");
    void *to = room[0];
    const void *from = room[1];
    ulong count = 6;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    check_equal(call(room[0]), 2, "one copied over the other by REP MOVSB");
    to = room[0] + 1;
    count = 4;
    __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(0x5FF) : "memory");
    check_equal(call(room[0]), 0xFFFFFFFF, "patched by REP INSB from a port that nobody answers");
}

#ifdef __x86_64__
static void alias(void) {
    const ulong other = 0x20000000000ul;
    map_page(other, (ulong)room[0], PAGE_P | PAGE_RW);
    put(room[0], 100);
    check(call(room[0]) == 100, "before");
    put((u8 *)other, 200);
    check_equal(call(room[0]), 200, "patched through another address of the page");
    map_page(other, (ulong)room[1], PAGE_P | PAGE_RW);
    put(room[1], 300);
    check_equal(call((void *)other), 300, "other code after a remapping");
    map_page(other, (ulong)room[0], PAGE_P | PAGE_RW);
    check_equal(call((void *)other), 200, "and back");
}
#endif

void guest_main(void) {
    traps_open();
    simple();
    boundary();
    ahead();
    loop();
    by_strings();
#ifdef __x86_64__
    alias();
#endif
    all_good("smc");
}
