/* Products and quotients, 1000 rounds per unit. `muldiv` is what a compiler makes of 64-bit C, a chain in which each waits for the one before.
   `wide64` and `wide32` use the whole width of the instructions, as arithmetic modulo a number, big numbers and scaled clocks do: MUL and IMUL
   to twice the width, DIV and IDIV of that. Operands of all lengths come from a table, so none waits for another. */
#include "bench.h"

#ifdef __x86_64__
u64 muldiv(u32 work) {
    u64 a = 0x123456789ABCDEFull, b = 0xFEDCBA987654321ull, sum = 0;
    for (u32 n = 0; n < work * 1000; n++) {
        const unsigned __int128 product = (unsigned __int128)a * b;
        a = (u64)(product >> 64) ^ (u64)product;
        b = (b >> 3 | 1) + n;
        const u64 quotient = a / b;
        const u64 rest = a % b;
        sum += quotient ^ (u64)((int64_t)rest * -7 / (int64_t)(n + 3));
        b ^= rest << 5;
    }
    return sum + a;
}
#endif

enum { COUNT = 1000 };

/* A quotient fits when one factor is below the divisor; with signs, when it is at most a quarter of it. The divisor has 3 bits to a word. */
#define WIDE(bits, suffix) \
    static struct { u##bits a, b, divisor; int##bits##_t c, d, modulus; } operands##bits[COUNT]; \
    \
    static u##bits random##bits(u32 *state) { \
        const u##bits high = next_random(state); \
        return high << (bits - 32) ^ next_random(state); \
    } \
    \
    void wide##bits##_prepare(void) { \
        u32 seed = bits; \
        for (u32 n = 0; n < COUNT; n++) { \
            const u##bits divisor = (random##bits(&seed) | (u##bits)1 << (bits - 1)) >> next_random(&seed) % (bits - 2); \
            const u##bits a = random##bits(&seed) % divisor, b = random##bits(&seed), modulus = divisor >> 1; \
            operands##bits[n].a = a; \
            operands##bits[n].b = b; \
            operands##bits[n].divisor = divisor; \
            operands##bits[n].c = n & 1 ? -(int##bits##_t)(a / 8) : (int##bits##_t)(a / 8); \
            operands##bits[n].d = (int##bits##_t)b; \
            operands##bits[n].modulus = (int##bits##_t)(n & 2 ? -modulus : modulus); \
        } \
    } \
    \
    u64 wide##bits(u32 work) { \
        u64 sum = 0; \
        for (u32 round = 0; round < work; round++) \
            for (u32 n = 0; n < COUNT; n++) { \
                u##bits quotient, rest; \
                __asm__("mul" suffix " %3\n div" suffix " %4" \
                        : "=&a"(quotient), "=&d"(rest) \
                        : "0"(operands##bits[n].a), "rm"(operands##bits[n].b), "rm"(operands##bits[n].divisor) : "cc"); \
                sum += quotient ^ rest; \
                __asm__("imul" suffix " %3\n idiv" suffix " %4" \
                        : "=&a"(quotient), "=&d"(rest) \
                        : "0"(operands##bits[n].c), "rm"(operands##bits[n].d), "rm"(operands##bits[n].modulus) : "cc"); \
                sum += (quotient ^ rest) + operands##bits[n].a * operands##bits[n].b; \
            } \
        return sum; \
    }

#ifdef __x86_64__
WIDE(64, "q")
#endif
WIDE(32, "l")
