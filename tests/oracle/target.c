/* One instruction on the core: a vCPU in 64-bit user mode with the data's pages mapped, the rest not present. */
#include <sys/mman.h>

#include "oracle.h"
#include "run.h"

#define TABLES_BYTES 0x10000u
#define GPA_DATA 0x100000u

static uint8_t *tables, *data;

static const Insn *stop(Cpu *c, const Insn *i)
{
    (void)c, (void)i;
    return NULL;
}

KpVm *kp_vm_create(int virtual_clock, uint64_t tsc_khz);
int kp_vm_set_memory(KpVm *vm, uint32_t slot, uint64_t gpa, void *host, uint64_t size, uint32_t flags);
Cpu *kp_vcpu_create(KpVm *vm, uint32_t index);

Cpu *core_open(void)
{
    KpVm *vm = kp_vm_create(1, 0);
    tables = mmap(NULL, TABLES_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    data = mmap(NULL, DATA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!vm || tables == MAP_FAILED || data == MAP_FAILED || kp_vm_set_memory(vm, 0, 0, tables, TABLES_BYTES, 0) ||
        kp_vm_set_memory(vm, 1, GPA_DATA, data, DATA_BYTES, 0))
        return NULL;
    Cpu *c = kp_vcpu_create(vm, 0);
    if (!c)
        return NULL;
    uint64_t *table = (uint64_t *)tables;
    const uint64_t rights = 0x7; /* present, writable, user */
    table[0x1000 / 8 + (DATA >> 39 & 511)] = 0x2000 | rights;
    table[0x2000 / 8 + (DATA >> 30 & 511)] = 0x3000 | rights;
    table[0x3000 / 8 + (DATA >> 21 & 511)] = 0x4000 | rights;
    for (unsigned page = 0; page < DATA_BYTES; page += 0x1000)
        table[0x4000 / 8 + ((DATA + page) >> 12 & 511)] = (GPA_DATA + page) | rights;
    c->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_MP | CR0_WP | CR0_ET;
    c->cr3 = 0x1000;
    c->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
    c->xcr0 = 7;
    c->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    for (unsigned n = 0; n < 6; n++)
        c->seg[n] = (struct kvm_segment){.limit = 0xffffffff, .selector = n == SEG_CS ? 0x33 : 0x2b, .type = n == SEG_CS ? 11 : 3,
                                         .present = 1, .dpl = 3, .s = 1, .g = 1, .db = n != SEG_CS, .l = n == SEG_CS};
    memset(c->features, 0xff, sizeof c->features);
    cpu_update_mode(c);
    return c;
}

void core_run(Cpu *c, const uint8_t *bytes, unsigned length, State *s)
{
    static Insn insn[2]; /* static: its value counts after the jump */
    memcpy(data, s->data, DATA_BYTES);
    memcpy(c->gpr, s->gpr, sizeof s->gpr);
    c->gpr[ZERO_REG] = 0;
    cpu_set_rflags(c, s->rflags);
    memcpy(c->ymm, s->ymm, sizeof s->ymm);
    mxcsr_write(c, s->mxcsr);
    for (unsigned n = 0; n < 8; n++)
        c->x87.st[n] = (F80){s->mant[n], s->se[n]};
    c->x87.control = s->control;
    c->x87.status = s->status;
    c->x87.tag = s->tag;
    c->rip = CODE;
    c->alone = true;
    s->vector = -1;
    int n = decode(c, bytes, length, CODE, c->mode, &insn[0]);
    insn[1] = (Insn){.exec = stop, .next_rip = insn[0].next_rip};
    fp_enter(c);
    int why = _setjmp(c->run->unwind);
    if (why == 0 && n != 0) {
        insn[0].exec(c, &insn[0]);
        s->rip = insn_table[insn[0].id].attributes & A_END ? c->rip : insn[0].next_rip;
    } else {
        s->rip = CODE;
        s->vector = why == UNWIND_FAULT ? c->run->fault_vector : 1000 + why;
    }
    fp_leave(c);
    memcpy(s->gpr, c->gpr, sizeof s->gpr);
    s->rflags = cpu_get_rflags(c);
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
}
