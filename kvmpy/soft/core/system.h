/* What the files of the system side share: descriptors, privilege, tasks, control registers. */
#ifndef KP_SYSTEM_H
#define KP_SYSTEM_H

#include "exec.h"

/* Bits of RFLAGS that exist. */
#define RFLAGS_ALL 0x3f7fd7u

/* ---- state.c, mmu.c ---- */
void cpu_update_privilege(Cpu *c); /* after CS and SS have changed and nothing else did: quick from 64-bit to 64-bit code */
void cpu_update_tlb(Cpu *c); /* after CPL, EFLAGS.AC or CR4.SMAP changed and nothing else did */

/* ---- selectors and descriptors: segment.c ---- */
#define SEL_RPL(sel) ((sel) & 3u)
#define SEL_LDT 4u
#define SEL_NULL(sel) (((sel) & 0xfffcu) == 0)
#define SEL_ERROR(sel) ((uint32_t)(sel) & 0xfffcu)

/* A descriptor as it stands in a table; `high` is the upper half of a 16-byte system descriptor. */
typedef struct {
    uint64_t low, high;
    uint64_t linear; /* where it was read */
} Desc;
#define DESC_TYPE(d) ((unsigned)((d)->low >> 40) & 0xf)
#define DESC_S(d) ((unsigned)((d)->low >> 44) & 1)
#define DESC_DPL(d) ((unsigned)((d)->low >> 45) & 3)
#define DESC_P(d) ((unsigned)((d)->low >> 47) & 1)
#define DESC_L(d) ((unsigned)((d)->low >> 53) & 1)
#define DESC_DB(d) ((unsigned)((d)->low >> 54) & 1)
#define DESC_IS_CODE(d) (DESC_S(d) && DESC_TYPE(d) & 8)
#define DESC_IS_DATA(d) (DESC_S(d) && !(DESC_TYPE(d) & 8))
#define DESC_IS_CONFORMING(d) (DESC_TYPE(d) & 4) /* of a code segment */
#define DESC_IS_WRITABLE(d) (DESC_IS_DATA(d) && DESC_TYPE(d) & 2)
/* Gates */
#define GATE_SELECTOR(d) ((uint16_t)((d)->low >> 16))
#define GATE_OFFSET32(d) ((uint32_t)(((d)->low & 0xffff) | ((d)->low >> 32 & 0xffff0000)))
#define GATE_OFFSET64(d) (GATE_OFFSET32(d) | (d)->high << 32)
#define GATE_PARAMS(d) ((unsigned)((d)->low >> 32) & 0x1f)

/* System descriptor types */
enum {
    TYPE_TSS16 = 1, TYPE_LDT = 2, TYPE_TSS16_BUSY = 3, TYPE_CALL16 = 4, TYPE_TASK_GATE = 5, TYPE_INT16 = 6, TYPE_TRAP16 = 7,
    TYPE_TSS32 = 9, TYPE_TSS32_BUSY = 11, TYPE_CALL32 = 12, TYPE_INT32 = 14, TYPE_TRAP32 = 15
};

/* Reads the descriptor of `sel`; false where it is outside its table (or the LDT is none). wide: 16 bytes. */
bool desc_find(Cpu *c, const Insn *i, uint16_t sel, bool wide, Desc *d);
/* The same; raises #vector(sel | ext) where it is outside. */
void desc_read(Cpu *c, const Insn *i, uint16_t sel, bool wide, int vector, uint32_t ext, Desc *d);
void desc_set_accessed(Cpu *c, const Insn *i, Desc *d);
void desc_set_busy(Cpu *c, const Insn *i, const Desc *d, bool busy);
void seg_from_desc(struct kvm_segment *s, uint16_t sel, const Desc *d);
void seg_set_null(struct kvm_segment *s, uint16_t sel);
void seg_set_real(Cpu *c, unsigned seg, uint16_t sel); /* real and virtual 8086 mode */
/* Loads ES, SS, DS, FS or GS with all checks; does not call cpu_update_mode. */
void seg_load(Cpu *c, const Insn *i, unsigned seg, uint16_t sel);
/* Checks and reads a stack segment for privilege `cpl`; raises #vector(sel | ext), #SS where it is not present. */
void seg_check_stack(Cpu *c, const Insn *i, uint16_t sel, unsigned cpl, int vector, uint32_t ext, Desc *d);
/* Null the data segments that the outer privilege may not use (RET, IRET); true: there were such. */
bool seg_drop_inner(Cpu *c);
/* CS of privilege `cpl` from a checked descriptor. */
void seg_set_cs(Cpu *c, uint16_t sel, const Desc *d, unsigned cpl);
/* SS that 64-bit mode loads as null when the privilege changes. */
void seg_set_null_ss(Cpu *c, unsigned cpl);

/* SS:SP of `cpl` from the TSS (protected mode), or RSP (long mode). Raises #TS. */
void tss_stack(Cpu *c, const Insn *i, unsigned cpl, uint32_t ext, uint16_t *ss, uint32_t *sp);
uint64_t tss_rsp(Cpu *c, const Insn *i, unsigned slot, uint32_t ext); /* slot 0-2: RSPn, 4-10: IST1-7 */

/* ---- a stack that is not, or not yet, the current one ---- */
typedef struct {
    Cpu *c;
    const Insn *i;
    const struct kvm_segment *ss; /* NULL: 64-bit flat */
    uint64_t sp, mask;
    unsigned cpl;       /* whose rights the accesses have */
    uint32_t error;     /* of #SS where the stack does not hold it */
} Stack;
Stack stack_current(Cpu *c, const Insn *i);
Stack stack_of(Cpu *c, const Insn *i, const struct kvm_segment *ss, uint64_t sp, unsigned cpl, uint32_t error);
void stack_push(Stack *s, unsigned size, uint64_t value);
uint64_t stack_pop(Stack *s, unsigned size);
/* RSP after work on the present stack (upper bits kept for 16-bit stacks). */
void stack_commit(Stack *s);

/* ---- sys_far.c: what RET and IRET share ---- */
/* Checks the code segment a return goes to (never to an inner privilege); cuts and checks the offset. */
void far_return_check(Cpu *c, const Insn *i, uint16_t sel, uint64_t *offset, Desc *cs);
/* Goes there. new_stack: ss:sp were popped; release: bytes of parameters given up on that stack. */
void far_return_enter(Cpu *c, const Insn *i, uint16_t sel, Desc *cs, uint64_t offset, bool new_stack, uint16_t ss, uint64_t sp,
                      uint64_t release);

/* ---- deliver.c ---- */
void deliver_event(Cpu *c, const Insn *i, int vector, int kind, bool has_error, uint32_t error, uint64_t return_rip);

/* ---- task.c ---- */
enum { TASK_JUMP, TASK_CALL, TASK_GATE_INT, TASK_IRET };
/* Checks the TSS of selector `sel` and switches to its task; next: EIP saved in the old TSS; the error code goes onto the new
   task's stack. */
void task_switch_gate(Cpu *c, const Insn *i, int how, uint16_t sel, uint64_t next, bool has_error, uint32_t error, uint32_t ext);

/* ---- control.c ---- */
/* Loads the PDPTEs of PAE paging from `cr3`; false where a reserved bit is set. */
bool pdptes_load(Cpu *c, uint64_t cr0, uint64_t cr4, uint64_t cr3);

/* Sets the RFLAGS bits in `mask` to those of `value`; updates TLB choice where AC changed. VM is not for this. */
void flags_write(Cpu *c, uint32_t value, uint32_t mask);
static inline unsigned flags_iopl(const Cpu *c) { return c->eflags >> 12 & 3; }

/* ---- mmu.c: physical memory as page walks and pvclock reach it. NULL outside RAM, or for writes into a read-only slot;
   `write` marks the dirty log and drops code decoded from there ---- */
void *phys_host(Cpu *c, uint64_t phys, unsigned size, bool write);

/* ---- cpuid.c ---- */
bool cpuid_is_amd(const Cpu *c);

/* ---- msr.c ---- */
enum { MSR_INVALID = -1, MSR_UNKNOWN = -2 }; /* what msr_read and msr_write give: a value it does not take; no such MSR */
/* KVM_MSR_EXIT_REASON_* where this access goes to user space, else 0. result: of msr_read or msr_write, or 0 before them. */
uint32_t msr_wants_exit(const Cpu *c, uint32_t index, bool write, int result);
bool msr_denied(const Cpu *c, uint32_t index, bool write); /* by the filter of user space */

/* Takes user space's answer to an RDMSR or WRMSR exit; may raise #GP. */
void msr_complete(Cpu *c);

/* ---- pvclock.c: kvmclock ---- */
void pvclock_update(Cpu *c);              /* writes the vCPU's time page; after the TSC or the clock was set */
void pvclock_wall(Cpu *c, uint64_t phys); /* writes the time of day at which the VM's clock was 0 */

#endif
