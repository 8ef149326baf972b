/* kp_*: VMs, vCPUs and their state in KVM's structs. */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "coverage.h"
#include "exec.h"
#include "fpenv.h"
#include "monitor.h"
#include "parallel.h"
#include "system.h"
#include "translate/translate.h"
#include "translate/verify.h"
#include "run.h"
#include "timing.h"
#include "x87.h"

#define RECORD_BYTES (3 * 4096) /* struct kvm_run, the data page of port I/O, a page to spare, as KVM maps them */

/* ---- VM ---- */

Vm *kp_vm_create(int virtual_clock, uint64_t tsc_khz)
{
    Vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return NULL;
    vm->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (vm->wake_fd < 0 || code_create(vm) < 0) {
        if (vm->wake_fd >= 0)
            close(vm->wake_fd);
        free(vm);
        return NULL;
    }
    vm->virtual_clock = virtual_clock;
    vm->tsc_khz = tsc_khz ? tsc_khz : 1000000;
    vm->deadline = NEVER;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    vm->clock_base = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    return vm;
}

static void free_slot(Slot *s)
{
    free(s->dirty);
    free(s->code);
}

void kp_vm_destroy(Vm *vm)
{
    if (!vm)
        return;
    code_destroy(vm);
    translator_destroy(vm);
    verify_destroy(vm);
    trace_destroy(vm);
    coverage_destroy(vm);
    free(vm->point);
    parallel_destroy(vm);
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n]) {
            lapic_destroy(vm->cpu[n]->lapic);
            tlb_destroy(vm->cpu[n]);
            free(vm->cpu[n]->jump);
            free(vm->cpu[n]->run);
            munmap(vm->cpu[n]->record, RECORD_BYTES);
            munmap(vm->cpu[n], sizeof(Cpu));
        }
    if (vm->chips)
        chips_destroy(vm->chips);
    for (uint32_t n = 0; n < vm->slot_count; n++)
        free_slot(&vm->slot[n]);
    close(vm->wake_fd);
    free(vm);
}

static void flush_all_tlbs(Vm *vm)
{
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n])
            tlb_flush_all(vm->cpu[n]);
}

static int set_memory(Vm *vm, uint32_t id, uint64_t gpa, void *host, uint64_t size, uint32_t flags)
{
    if ((gpa | size | (uintptr_t)host) & 0xfff)
        return -EINVAL;
    uint32_t at = vm->slot_count;
    for (uint32_t n = 0; n < vm->slot_count; n++)
        if (vm->slot[n].id == id)
            at = n;
    for (uint32_t n = 0; n < vm->slot_count && size; n++)
        if (n != at && gpa < vm->slot[n].gpa + vm->slot[n].size && vm->slot[n].gpa < gpa + size)
            return -EEXIST;
    if (size == 0 && at == vm->slot_count)
        return -EINVAL;
    if (size && gpa + size < gpa)
        return -EINVAL;
    if (at == MAX_SLOTS)
        return -ENOSPC;
    Slot new = {.gpa = gpa, .size = size, .host = host, .id = id, .flags = flags};
    if (size) {
        new.code = calloc(size >> 12, sizeof *new.code);
        if (flags & KVM_MEM_LOG_DIRTY_PAGES)
            new.dirty = calloc((size >> 18) + 1, sizeof *new.dirty);
        if (!new.code || ((flags & KVM_MEM_LOG_DIRTY_PAGES) && !new.dirty)) {
            free_slot(&new);
            return -ENOMEM;
        }
    }
    code_drop_all(vm);
    if (at < vm->slot_count)
        free_slot(&vm->slot[at]);
    else
        vm->slot_count++;
    vm->slot[at] = new;
    if (!size)
        vm->slot[at] = vm->slot[--vm->slot_count];
    flush_all_tlbs(vm);
    return 0;
}

int kp_vm_set_memory(Vm *vm, uint32_t id, uint64_t gpa, void *host, uint64_t size, uint32_t flags)
{
    core_lock(vm);
    int result = set_memory(vm, id, gpa, host, size, flags);
    core_unlock(vm);
    return result;
}

static void memory_written(Vm *vm, uint64_t gpa, uint64_t size)
{
    Slot *s;
    while (size && (s = vm_slot(vm, gpa))) { /* a range may run on into the next slot */
        uint64_t part = s->gpa + s->size - gpa;
        if (part > size)
            part = size;
        code_written(vm, gpa, part);
        if (unlikely(vm->monitors))
            monitor_stored(vm, gpa, part);
        if (s->dirty)
            for (uint64_t n = (gpa - s->gpa) >> 12; n <= (gpa - s->gpa + part - 1) >> 12; n++)
                s->dirty[n >> 6] |= 1ull << (n & 63);
        gpa += part;
        size -= part;
    }
}

int kp_vm_memory_written(Vm *vm, uint64_t gpa, uint64_t size)
{
    core_lock(vm);
    memory_written(vm, gpa, size);
    core_unlock(vm);
    return 0;
}

int kp_vm_ranges_written(Vm *vm, const struct kp_range *range, uint32_t count, uint64_t size)
{
    core_lock(vm);
    for (uint32_t n = 0; n < count && size; n++) {
        uint64_t part = range[n].size < size ? range[n].size : size;
        memory_written(vm, range[n].gpa, part);
        size -= part;
    }
    core_unlock(vm);
    return 0;
}

static int dirty_log(Vm *vm, uint32_t id, uint8_t *bitmap, uint64_t bitmap_bytes)
{
    core_stop(vm);
    for (uint32_t n = 0; n < vm->slot_count; n++)
        if (vm->slot[n].id == id) {
            if (!vm->slot[n].dirty)
                return -ENOENT;
            uint64_t bytes = (((vm->slot[n].size >> 12) + 63) >> 6) * 8;
            if (bitmap_bytes < bytes)
                return -EINVAL;
            memcpy(bitmap, vm->slot[n].dirty, bytes);
            memset(vm->slot[n].dirty, 0, bytes);
            flush_all_tlbs(vm); /* write tags go: the next write of each page is seen again */
            return 0;
        }
    return -ENOENT;
}

int kp_vm_dirty_log(Vm *vm, uint32_t id, uint8_t *bitmap, uint64_t bitmap_bytes)
{
    core_lock(vm);
    int result = dirty_log(vm, id, bitmap, bitmap_bytes);
    core_unlock(vm);
    return result;
}

int kp_vm_set_doorbells(Vm *vm, const struct kp_doorbell *doorbells, uint32_t count)
{
    if (count > KP_DOORBELLS)
        return -EINVAL;
    core_lock(vm);
    if (count)
        memcpy(vm->doorbell, doorbells, count * sizeof *doorbells);
    vm->doorbell_count = count;
    vm->rung = 0;
    core_unlock(vm);
    return 0;
}

uint64_t kp_vm_take_doorbells(Vm *vm)
{
    core_lock(vm);
    uint64_t rung = vm->rung;
    vm->rung = 0;
    core_unlock(vm);
    return rung;
}

uint64_t kp_vm_now(Vm *vm) { return vm_now(vm); }

int kp_vm_set_deadline(Vm *vm, uint64_t ns)
{
    core_lock(vm);
    vm->deadline = ns;
    vm->timers_changed = true;
    for (uint32_t n = 0; vm->parallel && n < vm->cpu_count; n++)
        if (vm->cpu[n])
            cpu_end_slice(vm->cpu[n]);
    core_unlock(vm);
    return 0;
}

int kp_vm_get_clock(Vm *vm, struct kvm_clock_data *data)
{
    memset(data, 0, sizeof *data);
    data->clock = vm_now(vm);
    return 0;
}

int kp_vm_set_user_msrs(Vm *vm, uint32_t reasons, const uint32_t *ranges, uint32_t count)
{
    if (count > ARRAY_SIZE(vm->msr_range))
        return -EINVAL;
    core_lock(vm);
    vm->user_msr_reasons = reasons;
    vm->msr_range_count = count;
    for (uint32_t n = 0; n < count; n++) {
        vm->msr_range[n].first = ranges[3 * n];
        vm->msr_range[n].count = ranges[3 * n + 1];
        vm->msr_range[n].flags = ranges[3 * n + 2];
    }
    core_unlock(vm);
    return 0;
}

/* ---- vCPU ---- */

Cpu *kp_vcpu_create(Vm *vm, uint32_t index)
{
    if (index >= MAX_VCPUS || vm->cpu[index])
        return NULL;
    Cpu *c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *record = mmap(NULL, RECORD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (c == MAP_FAILED || record == MAP_FAILED)
        goto failed;
    c->vm = vm;
    c->parallel = vm->parallel;
    c->self = c;
    c->index = index;
    c->record = record;
    c->run = calloc(1, sizeof *c->run);
    c->jump = calloc(1u << JUMP_CACHE_BITS, sizeof *c->jump);
    if (!c->run || !c->jump)
        goto failed;
    c->run->delivering = -1;
    c->run->stop_at = NEVER;
    memset(c->run->io_rip, 0xff, sizeof c->run->io_rip);
    c->run->check = true;
    c->monitor_line = NEVER;
    c->queued_interrupt = -1;
    c->a20_mask = ~0ull;
    c->tsc_offset = 0;
    c->tlb = c->tlb_super;
    if (vm->chips && !(c->lapic = lapic_create(c)))
        goto failed;
    vm->cpu[index] = c;
    if (index >= vm->cpu_count)
        vm->cpu_count = index + 1;
    c->cpuid_count = (uint32_t)kp_supported_cpuid(c->cpuid, ARRAY_SIZE(c->cpuid));
    cpuid_changed(c);
    tlb_create(c);
    cpu_reset(c, false);
    c->wait_sipi = vm->chips && index != 0;
    return c;
failed:
    if (c != MAP_FAILED) {
        free(c->run);
        free(c->jump);
        munmap(c, sizeof *c);
    }
    if (record != MAP_FAILED)
        munmap(record, RECORD_BYTES);
    return NULL;
}

struct kvm_run *kp_vcpu_record(Cpu *c) { return c->record; }

int kp_vcpu_get_regs(Cpu *c, struct kvm_regs *r)
{
    r->rax = c->gpr[RAX]; r->rbx = c->gpr[RBX]; r->rcx = c->gpr[RCX]; r->rdx = c->gpr[RDX];
    r->rsi = c->gpr[RSI]; r->rdi = c->gpr[RDI]; r->rsp = c->gpr[RSP]; r->rbp = c->gpr[RBP];
    r->r8 = c->gpr[R8]; r->r9 = c->gpr[R9]; r->r10 = c->gpr[R10]; r->r11 = c->gpr[R11];
    r->r12 = c->gpr[R12]; r->r13 = c->gpr[R13]; r->r14 = c->gpr[R14]; r->r15 = c->gpr[R15];
    r->rip = c->rip;
    r->rflags = cpu_get_rflags(c);
    return 0;
}

int kp_vcpu_set_regs(Cpu *c, const struct kvm_regs *r)
{
    c->gpr[RAX] = r->rax; c->gpr[RBX] = r->rbx; c->gpr[RCX] = r->rcx; c->gpr[RDX] = r->rdx;
    c->gpr[RSI] = r->rsi; c->gpr[RDI] = r->rdi; c->gpr[RSP] = r->rsp; c->gpr[RBP] = r->rbp;
    c->gpr[R8] = r->r8; c->gpr[R9] = r->r9; c->gpr[R10] = r->r10; c->gpr[R11] = r->r11;
    c->gpr[R12] = r->r12; c->gpr[R13] = r->r13; c->gpr[R14] = r->r14; c->gpr[R15] = r->r15;
    if (c->rip != r->rip)
        c->resume_linear = c->told_linear = NEVER;
    c->rip = r->rip;
    cpu_set_rflags(c, r->rflags | 2);
    cpu_update_mode(c);
    cpu_attention(c);
    return 0;
}

int kp_vcpu_get_sregs(Cpu *c, struct kvm_sregs *s)
{
    memset(s, 0, sizeof *s);
    s->cs = c->seg[SEG_CS]; s->ds = c->seg[SEG_DS]; s->es = c->seg[SEG_ES];
    s->fs = c->seg[SEG_FS]; s->gs = c->seg[SEG_GS]; s->ss = c->seg[SEG_SS];
    if (!(c->efer & EFER_LMA))
        s->cs.l = 0; /* means nothing there, and neither backend takes it back (as KVM) */
    s->tr = c->seg[SEG_TR]; s->ldt = c->seg[SEG_LDTR];
    s->gdt = c->gdt; s->idt = c->idt;
    s->cr0 = c->cr0; s->cr2 = c->cr2; s->cr3 = c->cr3; s->cr4 = c->cr4;
    s->cr8 = c->lapic ? lapic_get_cr8(c) : c->cr8;
    s->efer = c->efer; s->apic_base = c->apic_base;
    int pending = c->queued_interrupt >= 0 ? c->queued_interrupt : c->events.interrupt.injected ? c->events.interrupt.nr : -1;
    if (pending >= 0)
        s->interrupt_bitmap[pending / 64] |= 1ull << (pending % 64);
    return 0;
}

static bool sregs_valid(const Cpu *c, const struct kvm_sregs *s)
{
    if ((s->cr0 & CR0_PG) && (s->efer & EFER_LME) && (!(s->cr4 & CR4_PAE) || !(s->efer & EFER_LMA)))
        return false;
    if (!((s->cr0 & CR0_PG) && (s->efer & EFER_LME)) && ((s->efer & EFER_LMA) || s->cs.l))
        return false;
    if ((s->cr0 & CR0_PG) && !(s->cr0 & CR0_PE))
        return false;
    return !(s->cr0 >> 32) && !(s->cr4 & ~c->cr4_allowed) && !(s->efer & ~(c->efer_allowed | EFER_LMA));
}

int kp_vcpu_set_sregs(Cpu *c, const struct kvm_sregs *s)
{
    if (!sregs_valid(c, s))
        return -EINVAL;
    c->seg[SEG_CS] = s->cs; c->seg[SEG_DS] = s->ds; c->seg[SEG_ES] = s->es;
    c->seg[SEG_FS] = s->fs; c->seg[SEG_GS] = s->gs; c->seg[SEG_SS] = s->ss;
    c->seg[SEG_TR] = s->tr; c->seg[SEG_LDTR] = s->ldt;
    c->gdt = s->gdt; c->idt = s->idt;
    bool paging = ((c->cr0 ^ s->cr0) & (CR0_PG | CR0_WP | CR0_PE)) || c->cr3 != s->cr3 || c->cr4 != s->cr4 || c->efer != s->efer;
    c->cr0 = s->cr0 | CR0_ET; c->cr2 = s->cr2; c->cr3 = s->cr3; c->cr4 = s->cr4;
    c->efer = s->efer;
    if (c->lapic) {
        if (c->apic_base != s->apic_base)
            lapic_msr_write(c, 0x1b, s->apic_base, true);
        lapic_set_cr8(c, s->cr8);
    } else {
        c->apic_base = s->apic_base;
        c->cr8 = s->cr8;
    }
    c->queued_interrupt = -1;
    for (int n = 0; n < 256; n++)
        if (s->interrupt_bitmap[n / 64] >> (n % 64) & 1)
            c->queued_interrupt = (int16_t)n;
    cpu_update_mode(c);
    if (paging) {
        pdptes_load(c, c->cr0, c->cr4, c->cr3);
        tlb_flush_all(c);
    }
    cpu_attention(c);
    return 0;
}

int kp_vcpu_get_xcrs(Cpu *c, struct kvm_xcrs *x)
{
    memset(x, 0, sizeof *x);
    x->nr_xcrs = 1;
    x->xcrs[0].xcr = 0;
    x->xcrs[0].value = c->xcr0;
    return 0;
}

int kp_vcpu_set_xcrs(Cpu *c, const struct kvm_xcrs *x)
{
    if (x->nr_xcrs > ARRAY_SIZE(x->xcrs))
        return -EINVAL;
    for (uint32_t n = 0; n < x->nr_xcrs; n++)
        if (x->xcrs[n].xcr == 0) {
            uint64_t v = x->xcrs[n].value;
            if (!(v & 1) || (v & ~c->xcr0_allowed) || ((v & 4) && !(v & 2)))
                return -EINVAL;
            c->xcr0 = v;
        }
    cpu_update_mode(c);
    return 0;
}

int kp_vcpu_get_debugregs(Cpu *c, struct kvm_debugregs *d)
{
    memset(d, 0, sizeof *d);
    memcpy(d->db, c->dr, sizeof d->db);
    d->dr6 = c->dr[6];
    d->dr7 = c->dr[7];
    return 0;
}

int kp_vcpu_set_debugregs(Cpu *c, const struct kvm_debugregs *d)
{
    if (d->dr6 >> 32 || d->dr7 >> 32)
        return -EINVAL;
    memcpy(c->dr, d->db, sizeof d->db);
    c->dr[6] = d->dr6;
    c->dr[7] = d->dr7 | 0x400;
    tlb_flush_all(c); /* watched pages lose their fast tags */
    return 0;
}

int kp_vcpu_get_msr(Cpu *c, uint32_t index, uint64_t *value) { return msr_read(c, index, value, true) ? -ENOENT : 0; }
int kp_vcpu_set_msr(Cpu *c, uint32_t index, uint64_t value) { return msr_write(c, index, value, true) ? -EINVAL : 0; }

int kp_vcpu_set_cpuid(Cpu *c, const struct kvm_cpuid_entry2 *entries, uint32_t count)
{
    if (count > ARRAY_SIZE(c->cpuid))
        return -E2BIG;
    memcpy(c->cpuid, entries, count * sizeof *entries);
    c->cpuid_count = count;
    cpuid_changed(c);
    cpu_update_mode(c);
    core_lock(c->vm);
    code_drop_all(c->vm); /* which instructions exist may differ now */
    core_unlock(c->vm);
    tlb_flush_all(c);
    return 0;
}

int kp_vcpu_get_cpuid(Cpu *c, struct kvm_cpuid_entry2 *entries, uint32_t room)
{
    if (room < c->cpuid_count)
        return -E2BIG;
    memcpy(entries, c->cpuid, c->cpuid_count * sizeof *entries);
    return (int)c->cpuid_count;
}

int kp_vcpu_get_events(Cpu *c, struct kvm_vcpu_events *e)
{
    *e = c->events;
    if ((uint32_t)c->pending_debug && !e->exception.injected) {
        e->exception.injected = 1;
        e->exception.nr = EXC_DB;
    }
    if (c->queued_interrupt >= 0 && !e->interrupt.injected) {
        e->interrupt.injected = 1;
        e->interrupt.nr = (uint8_t)c->queued_interrupt;
    }
    const struct RunState *r = c->run;
    bool nmi = false;
    if (r->delivering >= 0 && r->delivering_kind == EVENT_EXCEPTION) { /* waits for a device's answer */
        e->exception.injected = 1;
        e->exception.nr = (uint8_t)r->delivering;
        e->exception.has_error_code = r->delivering_has_error;
        e->exception.error_code = r->delivering_error;
    } else if (r->delivering >= 0 && r->delivering_kind == EVENT_NMI) {
        nmi = true;
    } else if (r->delivering >= 0) {
        e->interrupt.injected = 1;
        e->interrupt.nr = (uint8_t)r->delivering;
        e->interrupt.soft = r->delivering_kind == EVENT_SOFT_INT;
    }
    e->interrupt.shadow = c->shadow == 1 ? KVM_X86_SHADOW_INT_STI : c->shadow == 2 ? KVM_X86_SHADOW_INT_MOV_SS : 0;
    e->nmi.pending = c->nmi_pending || nmi;
    e->nmi.masked = c->nmi_masked && !nmi;
    e->sipi_vector = c->sipi_vector;
    e->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SIPI_VECTOR;
    return 0;
}

int kp_vcpu_set_events(Cpu *c, const struct kvm_vcpu_events *e)
{
    if (e->exception.injected && (e->exception.nr > 31 || e->exception.nr == EXC_NMI))
        return -EINVAL;
    if (c->run->delivering >= 0) {
        c->run->delivering = -1;
        forget_accesses(c);
    }
    c->events = *e;
    c->queued_interrupt = -1;
    if (e->interrupt.injected && !e->interrupt.soft && !c->lapic) {
        c->events.interrupt.injected = 0;
        c->queued_interrupt = e->interrupt.nr;
    }
    c->pending_debug = 0;
    if (e->flags & KVM_VCPUEVENT_VALID_SHADOW)
        c->shadow = e->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS ? 2 : e->interrupt.shadow & KVM_X86_SHADOW_INT_STI ? 1 : 0;
    if (e->flags & KVM_VCPUEVENT_VALID_NMI_PENDING)
        c->nmi_pending = e->nmi.pending;
    c->nmi_masked = e->nmi.masked;
    if (e->flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR)
        c->sipi_vector = (uint8_t)e->sipi_vector;
    cpu_attention(c);
    return 0;
}

int kp_vcpu_get_mp_state(Cpu *c, struct kvm_mp_state *s)
{
    s->mp_state = c->wait_sipi ? (c->sipi_pending ? KVM_MP_STATE_SIPI_RECEIVED : KVM_MP_STATE_INIT_RECEIVED)
                  : c->halted  ? KVM_MP_STATE_HALTED
                               : KVM_MP_STATE_RUNNABLE;
    return 0;
}

int kp_vcpu_set_mp_state(Cpu *c, const struct kvm_mp_state *s)
{
    if (s->mp_state > KVM_MP_STATE_SIPI_RECEIVED)
        return -EINVAL;
    core_lock(c->vm);
    c->halted = s->mp_state == KVM_MP_STATE_HALTED;
    monitor_disarm(c);
    c->wait_sipi = s->mp_state == KVM_MP_STATE_UNINITIALIZED || s->mp_state == KVM_MP_STATE_INIT_RECEIVED ||
                   s->mp_state == KVM_MP_STATE_SIPI_RECEIVED;
    c->sipi_pending = s->mp_state == KVM_MP_STATE_SIPI_RECEIVED;
    core_unlock(c->vm);
    return 0;
}

int kp_vcpu_interrupt(Cpu *c, uint32_t vector)
{
    if (vector > 255)
        return -EINVAL;
    if (c->lapic)
        return -ENXIO;
    if (c->queued_interrupt >= 0)
        return -EEXIST;
    c->queued_interrupt = (int16_t)vector;
    cpu_attention(c);
    return 0;
}

int kp_vcpu_nmi(Cpu *c)
{
    core_lock(c->vm);
    c->nmi_pending = true;
    cpu_attention(c);
    core_unlock(c->vm);
    return 0;
}

int kp_vcpu_translate(Cpu *c, struct kvm_translation *t)
{
    bool writable, user;
    uint64_t phys;
    int r = mmu_translate(c, t->linear_address, &phys, &writable, &user);
    t->valid = r == 0;
    t->physical_address = r == 0 ? phys : ~0ull;
    t->writeable = r == 0 && writable;
    t->usermode = r == 0 && user;
    return 0;
}

int kp_vcpu_set_guest_debug(Cpu *c, const struct kvm_guest_debug *debug)
{
    /* Stepping alone changes nothing in what is decoded and translated: a debugger steps often. */
    bool registers = (c->guest_debug.control | debug->control) & KVM_GUESTDBG_USE_HW_BP;
    c->guest_debug = *debug;
    if (registers) {
        core_lock(c->vm);
        code_drop_all(c->vm);
        core_unlock(c->vm);
        tlb_flush_all(c);
    }
    cpu_attention(c);
    return 0;
}

int kp_vcpu_get_fpu(Cpu *c, struct kvm_fpu *f)
{
    memset(f, 0, sizeof *f);
    unsigned top = c->x87.status >> 11 & 7;
    for (unsigned n = 0; n < 8; n++) {
        memcpy(f->fpr[n], &c->x87.st[(top + n) & 7].mant, 8);
        memcpy(f->fpr[n] + 8, &c->x87.st[(top + n) & 7].se, 2);
    }
    f->fcw = c->x87.control;
    f->fsw = c->x87.status;
    f->ftwx = c->x87.tag;
    f->last_opcode = c->x87.opcode;
    f->last_ip = c->x87.ip;
    f->last_dp = c->x87.dp;
    for (unsigned n = 0; n < 16; n++)
        memcpy(f->xmm[n], c->ymm[n].u8, 16);
    f->mxcsr = mxcsr_sync(c);
    return 0;
}

int kp_vcpu_set_fpu(Cpu *c, const struct kvm_fpu *f)
{
    uint8_t image[160] = {0}; /* as FXRSTOR takes it: reserved bits of the words do not come in */
    memcpy(image, &f->fcw, 2);
    memcpy(image + 2, &f->fsw, 2);
    image[4] = f->ftwx;
    memcpy(image + 6, &f->last_opcode, 2);
    memcpy(image + 8, &f->last_ip, 8);
    memcpy(image + 16, &f->last_dp, 8);
    memcpy(image + 32, f->fpr, sizeof f->fpr);
    fxrstor_x87(c, image, true);
    for (unsigned n = 0; n < 16; n++)
        memcpy(c->ymm[n].u8, f->xmm[n], 16);
    mxcsr_write(c, f->mxcsr & 0xffff);
    return 0;
}

static const char *const statistic_name[STAT_COUNT] = {
    "instructions", "blocks_built", "blocks_dropped", "code_evictions", "tlb_fills", "page_faults", "exceptions", "interrupts",
    "io_exits", "mmio_exits", "halts", "alone", "instructions_translated", "blocks_translated", "blocks_untranslatable", "code_bytes",
    "translations_dropped", "code_cache_evictions", "links", "exits_unlinked", "exits_to_loop", "exits_to_handler", "handler_calls",
    "slow_accesses", "ns_interpreted", "ns_translating", "ns_translated",
    "instructions_verified"};

void kp_vcpu_exits(Cpu *c, struct kp_exits *exits)
{
    exits_answered(&c->run->exits, c->record);
    *exits = c->run->exits;
}

void kp_vcpu_deliveries(Cpu *c, struct kp_deliveries *deliveries) { *deliveries = c->run->deliveries; }

uint64_t kp_vcpu_statistic(Cpu *c, uint32_t which)
{
    if (which >= STAT_NS_INTERPRETED && which <= STAT_NS_TRANSLATED)
        return timing_ns(c->vm, c->stat[which]);
    return which < STAT_COUNT ? which == STAT_INSTRUCTIONS ? cpu_icount(c) : c->stat[which] : 0;
}
const char *kp_statistic_name(uint32_t which) { return which < STAT_COUNT ? statistic_name[which] : NULL; }
