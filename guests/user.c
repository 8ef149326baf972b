/* Ring 3 and its ways into ring 0: INT 80h, SYSCALL, SYSENTER; port access by IOPL and by the I/O bitmap; segments on the way. PVH; in 64-bit mode
   with 64-bit and 32-bit callers, in 32-bit mode with paging off.
   "no-int", "no-syscall", "no-flags": the host has not that way into ring 0, or shows its own flags at CPL 3. */
#include "guest.h"

static volatile ulong calls, last_argument, entry_cs;
extern void syscall_entry(void), sysenter_entry(void);
ulong syscall_handled(ulong number, ulong argument);

ulong syscall_handled(ulong number, ulong argument) {
    calls++;
    last_argument = argument;
    ulong cs;
    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    entry_cs = cs;
    return number + argument;
}

static void on_int80(struct frame *f) {
    f->ax = syscall_handled(f->ax, f->bx);
    entry_cs |= f->cs << 16;
}

static ulong by_interrupt(ulong n) {
    ulong result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(1000), "b"(n) : "memory");
    return result;
}

static ulong by_sysenter(ulong n) {
    ulong result;
    /* The convention of this guest: CX = stack, DX = where to return, as SYSEXIT wants it. */
#ifdef __x86_64__
    __asm__ volatile("mov %%rsp, %%rcx; lea 1f(%%rip), %%rdx; sysenter; 1:" : "=a"(result) : "a"(2000), "b"(n) : "cx", "dx", "memory");
#else
    __asm__ volatile("mov %%esp, %%ecx; lea 1f, %%edx; sysenter; 1:" : "=a"(result) : "a"(2000), "b"(n) : "cx", "dx", "memory");
#endif
    return result;
}

#ifdef __x86_64__
static ulong by_syscall(ulong n) {
    ulong result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(3000), "b"(n) : "rcx", "r11", "memory");
    return result;
}

extern ulong compatibility(ulong n); /* user_code.S: goes to 32-bit code and there makes INT 80h and SYSENTER calls */
#endif

static ulong port_out(ulong port) {
    TRY("outb %%al, %%dx", : : "d"((u16)port) : "ax");
    return seen.count == 1 && seen.vector == GP && !seen.error;
}

static ulong current_cs(ulong unused) {
    ulong cs;
    (void)unused;
    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    return cs;
}

static ulong refused_int(ulong unused) {
    (void)unused;
    TRY("int $0x81", : : : "ax");
    return seen.count == 1 && seen.vector == GP ? seen.error : 0;
}

static ulong flags_at_user(ulong iopl) {
    write_flags(2 | iopl << 12 | FLAG_IF);
    return read_flags();
}

static void ports(void) {
    check(in_user_mode(port_out, 0x80), "#GP: OUT at CPL 3, the I/O bitmap forbids");
    tss.bitmap[0x80 / 8] &= (u8)~1;
    check(!in_user_mode(port_out, 0x80), "OUT at CPL 3, the I/O bitmap allows");
    check(in_user_mode(port_out, 0x81), "#GP: the next port");
    tss.bitmap[0x80 / 8] = 0xFF;
    check(in_user_mode(port_out, 0xFFF), "#GP: a port beyond the TSS limit");
}

void guest_main(void) {
    traps_open();
    user_open();
#ifdef __x86_64__
    pages_for_user();
#endif
    on_trap(0x80, on_int80);
    set_gate(0x80, vector_entries[0x80], SEL_CODE, 0xEE, 0);
    check_equal(in_user_mode(current_cs, 0), sizeof(ulong) == 8 ? SEL_USER_CODE : SEL_USER_CODE32, "CPL 3 and back");
    if (!option_given("no-int")) {
        check_equal(in_user_mode(by_interrupt, 5), 1005, "INT 80h: the result");
        check(last_argument == 5 && (entry_cs & 3) == 0 && (entry_cs >> 16 & 3) == 3, "INT 80h: privileges");
        check_equal(in_user_mode(refused_int, 0), 0x81 * 8 + 2, "#GP: INT to a gate with DPL 0");
    }
    ports();
    const ulong flags = in_user_mode(flags_at_user, 3);
    if (!option_given("no-flags")) check(!(flags & FLAG_IOPL) && !(flags & FLAG_IF), "POPF at CPL 3 leaves IOPL and IF alone");
    if (!option_given("no-syscall")) {
        wrmsr(MSR_SYSENTER_CS, SEL_CODE);
        static u8 sysenter_stack[4096] __attribute__((aligned(16)));
        wrmsr(MSR_SYSENTER_ESP, (ulong)sysenter_stack + sizeof sysenter_stack);
        wrmsr(MSR_SYSENTER_EIP, (ulong)sysenter_entry);
        const bool amd = cpuid(0, 0).b == 0x68747541; /* "Auth": its processors have no SYSENTER in long mode (APM 3, SYSENTER) */
        if (cpuid(1, 0).d >> 11 & 1 && !(amd && sizeof(ulong) == 8)) {
            check_equal(in_user_mode(by_sysenter, 6), 2006, "SYSENTER and SYSEXIT");
            check(last_argument == 6 && entry_cs == SEL_CODE, "SYSENTER: code segment");
        }
#ifdef __x86_64__
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
        wrmsr(MSR_STAR, (u64)SEL_USER_CODE32 << 48 | (u64)SEL_CODE << 32);
        wrmsr(MSR_LSTAR, (ulong)syscall_entry);
        wrmsr(MSR_SFMASK, FLAG_IF | FLAG_TF | 0x400);
        check_equal(in_user_mode(by_syscall, 7), 3007, "SYSCALL and SYSRET");
        check(last_argument == 7 && entry_cs == SEL_CODE, "SYSCALL: code segment");
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~(u64)EFER_SCE);
        TRY("syscall", : : : "ax", "cx", "r11");
        check_trap(UD, 0, false, "#UD: SYSCALL without EFER.SCE");
#endif
    }
#ifdef __x86_64__
    if (!option_given("no-int")) {
        calls = 0;
        check_equal(in_user_mode(compatibility, 8), 1008, "INT 80h from 32-bit code under a 64-bit kernel");
        check(calls == 1 && (entry_cs >> 16) == SEL_USER_CODE32, "  the caller's code segment");
    }
#endif
    all_good("user");
}
