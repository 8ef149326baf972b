/* A debugger's break- and watchpoints, beside DR0-DR3: any number, on linear addresses.
   A block ends before an execution point and begins at it with the handler that stops there. Pages with data points have no fast
   tags, so that every access takes the slow path, which asks here. All else runs at full speed. */
#include <errno.h>
#include <stdlib.h>

#include "parallel.h"
#include "run.h"
#include "trace.h"

#define DATA_KINDS (KP_POINT_READ | KP_POINT_WRITE)
#define ALL_KINDS (KP_POINT_EXECUTE | DATA_KINDS)

static int by_address(const void *a, const void *b)
{
    const struct kp_debug_point *p = a, *q = b;
    return p->linear < q->linear ? -1 : p->linear > q->linear;
}

int kp_vm_set_debug_points(Vm *vm, const struct kp_debug_point *points, uint32_t count)
{
    struct kp_debug_point *copy = NULL;
    uint32_t breaks = 0, watches = 0;
    for (uint32_t n = 0; n < count; n++) {
        const struct kp_debug_point *p = &points[n];
        if (!p->size || p->linear + (p->size - 1) < p->linear || !p->kind || (p->kind & ~ALL_KINDS))
            return -EINVAL;
        breaks += !!(p->kind & KP_POINT_EXECUTE);
        watches += !!(p->kind & DATA_KINDS);
    }
    if (count) { /* a point of both kinds stands twice */
        copy = calloc((size_t)breaks + watches, sizeof *copy);
        if (!copy)
            return -ENOMEM;
        struct kp_debug_point *to_break = copy, *to_watch = copy + breaks;
        for (uint32_t n = 0; n < count; n++) {
            if (points[n].kind & KP_POINT_EXECUTE)
                *to_break++ = points[n];
            if (points[n].kind & DATA_KINDS)
                *to_watch++ = points[n];
        }
        qsort(copy, breaks, sizeof *copy, by_address);
    }
    core_lock(vm);
    core_stop(vm);
    bool traced_memory = vm->tracing & TRACE_BIT(KP_TRACE_MEMORY);
    bool flush = watches || vm->watching, drop = breaks || vm->breaking;
    free(vm->point);
    vm->point = copy;
    vm->break_count = breaks;
    vm->watch_count = watches;
    vm->watching = watches || traced_memory;
    vm->breaking = breaks != 0;
    if (drop)
        code_drop_all(vm);
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n]) {
            if (flush)
                tlb_flush_all(vm->cpu[n]);
            cpu_attention(vm->cpu[n]);
        }
    core_unlock(vm);
    return 0;
}

int kp_vcpu_debug_hit(Cpu *c, struct kp_debug_point *hit)
{
    *hit = c->debug_hit;
    return c->record->exit_reason == KVM_EXIT_DEBUG && hit->kind;
}

bool point_at(const Vm *vm, uint64_t linear)
{
    uint32_t low = 0, high = vm->break_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        uint64_t at = vm->point[middle].linear;
        if (at == linear)
            return true;
        if (at < linear)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

static bool overlaps(const struct kp_debug_point *p, uint64_t first, uint64_t last, uint32_t kinds)
{
    return (p->kind & kinds) && p->linear <= last && first <= p->linear + (p->size - 1);
}

bool points_in_page(const Vm *vm, uint64_t linear)
{
    const struct kp_debug_point *watch = vm->point + vm->break_count;
    for (uint32_t n = 0; n < vm->watch_count; n++)
        if (overlaps(&watch[n], linear & ~0xfffull, linear | 0xfff, DATA_KINDS))
            return true;
    return false;
}

void point_access(Cpu *c, const Insn *i, uint64_t linear, unsigned size, bool write)
{
    uint32_t kind = write ? KP_POINT_WRITE : KP_POINT_READ;
    const struct kp_debug_point *watch = c->vm->point + c->vm->break_count;
    for (uint32_t n = 0; n < c->vm->watch_count; n++) {
        const struct kp_debug_point *p = &watch[n];
        if (!overlaps(p, linear, linear + size - 1, kind))
            continue;
        require_alone(c, i); /* the stop comes right behind this instruction */
        if (c->pending_debug & DEBUG_POINT && c->debug_hit.kind == KP_POINT_WRITE)
            return; /* of an instruction that reads and writes, the write is told */
        c->debug_hit = (struct kp_debug_point){.linear = p->linear > linear ? p->linear : linear, .size = size, .kind = kind};
        c->pending_debug |= DEBUG_POINT;
        c->attention = 1;
        return;
    }
}

const Insn *exec_point(Cpu *c, const Insn *i)
{
    if (i) {
        refund(c, i);
        c->rip = i->block->rip;
    }
    uint64_t linear = fetch_address(c, c->rip);
    bool met = c->resume_linear == linear;
    c->resume_linear = linear; /* the run loop lets this instruction pass */
    if (!met && point_at(c->vm, linear)) { /* the block may be met under another CS.base than it was built with */
        c->debug_hit = (struct kp_debug_point){.linear = linear, .size = 1, .kind = KP_POINT_EXECUTE};
        exit_debug(c, EXC_BP, 0);
    }
    return NULL;
}
