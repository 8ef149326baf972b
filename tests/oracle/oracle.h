/* Comparison of the core's instructions with the host processor's: the same code, the same state before, both states after. */
#ifndef ORACLE_H
#define ORACLE_H

#include "exec.h"
#include "fpenv.h"

/* The same linear addresses on both sides. Data: two writable pages and one that can only be read; code: two pages, filled
   with INT3; a page for the counter of loops. Nothing is mapped around them. */
#define DATA 0x20004000ull
#define DATA_BYTES 0x3000u
#define DATA_WRITABLE 0x2000u
#define CODE 0x20010000ull
#define CODE_BYTES 0x2000u
#define COUNTER 0x20020000ull
#define GS_BASE 0x20002000ull

/* Selectors: Linux's own in 64-bit and 32-bit mode; 16-bit segments stand in the LDT, with the bases CODE and DATA. */
#define SEL_USER64 0x33u
#define SEL_USER32 0x23u
#define SEL_DATA 0x2bu
#define SEL_CODE16 0x07u
#define SEL_DATA16 0x0fu

typedef struct {
    uint64_t gpr[16], rflags, rip;
    Ymm ymm[16];
    uint32_t mxcsr;
    uint64_t mant[8]; /* x87 by physical number */
    uint16_t se[8], control, status;
    uint8_t tag;
    uint8_t data[DATA_BYTES] __attribute__((aligned(64)));
    uint32_t counter;
    int vector; /* of the fault, or -1 */
    uint32_t error; /* code of a page fault */
    uint64_t cr2;
} State;

#define SEQUENCE_MAX 14
typedef struct {
    uint8_t bytes[SEQUENCE_MAX * 16];
    unsigned length, offset; /* they stand at CODE + offset */
    unsigned bits;           /* mode: 64, 32, 16 */
    unsigned count;
    uint16_t id[SEQUENCE_MAX];
    uint8_t at[SEQUENCE_MAX]; /* offset of each in bytes */
    uint64_t operand;        /* linear address of the memory operand of a single instruction, or 0 */
    uint32_t undefined;      /* flags that are undefined behind it */
    uint32_t undefined_inside; /* or may be where a fault ends it early */
    enum { DIRECT, BLOCKS, STEPS } how; /* on the core: the handler called, the run loop's blocks, single steps */
} Case;

/* The stack pointer and addresses in 16-bit mode are offsets in the data's segment. */
static inline uint64_t data_base(const Case *t) { return t->bits == 16 ? DATA : 0; }

uint64_t rnd(void);
void rnd_seed(uint64_t seed);
static inline unsigned pick(unsigned n) { return (unsigned)(rnd() % n); }

/* state.c: random values of every kind of register and memory. */
void random_state(State *s, const Case *t);

/* generate.c: random bytes of table line `id` in t->bits mode, and a state whose registers lead its memory operand into the
   data. False where no encoding was found. c is in that mode. */
bool generate(const Cpu *c, unsigned id, Case *t, State *s);
/* Several of the lines `ids` one after the other, with jumps forward and perhaps a loop around them. */
bool generate_sequence(const Cpu *c, const uint16_t *ids, unsigned ids_count, Case *t, State *s);

/* lines.c: what can be compared. */
bool line_comparable(const InsnInfo *info);
bool line_in_mode(const InsnInfo *info, unsigned bits);
bool line_in_sequence(const InsnInfo *info);

/* cases.c: cases as lines of text, to be recorded and executed again. */
void print_case(const Case *t, const State *s);
bool parse_case(const char *line, const Cpu *(*in_mode)(unsigned bits), Case *t, State *s);

/* compare.c: the number of differences, printed where `print`. */
bool exempt(Cpu *c, State *core, State *host, const Case *t);
unsigned differences(const State *core, const State *host, const Case *t, bool print);

/* native.c: executes a case on the host's processor. Modes it lacks are missing in native_modes: bit 0: 32-bit, bit 1: 16-bit. */
int native_open(void);
extern bool translated; /* the core translates every block before its first run */
extern unsigned native_modes;
void native_run(const Case *t, State *s);

/* target.c: executes it on the core. */
Cpu *core_open(void);
void core_mode(Cpu *c, unsigned bits);
void core_run(Cpu *c, const Case *t, State *s);

#endif
