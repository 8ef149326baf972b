/* The IDT; a handler per vector; faults that a test asked for. */
#include "guest.h"

#ifdef __x86_64__
struct gate { u16 low, selector; u8 ist, type; u16 middle; u32 high, reserved; };
#else
struct gate { u16 low, selector; u8 zero, type; u16 high; };
#endif

static struct gate idt[256] __attribute__((aligned(16)));
static handler *handlers[256];
struct trap_seen seen;
volatile ulong trap_resume;
void trap(struct frame *);

void set_gate(unsigned vector, ulong entry, u16 selector, u8 type_dpl, u8 ist) {
    struct gate *g = &idt[vector & 255];
    g->low = (u16)entry;
    g->selector = selector;
    g->type = type_dpl;
#ifdef __x86_64__
    g->ist = ist;
    g->middle = (u16)(entry >> 16);
    g->high = (u32)(entry >> 32);
#else
    (void)ist;
    g->high = (u16)(entry >> 16);
#endif
}

void on_trap(unsigned vector, handler *h) { handlers[vector & 255] = h; }

void traps_open(void) {
    segments_load();
    for (unsigned n = 0; n < 256; n++) set_gate(n, vector_entries[n], SEL_CODE, 0x8E, 0);
    struct { u16 limit; ulong base; } __attribute__((packed)) table = { sizeof idt - 1, (ulong)idt };
    __asm__ volatile("lidt %0" : : "m"(table));
}

void check_trap(ulong vector, ulong error, bool behind, const char *what) {
    const bool good = seen.count == 1 && seen.vector == vector && seen.error == error && seen.behind == behind;
    if (!good) {
        print("%lu traps, the last %lu with error 0x%lx at 0x%lx%s; wanted %lu with 0x%lx%s: ", seen.count, seen.vector, seen.error, seen.ip,
              seen.behind ? " (behind)" : "", vector, error, behind ? " (behind)" : "");
    }
    check(good, what);
}

void trap(struct frame *f) {
    if (handlers[f->vector & 255]) {
        handlers[f->vector & 255](f);
        return;
    }
    if (trap_resume && f->vector < 32) {
        seen.count++;
        seen.vector = f->vector;
        seen.error = f->error;
        seen.ip = f->ip;
        seen.cs = f->cs;
        seen.flags = f->flags;
        seen.behind = f->ip == trap_resume;
        if (f->vector == PF) seen.cr2 = read_cr2();
        f->ip = trap_resume;
        f->flags &= ~(ulong)FLAG_TF;
        return;
    }
    print("unexpected trap %lu, error 0x%lx at 0x%lx:0x%lx, flags 0x%lx, CR2 0x%lx\n", f->vector, f->error, f->cs, f->ip, f->flags,
          read_cr2());
    leave(255);
}
