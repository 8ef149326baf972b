/* Memory for decoded blocks: parts filled one after the other, and emptied one at a time, the oldest first. */
#ifndef KP_ARENA_H
#define KP_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARENA_PARTS 8u
#define ARENA_ALIGN 64u

typedef struct {
    uint8_t *base;
    size_t size, part_size; /* reserved bytes; of a part */
    size_t used[ARENA_PARTS];
    unsigned part; /* the one that is being filled */
} Arena;

bool arena_create(Arena *a, size_t size);
void arena_destroy(Arena *a);
/* All is free again, and `size` bytes of it, at most as many as were reserved, are given out from now on. */
void arena_reset(Arena *a, size_t size);
bool arena_is_empty(const Arena *a);
/* Room for `size` bytes, at most a part's; NULL where every part is in use and the present one is full. */
void *arena_room(Arena *a, size_t size);
/* The room that was found is in use. */
void arena_take(Arena *a, size_t size);
/* The part to be emptied next; once nothing points into it any more, it is filled. */
unsigned arena_oldest(const Arena *a);
void arena_begin(Arena *a, unsigned part);

static inline uint8_t *arena_part(const Arena *a, unsigned part) { return a->base + part * a->part_size; }
static inline bool arena_holds(const Arena *a, const void *p)
{
    return (uintptr_t)p - (uintptr_t)a->base < a->size;
}

#endif
