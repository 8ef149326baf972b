/* Page faults: error codes, CR2, access rights, A and D bits, NX, SMEP, SMAP, reserved bits. PVH; in 64-bit mode, and in 32-bit mode with
   two-level tables, or with PAE ("pae"). "no-split": the host writes the first part of what crosses into a page that faults;
   "no-ring3": it cannot come back from CPL 3. */
#include "guest.h"

static u8 frame[2][4096] __attribute__((aligned(4096)));
#ifdef __x86_64__
static const ulong page = 0x12345678000ul;
enum { WIDE = 1 };
#else
static const ulong page = 0xC0000000ul;
enum { WIDE = 0 };
#endif
enum { BYTE = 0x123 };

enum { PRESENT = 1, WRITE = 2, USER = 4, RESERVED = 8, FETCH = 16 };

static void map(u64 flags) { map_page(page, (ulong)frame[0], flags); }

static void load(void) { TRY("movb (%0), %%cl", : : "r"(page + BYTE) : "ax", "cx"); }
static void store(void) { TRY("movb $5, (%0)", : : "r"(page + BYTE) : "ax", "memory"); }
/* A call that faults at its target has pushed its return address: the stack is put right behind it. */
static void call(void) { TRY("mov %%" SP ", %%" BX "; call *%0", "; mov %%" BX ", %%" SP : : "r"(page) : "ax", "bx", "cx", "dx", "memory"); }

static void faults(ulong error, ulong cr2, const char *what) {
    if (seen.count && seen.vector == PF && seen.cr2 != cr2) print("CR2 0x%lx: ", seen.cr2);
    check(seen.count == 1 && seen.vector == PF && seen.cr2 == cr2, what);
    check_equal(seen.error, error, "  its error code");
}

static void works(const char *what) {
    if (seen.count) print("trap %lu, error 0x%lx: ", seen.vector, seen.error);
    check(!seen.count, what);
}

static void rights(void) {
    map(0);
    load();
    faults(0, page + BYTE, "#PF: read of an absent page");
    store();
    faults(WRITE, page + BYTE, "#PF: write to an absent page");
    map(PAGE_P | PAGE_RW);
    check(!(page_state(page) & (PAGE_A | PAGE_D)), "A and D clear");
    load();
    works("read");
    check((page_state(page) & (PAGE_A | PAGE_D)) == PAGE_A, "A set by a read");
    store();
    works("write");
    check((page_state(page) & (PAGE_A | PAGE_D)) == (PAGE_A | PAGE_D), "D set by a write");
    check(frame[0][BYTE] == 5, "the write is in the frame");
    map(PAGE_P);
    store();
    works("write to a read-only page at CPL 0 with CR0.WP clear");
    write_cr0(read_cr0() | CR0_WP);
    store();
    faults(PRESENT | WRITE, page + BYTE, "#PF: write to a read-only page with CR0.WP");
    write_cr0(read_cr0() & ~(ulong)CR0_WP);
    map(PAGE_P | PAGE_RW);
    map_page(page + 4096, (ulong)frame[1], PAGE_P | PAGE_RW);
    frame[0][4094] = 0x11, frame[0][4095] = 0x22, frame[1][0] = 0x33, frame[1][1] = 0x44;
    u32 value = 0;
    TRY("movl (%1), %0", : "=&r"(value) : "r"(page + 4094) : "ax");
    works("read across two pages");
    check_equal(value, 0x44332211, "  its value");
    map_page(page + 4096, 0, 0);
    TRY("movl $-1, (%0)", : : "r"(page + 4094) : "ax", "memory");
    faults(WRITE, page + 4096, "#PF: write that reaches into an absent page");
    if (!option_given("no-split")) check(frame[0][4094] == 0x11, "  nothing of it was written");
    map_page(page + 8192, 0, 0);
    TRY("lock; addl $1, (%0)", : : "r"(page + 8192) : "ax", "cc", "memory");
    faults(WRITE, page + 8192, "#PF: a read-modify-write counts as a write");
}

/* At CPL 3. */
static ulong user_load(ulong unused) { (void)unused; load(); return 0; }
static ulong user_store(ulong unused) { (void)unused; store(); return 0; }
static ulong user_call_page(ulong unused) { (void)unused; call(); return 0; }

static void user(void) {
    map(PAGE_P | PAGE_RW);
    in_user_mode(user_load, 0);
    faults(PRESENT | USER, page + BYTE, "#PF: supervisor page read at CPL 3");
    in_user_mode(user_store, 0);
    faults(PRESENT | USER | WRITE, page + BYTE, "#PF: supervisor page written at CPL 3");
    map(0);
    in_user_mode(user_store, 0);
    faults(USER | WRITE, page + BYTE, "#PF: absent page written at CPL 3");
    map(PAGE_P | PAGE_US);
    in_user_mode(user_load, 0);
    works("user page read at CPL 3");
    in_user_mode(user_store, 0);
    faults(PRESENT | USER | WRITE, page + BYTE, "#PF: read-only page written at CPL 3, whatever CR0.WP says");
}

static void no_execute(bool user_too) {
    frame[0][0] = 0xC3; /* ret */
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    map(PAGE_P | PAGE_RW | PAGE_US);
    call();
    works("call into a page");
    map(PAGE_P | PAGE_RW | PAGE_US | PAGE_NX);
    call();
    faults(PRESENT | FETCH, page, "#PF: NX page executed");
    load();
    works("NX page read");
    if (user_too) {
        in_user_mode(user_call_page, 0);
        faults(PRESENT | FETCH | USER, page, "#PF: NX page executed at CPL 3");
    }
    map(PAGE_P | PAGE_RW | 1ull << 51);
    load();
    faults(PRESENT | RESERVED, page + BYTE, "#PF: reserved bit in an entry");
}

static void protection(void) {
    const struct cpuid features = cpuid(7, 0);
    frame[0][0] = 0xC3;
    map(PAGE_P | PAGE_RW | PAGE_US);
    const ulong cr4 = read_cr4();
    /* The guest's own pages are open to ring 3 (user guests need it): SMEP and SMAP would stop the guest itself. So they are closed before. */
    if (features.b & 1 << 7) {
        write_cr4(cr4 | CR4_SMEP);
        call();
        write_cr4(cr4);
        faults(PRESENT | FETCH, page, "#PF: user page executed at CPL 0 with SMEP");
    }
    if (features.b & 1 << 20) {
        write_cr4(cr4 | CR4_SMAP);
        load();
        write_cr4(cr4);
        faults(PRESENT, page + BYTE, "#PF: user page read at CPL 0 with SMAP");
        write_cr4(cr4 | CR4_SMAP);
        write_flags(read_flags() | FLAG_AC);
        load();
        write_flags(read_flags() & ~(ulong)FLAG_AC);
        write_cr4(cr4);
        works("user page read at CPL 0 with SMAP and AC");
    }
}

/* What the TLB may keep, and what drops it. */
static void tlb(void) {
    volatile u8 *at = (volatile u8 *)page;
    frame[0][9] = 1;
    frame[1][9] = 2;
    map(PAGE_P | PAGE_RW);
    check(at[9] == 1, "first frame");
    map_page(page, (ulong)frame[1], PAGE_P | PAGE_RW);
    check(at[9] == 2, "second frame after INVLPG");
    write_cr4(read_cr4() | CR4_PGE);
    map_page(page, (ulong)frame[0], PAGE_P | PAGE_RW | PAGE_G);
    check(at[9] == 1, "global page");
    write_cr4(read_cr4() & ~(ulong)CR4_PGE);
    map_page(page, (ulong)frame[1], PAGE_P | PAGE_RW);
    check(at[9] == 2, "changing CR4.PGE drops global pages");
}

#ifdef __x86_64__
extern volatile u64 page_map[512];
static volatile u64 pointers[512] __attribute__((aligned(4096))), directory[512] __attribute__((aligned(4096)));

/* Pages of 1 GiB and 2 MiB at 512 GiB and above, onto the first memory; and what their entries refuse. */
static void large(void) {
    const ulong base = 1ul << 39, target = (ulong)&frame[0][40];
    frame[0][40] = 77;
    page_map[1] = (ulong)pointers | PAGE_P | PAGE_RW;
    if (cpuid(0x80000001u, 0).d >> 26 & 1) {
        pointers[0] = PAGE_P | PAGE_RW | PAGE_PS;
        check_equal(*(volatile u8 *)(base + target), 77, "a page of 1 GiB");
        check((pointers[0] & (PAGE_A | PAGE_D)) == PAGE_A, "  A set");
        *(volatile u8 *)(base + target) = 78;
        check((pointers[0] & PAGE_D) && frame[0][40] == 78, "  D set by a write");
        pointers[1] = PAGE_P | PAGE_RW | PAGE_PS | 1ull << 20;
        TRY("movb (%0), %%cl", : : "r"(base + (1ul << 30)) : "ax", "cx");
        faults(PRESENT | RESERVED, base + (1ul << 30), "#PF: an address bit below 1 GiB in its entry");
    }
    frame[0][40] = 79;
    pointers[2] = (ulong)directory | PAGE_P | PAGE_RW;
    directory[0] = PAGE_P | PAGE_PS;
    const ulong at = base + (2ul << 30);
    check_equal(*(volatile u8 *)(at + target), 79, "a page of 2 MiB");
    write_cr0(read_cr0() | CR0_WP);
    TRY("movb $1, (%0)", : : "r"(at + target) : "ax", "memory");
    write_cr0(read_cr0() & ~(ulong)CR0_WP);
    faults(PRESENT | WRITE, at + target, "#PF: its entry is read-only");
    directory[1] = PAGE_P | PAGE_RW | PAGE_PS | 1ull << 13;
    TRY("movb (%0), %%cl", : : "r"(at + (2ul << 20)) : "ax", "cx");
    faults(PRESENT | RESERVED, at + (2ul << 20), "#PF: an address bit below 2 MiB in its entry");
    pointers[2] = (ulong)directory | PAGE_P;
    invlpg(at + target);
    directory[0] |= PAGE_RW;
    write_cr0(read_cr0() | CR0_WP);
    TRY("movb $1, (%0)", : : "r"(at + target) : "ax", "memory");
    write_cr0(read_cr0() & ~(ulong)CR0_WP);
    faults(PRESENT | WRITE, at + target, "#PF: the table above is read-only");
}

static void invpcid(ulong type, u64 pcid, u64 address) {
    const struct { u64 pcid, address; } descriptor = { pcid, address };
    __asm__ volatile("invpcid %0, %1" : : "m"(descriptor), "r"(type) : "memory");
}

static void contexts(void) {
    if (!(cpuid(7, 0).b >> 10 & 1)) return;
    const bool pcid = cpuid(1, 0).c >> 17 & 1;
    if (pcid) write_cr4(read_cr4() | 1ul << 17);
    for (ulong type = 0; type < 4; type++) {
        volatile u64 *entry = page_entry(page);
        *entry = (ulong)frame[type & 1] | PAGE_P | PAGE_RW;
        invpcid(type, 0, page);
        frame[0][9] = 10, frame[1][9] = 11;
        check_equal(*(volatile u8 *)(page + 9), 10 + (type & 1), "INVPCID");
    }
    TRY("movl $4, %%ecx; invpcid (%%" SP "), %%rcx", : : : "ax", "cx");
    check_trap(GP, 0, false, "#GP: INVPCID of type 4");
    if (!pcid) return;
    write_cr3(read_cr3() | 5);
    check((read_cr3() & 0xFFF) == 5, "PCID in CR3");
    *page_entry(page) = (ulong)frame[1] | PAGE_P | PAGE_RW;
    write_cr3((read_cr3() & ~0xFFFul) | 6);
    check_equal(*(volatile u8 *)(page + 9), 11, "another PCID, a fresh translation");
    TRY("mov %%cr4, %%rcx; btr $17, %%rcx; mov %%rcx, %%cr4", : : : "ax", "cx", "cc");
    check(!seen.count, "CR4.PCIDE can be cleared with any PCID");
    write_cr3(read_cr3() & ~0xFFFul);
    write_cr3(read_cr3() | 8); /* PWT: no PCID any longer */
    TRY("mov %%cr4, %%rcx; bts $17, %%rcx; mov %%rcx, %%cr4", : : : "ax", "cx", "cc");
    check_trap(GP, 0, false, "#GP: CR4.PCIDE set with CR3[11:0] not 0");
    write_cr3(read_cr3() & ~0xFFFul);
}
#endif

void guest_main(void) {
    traps_open();
    user_open();
#ifdef __x86_64__
    print("64-bit mode\n");
    const bool nx = true;
#else
    const bool nx = option_given("pae");
    if (nx) paging_pae();
    else paging_legacy();
    print("32-bit mode, %s\n", nx ? "PAE" : "two-level paging");
#endif
    if (WIDE) protection(); /* before anything of the guest is open to ring 3 */
    rights();
#ifdef __x86_64__
    pages_for_user();
#endif
    if (!option_given("no-ring3")) user();
    if (nx) no_execute(!option_given("no-ring3"));
    tlb();
#ifdef __x86_64__
    large();
    contexts();
#endif
    all_good("paging");
}
