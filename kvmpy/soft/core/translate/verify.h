/* The software CPU checks its translator: every stretch of instructions runs twice, interpreted and translated, and both must end in
   the same state, to the register, the byte of memory and the fault. */
#ifndef KP_VERIFY_H
#define KP_VERIFY_H

#include <setjmp.h>

#include "block.h"

typedef struct Verifier Verifier;

/* Does it run by itself, outside of stretches? What reaches devices, clocks or mappings cannot be done twice. */
bool verify_apart(const Insn *i);
/* Runs blocks from c->rip on, twice; false: as things stand (a debugger, a trace) nothing can be compared, and nothing has run.
   What ended the stretch unwinds, as if it had run once; a difference ends the run with KP_EXIT_DIFFERS. */
bool verify_stretch(Cpu *c);
void verify_destroy(Vm *vm);

/* Called by mem.c and mmu.c where there is a verifier: before bytes of one page of RAM change, before an entry of the TLB does (in its first way, or both), */
void verify_store(Vm *vm, uint64_t phys);
void verify_fill(Vm *vm, TlbEntry *e);
/* and when a walk sets bits of a paging-structure entry. */
void verify_walk(Vm *vm, uint64_t phys);
/* May stores through the entry go unnoticed? Only into pages that the interpreter has written in this stretch. */
bool verify_unnoticed(Vm *vm, TlbEntry *e);

/* Translated code has left before `next` because the stretch ends there: nothing more is to run. Asked by exec_translated. */
bool verify_ends(Cpu *c, const Insn *next);
/* Where unwind() leads while a stretch runs; NULL: to the run loop. */
jmp_buf *verify_unwinding(Vm *vm);

#endif
