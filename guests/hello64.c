/* The first guest that one runs: says where it is, what it sees, computes something, leaves with 0. PVH or plain ELF64, in 64-bit mode. */
#include "guest.h"

static void processor(void) {
    char text[49] = "";
    struct cpuid r = cpuid(0, 0);
    const u32 words[3] = { r.b, r.d, r.c };
    memcpy(text, words, 12);
    text[12] = 0;
    print("processor    %s", text);
    if (cpuid(0x80000000u, 0).a >= 0x80000004u) {
        for (u32 n = 0; n < 3; n++) {
            r = cpuid(0x80000002u + n, 0);
            memcpy(text + 16 * n, &r, 16);
        }
        text[48] = 0;
        const char *brand = text;
        while (*brand == ' ') brand++;
        if (*brand) print(", %s", brand);
    }
    const u32 version = cpuid(1, 0).a;
    print(", family %u model %u\n", (version >> 8 & 15) + ((version >> 8 & 15) == 15 ? version >> 20 & 255 : 0),
          (version >> 4 & 15) | (version >> 12 & 0xF0));
    if (cpuid(1, 0).c >> 31) {
        r = cpuid(0x40000000u, 0);
        const u32 host[3] = { r.b, r.c, r.d };
        memcpy(text, host, 12);
        text[12] = 0;
        print("hypervisor   %s\n", text);
    }
}

static void memory(void) {
    static const char *const kinds[] = { "?", "usable", "reserved", "ACPI", "ACPI NVS", "bad" };
    const struct memory_range *range = (const struct memory_range *)(ulong)start_info->memory_map;
    u64 usable = 0;
    for (u32 n = 0; n < start_info->memory_map_count; n++, range++) {
        print("%s%09llx-%09llx %s\n", n ? "             " : "memory       ", (unsigned long long)range->start,
              (unsigned long long)(range->start + range->size - 1), kinds[range->type < 6 ? range->type : 0]);
        if (range->type == 1) usable += range->size;
    }
    print("             %u KiB usable\n", (u32)(usable >> 10));
}

static u32 primes_below(u32 end) {
    static u8 composite[20000];
    u32 count = 0;
    for (u32 n = 2; n < end; n++) {
        if (composite[n]) continue;
        count++;
        for (u32 multiple = 2 * n; multiple < end; multiple += n) composite[multiple] = 1;
    }
    return count;
}

void guest_main(void) {
    ulong cs;
    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    print("Hello from 64-bit mode!\n");
    const u64 efer = rdmsr(MSR_EFER);
    print("mode         CPL %lu, CR0 %lx, CR3 %lx, CR4 %lx, EFER %llx: long mode %s, 4-level paging\n", cs & 3, read_cr0(), read_cr3(),
          read_cr4(), (unsigned long long)efer, efer & EFER_LMA ? "active" : "OFF");
    processor();
    const bool informed = start_info && start_info->magic == START_INFO_MAGIC;
    print("loader       %s", informed ? "start info of PVH" : "no start info");
    if (*command_line()) print(", command line \"%s\"", command_line());
    print("\n");
    if (informed) memory();
    const u32 primes = primes_below(20000);
    print("computation  %u primes below 20000, ", primes);
    u64 a = 0, b = 1;
    for (int n = 0; n < 90; n++) {
        const u64 next = a + b;
        a = b;
        b = next;
    }
    print("Fibonacci number 90 is %llu\n", (unsigned long long)a);
    const bool good = (efer & EFER_LMA) && primes == 2262 && a == 2880067194370816120ull;
    print(good ? "Goodbye: all is well.\n" : "Goodbye: something is wrong.\n");
    leave(good ? 0 : 1);
}
