/* Tracing: events of the core as records, for the rules that user space has set. Nothing here is reached while there are none:
   hot handlers are replaced when code is decoded under rules for blocks or instructions, pages lose their fast tags under rules for
   memory, and all other places are slow already. */
#ifndef KP_TRACE_H
#define KP_TRACE_H

#include "block.h"

/* -DKP_WITHOUT_TRACE makes a core that cannot trace, for the benchmark of what its being there costs (tests/bench/untraced.py). */
#ifdef KP_WITHOUT_TRACE
#define TRACE_IN 0
#else
#define TRACE_IN 1
#endif

#define TRACE_BIT(kind) (1u << (kind))
#define TRACE_CODE (TRACE_BIT(KP_TRACE_BLOCK) | TRACE_BIT(KP_TRACE_INSTRUCTION))
static inline bool traced(const Cpu *c, unsigned kind) { return TRACE_IN && __builtin_expect(c->vm->tracing & TRACE_BIT(kind), 0); }

/* An access of `i` that a chip or the vCPU itself is about to serve: tells it and gives the value to go on with. A rule that stops
   leaves for user space; the instruction is begun anew then and finds its answer here. */
uint64_t trace_port(Cpu *c, const Insn *i, uint16_t port, unsigned size, bool write, uint64_t value);
uint64_t trace_mmio_write(Cpu *c, const Insn *i, uint64_t phys, unsigned size, uint64_t value);
/* A chip's answer that stands in the log already. */
void trace_mmio_read(Cpu *c, const Insn *i, uint64_t phys, unsigned size, uint64_t value);
uint64_t trace_msr(Cpu *c, const Insn *i, uint32_t index, bool write, uint64_t value, bool *served);
/* May a rule stop at this subject? An event that is told before its effect cannot tell what became of it. */
bool trace_stops_at(const Cpu *c, unsigned kind, uint64_t subject);
void trace_cpuid(Cpu *c, const Insn *i, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
uint64_t trace_hypercall(Cpu *c, const Insn *i, uint64_t result);
void trace_delivery(Cpu *c, const Insn *i, int vector, int kind, bool has_error, uint32_t error);

/* Memory: does a page need its accesses told; before and behind each of them. */
bool trace_page(const Vm *vm, uint64_t linear);
void trace_before_access(Cpu *c, const Insn *i, uint64_t linear, unsigned size, bool write);
void trace_access(Cpu *c, const Insn *i, uint64_t linear, const void *data, unsigned size, bool write);
void trace_settle(Cpu *c); /* tells the reads of an instruction that has ended */
void trace_forget(Cpu *c); /* c->insn is begun anew */

/* Code: gives a new block the handlers that tell, the others behind it; false where nothing in it is to be told. */
bool trace_block(Cpu *c, Block *b, uint64_t linear);
/* The instruction decoded to run alone begins. True: not now, the vCPU exits. */
bool trace_alone(Cpu *c, const Insn *i);
static inline exec_fn *block_originals(const Block *b) { return (exec_fn *)(uintptr_t)(b->insn + b->count + 1); }

/* What user space serves: at its exit, and when it has answered. */
void trace_exit(Cpu *c);
void trace_answered(Vm *vm);
void trace_destroy(Vm *vm);

#endif
