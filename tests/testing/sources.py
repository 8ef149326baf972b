"""Guests of these tests, as source text."""

CHECKS = """\
#include <kvmpy.h>
int main(void) {
    kvmpy_time("start");
    kvmpy_log("hello");
    kvmpy_show(3 * 5);
    kvmpy_expect(1 + 1 == 2);
    kvmpy_time("end");
    kvmpy_assert_equal(2 + 2, FOUR);
    return 7;
}
"""

ASM_CHECKS = """\
#include <kvmpy.h>
        mov     $0x1234, %ebx
        mov     $5, %eax
        std
        kvmpy_log("from assembly")
        pushf
        pop     %edi
        cld
        test    $0x400, %di
        kvmpy_assert(nz, "the direction flag is kept")
        cmp     $5, %eax
        kvmpy_expect(e, "eax is kept")
        cmp     $0x1234, %ebx
        kvmpy_expect(e, "ebx is kept")
        kvmpy_time("moment")
        cmp     $FIVE, %eax
        kvmpy_assert(e, "eax == FIVE")
        kvmpy_exit(3)
"""

RING3 = """\
#include <kvmpy.h>
typedef unsigned long long u64;
static u64 gdt[] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff};
static char stack[4096];

static void user(void) {
    unsigned short cs;
    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    kvmpy_log("in ring 3");
    kvmpy_assert_equal(cs & 3, 3);
    kvmpy_exit(5);
}

static void open_pages(u64 table, int depth) {
    u64 *entries = (u64 *)(table & 0x000ffffffffff000);
    for (int n = 0; n < 512; n++) {
        if (!(entries[n] & 1)) continue;
        entries[n] |= 4;
        if (depth > 1 && !(entries[n] & 0x80)) open_pages(entries[n], depth - 1);
    }
}

int main(void) {
    struct { unsigned short limit; u64 base; } __attribute__((packed)) table = {sizeof gdt - 1, (u64)gdt};
    u64 cr3;
    __asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
    open_pages(cr3, 3);
    __asm__ volatile("lgdt %0; mov %1, %%cr3" : : "m"(table), "r"(cr3) : "memory");
    __asm__ volatile("pushq $0x23; pushq %0; pushq $0x3002; pushq $0x2b; pushq %1; iretq"
                     : : "r"(stack + sizeof stack - 8), "r"(user) : "memory");
    return 1;
}
"""

TALK = """\
#include <kvmpy.h>
static inline void outb(unsigned short port, unsigned char value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline unsigned char inb(unsigned short port) {
    unsigned char value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static void put(const char *text) { while (*text) outb(0x3F8, *text++); }
static char get(void) {
    while (!(inb(0x3FD) & 1)) ;
    return inb(0x3F8);
}
__attribute__((noinline)) void shell(void) {
    for (;;) {
        char c;
        put("# ");
        do outb(0x3F8, c = get()); while (c != '\\n' && c != 'q');
        if (c == 'q') kvmpy_exit(0);
    }
}
int main(void) {
    put("kernel version 12.5\\r\\nlogin: ");
    while (get() != '\\n') ;
    shell();
}
"""

COUNTING = """\
        .globl  again, done
        xor     %ecx, %ecx
again:  inc     %ecx
        inc     %edx
        cmp     $LAST, %ecx
        jb      again
done:   mov     $0, %eax
        mov     $0xF4, %dx
        out     %eax, %dx
"""
