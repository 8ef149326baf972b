/* What translated code calls. */
#ifndef KP_RUN_TRANSLATED_H
#define KP_RUN_TRANSLATED_H

#include "translate.h"

/* Executes one instruction of a block by its handler; all state is in memory. Gives 0 where execution goes on behind it, LEFT_RIP
   where RIP says where, else the instruction to go on with. */
uint64_t translated_fallback(Cpu *c, const Insn *i);
#define LEFT_RIP 2u

#endif
