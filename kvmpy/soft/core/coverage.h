/* Coverage: which instructions have been executed, and which ways of conditional jumps were taken. Nothing here is reached while it is
   off. While it is on, a new block's handlers mark their instruction once and put themselves away: each instruction is marked when it
   is first begun, whatever happens in the middle of the block, and code that has been marked runs as ever, translated too. A way of a
   jump is marked where it is first gone: links, of blocks and of translated exits, are made in C, and marked before they are made. */
#ifndef KP_COVERAGE_H
#define KP_COVERAGE_H

#include "trace.h"

/* What tells user address spaces apart where that is wanted: blocks of two of them are two. */
static inline uint64_t code_space(const Cpu *c)
{
    return unlikely(c->vm->covering & KP_COVERAGE_SPACES) && (c->mode & MODE_USER) ? c->cr3 & 0xffffffffff000ull : 0;
}

/* Gives a new block the handlers that mark. Their own are kept behind those that the trace keeps. */
void cover_block(Cpu *c, Block *b);
static inline exec_fn *block_own(const Block *b) { return block_originals(b) + b->count; }
/* The block's last instruction has jumped (n: 0) or gone on (1): called as long as a way of it is not marked, by whoever links it. */
void cover_edge(Cpu *c, Block *b, int n);
/* An instruction that runs alone begins; it has retired, and c->rip is where it led. */
void cover_alone(Cpu *c, const Insn *i);
void cover_alone_end(Cpu *c, const Insn *i);
void coverage_destroy(Vm *vm);

#endif
