/* What translated code calls. */
#ifndef KP_RUN_TRANSLATED_H
#define KP_RUN_TRANSLATED_H

#include "translate.h"

/* Executes one instruction of a block by its handler; all state is in memory. `what`: its address plus how many instructions follow the
   block in the region, whose budget the handler has meanwhile. Gives 0 where execution goes on behind it, LEFT_RIP
   where RIP says where, else the instruction to go on with. */
uint64_t translated_fallback(Cpu *c, uint64_t what);
#define LEFT_RIP 2u

/* Where execution goes on behind an instruction that ends a block: at translated code, or, `code` NULL, out with `left` (LEFT_*). */
typedef struct {
    const uint8_t *code;
    uint64_t left;
} Way;
/* Executes the last instruction of a block by its handler, which does not chain (see handler_chains); all state is in memory. */
Way translated_finish(Cpu *c, const Insn *i);

/* The page of an access that the TLB does not hold: its host address and the offset in it, which is a large number where the
   instruction's handler must do the access. */
typedef struct {
    uint64_t host, offset;
} Found;
Found translated_fill(Cpu *c, uint64_t linear, int access);

#endif
