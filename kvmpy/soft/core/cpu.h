/* State of one vCPU, and what every part of the core may call of the others. */
#ifndef KP_CPU_H
#define KP_CPU_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "abi/abi.h"
#include "abi/history.inc"
#include "abi/core.inc"
#include "abi/translator.inc"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
/* Hot paths that gcc would otherwise leave out of line for their size. */
#define HOT_INLINE static inline __attribute__((always_inline))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

typedef struct Cpu Cpu;
typedef struct KpVm Vm;
typedef struct Insn Insn;
typedef struct Block Block;

/* General registers by encoding number; ZERO_REG reads as 0 for an absent base or index. */
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, ZERO_REG, GPR_COUNT };
/* Segment registers by encoding number, then the system ones. */
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_COUNT };

enum {
    EXC_DE, EXC_DB, EXC_NMI, EXC_BP, EXC_OF, EXC_BR, EXC_UD, EXC_NM, EXC_DF, EXC_CSO, EXC_TS, EXC_NP, EXC_SS, EXC_GP,
    EXC_PF, EXC_MF = 16, EXC_AC, EXC_MC, EXC_XM, EXC_NONE = 0xff
};

#define FL_CF 0x1u
#define FL_PF 0x4u
#define FL_AF 0x10u
#define FL_ZF 0x40u
#define FL_SF 0x80u
#define FL_TF 0x100u
#define FL_IF 0x200u
#define FL_DF 0x400u
#define FL_OF 0x800u
#define FL_IOPL 0x3000u
#define FL_NT 0x4000u
#define FL_RF 0x10000u
#define FL_VM 0x20000u
#define FL_AC 0x40000u
#define FL_VIF 0x80000u
#define FL_VIP 0x100000u
#define FL_ID 0x200000u
#define FL_OSZAPC (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

#define CR0_PE 0x1u
#define CR0_MP 0x2u
#define CR0_EM 0x4u
#define CR0_TS 0x8u
#define CR0_ET 0x10u
#define CR0_NE 0x20u
#define CR0_WP 0x10000u
#define CR0_AM 0x40000u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u
#define CR4_VME 0x1u
#define CR4_PVI 0x2u
#define CR4_TSD 0x4u
#define CR4_DE 0x8u
#define CR4_PSE 0x10u
#define CR4_PAE 0x20u
#define CR4_MCE 0x40u
#define CR4_PGE 0x80u
#define CR4_PCE 0x100u
#define CR4_OSFXSR 0x200u
#define CR4_OSXMMEXCPT 0x400u
#define CR4_UMIP 0x800u
#define CR4_FSGSBASE 0x10000u
#define CR4_PCIDE 0x20000u
#define CR4_OSXSAVE 0x40000u
#define CR4_SMEP 0x100000u
#define CR4_SMAP 0x200000u
#define EFER_SCE 0x1u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u
#define EFER_NXE 0x800u

/* Lazy arithmetic flags: the six come from (cc_op, cc_dst, cc_src), see flags.h. Sizes follow each other: 8, 16, 32, 64.
   cc_dst and cc_src hold values zero-extended from the operand size. */
typedef enum {
    CC_EXPLICIT,                                   /* the six stand in cc_dst at their places in RFLAGS */
    CC_ADD8, CC_ADD16, CC_ADD32, CC_ADD64,         /* dst = result, src = second operand */
    CC_ADC8, CC_ADC16, CC_ADC32, CC_ADC64,         /* the same, carry in was 1 (carry in 0 is ADD) */
    CC_SUB8, CC_SUB16, CC_SUB32, CC_SUB64,         /* dst = result, src = subtrahend */
    CC_SBB8, CC_SBB16, CC_SBB32, CC_SBB64,         /* the same, borrow in was 1 (borrow in 0 is SUB) */
    CC_LOGIC8, CC_LOGIC16, CC_LOGIC32, CC_LOGIC64, /* dst = result; CF = OF = AF = 0 */
    CC_INC8, CC_INC16, CC_INC32, CC_INC64,         /* dst = result, src = CF before (0 or 1) */
    CC_DEC8, CC_DEC16, CC_DEC32, CC_DEC64,
    CC_SHL8, CC_SHL16, CC_SHL32, CC_SHL64,         /* dst = result, src = operand shifted by count - 1; AF = 1 */
    CC_SHR8, CC_SHR16, CC_SHR32, CC_SHR64,         /* likewise; OF = top bit of src */
    CC_SAR8, CC_SAR16, CC_SAR32, CC_SAR64,         /* likewise; OF = 0 */
} CcOp;

typedef union {
    uint8_t u8[32]; uint16_t u16[16]; uint32_t u32[8]; uint64_t u64[4];
    int8_t s8[32]; int16_t s16[16]; int32_t s32[8]; int64_t s64[4];
    float f32[8]; double f64[4];
} __attribute__((aligned(32))) Ymm;

/* An x87 register as FXSAVE stores it; an MMX register is `mant`. */
typedef struct { uint64_t mant; uint16_t se; } __attribute__((aligned(16))) F80;

typedef struct {
    F80 st[8];                /* by physical number, not by distance from TOP */
    uint16_t control, status; /* TOP stands in status, bits 11-13 */
    uint8_t tag;              /* bit n: physical register n is in use (the abridged tag word) */
    uint16_t opcode;          /* of the last instruction, 11 bits */
    uint64_t ip, dp;          /* pointers of the last instruction; cs, ds their selectors */
    uint16_t cs, ds;
} X87;

/* Mode key: decoded code is valid only under the key it was decoded under. */
#define MODE_16 0x0u /* default size of the code segment */
#define MODE_32 0x1u
#define MODE_64 0x2u
#define MODE_SIZE 0x3u
#define MODE_LONG 0x4u  /* EFER.LMA: 64-bit or compatibility mode */
#define MODE_PROT 0x8u  /* CR0.PE and not virtual 8086 */
#define MODE_VM86 0x10u
#define MODE_USER 0x20u /* CPL 3 */
#define MODE_FLAT 0x40u /* DS, ES, SS: base 0, limit 4 GiB, writable, expand-up; always set in 64-bit mode */
#define MODE_SS32 0x80u /* SS.B: the stack pointer is ESP (outside 64-bit mode) */
#define MODE_AC 0x100u  /* RFLAGS.AC counts: it lifts SMAP, or alignment is checked */
/* Where code ends before 4 GiB, the limit of CS: blocks are decoded up to it. In bytes or, with bit 20 of the field, in pages. */
#define MODE_LIMIT_SHIFT 9
#define MODE_KEY ((1u << MODE_LIMIT_SHIFT) - 1) /* all bits before */
#define MODE_LIMIT_PAGES 0x100000u

/* Where an indirect jump of translated code finds its target, by the low bits of RIP. */
typedef struct {
    uint64_t tag; /* RIP ^ the code_key it holds under */
    const uint8_t *code; /* NULL: empty */
} CodeTarget;
#define CODE_TARGETS 4096u

/* Cpu.waiting */
enum { MWAIT_NONE, MWAIT_STORE, MWAIT_BREAK }; /* until a store or what ends HLT; also until an interrupt that is not taken */

/* Software TLB: by linear page, one table for CPL 3 and one for the rest. Two ways: accesses look at the first alone, what it has
   lost stands in the second, where the stubs of translated code and the slow path find it. */
#define TLB_BITS 12
#define TLB_SIZE (1u << TLB_BITS)
#define TLB_INVALID 1u /* of TlbEntry.linear: equals no page address */
typedef struct {
    uint64_t read, write, exec; /* linear page address whose data the fast path may read/write/fetch, or tlb_no_tag() */
    uintptr_t addend;           /* host address = linear + addend */
    uint64_t phys;              /* physical page address */
    uint64_t linear;            /* linear page address, or TLB_INVALID: the entry as such (also pages without fast path) */
    uint64_t host;              /* host address of the page */
    uint32_t flags;             /* TLBF_* */
    uint8_t shift;              /* size of the guest's page as a power of two */
} __attribute__((aligned(64))) TlbEntry;
/* A tag that no access through entry n can match, whether it is compared with the page of the access's last byte or taken from
   its first byte's address: a page that belongs to another entry, and not to the next one. */
static inline uint64_t tlb_no_tag(uint64_t n) { return ((n ^ TLB_SIZE / 2) & (TLB_SIZE - 1)) << 12; }
#define TLB_TABLES 4
#define TLBF_GLOBAL 0x1u
#define TLBF_MMIO 0x2u /* no RAM behind the page */
#define TLBF_ROM 0x4u  /* RAM, but writes exit */
#define TLBF_R 0x10u   /* the page tables allow it to this privilege */
#define TLBF_W 0x20u   /* likewise, and D is set */
#define TLBF_X 0x40u

/* What walks since the last flush may have put into the tables, see tlb.c. */
enum { TLB_OWN, TLB_GLOBAL }; /* pages of the present address space; global pages */
typedef struct {
    uint32_t small;                 /* 4 KiB pages, from the start of page[] */
    uint32_t large;                 /* larger pages, from its end */
    bool lost;                      /* there were more */
    uint64_t logged[TLB_SIZE / 64]; /* index of an entry of 4 KiB pages stands there */
    uint64_t fetched[TLB_SIZE / 64]; /* index of an entry that code was fetched by under a generation that still stands */
    uint64_t page[TLB_SIZE];
} TlbLog;

enum { CODE_SUPERVISOR, CODE_USER }; /* of Cpu.generation */

struct Cpu {
    /* hot: registers and flags */
    uint64_t gpr[GPR_COUNT];
    uint64_t rip; /* of the next instruction; stale inside a block, see Insn.next_rip */
    uint64_t cc_dst, cc_src;
    uint32_t cc_op;
    uint32_t eflags; /* RFLAGS without the six lazy ones; bit 1 set */
    int64_t budget;  /* instructions left of this slice; taken off when a block is entered */
    uint32_t mode;   /* MODE_*, kept by cpu_update_mode */
    uint8_t cpl;
    uint8_t deny_x87, deny_mmx, deny_sse, deny_avx; /* vector to raise (EXC_NM, EXC_UD) or EXC_NONE, kept by cpu_update_mode */
    uint8_t trap_sse, trap_avx; /* floating-point handlers take their slow path: deny_* or an unmasked exception; fp_update_trap */
    uint8_t shadow;  /* interrupts are inhibited until one more instruction has ended: 1 after STI, 2 after MOV/POP SS */
    TlbEntry *tlb;   /* table of the present privilege */
    uint64_t seg_base[SEG_COUNT]; /* what an offset gets added: base of seg[], but 0 for ES, CS, SS, DS in 64-bit mode */
    uint64_t tlb_generation; /* of the present privilege: changes with each flush of pages that it fetched code from, and with CS.base */
    uint64_t generation[2];  /* by privilege, CODE_SUPERVISOR and CODE_USER; see tlb.c */
    uint64_t code_base[2];   /* CS.base that the generation stands for */
    uint64_t code_key;       /* of tlb_generation and mode, see run_translated.c; kept while translated code runs */
    uint64_t code_key_generation; /* it stands for */
    uint32_t code_key_mode;
    Cpu *self;               /* its own address, for translated code */
    uint64_t native_flags;   /* the arithmetic flags as LAHF and SETO give them in AX, while translated code runs */
    uint8_t vectors_live;    /* VECTORS_*: the host's vector registers hold the guest's: only while translated code runs */
    const Insn *insn;        /* the instruction that faulted or took a slow path last */
    struct JumpCacheEntry *jump; /* blocks by RIP, see block.h */
    struct RunState *run;    /* private to the run loop, see run.h */

    /* vector and x87 */
    Ymm ymm[16];
    uint32_t mxcsr;      /* while fp_live: without the exception flags that the host's MXCSR has gathered, see fpenv.h */
    uint32_t host_mxcsr; /* the host's own, while the guest's control bits are loaded */
    bool fp_live;        /* between fp_enter and fp_leave */
    X87 x87;

    /* segments, control, system */
    struct kvm_segment seg[SEG_COUNT];
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, efer, xcr0, xss;
    uint64_t cr8; /* TPR without a local APIC */
    uint64_t dr[8];
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base; /* FS and GS bases stand in seg[] */
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, tsc_offset, tsc_adjust, tsc_aux, misc_enable, mtrr_def, mtrr_fixed[11], mtrr_var[16], mcg_status;
    uint64_t apic_base, tsc_deadline, kvmclock_msr, wallclock_msr, ucode_rev;
    uint64_t pdpte[4]; /* PAE paging: loaded with CR3 */
    uint64_t random; /* of RDRAND under virtual time */
    uint64_t msr_rip, msr_next_rip; /* an RDMSR or WRMSR that user space answers: where it stands, where it goes on */
    uint64_t a20_mask; /* all ones, or with bit 20 clear */

    /* events */
    struct kvm_vcpu_events events; /* what SET_VCPU_EVENTS queued */
    bool halted, wait_sipi;
    uint8_t waiting;       /* in MWAIT: MWAIT_* */
    bool monitor_armed;    /* no store has reached the monitored line since MONITOR */
    uint64_t monitor_line; /* its physical address, or NEVER; see monitor.c */
    bool nmi_pending, nmi_masked, init_pending, sipi_pending; /* INIT and SIPI: protocol in chips.h */
    uint8_t sipi_vector;
    int16_t queued_interrupt;    /* vector of kp_vcpu_interrupt, or -1 */
    volatile uint32_t attention; /* look at events before the next block */
    bool parallel;               /* vCPUs run on threads of their own, see parallel.h */
    uint64_t pending_debug;      /* DR6 bits to report once the present instruction has ended; DEBUG_POINT */
    bool alone;                  /* the present instruction runs alone: device accesses are allowed */
    struct kvm_guest_debug guest_debug;
    struct kp_debug_point debug_hit; /* the debugger's point that was met; kind 0: none */
    uint64_t resume_linear;          /* an execution point that the vCPU has met already: its instruction runs now; or NEVER */

    uint64_t access_linear;          /* of the instruction that last wrote to a device of user space */
    uint64_t told_linear;            /* an instruction that the trace has told already: it begins when the vCPU goes on; or NEVER */

    /* the CPUID table and what follows from it */
    struct kvm_cpuid_entry2 cpuid[256];
    uint32_t cpuid_count;
    uint64_t features[4]; /* by FEAT_* */
    uint64_t cr4_allowed, efer_allowed, xcr0_allowed;
    uint8_t phys_bits;

    Vm *vm;
    uint32_t index;
    struct kvm_run *record;
    struct Lapic *lapic; /* NULL without interrupt chips */
    uint64_t stat[32];
    /* each with its second way TLB_SIZE entries further on */
    union {
        TlbEntry tlb_table[TLB_TABLES][2 * TLB_SIZE];
        struct {
            TlbEntry tlb_user[2 * TLB_SIZE], tlb_super[2 * TLB_SIZE];
            TlbEntry tlb_super_ac[2 * TLB_SIZE]; /* supervisor with SMAP lifted by EFLAGS.AC */
            TlbEntry tlb_slow[2 * TLB_SIZE];     /* never holds a fast tag: used while every access needs its alignment checked */
        };
    };
    CodeTarget code_target[CODE_TARGETS];
    /* what tlb.c keeps */
    TlbLog tlb_log[2];              /* TLB_OWN, TLB_GLOBAL */
    uint8_t tlb_used[TLB_SIZE];     /* tables whose entry of this index may be valid: bit n of the first way, bit 4 + n of the second */
    uint8_t code_own;               /* what stands behind generation[]: CODE_* */
    uint64_t shared_generation[2];  /* under which all code came by global pages, or the present PCID's is the first that did not */
    uint64_t generations;           /* given out, of a vCPU in parallel */
    struct Parked *parked;          /* address spaces of other PCIDs, or NULL */
};

/* ---- run.c: faults; none of these returns, so no caller may hold a resource ---- */
_Noreturn void raise_fault(Cpu *c, const Insn *i, int vector); /* without error code */
_Noreturn void raise_error(Cpu *c, const Insn *i, int vector, uint32_t error);
_Noreturn void raise_page_fault(Cpu *c, const Insn *i, uint64_t linear, uint32_t error);
#define raise_gp0(c, i) raise_error(c, i, EXC_GP, 0)
#define raise_ud(c, i) raise_fault(c, i, EXC_UD)
/* Delivery failed inside a double fault: KVM_EXIT_SHUTDOWN. */
_Noreturn void raise_shutdown(Cpu *c);
/* Ends the run after the present instruction with the record as it stands (exit_reason is set). */
void cpu_exit_after(Cpu *c, uint32_t exit_reason);
uint64_t cpu_icount(const Cpu *c); /* retired instructions, the present one not counted */
void cpu_attention(Cpu *c);        /* makes the run loop look at pending events at the next boundary; any thread */
void cpu_timer_changed(Cpu *c);    /* a deadline moved */
uint64_t vm_now(Vm *vm);           /* ns; host or virtual */
uint64_t cpu_tsc(Cpu *c);          /* what RDTSC reads */

/* ---- system instructions' side (sys_*.c) ---- */
/* Recomputes mode, tlb, seg_base, deny_*; after any change of segments, control registers, EFER, VM flag, CPL. */
void cpu_update_mode(Cpu *c);
void cpu_reset(Cpu *c, bool init); /* power-on or INIT state, SDM 3A table 10-1 */
uint64_t cpu_get_rflags(Cpu *c);
void cpu_set_rflags(Cpu *c, uint64_t rflags); /* without privilege checks */
/* Delivers an event through the IVT or IDT; c->rip is the return address. Contributory faults become #DF, then shutdown. */
enum { EVENT_EXCEPTION, EVENT_SOFT_INT, EVENT_ICEBP, EVENT_EXTERNAL, EVENT_NMI };
void cpu_deliver(Cpu *c, int vector, int kind, bool has_error, uint32_t error);
/* A fault `second` while delivering the exception `first` (EXC_NONE: an interrupt or a software INT): the vector to deliver
   next, or -1 for shutdown. SDM 3A table 7-5. */
int cpu_combine(int first, int second);
/* 0, or -1 where the access is #GP(0). host: from user space, without guest's restrictions. */
int msr_read(Cpu *c, uint32_t index, uint64_t *value, bool host);
int msr_write(Cpu *c, uint32_t index, uint64_t value, bool host);
void cpuid_read(Cpu *c, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
void cpuid_changed(Cpu *c); /* recomputes features, cr4_allowed, efer_allowed, xcr0_allowed, phys_bits */
void cpu_write_cr0(Cpu *c, const Insn *i, uint64_t value); /* with all checks of the instruction */
void cpu_write_cr3(Cpu *c, const Insn *i, uint64_t value);
void cpu_write_cr4(Cpu *c, const Insn *i, uint64_t value);

/* ---- mmu.c ---- */
/* ORed in: IMPLICIT: SMAP holds whatever AC says; UNMARKED: an entry whose accessed or dirty bit would have to be set ends the walk. */
enum { ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC, ACCESS_IMPLICIT = 4, ACCESS_UNMARKED = 8 };
/* Walks the page tables and sets A and D. Gives 0 with *out filled but for addend and fast tags, or the error code of the
   #PF with bit 31 set. user: with CPL 3 rights (implicit supervisor accesses pass false). */
uint32_t mmu_walk(Cpu *c, uint64_t linear, int access, bool user, TlbEntry *out);
/* The same without side effects (no A/D, no fault): 0 or -1; for the debugger. */
int mmu_translate(Cpu *c, uint64_t linear, uint64_t *phys, bool *writable, bool *user);

/* ---- tlb.c ---- */
void tlb_create(Cpu *c);
void tlb_destroy(Cpu *c);
/* Puts what a walk has found into an entry of the first way, without fast tags. What the entry held goes to the second way. */
void tlb_take(Cpu *c, TlbEntry *e, const TlbEntry *walked);
void tlb_swap_ways(Cpu *c, TlbEntry *e); /* of the first way */
void tlb_fetched(Cpu *c, const TlbEntry *e); /* code is fetched by it at the present privilege */
void tlb_code_moved(Cpu *c); /* CS.base is another at the present privilege */
void tlb_flush_all(Cpu *c);       /* global pages too, of all PCIDs */
void tlb_flush_nonglobal(Cpu *c); /* of the present PCID */
void tlb_flush_page(Cpu *c, uint64_t linear); /* of the present PCID, and global ones */
void tlb_flush_pcid(Cpu *c, uint32_t pcid);
void tlb_flush_pcid_page(Cpu *c, uint32_t pcid, uint64_t linear);
void tlb_flush_pcids(Cpu *c); /* all PCIDs, but global pages stay */
/* MOV to CR3. keep: CR4.PCIDE is set, and what the TLB has of the new PCID stays. */
void tlb_load_cr3(Cpu *c, uint64_t value, bool keep);
void tlb_flush_phys(Vm *vm, uint64_t phys); /* every entry that maps this physical page, on all vCPUs */

/* ---- the CPUID bits the decoder asks for ---- */
enum {
#define FEATURE(name, leaf, reg, bit) FEAT_##name,
#include "feature.def"
#undef FEATURE
    FEAT_COUNT
};
static inline bool has_feature(const Cpu *c, unsigned f) { return c->features[f >> 6] >> (f & 63) & 1; }

static inline bool in_long_mode(const Cpu *c) { return c->mode & MODE_LONG; }
static inline bool in_64bit(const Cpu *c) { return (c->mode & MODE_SIZE) == MODE_64; }
static inline bool in_real_mode(const Cpu *c) { return !(c->mode & (MODE_PROT | MODE_VM86)); }
static inline bool is_canonical(uint64_t a) { return (uint64_t)((int64_t)(a << 16) >> 16) == a; }

#endif
