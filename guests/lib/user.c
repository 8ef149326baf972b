/* Functions in ring 3: the trap that brings their results back. */
#include "guest.h"

static u8 user_stack[16384] __attribute__((aligned(16)));

static void breakpoint(struct frame *f) {
    if (f->ip == (ulong)user_done + 1 && (f->cs & 3) == 3) user_leave(f->ax);
    print("breakpoint at 0x%lx\n", f->ip);
    leave(255);
}

void user_open(void) {
    set_gate(BP, vector_entries[BP], SEL_CODE, 0xEE, 0); /* DPL 3 */
    on_trap(BP, breakpoint);
}

ulong in_user_mode(ulong (*function)(ulong), ulong argument) {
    return user_call(function, argument, (ulong)user_stack + sizeof user_stack);
}
