/* Comparison of the core's instructions with the host processor's: one instruction, the same state before, both states after. */
#ifndef ORACLE_H
#define ORACLE_H

#include "exec.h"
#include "fpenv.h"

/* The same linear addresses on both sides: pages of data between unmapped ones, a page of code. */
#define DATA 0x20004000ull
#define DATA_BYTES 0x2000u
#define CODE 0x20010000ull

typedef struct {
    uint64_t gpr[16], rflags, rip;
    Ymm ymm[16];
    uint32_t mxcsr;
    uint64_t mant[8]; /* x87 by physical number */
    uint16_t se[8], control, status;
    uint8_t tag;
    uint8_t data[DATA_BYTES] __attribute__((aligned(64)));
    int vector; /* of the fault, or -1 */
} State;

uint64_t rnd(void);
void rnd_seed(uint64_t seed);
static inline unsigned pick(unsigned n) { return (unsigned)(rnd() % n); }

/* generate.c: random bytes of table line `id` in 64-bit mode, and a state whose registers lead its memory operand into the
   data. Gives the length, or 0 where no encoding was found. */
unsigned generate(const Cpu *c, unsigned id, uint8_t bytes[16], State *s);

/* native.c: executes the bytes on the host's processor. */
int native_open(void);
void native_run(const uint8_t *bytes, unsigned length, State *s);

/* target.c: executes them on the core. */
Cpu *core_open(void);
void core_run(Cpu *c, const uint8_t *bytes, unsigned length, State *s);

#endif
