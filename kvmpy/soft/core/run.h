/* What the run loop, the memory slow paths and port I/O share about the instruction in progress. */
#ifndef KP_RUN_H
#define KP_RUN_H

#include "block.h"
#include "history.h"

/* Why control came back to the run loop by a jump. */
enum { UNWIND_FAULT = 1, UNWIND_ALONE, UNWIND_EXIT, UNWIND_ROOM, UNWIND_SHUTDOWN };

/* Device accesses of one instruction. A read that user space must answer abandons the instruction; the next run executes it
   again from its start, and the accesses already made are answered from here. */
#define IO_RIPS 1024
#define LOG_MAX 128
#define WRITE_MAX 128
typedef struct {
    uint64_t address; /* physical, or port | LOG_PORT */
    uint64_t value;
    uint32_t size;
    bool done;
} LogEntry;
#define LOG_PORT (1ull << 63)
#define LOG_ASKED (1ull << 62) /* what a tracing rule had stopped: the answer is `value` */

typedef struct {
    uint64_t phys, value;
    uint32_t size;
} PendingWrite;

/* Reads of the instruction in progress that the trace will tell: dropped where it is begun anew. */
#define SEEN_MAX 64
typedef struct {
    struct kp_trace_record record;
    uint64_t rcx; /* tells the elements of a repeated instruction apart */
} SeenRead;

struct RunState {
    jmp_buf unwind;
    int64_t slice;    /* budget that the slice began with */
    bool slicing;     /* it is going on */
    /* where vCPUs run in parallel, see parallel.c */
    bool held;        /* its thread has the core lock */
    bool inside;      /* it is in a slice, and may stand in the middle of a block */
    bool asleep;
    bool kicked;
    bool ending;      /* the slice ends at the next block */
    bool rang;        /* a doorbell */
    uint32_t pauses;
    uint32_t running; /* it executes guest code, without the lock */
    /* the fault that unwinds */
    int fault_vector;
    bool fault_has_error;
    uint32_t fault_error;
    /* the event whose delivery is going on, or waits for a device's answer to be begun anew */
    int delivering; /* its vector, or -1 */
    int delivering_kind;
    bool delivering_has_error;
    uint32_t delivering_error;
    bool delivering_fault; /* an instruction's */
    bool redelivering;     /* it was begun before */
    /* the instruction in progress */
    Insn alone[2];
    Insn single[2];   /* of a block, executed by its handler for translated code; behind it the way back there */
    Insn atomic[2];   /* a locked instruction by its handler, with the other vCPUs stopped */
    bool stale;       /* a walk for translated code has dropped translations: it is left behind the next instruction */
    int64_t entered;  /* translated code runs: the budget up to which its instructions are counted */
    Insn boundary[2]; /* stands for "no instruction" during event delivery */
    LogEntry log[LOG_MAX];
    uint32_t log_count, log_next;
    uint64_t log_rip;
    uint8_t string_data[1024]; /* INS: what user space gave */
    PendingWrite write[WRITE_MAX]; /* MMIO writes of it, given to user space one by one once it has retired */
    uint32_t write_count, write_next;
    SeenRead seen[SEEN_MAX];
    uint32_t seen_count;
    uint64_t answer[5]; /* data of the record that waits for an answer */
    /* the exit that ends this run */
    bool exit_pending;
    bool msr_pending; /* an MSR access waits for user space's answer */
    bool msr_write;   /* it is a WRMSR */
    bool check;       /* an interrupt may be pending */
    bool slow_steps;  /* every instruction runs alone: TF, breakpoints, single-stepping by the host */
    uint64_t io_rip[IO_RIPS]; /* addresses of instructions that were seen to reach devices: blocks end behind them */
    uint64_t stop_at;    /* retired count of kp_vcpu_step, or NEVER */
    uint32_t time_kind; /* timing.h */
    uint64_t time_since;
    struct kp_exits exits;
    struct kp_deliveries deliveries;
};

enum {
    STAT_INSTRUCTIONS, STAT_BLOCKS_BUILT, STAT_BLOCKS_DROPPED, STAT_CODE_EVICTIONS, STAT_TLB_FILLS, STAT_PAGE_FAULTS, STAT_EXCEPTIONS,
    STAT_INTERRUPTS, STAT_IO_EXITS, STAT_MMIO_EXITS, STAT_HALTS, STAT_ALONE,
    /* the translator: instructions that translated code retired itself; code left for a successor, for the run loop, for an
       instruction that a handler does; handlers that it called */
    STAT_INSTRUCTIONS_TRANSLATED, STAT_BLOCKS_TRANSLATED, STAT_BLOCKS_UNTRANSLATABLE, STAT_CODE_BYTES, STAT_TRANSLATIONS_DROPPED,
    STAT_CODE_CACHE_EVICTIONS, STAT_LINKS, STAT_EXITS_UNLINKED, STAT_EXITS_TO_LOOP, STAT_EXITS_TO_HANDLER, STAT_HANDLER_CALLS,
    /* accesses that the TLB has no fast way for; ticks of the TSC while Vm.timed, ns for user space */
    STAT_SLOW_ACCESSES, STAT_NS_INTERPRETED, STAT_NS_TRANSLATING, STAT_NS_TRANSLATED,
    STAT_INSTRUCTIONS_VERIFIED, STAT_COUNT
};

/* What happens to the VM is counted with its first vCPU. */
static inline void vm_count(Vm *vm, unsigned which)
{
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n]) {
            vm->cpu[n]->stat[which]++;
            return;
        }
}

/* The loop of vCPUs in turns and that of each in parallel (parallel.c) are made of these. */
enum { SLICE_DONE, SLICE_SHORT, SLICE_EXIT, SLICE_HALTED };
int run_slice(Cpu *c, int64_t budget, bool exact);
bool run_runnable(Cpu *c);
uint64_t run_visit(void);        /* when control goes back to Python, for its signals; by the host's clock */
uint64_t run_deadline(Vm *vm);   /* of chips and user space */
int run_interrupted(Cpu *c);     /* fills the record for KVM_EXIT_INTR */
void run_fill_record(Cpu *c);
bool run_halt_exits(Cpu *c);     /* halted, and without chips: that is an exit */
bool run_step_done(Cpu *c, int64_t *budget); /* the count of kp_vcpu_step has retired, and the record is filled; else the budget is cut to it */
int run_timer_slack(int ns);     /* gives the one before */
void cpu_end_slice(Cpu *c);      /* of a vCPU in parallel */

/* Executes from an instruction on, until one leaves with c->rip set. */
static inline void run_insns(Cpu *c, const Insn *i)
{
    do
        i = i->exec(c, i);
    while (i);
}

/* RF is set, where no instruction breakpoint is: 0 from now on, as behind the block's first instruction. A fault of that one pushes 1
   anyway, and what ends a block, which might push or keep the flag, runs alone: false. */
static inline bool resume_flag_done(Cpu *c, const Block *b)
{
    if (insn_table[b->insn[0].id].attributes & A_END)
        return false;
    c->eflags &= ~FL_RF;
    return true;
}

_Noreturn void unwind(Cpu *c, int why);
/* The TLB entry to fetch code at `linear` from; raises the fault, or leaves with KVM_EXIT_INTERNAL_ERROR where no RAM is. */
const TlbEntry *mem_fetch(Cpu *c, uint64_t linear);
/* May the instruction reach a device now? Else it unwinds, to be run again alone. */
void require_alone(Cpu *c, const Insn *i);
/* The answer of a device to a read of this instruction; unwinds to user space where it is not there yet. */
uint64_t device_read(Cpu *c, const Insn *i, uint64_t phys, unsigned size);
void device_write(Cpu *c, const Insn *i, uint64_t phys, unsigned size, uint64_t value);
/* Instruction has retired: its device accesses are history. */
static inline void forget_accesses(Cpu *c) { c->run->log_count = c->run->log_next = 0; }
/* A page's accesses are watched by DR0-DR3: it has no fast tags. */
bool watched_page(const Cpu *c, uint64_t linear);
void watch_access(Cpu *c, const Insn *i, uint64_t linear, unsigned size, bool write);
/* Is there an execution breakpoint in the page of c's RIP? */
bool breakpoint_page(const Cpu *c, uint64_t linear);
uint64_t breakpoints_at(const Cpu *c, uint64_t linear); /* DR6 bits of the enabled execution breakpoints there */
bool any_breakpoint(const Cpu *c); /* is one of them enabled? */
/* A debugger's points (points.c). DEBUG_POINT in pending_debug: one was met by an access of the instruction that has ended. */
#define DEBUG_POINT (1ull << 32)
bool point_at(const Vm *vm, uint64_t linear);                      /* an execution point */
bool points_in_page(const Vm *vm, uint64_t linear);                /* a data point */
void point_access(Cpu *c, const Insn *i, uint64_t linear, unsigned size, bool write);
const Insn *exec_point(Cpu *c, const Insn *i);                     /* handler of a block that begins at an execution point */
void exit_debug(Cpu *c, uint32_t exception, uint64_t dr6);         /* to user space with KVM_EXIT_DEBUG */
uint64_t fetch_address(Cpu *c, uint64_t rip); /* linear address of code at an offset in CS */
/* Notes an event on its way, for kp_vcpu_deliveries; `rip` is where it came, as an offset in CS. */
struct kp_delivery *note_delivery(Cpu *c, int vector, int kind, bool has_error, uint32_t error, uint64_t rip);
uint64_t insn_address(Cpu *c, const Insn *i);  /* of an instruction; while an event is delivered, where the vCPU stands */

#endif
