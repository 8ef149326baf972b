/* Solution: a page-table walk. */
#include <kernel.h>

#define NOT_MAPPED (~0ull)
#define ADDRESS 0x000FFFFFFFFFF000ull
enum { PRESENT = 1 << 0, LARGE = 1 << 7 };

/* The physical address of a linear one, by the tables at cr3. */
static u64 walk(u64 cr3, u64 linear) {
    u64 table = cr3;
    for (int shift = 39;; shift -= 9) {
        u64 entry = ((u64 *)(table & ADDRESS))[linear >> shift & 511];
        if (!(entry & PRESENT)) return NOT_MAPPED;
        if (shift == 12 || (shift < 39 && entry & LARGE)) {
            u64 inside = (1ull << shift) - 1;
            return (entry & ADDRESS & ~inside) | (linear & inside);
        }
        table = entry;
    }
}

static u64 pml4[512] __attribute__((aligned(4096))), pdpt[512] __attribute__((aligned(4096))), pd[512] __attribute__((aligned(4096))),
    pt[512] __attribute__((aligned(4096)));
#define NX (1ull << 63)

int main(void) {
    pml4[3] = (u64)pdpt | 7;
    pdpt[5] = (u64)pd | 7;
    pdpt[6] = 0x80000000ull | PRESENT | LARGE;
    pd[7] = (u64)pt | 7;
    pd[8] = 0x40200000ull | PRESENT | LARGE | NX;
    pd[9] = (u64)pt; /* not present */
    pt[10] = 0x12345000ull | PRESENT | NX | 0x60;
    u64 base = 3ull << 39;
    u64 cr3 = (u64)pml4 | 0x18; /* PWT and PCD are no part of the address */
    kvmpy_expect_equal(walk(cr3, base | 5ull << 30 | 7ull << 21 | 10ull << 12 | 0xABC), 0x12345ABC);
    kvmpy_expect_equal(walk(cr3, base | 5ull << 30 | 8ull << 21 | 0x1FEDCB), 0x403FEDCB);
    kvmpy_expect_equal(walk(cr3, base | 6ull << 30 | 0x2ABCDEF0), 0xAABCDEF0);
    kvmpy_expect_equal(walk(cr3, base | 5ull << 30 | 7ull << 21 | 11ull << 12), NOT_MAPPED);
    kvmpy_expect_equal(walk(cr3, base | 5ull << 30 | 9ull << 21 | 10ull << 12), NOT_MAPPED);
    kvmpy_expect_equal(walk(cr3, base | 4ull << 30), NOT_MAPPED);
    kvmpy_expect_equal(walk(cr3, 4ull << 39), NOT_MAPPED);

    u64 mine;
    __asm__("mov %%cr3, %0" : "=r"(mine));
    kvmpy_expect_equal(walk(mine, (u64)main), (u64)main); /* identity mapped */
    return 0;
}
