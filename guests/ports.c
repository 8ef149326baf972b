/* Debug ports, CMOS, the ACPI timer, paravirtual services: 64-bit mode. "no-hypercall": VMCALL does not come back on the host. */
#include "guest.h"

static void debug_ports(void) {
    static const char text[] = "on the debug console\n";
    for (const char *s = text; *s; s++) outb(0xE9, (u8)*s);
    check_equal(inb(0xE9), 0xE9, "the debug console answers with its number");
    outb(0x80, 0x42);
    check(inb(0x5FF) == 0xFF && inw(0x5FE) == 0xFFFF && inl(0x5FC) == 0xFFFFFFFF, "nobody's ports read all ones");
}

static void chips(void) {
    outb(0x70, 0x3F);
    outb(0x71, 0x5A);
    outb(0x70, 0x3F);
    check_equal(inb(0x71), 0x5A, "CMOS memory keeps a byte");
    const u32 before = inl(0x608);
    delay_us(5000);
    const u32 ticks = inl(0x608) - before;
    print("%u ticks: ", ticks);
    check(ticks > 15000 && ticks < 3000000, "the ACPI timer counts 3.579545 MHz");
    outb(0x21, 0xA5);
    check_equal(inb(0x21), 0xA5, "the 8259's mask reads back");
    outb(0x21, 0xFF);
    outb(0x3FF, 0x77);
    check_equal(inb(0x3FF), 0x77, "COM1's scratch register");
}

static void strings(void) {
    static u8 data[16];
    void *to = data;
    ulong count = 16;
    __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(0x5FF) : "memory");
    check(count == 0 && data[0] == 0xFF && data[15] == 0xFF, "REP INSB");
    static const char text[] = "REP OUTSB to COM1\n";
    const void *from = text;
    count = sizeof text - 1;
    __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(0x3F8) : "memory");
    check_equal(count, 0, "REP OUTSB");
}

static void paravirtual(void) {
    enum { MSR_KVM_SYSTEM_TIME_NEW = 0x4B564D01 };
    struct cpuid r = cpuid(0x40000000, 0);
    if (r.b != 0x4B4D564B) { /* "KVMK" */
        print("no KVM interface\n");
        return;
    }
    if (cpuid(0x40000001, 0).a & 8) {
        static volatile struct { u32 version, pad; u64 tsc, time; u32 multiplier; u8 shift, flags, pad2[2]; } clock __attribute__((aligned(64)));
        wrmsr(MSR_KVM_SYSTEM_TIME_NEW, (ulong)&clock | 1);
        check(clock.version && !(clock.version & 1) && clock.multiplier, "kvmclock");
        wrmsr(MSR_KVM_SYSTEM_TIME_NEW, 0);
    }
    if (option_given("no-hypercall")) return;
    long result;
    TRY("vmcall", : "=a"(result) : "a"(9999l), "b"(0l) : "cx", "dx", "memory");
    if (seen.count) TRY("vmmcall", : "=a"(result) : "a"(9999l), "b"(0l) : "cx", "dx", "memory");
    check(!seen.count, "VMCALL comes back");
}

void guest_main(void) {
    traps_open();
    debug_ports();
    chips();
    strings();
    paravirtual();
    all_good("ports");
}
