/* Keeping the ring of a vCPU's exits; abi/history.inc is included before. */
#ifndef KP_HISTORY_H
#define KP_HISTORY_H

#include <string.h>

#include "abi/abi.h"

/* The exit before has been answered: a read's data stands in the record. */
static inline void exits_answered(struct kp_exits *exits, const struct kvm_run *run)
{
    if (!exits->count)
        return;
    struct kp_exit *e = &exits->entry[(exits->count - 1) % KP_EXITS];
    if (!e->waits)
        return;
    e->waits = 0;
    if (run->exit_reason != e->reason && run->exit_reason != KVM_EXIT_INTR)
        return; /* a debugger stopped in between: the union holds something else */
    size_t bytes = (size_t)e->size * e->count;
    if (e->reason == KVM_EXIT_IO && run->io.data_offset > 2 * 4096)
        return;
    if (e->reason == KVM_EXIT_IO)
        memcpy(&e->value, (const uint8_t *)run + run->io.data_offset, bytes < 8 ? bytes : 8);
    else if (e->reason == KVM_EXIT_MMIO)
        memcpy(&e->value, run->mmio.data, bytes < 8 ? bytes : 8);
    else
        e->value = run->msr.data;
}

/* The present exit of the record; not one that the host asked for. */
static inline void exits_add(struct kp_exits *exits, const struct kvm_run *run, uint64_t rip)
{
    if (run->exit_reason == KVM_EXIT_INTR || run->exit_reason == KVM_EXIT_DEBUG || run->exit_reason == KP_EXIT_TRACE)
        return; /* the host's own doing */
    struct kp_exit *e = &exits->entry[exits->count++ % KP_EXITS];
    *e = (struct kp_exit){.rip = rip, .reason = run->exit_reason, .count = 1};
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        e->subject = run->io.port;
        e->size = run->io.size;
        e->count = run->io.count > 0xffff ? 0xffff : (uint16_t)run->io.count;
        e->write = run->io.direction == KVM_EXIT_IO_OUT;
        break;
    case KVM_EXIT_MMIO:
        e->subject = run->mmio.phys_addr;
        e->size = (uint16_t)(run->mmio.len > 8 ? 8 : run->mmio.len);
        e->write = !!run->mmio.is_write;
        break;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        e->subject = run->msr.index;
        e->size = 8;
        e->write = run->exit_reason == KVM_EXIT_X86_WRMSR;
        break;
    case KVM_EXIT_HYPERCALL:
        e->subject = run->hypercall.nr;
        return;
    case KVM_EXIT_INTERNAL_ERROR:
        e->subject = run->internal.suberror;
        return;
    default:
        return;
    }
    e->waits = 1;
    exits_answered(exits, run); /* of a write the data; a read's comes later */
    e->waits = !e->write;
}

#endif
