#define _GNU_SOURCE /* MAP_ANONYMOUS, madvise */
#include "arena.h"

#include <string.h>
#include <sys/mman.h>

bool arena_create(Arena *a, size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return false;
    *a = (Arena){.base = p, .size = size, .part_size = size / ARENA_PARTS};
    return true;
}

void arena_destroy(Arena *a)
{
    if (a->base)
        munmap(a->base, a->size);
    *a = (Arena){0};
}

void arena_reset(Arena *a, size_t size)
{
    if (!arena_is_empty(a))
        madvise(a->base, a->size, MADV_DONTNEED);
    memset(a->used, 0, sizeof a->used);
    a->part = 0;
    a->part_size = size / ARENA_PARTS;
}

bool arena_is_empty(const Arena *a)
{
    for (unsigned n = 0; n < ARENA_PARTS; n++)
        if (a->used[n])
            return false;
    return true;
}

unsigned arena_oldest(const Arena *a) { return (a->part + 1) % ARENA_PARTS; }

void arena_begin(Arena *a, unsigned part)
{
    a->part = part;
    a->used[part] = 0;
}

void *arena_room(Arena *a, size_t size)
{
    if (a->used[a->part] + size > a->part_size) {
        if (a->used[arena_oldest(a)])
            return NULL;
        arena_begin(a, arena_oldest(a));
    }
    return arena_part(a, a->part) + a->used[a->part];
}

void arena_take(Arena *a, size_t size) { a->used[a->part] += (size + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1); }
