/* State of one VM: its vCPUs, memory slots, decoded code, chips and time. */
#ifndef KP_VM_H
#define KP_VM_H

#include "chips.h"
#include "cpu.h"

#define MAX_VCPUS 256
#define MAX_SLOTS 512

typedef struct {
    uint64_t gpa, size;
    uint8_t *host;
    uint32_t id, flags; /* KVM_MEM_READONLY, KVM_MEM_LOG_DIRTY_PAGES */
    uint64_t *dirty;    /* one bit per page where logging is on, else NULL */
    struct CodePage **code; /* by page: what was decoded from it, or NULL; private to block.c */
} Slot;

struct KpVm {
    Cpu *cpu[MAX_VCPUS];
    uint32_t cpu_count; /* highest index + 1 */
    Slot slot[MAX_SLOTS];
    uint32_t slot_count;
    Chips *chips;
    bool virtual_clock;
    uint64_t tsc_khz;
    uint64_t deadline;  /* of user space (kp_vm_set_deadline), or NEVER */
    uint64_t clock_base; /* host clock at creation, ns */
    uint64_t first_tsc, first_ns, slice_tsc, slice_ns, ns_per_tsc, last_ns; /* host time by the host's TSC, see run.c */
    uint64_t virtual_skip; /* ns of virtual time without instructions: all vCPUs slept, or events were delivered */
    uint64_t deliveries;   /* events delivered, of all vCPUs */
    uint64_t retired;   /* instructions of all vCPUs */
    uint32_t turn;      /* vCPU whose turn it is */
    int64_t turn_left;  /* instructions left of it; a kick does not end a turn, so that host time decides nothing under virtual time */
    int wake_fd;        /* eventfd that ends a sleep */
    uint32_t user_msr_reasons;
    struct { uint32_t first, count, flags; } msr_range[64];
    uint32_t msr_range_count;
    struct Parallel *parallel;     /* vCPUs run on threads of their own, see parallel.h; NULL: in turns */
    struct Translator *translator; /* NULL: everything is interpreted */
    struct Verifier *verifier;     /* everything runs twice, interpreted and translated; or NULL */
    uint64_t code_cache;           /* bytes; 0: KP_CODE_CACHE */
    struct CodeMap *code; /* private to block.c: all decoded blocks */
    bool crowded;          /* code_make_room() is wanted */
    uint64_t generation;   /* last one given out to a vCPU: each is used once in the VM */
    Cpu *current;          /* vCPU in run(), or NULL: its budget counts into the time */
    volatile uint32_t running; /* threads inside a run: the VM cannot be destroyed */
    volatile bool kicked;  /* a kick waits to be answered */
    volatile bool timers_changed;
    struct kp_debug_point *point; /* a debugger's, see points.c: those that stop execution by address, behind them those that watch */
    uint32_t break_count, watch_count;
    bool watching, breaking; /* there are some; watching also: memory accesses are traced */
    struct kp_doorbell doorbell[KP_DOORBELLS];
    uint32_t doorbell_count;
    uint32_t monitors; /* vCPUs that monitor a line */
    uint64_t rung; /* bit n: doorbell[n], not taken yet */
    struct Trace *trace;     /* trace.c; NULL: nobody has asked yet */
    uint32_t tracing;        /* kinds that a rule wants, by bit KP_TRACE_*; all handlers test it outside of hot paths */
    struct Coverage *coverage; /* coverage.c; NULL: nobody has asked yet */
    uint32_t covering;       /* KP_COVERAGE_*, or 0 */
    bool trace_served;       /* a rule wants what user space serves */
    bool timed;              /* vCPUs' time is told apart, see timing.h; since these two readings */
    uint64_t timed_tsc, timed_ns;
};

/* The slot that holds a physical address, or NULL. */
Slot *vm_slot(Vm *vm, uint64_t gpa);

#endif
