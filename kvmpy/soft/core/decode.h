/* What the decoder knows of the table's lines beyond the table itself; shared with the disassembler. */
#ifndef KP_DECODE_H
#define KP_DECODE_H

#include "insn.h"

/* Kinds of immediates, in the order in which they stand in the instruction. */
enum { IMM_NONE, IMM_B, IMM_W, IMM_Z, IMM_V, IMM_JB, IMM_JZ, IMM_FAR, IMM_OFFSET, IMM_IS4 };

/* The first letters that are methods of addressing, see insn.h. */
#define OPERAND_LETTERS "EGMRIJOSCDXYPQNVWUHLBAZ"

/* True where the operand token at `s` is a method of addressing with a size, and not a fixed register such as AL, DX or CS. */
bool operand_is_method(const char *s);

#endif
