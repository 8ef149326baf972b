/* What a benchmark is. The compute ones are the same C in the guest and in the native program; nothing here needs a library. */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* Room for a benchmark's data: 256 MiB for chase, less for the others. */
extern u8 *arena;
/* One page that can be written and executed. */
extern u8 *code_page;

struct benchmark {
    const char *name;
    void (*prepare)(void);  /* not timed; may be null */
    u64 (*run)(u32 work);   /* gives a checksum that depends on nothing but the work */
    u32 work;               /* amount for scale 1000; compute ones take 0.05 to 0.1 s then on a processor of 2024 */
    u32 arena_mib;
    u32 cpus;               /* of a machine's benchmark; with two it is run only by name */
};

extern const struct benchmark compute[];
extern const unsigned compute_count;

u64 mix(u32), sieve(u32), strings(u32), strings4k(u32), strings64(u32), copy_loop(u32), copy_far(u32), quicksort(u32), calls(u32), mandelbrot(u32);
u64 nbody(u32), chase(u32), sha256(u32), muldiv(u32), wide64(u32), wide32(u32), bytecode(u32), patched(u32);
void chase_prepare(void), wide64_prepare(void), wide32_prepare(void), bytecode_prepare(void), patched_prepare(void);

/* So many thousandths of a benchmark's work, at least 1; in 32 bits, since a 32-bit guest has no library for long quotients. */
static inline u32 scaled(const struct benchmark *b, u32 scale) {
    const u32 work = b->work / 1000 * scale + b->work % 1000 * scale / 1000;
    return work ? work : 1;
}

static inline u32 next_random(u32 *state) {
    u32 x = *state; /* xorshift32 (Marsaglia) */
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return *state = x;
}

#endif
