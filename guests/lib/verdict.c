/* Checks, and how a guest ends: its verdict goes to the debug exit port. */
#include "guest.h"

static unsigned checks;

_Noreturn void leave(u32 status) {
    outl(0xF4, status);
    for (;;) { /* no such port here: stop for good, where a host can see it */
        cli();
        hlt();
    }
}

void check(bool good, const char *what) {
    checks++;
    print("%s %u %s\n", good ? "ok" : "FAILED", checks, what);
    if (!good) leave(checks);
}

void check_equal(u64 got, u64 wanted, const char *what) {
    if (got != wanted) print("got 0x%llx, wanted 0x%llx: ", (unsigned long long)got, (unsigned long long)wanted);
    check(got == wanted, what);
}

_Noreturn void all_good(const char *guest) {
    print("%s: all %u checks good\n", guest, checks);
    leave(0);
}

_Noreturn void skip(const char *why) {
    print("skipped: %s\n", why);
    leave(77);
}
