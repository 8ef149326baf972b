/* Identity maps for 32-bit guests: two-level tables with 4 MiB pages, or PAE with 2 MiB pages; single pages on demand. Everything is open to ring 3. */
#include "guest.h"

#ifndef __x86_64__
static u32 directory[1024] __attribute__((aligned(4096)));
static u64 pointers[4] __attribute__((aligned(32)));
static u64 directories[4][512] __attribute__((aligned(4096)));
static u64 pool[8][512] __attribute__((aligned(4096)));
static unsigned used;
static bool pae;

static ulong new_table(void) {
    if (used == sizeof pool / sizeof pool[0]) {
        print("no page tables left\n");
        leave(253);
    }
    return (ulong)pool[used++];
}

void paging_legacy(void) {
    pae = false;
    for (u32 n = 0; n < 1024; n++) directory[n] = n << 22 | PAGE_P | PAGE_RW | PAGE_US | PAGE_PS;
    write_cr4((read_cr4() & ~(ulong)CR4_PAE) | CR4_PSE);
    write_cr3((ulong)directory);
    write_cr0(read_cr0() | CR0_PG);
}

void paging_pae(void) {
    pae = true;
    for (u32 n = 0; n < 4; n++) pointers[n] = (ulong)directories[n] | PAGE_P;
    for (u32 n = 0; n < 2048; n++) directories[n >> 9][n & 511] = (u64)n << 21 | PAGE_P | PAGE_RW | PAGE_US | PAGE_PS;
    write_cr4(read_cr4() | CR4_PAE);
    write_cr3((ulong)pointers);
    write_cr0(read_cr0() | CR0_PG);
}

static void *entry(ulong address) {
    if (pae) {
        u64 *large = &directories[address >> 30][address >> 21 & 511];
        if (*large & PAGE_PS || !(*large & PAGE_P)) {
            u64 *smaller = (u64 *)new_table();
            for (u32 n = 0; n < 512; n++) smaller[n] = *large & PAGE_P ? (*large + ((u64)n << 12)) & ~(u64)PAGE_PS : 0;
            *large = (ulong)smaller | PAGE_P | PAGE_RW | PAGE_US;
        }
        return (u64 *)(ulong)(*large & 0xFFFFF000) + (address >> 12 & 511);
    }
    u32 *large = &directory[address >> 22];
    if (*large & PAGE_PS || !(*large & PAGE_P)) {
        u32 *smaller = (u32 *)new_table();
        for (u32 n = 0; n < 1024; n++) smaller[n] = *large & PAGE_P ? (*large + (n << 12)) & ~(u32)PAGE_PS : 0;
        *large = (ulong)smaller | PAGE_P | PAGE_RW | PAGE_US;
    }
    return (u32 *)(*large & 0xFFFFF000) + (address >> 12 & 1023);
}

void map_page(ulong address, u64 physical, u64 flags) {
    if (pae) *(volatile u64 *)entry(address) = physical | flags;
    else *(volatile u32 *)entry(address) = (u32)(physical | flags);
    write_cr3(read_cr3()); /* a large page may have been split */
}

u64 page_state(ulong address) { return pae ? *(volatile u64 *)entry(address) : *(volatile u32 *)entry(address); }
#endif
