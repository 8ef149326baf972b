/* A case on the core: a vCPU in user mode with the pages of oracle.h mapped, the rest not present. Faults and the breakpoint
   behind the code go through an IDT to handlers that halt, so that the run loop, its blocks and the delivery of exceptions are
   part of what is compared; or the handler of a single instruction is called by itself. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "oracle.h"
#include "run.h"

/* The system's memory: page tables, descriptor tables, handlers, stack; for the supervisor alone. */
#define SYSTEM 0x201a0000ull
#define SYSTEM_BYTES 0x10000u
#define S_PML4 0x1000u
#define S_PDPT 0x2000u
#define S_PD 0x3000u
#define S_PT 0x4000u
#define S_GDT 0x5000u
#define S_TSS 0x5800u
#define S_IDT 0x6000u
#define S_HANDLERS 0x7000u /* sixteen bytes each */
#define S_STACK 0x9000u    /* its top */
#define GPA_DATA 0x100000u
#define GPA_CODE 0x200000u
#define GPA_COUNTER 0x300000u

static uint8_t *tables, *data, *code, *counter;
static KpVm *machine;

static const Insn *stop(Cpu *c, const Insn *i)
{
    (void)c, (void)i;
    return NULL;
}

static void put64(unsigned at, uint64_t v) { memcpy(tables + at, &v, 8); }
static uint64_t get64(unsigned at)
{
    uint64_t v;
    memcpy(&v, tables + at, 8);
    return v;
}

static uint8_t *memory(uint32_t slot, uint64_t gpa, size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED || kp_vm_set_memory(machine, slot, gpa, p, bytes, 0) ? NULL : p;
}

bool translated;

static void map_pages(uint64_t linear, uint64_t gpa, unsigned bytes, uint64_t rights)
{
    for (unsigned page = 0; page < bytes; page += 0x1000)
        put64(S_PT + 8 * ((linear + page) >> 12 & 511), (gpa + page) | rights);
}

Cpu *core_open(void)
{
    machine = kp_vm_create(1, 0);
    if (!machine || !(tables = memory(0, 0, SYSTEM_BYTES)) || !(data = memory(1, GPA_DATA, DATA_BYTES)) ||
        !(code = memory(2, GPA_CODE, CODE_BYTES)) || !(counter = memory(3, GPA_COUNTER, 0x1000)))
        return NULL;
    if (translated && kp_vm_set_translator(machine, 1))
        return NULL;
    Cpu *c = kp_vcpu_create(machine, 0);
    if (!c)
        return NULL;
    const uint64_t present = 1, writable = 2, user = 4, no_execute = 1ull << 63;
    put64(S_PML4 + 8 * (DATA >> 39 & 511), S_PDPT | present | writable | user);
    put64(S_PDPT + 8 * (DATA >> 30 & 511), S_PD | present | writable | user);
    put64(S_PD + 8 * (DATA >> 21 & 511), S_PT | present | writable | user);
    map_pages(DATA, GPA_DATA, DATA_WRITABLE, present | writable | user | no_execute);
    map_pages(DATA + DATA_WRITABLE, GPA_DATA + DATA_WRITABLE, DATA_BYTES - DATA_WRITABLE, present | user | no_execute);
    map_pages(CODE, GPA_CODE, CODE_BYTES, present | user);
    map_pages(COUNTER, GPA_COUNTER, 0x1000, present | writable | user | no_execute);
    map_pages(SYSTEM, 0, SYSTEM_BYTES, present | writable);
    put64(S_GDT + 8, 0x00af9b000000ffff);
    for (unsigned n = 0; n < 32; n++) { /* interrupt gates of DPL 3 */
        uint64_t to = SYSTEM + S_HANDLERS + 16 * n;
        put64(S_IDT + 16 * n, (to & 0xffff) | 0x8 << 16 | 0xeeull << 40 | (to >> 16 & 0xffff) << 48);
        put64(S_IDT + 16 * n + 8, to >> 32);
        tables[S_HANDLERS + 16 * n] = 0xf4;
    }
    uint64_t stack = SYSTEM + S_STACK;
    memcpy(tables + S_TSS + 4, &stack, 8);
    tables[S_TSS + 0x66] = 0x68; /* no I/O permission bitmap */
    memset(code, 0xcc, CODE_BYTES);
    c->gdt = (struct kvm_dtable){.base = SYSTEM + S_GDT, .limit = 15};
    c->idt = (struct kvm_dtable){.base = SYSTEM + S_IDT, .limit = 511};
    c->seg[SEG_TR] = (struct kvm_segment){.base = SYSTEM + S_TSS, .limit = 0x67, .selector = 0x40, .type = 11, .present = 1};
    c->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_MP | CR0_WP | CR0_ET;
    c->cr3 = S_PML4;
    c->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
    c->xcr0 = 7;
    c->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    memset(c->features, 0xff, sizeof c->features);
    core_mode(c, 64);
    tlb_flush_all(c);
    return c;
}

void core_mode(Cpu *c, unsigned bits)
{
    const struct kvm_segment flat = {.limit = 0xffffffff, .selector = SEL_DATA, .type = 3, .present = 1, .dpl = 3, .s = 1, .g = 1, .db = 1};
    struct kvm_segment cs = flat, ds = flat;
    cs.type = 11;
    cs.selector = bits == 64 ? SEL_USER64 : SEL_USER32;
    cs.l = bits == 64;
    cs.db = bits == 32;
    if (bits == 16) {
        cs.base = CODE;
        cs.selector = SEL_CODE16;
        ds.base = DATA;
        ds.limit = DATA_BYTES - 1;
        cs.limit = 0xffff;
        cs.g = ds.g = ds.db = 0;
        ds.selector = SEL_DATA16;
    }
    c->seg[SEG_CS] = cs;
    c->seg[SEG_SS] = c->seg[SEG_DS] = c->seg[SEG_ES] = ds;
    c->seg[SEG_FS] = c->seg[SEG_GS] = (struct kvm_segment){.unusable = 1};
    c->seg[SEG_GS].base = GS_BASE;
    if (bits == 64)
        c->seg[SEG_DS] = c->seg[SEG_ES] = (struct kvm_segment){.unusable = 1};
    cpu_set_rflags(c, 0x202);
    cpu_update_mode(c);
}

static void direct(Cpu *c, const Case *t, State *s)
{
    static Insn insn[2]; /* static: its value counts after the jump */
    c->alone = true;
    int n = decode(c, t->bytes, t->length, c->rip, c->mode, &insn[0]);
    insn[1] = (Insn){.exec = stop, .next_rip = insn[0].next_rip};
    fp_enter(c);
    int why = _setjmp(c->run->unwind);
    if (why == 0 && n != 0) {
        insn[0].exec(c, &insn[0]);
        s->rip = insn_table[insn[0].id].attributes & A_END ? c->rip : insn[0].next_rip;
    } else {
        s->rip = c->rip;
        s->vector = why == UNWIND_FAULT ? c->run->fault_vector : 1000 + why;
        s->error = s->vector == EXC_PF ? c->run->fault_error : 0;
        s->cr2 = s->vector == EXC_PF ? c->cr2 : 0;
    if (s->cr2 - SYSTEM < SYSTEM_BYTES)
        s->error &= ~1u; /* on the host nothing is mapped there */
    }
    fp_leave(c);
    c->alone = false;
    s->rflags = cpu_get_rflags(c);
    s->gpr[RSP] = c->gpr[RSP];
}

/* To the handler that halts; the state of user mode is in the frame that delivery has pushed. */
static void through_idt(Cpu *c, const Case *t, State *s)
{
    for (;;) {
        int r = t->how == STEPS ? kp_vcpu_step(c, 1) : kp_vcpu_run(c);
        if (r == -EAGAIN || (r == 0 && c->record->exit_reason == KVM_EXIT_DEBUG))
            continue;
        if (r == 0 && c->record->exit_reason == KVM_EXIT_HLT)
            break;
        fprintf(stderr, "the core ended with %d, exit reason %u at %#lx\n", r, c->record->exit_reason, (unsigned long)c->rip);
        exit(2);
    }
    c->run->stop_at = NEVER;
    s->vector = (int)((c->rip - SYSTEM - S_HANDLERS) / 16);
    unsigned frame = (unsigned)(c->gpr[RSP] - SYSTEM);
    if (s->vector == EXC_DF || (s->vector >= EXC_TS && s->vector <= EXC_PF) || s->vector == EXC_AC) {
        s->error = s->vector == EXC_PF ? (uint32_t)get64(frame) : 0;
        frame += 8;
    }
    s->cr2 = s->vector == EXC_PF ? c->cr2 : 0;
    if (s->cr2 - SYSTEM < SYSTEM_BYTES)
        s->error &= ~1u; /* on the host nothing is mapped there */
    s->rip = get64(frame);
    s->rflags = get64(frame + 16);
    s->gpr[RSP] = get64(frame + 24);
    if (s->vector == EXC_BP) {
        s->vector = -1;
        s->rip--;
    }
}

void core_run(Cpu *c, const Case *t, State *s)
{
    memcpy(data, s->data, DATA_BYTES);
    memcpy(counter, &s->counter, 4);
    core_mode(c, t->bits);
    memcpy(c->gpr, s->gpr, sizeof s->gpr);
    c->gpr[ZERO_REG] = 0;
    cpu_set_rflags(c, s->rflags);
    memcpy(c->ymm, s->ymm, sizeof s->ymm);
    mxcsr_write(c, s->mxcsr);
    memset(&c->x87, 0, sizeof c->x87);
    for (unsigned n = 0; n < 8; n++)
        c->x87.st[n] = (F80){s->mant[n], s->se[n]};
    c->x87.control = s->control;
    c->x87.status = s->status;
    c->x87.tag = s->tag;
    c->rip = (t->bits == 16 ? 0 : CODE) + t->offset;
    c->shadow = 0;
    s->vector = -1;
    s->error = 0;
    s->cr2 = 0;
    if (t->how == DIRECT) {
        memcpy(code + t->offset, t->bytes, t->length);
        direct(c, t, s);
        memset(code + t->offset, 0xcc, t->length);
    } else {
        unsigned length = t->length < CODE_BYTES - t->offset ? t->length : CODE_BYTES - t->offset;
        memcpy(code + t->offset, t->bytes, length);
        through_idt(c, t, s);
        memset(code + t->offset, 0xcc, length);
        kp_vm_memory_written(machine, GPA_CODE, CODE_BYTES);
    }
    for (unsigned n = 0; n < 16; n++)
        if (n != RSP)
            s->gpr[n] = c->gpr[n];
    memcpy(s->ymm, c->ymm, sizeof s->ymm);
    s->mxcsr = c->mxcsr;
    for (unsigned k = 0; k < 8; k++) {
        s->mant[k] = c->x87.st[k].mant;
        s->se[k] = c->x87.st[k].se;
    }
    s->control = c->x87.control;
    s->status = c->x87.status;
    s->tag = c->x87.tag;
    memcpy(s->data, data, DATA_BYTES);
    memcpy(&s->counter, counter, 4);
}
