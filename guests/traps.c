/* Every exception but #PF and #MC, taken and returned from. PVH; in 64-bit mode, and in 32-bit mode without paging or with "legacy" or "pae"
   on the command line. "no-watch": the host does not do data breakpoints at CPL 0. */
#include "guest.h"

static ulong dr6(void) {
    ulong v;
    __asm__ volatile("mov %%dr6, %0" : "=r"(v));
    return v;
}

static void set_dr6(ulong v) { __asm__ volatile("mov %0, %%dr6" : : "r"(v)); }

static void break_at(ulong address, ulong control) {
    __asm__ volatile("mov %0, %%dr0; mov %1, %%dr7" : : "r"(address), "r"(control));
}

static void arithmetic(void) {
    TRY("xorl %%edx, %%edx; xorl %%ecx, %%ecx; divl %%ecx", : : : "ax", "cx", "dx", "cc");
    check_trap(DE, 0, false, "#DE: division by zero");
    TRY("movl $0x80000000, %%eax; movl $-1, %%edx; movl $-1, %%ecx; idivl %%ecx", : : : "ax", "cx", "dx", "cc");
    check_trap(DE, 0, false, "#DE: quotient too large");
#ifndef __x86_64__
    TRY("movl $0x7FFFFFFF, %%eax; addl $1, %%eax; into", : : : "ax", "cc");
    check_trap(OF, 0, true, "#OF: INTO");
    static const int bounds[2] = { -5, 5 };
    TRY("movl $6, %%eax; bound %%eax, %0", : : "m"(bounds) : "ax", "cc");
    check_trap(BR, 0, false, "#BR: BOUND");
    TRY("movl $0, %%eax; aam $0", : : : "ax", "cc");
    check_trap(DE, 0, false, "#DE: AAM 0");
#endif
}

static void debug(void) {
    static volatile u32 watched;
    set_dr6(0);
    TRY("pushf; orl $0x100, (%%" SP "); popf; nop", : : : "ax", "cc", "memory");
    check_trap(DB, 0, true, "#DB: TF, after the instruction that follows POPF");
    check(dr6() & 0x4000, "DR6.BS");
    TRY(".byte 0xF1", : : : "ax");
    check_trap(DB, 0, true, "#DB: INT1");
    TRY("int3", : : : "ax");
    check_trap(BP, 0, true, "#BP: INT3");
    TRY("int $3", : : : "ax");
    check_trap(BP, 0, true, "#BP: INT 3 in two bytes");
    if (!option_given("no-watch")) {
        set_dr6(0);
        break_at((ulong)&watched, 0xD0402); /* G0; write, 4 bytes */
        TRY("movl $7, %0", : "=m"(watched) : : "ax");
        break_at(0, 0x400);
        check_trap(DB, 0, true, "#DB: data written");
        check(watched == 7 && (dr6() & 15) == 1, "DR6.B0, the write done");
        extern u8 break_here[];
        set_dr6(0);
        break_at((ulong)break_here, 0x402);
        TRY("movl $8, %0; .globl break_here; break_here: movl $9, %0", : "=m"(watched) : : "ax");
        break_at(0, 0x400);
        check_trap(DB, 0, false, "#DB: instruction breakpoint, before the instruction");
        check(watched == 8 && (seen.flags & FLAG_RF), "RF in the pushed flags, so that a return goes on");
        set_dr6(0);
        break_at(0, 0x2400);                                         /* GD: access to debug registers */
        TRY("mov %%dr0, %%" AX, : : : "ax");
        check_trap(DB, 0, false, "#DB: general detect");
        check(dr6() & 0x2000, "DR6.BD");
        break_at(0, 0x400);
    }
}

static void opcodes(void) {
    TRY("ud2", : : : "ax");
    check_trap(UD, 0, false, "#UD: UD2");
    TRY(".byte 0xF0, 0x90", : : : "ax");
    check_trap(UD, 0, false, "#UD: LOCK NOP");
    TRY(".byte 0x0F, 0xFF, 0xC0", : : : "ax");
    check_trap(UD, 0, false, "#UD: UD0");
#ifdef __x86_64__
    TRY(".byte 0x06", : : : "ax");
    check_trap(UD, 0, false, "#UD: PUSH ES in 64-bit mode");
#endif
    TRY("mov %%cr1, %%" AX, : : : "ax");
    check_trap(UD, 0, false, "#UD: CR1");
    write_cr0(read_cr0() | CR0_TS | CR0_MP);
    TRY("fnop", : : : "ax");
    check_trap(NM, 0, false, "#NM: x87 with CR0.TS");
    TRY("fwait", : : : "ax");
    check_trap(NM, 0, false, "#NM: WAIT with CR0.TS and CR0.MP");
    __asm__ volatile("clts");
    write_cr0(read_cr0() | CR0_EM);
    TRY("fnop", : : : "ax");
    check_trap(NM, 0, false, "#NM: x87 with CR0.EM");
    write_cr0(read_cr0() & ~(ulong)CR0_EM);
}

static void segments(void) {
    gdt[SEL_FREE / 8] = descriptor(0, 0xFFFFF, 0x13, SEG_G | SEG_D); /* data, not present */
    TRY("movl %0, %%eax; mov %%eax, %%fs", : : "i"(SEL_FREE) : "ax");
    check_trap(NP, SEL_FREE, false, "#NP: segment");
    TRY("movl %0, %%eax; mov %%eax, %%ss", : : "i"(SEL_FREE) : "ax");
    check_trap(SS, SEL_FREE, false, "#SS: segment not present");
    TRY("movl $0x7FF8, %%eax; mov %%eax, %%fs", : : : "ax");
    check_trap(GP, 0x7FF8, false, "#GP: selector beyond the GDT");
    TRY("movl %0, %%eax; mov %%eax, %%ss", : : "i"(SEL_CODE) : "ax");
    check_trap(GP, SEL_CODE, false, "#GP: code segment in SS");
    TRY("xorl %%eax, %%eax; ltr %%ax", : : : "ax");
    check_trap(GP, 0, false, "#GP: null selector in TR");
    TRY("movl %0, %%eax; ltr %%ax", : : "i"(SEL_TSS) : "ax");
    check_trap(GP, SEL_TSS, false, "#GP: TR loaded from a busy TSS");
#ifdef __x86_64__
    TRY("movabsq $0x8000000000000000, %%rcx; movq (%%rcx), %%rcx", : : : "ax", "cx");
    check_trap(GP, 0, false, "#GP: address not canonical");
    TRY("movq %%rbp, %%rdx; movabsq $0x8000000000000000, %%rbp; movq (%%rbp), %%rcx", "; movq %%rdx, %%rbp" : : : "ax", "cx", "dx");
    check_trap(SS, 0, false, "#SS: stack address not canonical");
#else
    tss.link = SEL_DATA;
    TRY("pushfl; orl $0x4000, (%%esp); popfl; iretl", : : : "ax", "cc", "memory");
    check_trap(TS, SEL_DATA, false, "#TS: back link to no TSS");
    write_flags(2);
#endif
    TRY("int $0x60", : : : "ax");
    check(seen.count == 0, "INT n takes its gate");
    set_gate(0x60, vector_entries[0x60], SEL_CODE, 0x0E, 0);
    TRY("int $0x60", : : : "ax");
    check_trap(NP, 0x60 * 8 + 2, false, "#NP: gate not present");
    set_gate(0x60, vector_entries[0x60], SEL_DATA, 0x8E, 0);
    TRY("int $0x60", : : : "ax");
    check_trap(GP, SEL_DATA, false, "#GP: gate to a data segment");
    TRY("movl $0x12345678, %%ecx; rdmsr", : : : "ax", "cx", "dx");
    check_trap(GP, 0, false, "#GP: no such MSR");
    TRY("mov %%cr0, %%" AX "; orl $0x80000000, %%eax; andl $~1, %%eax; mov %%" AX ", %%cr0", : : : "ax");
    check_trap(GP, 0, false, "#GP: paging without protection");
}

/* A #GP whose gate is absent: #NP while #GP is delivered makes #DF. */
static void double_fault(void) {
    set_gate(GP, vector_entries[GP], SEL_CODE, 0x0E, 0);
    TRY("movl $0x7FF8, %%eax; mov %%eax, %%fs", : : : "ax");
    set_gate(GP, vector_entries[GP], SEL_CODE, 0x8E, 0);
    check_trap(DF, 0, false, "#DF: #NP within #GP");
}

static void floating_point(void) {
    static const u16 unmasked = 0x37B, masked = 0x37F; /* zero divide */
    write_cr0((read_cr0() & ~(ulong)CR0_EM) | CR0_NE | CR0_MP);
    TRY("fninit; fldcw %0; fld1; fldz; fdivrp; fwait", : : "m"(unmasked) : "ax");
    check_trap(MF, 0, false, "#MF: at the WAIT after a division by zero");
    __asm__ volatile("fnclex; fldcw %0; fninit" : : "m"(masked));
    if (!(cpuid(1, 0).d >> 25 & 1)) return;
    static const u32 no_zero_divide = 0x1D80, all_masked = 0x1F80;
    write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    TRY("ldmxcsr %0; pcmpeqd %%xmm0, %%xmm0; psrld $25, %%xmm0; pslld $23, %%xmm0; xorps %%xmm1, %%xmm1; divss %%xmm1, %%xmm0", : : "m"(no_zero_divide) : "ax");
    check_trap(XM, 0, false, "#XM: division by zero");
    write_cr4(read_cr4() & ~(ulong)CR4_OSXMMEXCPT);
    TRY("divss %%xmm1, %%xmm0", : : : "ax");
    check_trap(UD, 0, false, "#UD instead without CR4.OSXMMEXCPT");
    __asm__ volatile("ldmxcsr %0" : : "m"(all_masked));
    write_cr4(read_cr4() & ~(ulong)CR4_OSFXSR);
    TRY("xorps %%xmm1, %%xmm1", : : : "ax");
    check_trap(UD, 0, false, "#UD: SSE without CR4.OSFXSR");
}

static ulong in_ring3(ulong unused) {
    (void)unused;
    static u8 data[16] __attribute__((aligned(16)));
    __asm__ volatile("pushf; orl $0x40000, (%%" SP "); popf" : : : "cc", "memory");
    TRY("movl %0, %%ecx", : : "m"(data[1]) : "ax", "cx");
    __asm__ volatile("pushf; andl $~0x40000, (%%" SP "); popf" : : : "cc", "memory");
    return seen.count == 1 && seen.vector == AC && seen.error == 0;
}

static ulong privileged(ulong unused) {
    (void)unused;
    ulong good = 0;
#define REFUSED(code) TRY(code, : : : "ax", "cx", "dx"); good += seen.count == 1 && seen.vector == GP && !seen.error && (seen.cs & 3) == 3
    REFUSED("hlt");
    REFUSED("cli");
    REFUSED("mov %%cr0, %%" AX);
    REFUSED("mov %%dr7, %%" AX);
    REFUSED("inb $0x80, %%al");
    REFUSED("movl $0x10, %%ecx; rdmsr");
    REFUSED("clts");
    REFUSED("invd");
    REFUSED("lgdt gdt");
    return good;
}

static void ring3(void) {
    write_cr0(read_cr0() | CR0_AM);
    check(in_user_mode(in_ring3, 0), "#AC: alignment at CPL 3");
    write_cr0(read_cr0() & ~(ulong)CR0_AM);
    check_equal(in_user_mode(privileged, 0), 9, "#GP: privileged instructions at CPL 3");
}

static void gate_taken(struct frame *f) { (void)f; }

void guest_main(void) {
    traps_open();
    user_open();
    on_trap(0x60, gate_taken);
#ifdef __x86_64__
    pages_for_user();
    print("64-bit mode\n");
#else
    if (option_given("legacy")) paging_legacy();
    if (option_given("pae")) paging_pae();
    print("32-bit mode, %s\n", option_given("legacy") ? "two-level paging" : option_given("pae") ? "PAE" : "no paging");
#endif
    arithmetic();
    on_trap(BP, 0);
    debug();
    user_open();
    opcodes();
    segments();
    double_fault();
    floating_point();
    if (!option_given("no-ring3")) ring3();
    all_good("traps");
}
