/* Chains of virtqueues: from descriptors to buffers of the host (virtio 1.2 §2.7). Descriptors are the guest's, which may change them
   meanwhile: each is copied once, and every address and index in it is checked. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "abi/abi.h"
#include "abi/history.inc"
#include "abi/core.inc"
#include "iovector.inc"
#include "devices/virtio/vring.inc"

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

typedef struct {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
} Descriptor;
_Static_assert(sizeof(Descriptor) == 16, "a descriptor has 16 bytes");

static const struct kp_region *find(const struct kp_region *region, uint32_t count, uint64_t gpa)
{
    uint32_t low = 0, high = count;
    while (low < high) { /* the first one that ends behind gpa */
        uint32_t middle = low + (high - low) / 2;
        if (region[middle].gpa + (region[middle].size - 1) < gpa)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && region[low].gpa <= gpa ? &region[low] : NULL;
}

static int bad(struct kp_chain *chain, int code, uint64_t first, uint64_t second)
{
    chain->bad[0] = first;
    chain->bad[1] = second;
    return code;
}

/* Adds the buffer at a guest address; it may run through regions that adjoin. */
static int add(const struct kp_region *region, uint32_t count, uint64_t gpa, uint64_t size, bool write, struct kp_chain *chain)
{
    uint64_t at = gpa, left = size;
    while (left) {
        const struct kp_region *r = find(region, count, at);
        if (!r || (write && r->readonly))
            return bad(chain, KP_CHAIN_OUTSIDE, gpa, size);
        uint64_t part = r->size - (at - r->gpa);
        if (part > left)
            part = left;
        uint8_t *host = r->host + (at - r->gpa);
        uint32_t used = chain->readable + chain->writable;
        struct kp_buffer *last = (write ? chain->writable : chain->readable) ? &chain->buffer[used - 1] : NULL;
        if (last && (uint8_t *)last->base + last->size == host) {
            last->size += part;
        } else {
            if (used == chain->room)
                return bad(chain, KP_CHAIN_PIECES, used, 0);
            chain->buffer[used] = (struct kp_buffer){.base = host, .size = part};
            if (write)
                chain->writable++;
            else
                chain->readable++;
        }
        at += part;
        left -= part;
    }
    if (!write) {
        chain->read_size += size;
        return 0;
    }
    chain->write_size += size;
    struct kp_range *last = chain->ranges ? &chain->range[chain->ranges - 1] : NULL;
    if (last && last->gpa + last->size == gpa) {
        last->size += size;
        return 0;
    }
    if (chain->ranges == chain->room)
        return bad(chain, KP_CHAIN_PIECES, chain->ranges, 0);
    chain->range[chain->ranges++] = (struct kp_range){.gpa = gpa, .size = size};
    return 0;
}

int kp_chain_walk(const struct kp_region *region, uint32_t count, uint64_t table, uint32_t size, uint32_t head, uint32_t longest,
                  struct kp_chain *chain)
{
    uint64_t descriptors = size, at = head, seen = 0, total = 0, most = size;
    bool nested = false;
    chain->readable = chain->writable = chain->ranges = 0;
    chain->read_size = chain->write_size = 0;
    for (;;) {
        const struct kp_region *r = find(region, count, table);
        if (!r || 16 * descriptors > r->size - (table - r->gpa))
            return bad(chain, KP_CHAIN_OUTSIDE, table, 16 * descriptors);
        const uint8_t *from = r->host + (table - r->gpa);
        for (;;) {
            if (at >= descriptors)
                return bad(chain, KP_CHAIN_INDEX, at, descriptors);
            Descriptor d;
            memcpy(&d, from + 16 * at, sizeof d);
            __asm__ volatile("" : "+m"(d)); /* the copy is what is checked and used */
            if (d.flags & INDIRECT) {
                if (nested || !longest)
                    return bad(chain, KP_CHAIN_NESTED, 0, 0);
                if ((d.flags & NEXT) || !d.length || d.length % 16)
                    return bad(chain, KP_CHAIN_TABLE, d.length, d.flags);
                descriptors = d.length / 16;
                if (descriptors > 0x10000)
                    return bad(chain, KP_CHAIN_COUNT, descriptors, 0);
                table = d.address;
                at = seen = 0;
                nested = true;
                most = size > longest ? size : longest;
                if (most > descriptors)
                    most = descriptors;
                break;
            }
            if (++seen > most)
                return bad(chain, KP_CHAIN_LOOP, 0, 0);
            total += d.length;
            if (total > 1ull << 32)
                return bad(chain, KP_CHAIN_SIZE, 0, 0);
            if (!(d.flags & WRITE) && chain->ranges)
                return bad(chain, KP_CHAIN_ORDER, 0, 0);
            if (d.length) {
                int code = add(region, count, d.address, d.length, d.flags & WRITE, chain);
                if (code)
                    return code;
            }
            if (!(d.flags & NEXT))
                return 0;
            at = d.next;
        }
    }
}

void kp_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
