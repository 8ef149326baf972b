/* Memory accesses beside the fast path: segment checks, TLB fills, page crossings, devices, watchpoints, code pages. */
#include "mem.h"

#include "monitor.h"
#include "parallel.h"
#include "run.h"
#include "trace.h"
#include "translate/verify.h"

static _Noreturn void segment_fault(Cpu *c, const Insn *i, unsigned seg)
{
    raise_error(c, i, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

uint64_t mem_check(Cpu *c, const Insn *i, unsigned seg, uint64_t offset, unsigned size, bool write)
{
    if (in_64bit(c))
        return offset + c->seg_base[seg];
    const struct kvm_segment *s = &c->seg[seg];
    uint64_t last = offset + size - 1;
    if (c->mode & MODE_PROT) {
        if (s->unusable || !s->present)
            segment_fault(c, i, seg);
        bool code = s->type & 8;
        if (write ? code || !(s->type & 2) : code && !(s->type & 2))
            segment_fault(c, i, seg);
        if (!code && (s->type & 4)) { /* expand-down: offsets above the limit (SDM 3A 5.3) */
            uint64_t top = s->db ? 0xffffffff : 0xffff;
            if (offset <= s->limit || last > top)
                segment_fault(c, i, seg);
            return (uint32_t)(s->base + offset);
        }
    }
    if (unlikely(last > s->limit))
        segment_fault(c, i, seg);
    return (uint32_t)(s->base + offset);
}

/* The table that fills go into: the present privilege's, or the one an implicit supervisor access uses. */
static TlbEntry *fill_table(Cpu *c, bool implicit)
{
    if (implicit)
        return c->tlb_super;
    if (c->cpl == 3)
        return c->tlb_user;
    return (c->cr4 & CR4_SMAP) && (c->eflags & FL_AC) ? c->tlb_super_ac : c->tlb_super;
}

/* Must stores into the page take the slow path? */
static bool stores_noticed(Vm *vm, uint64_t phys)
{
    return code_in_page(vm, phys) || (unlikely(vm->monitors) && page_monitored(vm, phys));
}

static bool stores_unnoticed(Vm *vm, TlbEntry *e) { return likely(!vm->verifier) || verify_unnoticed(vm, e); }

/* Gives the walk's error, or 0. */
static uint32_t try_fill(Cpu *c, uint64_t linear, int access, bool implicit, TlbEntry *e)
{
    TlbEntry out = {0};
    uint32_t error = mmu_walk(c, linear, access | (implicit ? ACCESS_IMPLICIT : 0), c->cpl == 3 && !implicit, &out);
    if (unlikely(error))
        return error;
    c->stat[STAT_TLB_FILLS]++;
    uint64_t page = linear & ~0xfffull;
    if (unlikely(c->vm->verifier))
        verify_fill(c->vm, e);
    tlb_take(c, e, &out);
    Slot *slot = vm_slot(c->vm, out.phys);
    e->flags &= ~(TLBF_MMIO | TLBF_ROM);
    if (!slot || (c->lapic && chips_claims(c->vm->chips, c, out.phys))) {
        e->flags |= TLBF_MMIO;
        return 0;
    }
    e->host = (uintptr_t)(slot->host + (out.phys - slot->gpa));
    e->addend = (uintptr_t)e->host - (uintptr_t)page;
    if (slot->flags & KVM_MEM_READONLY)
        e->flags |= TLBF_ROM;
    if (out.flags & TLBF_X)
        e->exec = page;
    if (watched_page(c, page))
        return 0;
    if (out.flags & TLBF_R)
        e->read = page;
    if (slot->dirty && access == ACCESS_WRITE) {
        uint64_t n = (out.phys - slot->gpa) >> 12;
        slot->dirty[n >> 6] |= 1ull << (n & 63);
    }
    if ((out.flags & TLBF_W) && !(e->flags & TLBF_ROM) && !stores_noticed(c->vm, out.phys)) {
        uint64_t n = (out.phys - slot->gpa) >> 12;
        if ((!slot->dirty || (slot->dirty[n >> 6] >> (n & 63) & 1)) && stores_unnoticed(c->vm, e))
            e->write = page;
    }
    return 0;
}

static TlbEntry *fill(Cpu *c, const Insn *i, uint64_t linear, int access, bool implicit, TlbEntry *e)
{
    uint32_t error = try_fill(c, linear, access, implicit, e);
    if (unlikely(error)) {
        c->stat[STAT_PAGE_FAULTS]++;
        raise_page_fault(c, i, linear, error & 0x7fffffff);
    }
    return e;
}

static uint32_t needed(int access) { return access == ACCESS_READ ? TLBF_R : access == ACCESS_WRITE ? TLBF_W : TLBF_X; }

/* The entry for one access inside a page, filled and permitted; raises the fault where it is not. */
static TlbEntry *entry(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, int access, bool implicit)
{
    if (in_64bit(c) && unlikely(!is_canonical(linear)))
        segment_fault(c, i, seg);
    if (!in_long_mode(c))
        linear = (uint32_t)linear;
    TlbEntry *e = &fill_table(c, implicit)[linear >> 12 & (TLB_SIZE - 1)];
    uint64_t page = linear & ~0xfffull;
    if (e->linear != page && e[TLB_SIZE].linear == page) {
        if (unlikely(c->vm->verifier))
            verify_fill(c->vm, e);
        tlb_swap_ways(c, e);
    }
    if (e->linear != page || !(e->flags & needed(access)))
        return fill(c, i, linear, access, implicit, e);
    return e;
}

const TlbEntry *mem_fill(Cpu *c, uint64_t linear, int access)
{
    int kind = access & ~ACCESS_UNMARKED;
    uint64_t page = linear & ~0xfffull;
    if (in_64bit(c) ? !is_canonical(linear) : linear >> 32)
        return NULL;
    TlbEntry *e = &fill_table(c, false)[linear >> 12 & (TLB_SIZE - 1)];
    if ((e->linear == page && e->flags & needed(kind)) || e[TLB_SIZE].linear == page || try_fill(c, linear, access, false, e))
        return NULL;
    return (kind == ACCESS_READ ? e->read : e->write) == page ? e : NULL;
}

static void check_alignment(Cpu *c, const Insn *i, uint64_t linear, unsigned size)
{
    if (c->tlb == c->tlb_slow && size > 1 && (linear & (size - 1)) && size <= 16 && !(size & (size - 1)))
        raise_error(c, i, EXC_AC, 0);
}

static uint64_t load_host(const void *p, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, p, size);
    return v;
}

/* By one load and one store where the processor has them for the size: another vCPU must not see it done in parts, or twice. */
static void copy_once(void *p, const void *from, unsigned size)
{
    switch (size) {
    case 1: memcpy(p, from, 1); break;
    case 2: memcpy(p, from, 2); break;
    case 4: memcpy(p, from, 4); break;
    case 8: memcpy(p, from, 8); break;
    default: memcpy(p, from, size); break;
    }
}

static void *host_of(const TlbEntry *e, uint64_t linear) { return (void *)((uintptr_t)linear + e->addend); }

/* Inside one page. */
static void read_part(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, uint8_t *to, unsigned size, bool implicit)
{
    TlbEntry *e = entry(c, i, seg, linear, ACCESS_READ, implicit);
    if (!in_long_mode(c))
        linear = (uint32_t)linear;
    if (unlikely(e->flags & TLBF_MMIO)) {
        require_alone(c, i);
        for (unsigned n = 0; n < size;) { /* as KVM: pieces of at most 8 bytes */
            unsigned part = size - n > 8 ? 8 : size - n;
            uint64_t v = device_read(c, i, e->phys + (linear & 0xfff) + n, part);
            memcpy(to + n, &v, part);
            n += part;
        }
        return;
    }
    if (unlikely(watched_page(c, linear)))
        watch_access(c, i, linear, size, false);
    copy_once(to, host_of(e, linear), size);
    if (traced(c, KP_TRACE_MEMORY))
        trace_access(c, i, linear, to, size, false);
}

static void write_part(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, const uint8_t *from, unsigned size, bool implicit)
{
    TlbEntry *e = entry(c, i, seg, linear, ACCESS_WRITE, implicit);
    if (!in_long_mode(c))
        linear = (uint32_t)linear;
    uint64_t phys = e->phys + (linear & 0xfff);
    if (unlikely(e->flags & (TLBF_MMIO | TLBF_ROM))) {
        require_alone(c, i);
        for (unsigned n = 0; n < size;) {
            unsigned part = size - n > 8 ? 8 : size - n;
            device_write(c, i, phys + n, part, load_host(from + n, part));
            n += part;
        }
        return;
    }
    if (unlikely(watched_page(c, linear)))
        watch_access(c, i, linear, size, true);
    Slot *slot = vm_slot(c->vm, phys);
    if (slot && slot->dirty) {
        uint64_t n = (phys - slot->gpa) >> 12;
        slot->dirty[n >> 6] |= 1ull << (n & 63);
    }
    if (unlikely(c->vm->verifier))
        verify_store(c->vm, phys);
    copy_once(host_of(e, linear), from, size);
    if (traced(c, KP_TRACE_MEMORY))
        trace_access(c, i, linear, from, size, true);
    if (code_in_page(c->vm, phys))
        code_written(c->vm, phys, size);
    if (unlikely(c->vm->monitors))
        monitor_stored(c->vm, phys, size);
    if (!(e->flags & TLBF_MMIO) && (e->flags & TLBF_W) && !stores_noticed(c->vm, phys) && !watched_page(c, linear) &&
        stores_unnoticed(c->vm, e))
        e->write = linear & ~0xfffull;
}

static unsigned first_part(uint64_t linear, unsigned size)
{
    unsigned room = 0x1000 - (linear & 0xfff);
    return size < room ? size : room;
}

static void read_any(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, uint8_t *to, unsigned size, bool implicit)
{
    unsigned first = first_part(linear, size);
    if (first < size) { /* both pages are checked before a device behind one of them is asked */
        entry(c, i, seg, linear, ACCESS_READ, implicit);
        entry(c, i, seg, linear + first, ACCESS_READ, implicit);
    }
    read_part(c, i, seg, linear, to, first, implicit);
    if (first < size)
        read_part(c, i, seg, linear + first, to + first, size - first, implicit);
}

static void write_any(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, const uint8_t *from, unsigned size, bool implicit)
{
    unsigned first = first_part(linear, size);
    if (first < size) {
        entry(c, i, seg, linear, ACCESS_WRITE, implicit);
        entry(c, i, seg, linear + first, ACCESS_WRITE, implicit);
    }
    write_part(c, i, seg, linear, from, first, implicit);
    if (first < size)
        write_part(c, i, seg, linear + first, from + first, size - first, implicit);
}

uint64_t mem_read_slow(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size)
{
    c->stat[STAT_SLOW_ACCESSES]++;
    uint64_t v = 0;
    bool taken = core_take(c);
    check_alignment(c, i, linear, size);
    read_any(c, i, seg, linear, (uint8_t *)&v, size, false);
    core_give(c, taken);
    return v;
}

void mem_write_slow(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size, uint64_t value)
{
    c->stat[STAT_SLOW_ACCESSES]++;
    bool taken = core_take(c);
    check_alignment(c, i, linear, size);
    write_any(c, i, seg, linear, (const uint8_t *)&value, size, false);
    core_give(c, taken);
}

static void probe(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size, int access)
{
    unsigned first = first_part(linear, size);
    bool taken = core_take(c);
    entry(c, i, seg, linear, access, false);
    if (first < size)
        entry(c, i, seg, linear + first, access, false);
    core_give(c, taken);
}

void mem_probe_read(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size)
{
    probe(c, i, seg, linear, size, ACCESS_READ);
}

void mem_probe_write(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size)
{
    probe(c, i, seg, linear, size, ACCESS_WRITE);
}

uint64_t mem_read_for_write_slow(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, unsigned size)
{
    c->stat[STAT_SLOW_ACCESSES]++;
    uint64_t v = 0;
    bool taken = core_take(c);
    check_alignment(c, i, linear, size);
    mem_probe_write(c, i, seg, linear, size);
    read_any(c, i, seg, linear, (uint8_t *)&v, size, false);
    core_give(c, taken);
    return v;
}

void mem_read_bytes(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, void *to, unsigned size)
{
    bool taken = core_take(c);
    check_alignment(c, i, linear, size);
    read_any(c, i, seg, linear, to, size, false);
    core_give(c, taken);
}

void mem_write_bytes(Cpu *c, const Insn *i, unsigned seg, uint64_t linear, const void *from, unsigned size)
{
    bool taken = core_take(c);
    check_alignment(c, i, linear, size);
    write_any(c, i, seg, linear, from, size, false);
    core_give(c, taken);
}

/* The entry of the supervisor's table for an implicit access, which may be another than the present privilege's. */
static TlbEntry *implicit_entry(Cpu *c, uint64_t linear) { return &c->tlb_super[linear >> 12 & (TLB_SIZE - 1)]; }

/* 1, 2, 4 or 8 bytes by one move, as other processors see it. */
static void move_plain(void *to, const void *from, unsigned size)
{
    if (likely(size == 8))
        memcpy(to, from, 8);
    else if (size == 4)
        memcpy(to, from, 4);
    else if (size == 2)
        memcpy(to, from, 2);
    else
        memcpy(to, from, 1);
}

uint64_t sys_read(Cpu *c, const Insn *i, uint64_t linear, unsigned size)
{
    uint64_t v = 0;
    const TlbEntry *e = implicit_entry(c, linear);
    if (likely(e->read == TLB_TAG(linear, size))) {
        move_plain(&v, host_of(e, linear), size);
        return v;
    }
    bool taken = core_take(c);
    read_any(c, i, SEG_DS, linear, (uint8_t *)&v, size, true);
    core_give(c, taken);
    return v;
}

void sys_write(Cpu *c, const Insn *i, uint64_t linear, unsigned size, uint64_t value)
{
    const TlbEntry *e = implicit_entry(c, linear);
    if (likely(e->write == TLB_TAG(linear, size))) {
        move_plain(host_of(e, linear), &value, size);
        return;
    }
    bool taken = core_take(c);
    write_any(c, i, SEG_DS, linear, (const uint8_t *)&value, size, true);
    core_give(c, taken);
}

const TlbEntry *mem_fetch(Cpu *c, uint64_t linear)
{
    const Insn *i = &c->run->boundary[0];
    TlbEntry *e = &fill_table(c, false)[linear >> 12 & (TLB_SIZE - 1)];
    if (unlikely(e->exec != (linear & ~0xfffull))) {
        e = entry(c, i, SEG_CS, linear, ACCESS_EXEC, false);
        if (e->flags & TLBF_MMIO) { /* no RAM to fetch from: KVM's emulator gives up likewise, without instruction bytes */
            struct kvm_run *r = c->record;
            r->exit_reason = KVM_EXIT_INTERNAL_ERROR;
            r->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
            r->emulation_failure.ndata = 6;
            r->emulation_failure.flags = 0;
            c->insn = i;
            unwind(c, UNWIND_EXIT);
        }
    }
    tlb_fetched(c, e);
    return e;
}

Slot *vm_slot(Vm *vm, uint64_t gpa)
{
    for (uint32_t n = 0; n < vm->slot_count; n++)
        if (gpa - vm->slot[n].gpa < vm->slot[n].size)
            return &vm->slot[n];
    return NULL;
}

void require_alone(Cpu *c, const Insn *i)
{
    if (c->alone)
        return;
    bool repeated = (insn_table[i->id].attributes & A_REP) && (i->prefix & (PFX_REP | PFX_REPNE)); /* alone: one element */
    if (i->left == 1 && !repeated && !c->vm->verifier) {
        c->attention = 1; /* last of its block: the run loop looks before anything runs behind it */
        return;
    }
    c->insn = i;
    unwind(c, UNWIND_ALONE);
}

static LogEntry *log_next(Cpu *c, uint64_t address, unsigned size)
{
    struct RunState *r = c->run;
    if (r->log_next < r->log_count) {
        LogEntry *e = &r->log[r->log_next];
        if (e->address == address && e->size == size && e->done) {
            r->log_next++;
            return e;
        }
        r->log_count = r->log_next; /* the instruction took another way than before: what follows is no answer to it */
    }
    if (r->log_count == LOG_MAX)
        r->log_count = r->log_next = LOG_MAX - 1;
    LogEntry *e = &r->log[r->log_count++];
    r->log_next = r->log_count;
    *e = (LogEntry){.address = address, .size = size};
    return e;
}

uint64_t device_read(Cpu *c, const Insn *i, uint64_t phys, unsigned size)
{
    LogEntry *e = log_next(c, phys, size);
    if (e->done)
        return e->value;
    if (c->lapic && chips_claims(c->vm->chips, c, phys)) {
        e->value = chips_mmio_read(c->vm->chips, c, phys, size);
        e->done = true;
        c->attention = 1; /* the run loop forgets the access before the next instruction makes one */
        if (traced(c, KP_TRACE_MMIO))
            trace_mmio_read(c, i, phys, size, e->value);
        return e->value;
    }
    c->insn = i;
    c->record->exit_reason = KVM_EXIT_MMIO;
    c->record->mmio.phys_addr = phys;
    c->record->mmio.len = size;
    c->record->mmio.is_write = 0;
    memset(c->record->mmio.data, 0, 8);
    unwind(c, UNWIND_EXIT);
}

/* Notes a write to a doorbell. */
static bool ring_doorbell(Cpu *c, uint64_t phys, unsigned size, uint64_t value)
{
    Vm *vm = c->vm;
    uint64_t bits = size < 8 ? (1ull << 8 * size) - 1 : ~0ull;
    for (uint32_t n = 0; n < vm->doorbell_count; n++) {
        const struct kp_doorbell *d = &vm->doorbell[n];
        if (d->gpa == phys && d->size == size && (!d->match || !((d->value ^ value) & bits))) {
            vm->rung |= 1ull << n;
            c->run->rang = c->parallel;
            return true;
        }
    }
    return false;
}

void device_write(Cpu *c, const Insn *i, uint64_t phys, unsigned size, uint64_t value)
{
    struct RunState *r = c->run;
    bool chip = c->lapic && chips_claims(c->vm->chips, c, phys);
    if (chip && traced(c, KP_TRACE_MMIO))
        value = trace_mmio_write(c, i, phys, size, value);
    LogEntry *e = log_next(c, phys, size);
    bool again = e->done; /* made before the instruction was begun anew */
    e->done = true;
    e->value = value;
    if (chip) {
        if (!again)
            chips_mmio_write(c->vm->chips, c, phys, size, value);
        return;
    }
    /* Rung twice by an instruction that begins anew is no more than rung. */
    if (!ring_doorbell(c, phys, size, value) && r->write_count < WRITE_MAX)
        r->write[r->write_count++] = (PendingWrite){.phys = phys, .size = size, .value = value};
    c->access_linear = insn_address(c, i);
    c->attention = 1;
}
