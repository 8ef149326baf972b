/* Solution: who is below, and a call to it. */
#include <kernel.h>

static inline void cpuid(u32 leaf, u32 *a, u32 *b, u32 *c, u32 *d) {
    __asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "0"(leaf), "2"(0));
}

static int has_hypervisor(void) {
    u32 a, b, c, d;
    cpuid(1, &a, &b, &c, &d);
    return c >> 31;
}

/* Twelve letters and a zero. */
static void name_of(char name[13]) {
    u32 a, part[3];
    cpuid(0x40000000, &a, &part[0], &part[1], &part[2]);
    copy(name, part, 12);
    name[12] = 0;
}

static long long call(u64 number, u64 argument) {
    long long result;
    __asm__ volatile("vmcall" : "=a"(result) : "0"(number), "b"(argument), "c"(0ull), "d"(0ull), "S"(0ull) : "memory");
    return result;
}

int main(void) {
    char name[13];
    kvmpy_assert(has_hypervisor());
    name_of(name);
    kvmpy_log(name);
    kvmpy_expect_equal(call(9999, 1), -1000);
    kvmpy_time("before");
    for (u64 number = 10000; number < 10010; number++) kvmpy_expect_equal(call(number, 0), -1000);
    return 0;
}
