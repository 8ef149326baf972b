/* Rings that the kernel fills in shared memory: coalesced writes, and dirty pages. */
#include "kvm/glue.h"

#include <errno.h>

int kvm_coalesced_take(struct kvm_coalesced_mmio_ring *ring, uint32_t slots, struct kvm_coalesced_mmio *out, uint32_t room)
{
    uint32_t first = __atomic_load_n(&ring->first, __ATOMIC_RELAXED), taken = 0;
    if (!slots || first >= slots)
        return -EINVAL;
    while (taken < room && first != __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE)) {
        out[taken++] = ring->coalesced_mmio[first];
        first = (first + 1) % slots;
        __atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
    }
    return (int)taken;
}

/* KVM API 8.29: DIRTY is published by the kernel with release, RESET by us after the entry has been read. */
int kvm_dirty_take(struct kvm_dirty_gfn *ring, uint32_t slots, uint32_t *next, struct kvm_dirty_gfn *out, uint32_t room)
{
    uint32_t taken = 0;
    if (!slots)
        return -EINVAL;
    while (taken < room) {
        struct kvm_dirty_gfn *entry = &ring[*next % slots];
        if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
            break;
        out[taken++] = *entry;
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        ++*next;
    }
    return (int)taken;
}
