/* 4 KiB pages in the tables that start64.S made: a large page is split where a single page of it is wanted. */
#include "guest.h"

#ifdef __x86_64__
extern u64 page_map[512], page_pointers[512], page_directories[2048];
static u64 pool[24][512] __attribute__((aligned(4096)));
static unsigned used;

static u64 *new_table(void) {
    if (used == sizeof pool / sizeof pool[0]) {
        print("no page tables left\n");
        leave(253);
    }
    return pool[used++];
}

u64 *page_entry(ulong address) {
    u64 *table = page_map;
    for (int shift = 39; shift > 12; shift -= 9) {
        u64 *entry = &table[address >> shift & 511];
        if (!(*entry & PAGE_P)) {
            *entry = (u64)new_table() | PAGE_P | PAGE_RW | PAGE_US;
        } else if (*entry & PAGE_PS) {
            u64 *smaller = new_table();
            for (u64 n = 0; n < 512; n++) {
                smaller[n] = *entry + (n << (shift - 9));
                if (shift == 21) smaller[n] &= ~(u64)PAGE_PS;
            }
            *entry = (u64)smaller | PAGE_P | PAGE_RW | PAGE_US;
        } else {
            *entry |= PAGE_US; /* rights are the leaf's affair */
        }
        table = (u64 *)(*entry & 0xFFFFFFFFFF000);
    }
    return &table[address >> 12 & 511];
}

void map_page(ulong address, u64 physical, u64 flags) {
    *page_entry(address) = physical | flags;
    invlpg(address);
}
u64 page_state(ulong address) { return *(volatile u64 *)page_entry(address); }

void pages_for_user(void) {
    page_map[0] |= PAGE_US;
    for (unsigned n = 0; n < 4; n++) page_pointers[n] |= PAGE_US;
    for (unsigned n = 0; n < 2048; n++) page_directories[n] |= PAGE_US;
    write_cr3(read_cr3());
}
#endif
