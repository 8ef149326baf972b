/* What of a vCPU instructions change, and the comparison of two such states. */
#ifndef KP_VERIFY_STATE_H
#define KP_VERIFY_STATE_H

#include "run.h"

/* The fields of Cpu before `events`; behind it stands what comes from outside, but for two. */
typedef struct {
    uint8_t cpu[offsetof(Cpu, events)] __attribute__((aligned(64)));
    bool nmi_masked;
    uint64_t pending_debug;
    uint64_t rip;   /* of the next instruction */
    int64_t left;   /* of the budget, */
    int64_t unwound; /* with so much that the unwinding gives back */
    int why;        /* UNWIND_*, or 0 */
    uint64_t fault[3]; /* vector, whether it has an error code, that */
} VerifyState;

typedef struct {
    const char *name;
    uint32_t size;
    const void *interpreted, *translated;
} VerifyDifference;

/* Flags are noted as such, and MXCSR is whole. */
void verify_state_take(const Cpu *c, VerifyState *to);
void verify_state_restore(Cpu *c, const VerifyState *from);
bool verify_state_same_generations(const Cpu *c, const VerifyState *s);
/* The next thing that differs, from number *n on, or NULL. It stands until the next call. Flags of `undefined` may differ. */
const VerifyDifference *verify_state_compare(const VerifyState *interpreted, const VerifyState *translated, uint32_t undefined, unsigned *n);

#endif
