/* Exercise: who is below, and a call to it. Fill the three gaps. */
#include <kernel.h>

static inline void cpuid(u32 leaf, u32 *a, u32 *b, u32 *c, u32 *d) {
    __asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "0"(leaf), "2"(0));
}

static int has_hypervisor(void) {
    /* GAP 1 */
    return 0;
}

/* Twelve letters and a zero. */
static void name_of(char name[13]) {
    /* GAP 2: CPUID leaf 0x40000000 */
    name[0] = 0;
}

static long long call(u64 number, u64 argument) {
    /* GAP 3: VMCALL */
    return 0;
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
