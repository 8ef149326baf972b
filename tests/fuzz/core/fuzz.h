/* What the fuzz targets of the software core share: the input, a small machine, and how a finding is told. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdio.h>
#include <stdlib.h>

#include "vm.h"

/* libFuzzer's interface; replay.c has the same for a plain build. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A finding ends the process: the fuzzer keeps the input. */
#define CHECK(condition, ...) do { if (!(condition)) { \
    fprintf(stderr, "finding: %s:%d: %s: ", __FILE__, __LINE__, #condition); \
    fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); abort(); } } while (0)

/* The input from front to back; zeros behind its end. */
typedef struct { const uint8_t *at, *end; } Input;
static inline uint64_t take(Input *in, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned n = 0; n < bytes && in->at < in->end; n++)
        value |= (uint64_t)*in->at++ << 8 * n;
    return value;
}
static inline bool more(const Input *in) { return in->at < in->end; }
static inline size_t left(const Input *in) { return (size_t)(in->end - in->at); }
/* A 64-bit number out of two bytes or nine: small, negative, near a place of the machine, an edge, any. */
uint64_t take_number(Input *in);

/* The machine: RAM between pages that nobody may touch, tables of every mode, no devices. */
#define RAM_SIZE 0x40000u
#define ROM_AT 0x300000u
enum { IVT_AT = 0, GDT_AT = 0x3000, IDT_AT = 0x4000, TSS_AT = 0x6000, CODE_AT = 0x8000, STACK_AT = 0x10000, DATA_AT = 0x12000,
       LONG_AT = 0x20000, LEAVES_AT = 0x23000, LEGACY_AT = 0x24000, POINTERS_AT = 0x25000, DIRECTORY_AT = 0x26000 };
enum { REAL_MODE, VM86_MODE, PROTECTED16, PROTECTED32, PAGED32, PAE_MODE, COMPATIBILITY, LONG_MODE, MODE_COUNT };

extern uint8_t *ram; /* RAM_SIZE bytes, guest-physical 0 */
/* A VM with virtual time and one or two vCPUs, as if just made; the RAM is cleared. The next call takes it back. Code is
   translated once it has run `threshold` times (at 2 a block is joined with those behind it that have run before); 0: never. */
#define MOST_RUNS 2
Vm *machine_new(bool chips, unsigned vcpus, unsigned threshold);
/* Tables for all modes: descriptors, gates whose handlers lie in the code at CODE_AT, a TSS, page tables. */
void machine_tables(void);
/* A vCPU in one of the modes; cpl 0 or 3. */
void machine_mode(Cpu *c, unsigned mode, unsigned cpl);
/* Everything of a vCPU that user space can see, for comparison. */
typedef struct {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_xsave xsave;
    struct kvm_debugregs debug;
    struct kvm_vcpu_events events;
    struct kvm_xcrs xcrs;
    struct kvm_mp_state mp;
} State;
void state_get(Cpu *c, State *s);
/* Puts it back; every part must be taken. */
void state_set(Cpu *c, const State *s);
/* Tells the first difference on stderr. */
bool state_equal(const State *a, const State *b);
/* Answers the exit in the record, from a generator; false where a run ends. */
bool answer_exit(Cpu *c, uint64_t *seed);

static inline uint64_t next_random(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

#endif
