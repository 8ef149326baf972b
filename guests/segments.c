/* Segmentation in 32-bit protected mode without paging: limits, expand-down segments, access rights, 16-bit code, call gates, and the instructions that
   ask about descriptors. "no-ring3": the host cannot come back from CPL 3. */
#include "guest.h"

static u8 buffer[64] __attribute__((aligned(64)));

static void set_free(u32 base, u32 limit, u8 access, u8 flags) { gdt[SEL_FREE / 8] = descriptor(base, limit, access, flags); }

static void load_fs(u16 selector) { __asm__ volatile("mov %0, %%fs" : : "r"(selector) : "memory"); }

static u32 read8(u32 offset) {
    u32 value = 0;
    TRY("movzbl %%fs:(%1), %0", : "+r"(value) : "r"(offset) : "ax");
    return value;
}

static void read32(u32 offset) { TRY("movl %%fs:(%0), %%ecx", : : "r"(offset) : "ax", "cx"); }
static void write8(u32 offset) { TRY("movb $9, %%fs:(%0)", : : "r"(offset) : "ax", "memory"); }
static void works(const char *what) { check(!seen.count, what); }

static void limits(void) {
    for (u32 n = 0; n < sizeof buffer; n++) buffer[n] = (u8)n;
    set_free((u32)buffer, 15, 0x93, SEG_D);
    load_fs(SEL_FREE);
    check_equal(read8(15), 15, "the last byte");
    read8(16);
    check_trap(GP, 0, false, "#GP: beyond the limit");
    read32(12);
    works("the last word");
    read32(13);
    check_trap(GP, 0, false, "#GP: a word that reaches beyond");
    read32(0xFFFFFFFE);
    check_trap(GP, 0, false, "#GP: a word that wraps");
    set_free(0, 0, 0x93, SEG_D | SEG_G);
    load_fs(SEL_FREE);
    read8(4095);
    works("limit 0 in pages is 4095");
    read8(4096);
    check_trap(GP, 0, false, "#GP: and no more");
    set_free((u32)buffer - 0x1000, 0xFFF, 0x97, SEG_D); /* expand-down: valid above the limit */
    load_fs(SEL_FREE);
    check_equal(read8(0x1000), 0, "expand-down: the first valid byte");
    read8(0xFFF);
    check_trap(GP, 0, false, "#GP: expand-down, at the limit");
    set_free((u32)buffer - 0xFFFF, 0xFFF, 0x97, 0); /* B = 0: up to FFFF */
    load_fs(SEL_FREE);
    check_equal(read8(0xFFFF), 0, "expand-down, 16-bit: the last valid byte");
    read8(0x10000);
    check_trap(GP, 0, false, "#GP: expand-down, 16-bit, above FFFF");
    /* A stack of that kind is whole but for its first page. */
    set_free(0, 0, 0x97, SEG_G | SEG_D);
    __asm__ volatile("mov %0, %%ss" : : "r"(SEL_FREE) : "memory");
    TRY("push %%ebp; movl $0x10, %%ebp; movl (%%ebp), %%ecx", "; pop %%ebp" : : : "ax", "cx", "memory");
    __asm__ volatile("mov %0, %%ss" : : "r"(SEL_DATA) : "memory");
    check_trap(SS, 0, false, "#SS: beyond the limit of the stack segment");
}

static void rights(void) {
    set_free((u32)buffer, 63, 0x91, SEG_D);
    load_fs(SEL_FREE);
    read8(3);
    works("read-only data read");
    write8(3);
    check_trap(GP, 0, false, "#GP: read-only data written");
    set_free((u32)buffer, 63, 0x9B, SEG_D);
    load_fs(SEL_FREE);
    check_equal(read8(5), 5, "readable code read");
    write8(3);
    check_trap(GP, 0, false, "#GP: code written");
    set_free((u32)buffer, 63, 0x99, SEG_D);
    TRY("mov %0, %%fs", : : "r"(SEL_FREE) : "ax");
    check_trap(GP, SEL_FREE, false, "#GP: execute-only code loaded into FS");
    load_fs(0);
    read8(0);
    check_trap(GP, 0, false, "#GP: access by the null selector");
    set_free((u32)buffer, 63, 0x92, SEG_D);
    load_fs(SEL_FREE);
    check((gdt[SEL_FREE / 8] >> 40 & 1) == 1, "loading sets the accessed bit");
    load_fs(SEL_DATA);
}

static void questions(void) {
    u32 value = 0, zero;
    set_free(0x1000, 0x12345, 0xF3, SEG_G | SEG_D);
    __asm__ volatile("lsl %2, %0; setz %b1" : "=r"(value), "=q"(zero) : "r"((u32)SEL_FREE) : "cc");
    check((u8)zero && value == 0x12345FFF, "LSL: the limit in bytes");
    __asm__ volatile("lar %2, %0; setz %b1" : "=r"(value), "=q"(zero) : "r"((u32)SEL_FREE) : "cc");
    check((u8)zero && (value & 0xF0FF00) == 0xC0F300, "LAR: the access rights");
    __asm__ volatile("lar %2, %0; setz %b1" : "=r"(value), "=q"(zero) : "r"(0x7FF8) : "cc");
    check(!(u8)zero, "LAR: no such descriptor");
    __asm__ volatile("verr %w1; setz %b0" : "=q"(zero) : "r"(SEL_FREE) : "cc");
    check((u8)zero, "VERR: readable");
    __asm__ volatile("verw %w1; setz %b0" : "=q"(zero) : "r"(SEL_CODE) : "cc");
    check(!(u8)zero, "VERW: code cannot be written");
    u32 selector = 0x20;
    __asm__ volatile("arpl %w2, %w0; setz %b1" : "+r"(selector), "=q"(zero) : "r"(3) : "cc");
    check((u8)zero && selector == 0x23, "ARPL raises the requested privilege level");
}

/* 16-bit code at 9000h, called by a far pointer. */
static void sixteen(void) {
    static const u8 code[] = {
        0xB8, 0x34, 0x12,             /* mov ax, 1234h */
        0x66, 0xBB, 1, 0, 2, 0,       /* mov ebx, 20001h */
        0x89, 0xE1,                   /* mov cx, sp */
        0x66, 0xCB,                   /* lret of 32 bits */
    };
    memcpy((void *)0x9000, code, sizeof code);
    static struct { u32 offset; u16 selector; } __attribute__((packed)) target = { 0x9000, SEL_CODE_OTHER };
    u32 a = 0xAAAA0000, b = 0, c = 0xBBBB0000;
    __asm__ volatile("lcall *%3" : "+a"(a), "+b"(b), "+c"(c) : "m"(target) : "memory");
    check_equal(a, 0xAAAA1234, "16-bit code: the upper half of EAX stays");
    check_equal(b, 0x20001, "16-bit code: operand size prefix");
    check_equal(c >> 16, 0xBBBB, "16-bit code: the upper half of ECX stays");
    target.offset = 0xFFFFF;
    TRY("lcall *%0", : : "m"(target) : "ax", "memory");
    check_trap(GP, 0, false, "#GP: jump beyond the limit of a code segment");
}

/* Call gates: from CPL 0 to CPL 0, and from CPL 3 to CPL 0 with two words copied to the inner stack. */
extern void gate_entry(void);
static volatile u32 gate_a, gate_b, gate_cs, gate_ss, gate_caller;
u32 gate_body(u32 caller_cs, u32 second, u32 first);

u32 gate_body(u32 caller_cs, u32 second, u32 first) {
    gate_a = first;
    gate_b = second;
    gate_caller = caller_cs;
    u32 cs, ss;
    __asm__ volatile("mov %%cs, %0; mov %%ss, %1" : "=r"(cs), "=r"(ss));
    gate_cs = cs;
    gate_ss = ss;
    return first * 1000 + second;
}

__asm__(
    ".text\n.globl gate_entry\ngate_entry:\n" /* [esp]: EIP, CS, second, first */
    "push %ds\n push $0x18\n pop %ds\n"
    "pushl 16(%esp)\n pushl 16(%esp)\n pushl 16(%esp)\n" /* first, second, CS: each push brings the next one to the same place */
    "call gate_body\n add $12, %esp\n pop %ds\n lret $8\n");

static ulong through_gate(ulong selector) {
    u32 result = 0;
    static volatile struct { u32 offset; u16 selector; } __attribute__((packed)) target;
    target.offset = 0xDEAD; /* a gate has its own */
    target.selector = (u16)selector;
    /* The stack as it was, for what faults behind the pushes. */
    TRY("movl %%esp, %%esi; pushl $12; pushl $34; lcall *(%1)", "; movl %%esi, %%esp" : "=a"(result) : "D"(&target) : "cx", "dx", "si", "memory");
    return result;
}

static void set_call_gate(unsigned index, u8 dpl) {
    const u32 entry = (u32)gate_entry;
    gdt[index] = (entry & 0xFFFF) | (u64)SEL_CODE << 16 | 2ull << 32 | (u64)(0x8C | dpl << 5) << 40 | (u64)(entry >> 16) << 48;
}

static void gates(bool ring3) {
    const unsigned index = SEL_FREE / 8 + 1;
    set_call_gate(index, 3);
    check_equal(through_gate(index * 8), 12034, "call gate at the same privilege");
    check(gate_a == 12 && gate_b == 34 && (gate_caller & 3) == 0, "  its parameters");
    gdt[index] &= ~(1ull << 47);
    through_gate(index * 8);
    check_trap(NP, index * 8, false, "#NP: call gate not present");
    if (!ring3) return;
    set_call_gate(index, 3);
    check_equal(in_user_mode(through_gate, index * 8 | 3), 12034, "call gate from CPL 3 to CPL 0");
    check(gate_a == 12 && gate_b == 34, "  its parameters on the inner stack");
    check((gate_cs & 3) == 0 && (gate_ss & 3) == 0 && (gate_caller & 3) == 3, "  privileges");
    set_call_gate(index, 0);
    in_user_mode(through_gate, index * 8 | 3);
    check(seen.count == 1 && seen.vector == GP && seen.error == index * 8, "#GP: call gate with DPL 0 from CPL 3");
}

void guest_main(void) {
    traps_open();
    user_open();
    limits();
    rights();
    questions();
    sixteen();
    gates(!option_given("no-ring3"));
    all_good("segments");
}
