/* Code that changes: a constant in a function is patched, the function is called. 100 times per unit. */
#include "bench.h"

void patched_prepare(void) {
    static const u8 function[] = { 0xB8, 0, 0, 0, 0, 0x8D, 0x44, 0x38, 1, 0xC3 }; /* mov eax, constant; lea eax, [rax+rdi+1]; ret */
    for (u32 n = 0; n < sizeof function; n++) code_page[64 + n] = function[n];
}

u64 patched(u32 work) {
    u32 (*function)(u32) = (u32 (*)(u32))(uintptr_t)(code_page + 64);
    u64 sum = 0;
    for (u32 n = 0; n < work * 100; n++) {
        *(volatile u32 *)(code_page + 65) = n * 2654435761u;
        sum = sum * 3 + function(n);
    }
    return sum;
}
