/* What the guests share: output, verdict, traps, tables, chips. One set of sources for 32 and 64 bits (the word is `ulong`). */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef unsigned long ulong;

#include "cpu.h"

/* console.c */
void console_open(void);
void console_put(char c);
/* Knows %s %c %d %u %x %lx %lu %llx %llu %%, with a width and leading zeros. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* verdict.c */
_Noreturn void leave(u32 status);
/* Says "ok N what" and goes on, or "FAILED N what" and leaves with N. N starts at 1 and counts itself. */
void check(bool good, const char *what);
/* The same with what was got and what was wanted. */
void check_equal(u64 got, u64 wanted, const char *what);
_Noreturn void all_good(const char *guest);
/* Leaves with status 77: nothing to test here, as test suites say it. */
_Noreturn void skip(const char *why);

/* string.c */
void *memset(void *to, int value, size_t count);
void *memcpy(void *to, const void *from, size_t count);
void *memmove(void *to, const void *from, size_t count);
int memcmp(const void *a, const void *b, size_t count);
size_t strlen(const char *s);
bool starts_with(const char *s, const char *start);
/* The number after "name=" in the command line, or `otherwise`. */
u64 option(const char *name, u64 otherwise);
/* Is the word in the command line, alone or before "="? */
bool option_given(const char *name);

/* start32.S, start64.S: what the loader gave (PVH's hvm_start_info, or null). */
struct start_info {
    u32 magic, version, flags, module_count;
    u64 modules, command_line, rsdp, memory_map;
    u32 memory_map_count, reserved;
};
struct memory_range {
    u64 start, size;
    u32 type, reserved;
};
#define START_INFO_MAGIC 0x336EC578u
extern const struct start_info *start_info;
const char *command_line(void);
void guest_main(void);

/* segments.c */
enum {
    SEL_CODE_OTHER = 0x08, /* 32-bit code in a 64-bit guest, 16-bit code in a 32-bit guest */
    SEL_CODE = 0x10,
    SEL_DATA = 0x18,
    SEL_USER_CODE32 = 0x20 | 3, /* the order from here on is SYSENTER's and SYSRET's */
    SEL_USER_DATA = 0x28 | 3,
    SEL_USER_CODE = 0x30 | 3, /* 64-bit code in a 64-bit guest */
    SEL_USER_DATA2 = 0x38 | 3,
    SEL_TSS = 0x40, /* two entries in a 64-bit guest */
    SEL_FREE = 0x50, /* from here on for the guest's own descriptors */
    GDT_ENTRIES = 32,
};
extern u64 gdt[GDT_ENTRIES];
u64 descriptor(u32 base, u32 limit, u8 access, u8 flags);
enum { SEG_G = 8, SEG_D = 4, SEG_L = 2 };
void segments_load(void);
/* The stack that a change to CPL 0 takes. */
void set_kernel_stack(ulong top);
#ifdef __x86_64__
struct tss {
    u32 reserved0;
    u64 rsp[3], reserved1, ist[7], reserved2;
    u16 reserved3, io_map;
    u8 bitmap[0x100 + 1];
} __attribute__((packed));
#else
struct tss {
    u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
    u32 es, cs, ss, ds, fs, gs, ldt;
    u16 trap, io_map;
    u8 bitmap[0x100 + 1];
} __attribute__((packed));
#endif
extern struct tss tss;

/* traps.c, vectors.S */
struct frame {
#ifdef __x86_64__
    u64 r15, r14, r13, r12, r11, r10, r9, r8;
#endif
    ulong di, si, bp, bx, dx, cx, ax;
    ulong vector, error;
    ulong ip, cs, flags;
    ulong sp, ss; /* 32 bits: only where the privilege changed */
};
typedef void handler(struct frame *);
void traps_open(void); /* segments, IDT with all vectors */
void on_trap(unsigned vector, handler *);
void set_gate(unsigned vector, ulong entry, u16 selector, u8 type_dpl, u8 ist);
extern const ulong vector_entries[256];
extern struct trap_seen {
    volatile ulong count, vector, error, ip, cr2, flags, cs, behind; /* behind: the saved RIP was that after the whole piece */
} seen;
extern volatile ulong trap_resume;

/* Runs one piece of assembly, at any privilege. What it faults with lands in `seen`, and execution goes on behind it; seen.count is 0 without
   a fault. The clobbers given must have "ax" and whatever the piece changes before it faults. */
#ifdef __x86_64__
#define TRY(code, ...) do { seen.count = 0; __asm__ volatile( \
    "leaq 999f(%%rip), %%rax\n movq %%rax, trap_resume(%%rip)\n" code "\n999: movq $0, trap_resume(%%rip)" __VA_ARGS__); } while (0)
#else
#define TRY(code, ...) do { seen.count = 0; __asm__ volatile( \
    "movl $999f, trap_resume\n" code "\n999: movl $0, trap_resume" __VA_ARGS__); } while (0)
#endif
enum { DE, DB, NMI_VECTOR, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, MC, XM };

/* Checks that the last TRY met just this. */
void check_trap(ulong vector, ulong error, bool behind, const char *what);

/* pages.c, pages32.c: the guest's own tables, identity mapped at the start (64 bits), or by one of these calls */
enum { PAGE_P = 1, PAGE_RW = 2, PAGE_US = 4, PAGE_A = 0x20, PAGE_D = 0x40, PAGE_PS = 0x80, PAGE_G = 0x100 };
#define PAGE_NX (1ull << 63)
#ifdef __x86_64__
u64 *page_entry(ulong address); /* the 4 KiB entry, in tables made as needed */
#else
void paging_legacy(void);
void paging_pae(void);
#endif
void map_page(ulong address, u64 physical, u64 flags);
u64 page_state(ulong address); /* the entry as it stands in memory */

/* Lets ring 3 use everything that is mapped. */
void pages_for_user(void);

/* user.S, user.c: a function at CPL 3, and its result */
void user_open(void);
ulong user_call(ulong (*function)(ulong), ulong argument, ulong stack);
_Noreturn void user_leave(ulong result);
extern u8 user_done[];
/* With a stack of its own. */
ulong in_user_mode(ulong (*function)(ulong), ulong argument);

/* apic.c */
enum { APIC_ID = 0x20, APIC_TPR = 0x80, APIC_EOI = 0xB0, APIC_SPURIOUS = 0xF0, APIC_ICR = 0x300, APIC_ICR_HIGH = 0x310,
       APIC_LVT_TIMER = 0x320, APIC_LVT_LINT0 = 0x350, APIC_TIMER_COUNT = 0x380, APIC_TIMER_NOW = 0x390, APIC_TIMER_DIVIDE = 0x3E0 };
void apic_open(void);
u32 apic_read(u32 reg);
void apic_write(u32 reg, u32 value);
void apic_send(u32 apic, u32 command);
/* Both 8259s at vectors 0x20 and 0x28, all lines masked. */
void pic_open(void);
void pic_unmask(unsigned irq);
void pic_eoi(unsigned irq);

/* time.c: the PIT's counter 2 as a clock */
void delay_us(u32 us);
u64 tsc_per_ms(void);

#endif
