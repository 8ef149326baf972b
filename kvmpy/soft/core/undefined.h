/* What an instruction does with the arithmetic flags, as far as the manual says: whoever compares two processors needs it. */
#ifndef KP_UNDEFINED_H
#define KP_UNDEFINED_H

#include "insn.h"

/* Of FL_OSZAPC: what it looks at, what it sets, what it leaves undefined (those are among the set ones too, or not). */
typedef struct {
    uint32_t read, written, undefined;
} InsnFlags;

/* `rcx`: its value before the instruction, or NULL where that is not known: then what any count may do. False: what the instruction
   does beside flags is not defined either. */
bool insn_flags(const Insn *i, const uint64_t *rcx, InsnFlags *flags);
/* Flags that stand as an instruction that leaves them undefined has left them, behind one more instruction. */
static inline uint32_t flags_undefined_behind(uint32_t undefined, const InsnFlags *flags)
{
    return (undefined & ~flags->written) | flags->undefined;
}

#endif
