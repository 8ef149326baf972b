/* The guests' own descriptor table and task state segment. */
#include "guest.h"

u64 gdt[GDT_ENTRIES] __attribute__((aligned(16)));
struct tss tss __attribute__((aligned(128)));
extern u8 stack_top[];

u64 descriptor(u32 base, u32 limit, u8 access, u8 flags) {
    return (limit & 0xFFFF) | (u64)(base & 0xFFFFFF) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 0xF) << 48 | (u64)flags << 52
         | (u64)(base >> 24) << 56;
}

void set_kernel_stack(ulong top) {
#ifdef __x86_64__
    tss.rsp[0] = top;
#else
    tss.esp0 = top;
    tss.ss0 = SEL_DATA;
#endif
}

static u8 interrupt_stack[8192] __attribute__((aligned(16)));

void segments_load(void) {
    const ulong base = (ulong)&tss;
    gdt[SEL_DATA / 8] = descriptor(0, 0xFFFFF, 0x93, SEG_G | SEG_D);
    gdt[SEL_USER_CODE32 / 8] = descriptor(0, 0xFFFFF, 0xFB, SEG_G | SEG_D);
    gdt[SEL_USER_DATA / 8] = gdt[SEL_USER_DATA2 / 8] = descriptor(0, 0xFFFFF, 0xF3, SEG_G | SEG_D);
    gdt[SEL_TSS / 8] = descriptor((u32)base, sizeof tss - 1, 0x89, 0);
#ifdef __x86_64__
    gdt[SEL_CODE_OTHER / 8] = descriptor(0, 0xFFFFF, 0x9B, SEG_G | SEG_D);
    gdt[SEL_CODE / 8] = descriptor(0, 0xFFFFF, 0x9B, SEG_G | SEG_L);
    gdt[SEL_USER_CODE / 8] = descriptor(0, 0xFFFFF, 0xFB, SEG_G | SEG_L);
    gdt[SEL_TSS / 8 + 1] = base >> 32;
#else
    gdt[SEL_CODE_OTHER / 8] = descriptor(0, 0xFFFF, 0x9B, 0);
    gdt[SEL_CODE / 8] = descriptor(0, 0xFFFFF, 0x9B, SEG_G | SEG_D);
    gdt[SEL_USER_CODE / 8] = gdt[SEL_USER_CODE32 / 8];
#endif
    tss.io_map = offsetof(struct tss, bitmap);
    memset(tss.bitmap, 0xFF, sizeof tss.bitmap);
    set_kernel_stack((ulong)interrupt_stack + sizeof interrupt_stack);
    struct { u16 limit; ulong base; } __attribute__((packed)) table = { sizeof gdt - 1, (ulong)gdt };
    __asm__ volatile("lgdt %0" : : "m"(table));
#ifdef __x86_64__
    __asm__ volatile("pushq %0; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1:" : : "i"(SEL_CODE) : "rax", "memory");
#else
    __asm__ volatile("ljmp %0, $1f; 1:" : : "i"(SEL_CODE) : "memory");
#endif
    __asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%ss" : : "r"(SEL_DATA) : "memory");
    __asm__ volatile("ltr %w0" : : "r"(SEL_TSS) : "memory");
}
