/* A guest out of an input: its mode, control bits, registers, patches of its tables, and the rest as code. */
#ifndef FUZZ_GUEST_H
#define FUZZ_GUEST_H

#include "fuzz.h"

typedef struct {
    unsigned mode, cpl;
    bool chips, assembled;
    uint64_t options, seed;
} Guest;
/* The head of an input, which decides about chips. */
Guest guest_head(Input *in);
/* Puts state and memory; the input is used up. */
void guest_put(const Guest *g, Cpu *c, Input *in);

/* Code out of the rest of an input; gives its size. */
size_t assemble(uint8_t *to, size_t room, unsigned mode, Input *in);

#endif
