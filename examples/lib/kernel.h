/* What the exercises share: ports, an interrupt table, memory-mapped registers. 64-bit mode, identity mapped. */
#ifndef KERNEL_H
#define KERNEL_H
#include <kvmpy.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline u8 inb(u16 port) {
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u32 read32(u64 address) { return *(volatile u32 *)address; }
static inline void write32(u64 address, u32 value) { *(volatile u32 *)address = value; }
static inline void copy(void *to, const void *from, u64 size) {
    for (u64 n = 0; n < size; n++) ((u8 *)to)[n] = ((const u8 *)from)[n];
}

struct frame {
    u64 rip, cs, rflags, rsp, ss;
};

struct gate {
    u16 low, selector;
    u8 ist, type;
    u16 middle;
    u32 high, reserved;
};

static struct gate idt[256] __attribute__((aligned(16)));

static inline void load_idt(void) {
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) table = {sizeof idt - 1, (u64)idt};
    __asm__ volatile("lidt %0" : : "m"(table));
}

static inline u16 code_selector(void) {
    u16 cs;
    __asm__("mov %%cs, %0" : "=r"(cs));
    return cs;
}
#endif
