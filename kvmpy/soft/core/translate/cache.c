/* The code cache: one piece of memory mapped twice, writable and executable, filled part by part. */
#define _GNU_SOURCE /* memfd_create, mremap */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emit.h"
#include "run.h"
#include "thunks.h"

static bool both(size_t size, void *w, void *x)
{
    if (w != MAP_FAILED && x != MAP_FAILED)
        return true;
    if (w != MAP_FAILED)
        munmap(w, size);
    if (x != MAP_FAILED)
        munmap(x, size);
    return false;
}

/* Without a name: perf takes names of functions from its map file for such memory alone. */
static bool map_anonymous(size_t size, void **w, void **x)
{
    *w = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (*w == MAP_FAILED)
        return false;
    *x = mremap(*w, 0, size, MREMAP_MAYMOVE); /* of shared memory with size 0: a second mapping */
    if (*x != MAP_FAILED && mprotect(*x, size, PROT_READ | PROT_EXEC)) {
        munmap(*x, size);
        *x = MAP_FAILED;
    }
    return both(size, *w, *x);
}

/* Where what was not executable may not become so (PR_SET_MDWE), a file's pages still may from their first mapping on. */
static bool map_file(size_t size, void **w, void **x)
{
    int fd = memfd_create("kvmpy-code", MFD_CLOEXEC);
    *w = *x = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0) {
        *w = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        *x = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    if (fd >= 0)
        close(fd);
    return both(size, *w, *x);
}

/* Exits and starts of instructions that so many bytes of code may have: the code runs out first, but for odd programs. */
static uint32_t exits_of(size_t bytes) { return (uint32_t)(bytes / 64); }
static uint32_t starts_of(size_t bytes) { return (uint32_t)(bytes / 8); }

static size_t part_size(const struct Translator *t) { return t->size / t->parts & ~(size_t)63; }

static void begin_part(struct Translator *t, unsigned part)
{
    t->part = part;
    t->next = part ? t->writable + part * part_size(t) : t->blocks;
    t->exit_count = part * exits_of(part_size(t));
    t->start_count = part * starts_of(part_size(t));
    t->used[part] = true;
}

bool translator_create(Vm *vm, uint32_t threshold)
{
    struct Translator *t = calloc(1, sizeof *t);
    if (!t)
        return false;
    t->threshold = threshold;
    t->secret = __builtin_ia32_rdtsc() * 0x9e3779b97f4a7c15ull ^ (uintptr_t)t;
    t->size = vm->code_cache ? vm->code_cache : KP_CODE_CACHE;
    _Static_assert(KP_CODE_CACHE_LEAST >= 2 * MOST_CODE, "a part takes some translations");
    t->parts = t->size / (2 * MOST_CODE) < CACHE_PARTS ? (unsigned)(t->size / (2 * MOST_CODE)) : CACHE_PARTS;
    t->exits = calloc(exits_of(t->size), sizeof *t->exits);
    t->start = calloc(starts_of(t->size), sizeof *t->start);
    void *w = MAP_FAILED, *x = MAP_FAILED;
    if (!t->exits || !t->start || (!map_anonymous(t->size, &w, &x) && !map_file(t->size, &w, &x))) {
        free(t->exits);
        free(t->start);
        free(t);
        return false;
    }
    t->writable = w;
    t->executable = x;
    t->insns = code_kept_base(vm);
    emitters_prepare();
    emit_thunks(t);
    begin_part(t, 0);
    vm->translator = t;
    return true;
}

void translator_destroy(Vm *vm)
{
    struct Translator *t = vm->translator;
    if (!t)
        return;
    munmap(t->writable, t->size);
    munmap(t->executable, t->size);
    free(t->exits);
    free(t->start);
    free(t->made);
    free(t);
    vm->translator = NULL;
}

void translator_forget(struct Translator *t)
{
    memset(t->used, 0, sizeof t->used);
    t->made_count = 0;
    begin_part(t, 0);
}

static unsigned oldest(const struct Translator *t) { return (t->part + 1) % t->parts; }

bool translator_room(struct Translator *t)
{
    unsigned next = t->part + 1;
    if (t->next + MOST_CODE <= t->writable + next * part_size(t) && t->exit_count + BLOCK_MAX <= next * exits_of(part_size(t)) &&
        t->start_count + BLOCK_MAX + 1 <= next * starts_of(part_size(t)))
        return true;
    if (t->used[oldest(t)])
        return false;
    t->exits_end[t->part] = t->exit_count;
    begin_part(t, oldest(t));
    return true;
}

const Exit *translator_exits(const struct Translator *t, const uint8_t *code, const Exit **end)
{
    unsigned part = (unsigned)((size_t)(code - t->writable) / part_size(t));
    *end = t->exits + (part == t->part ? t->exit_count : t->exits_end[part]);
    return t->exits + part * exits_of(part_size(t));
}

void translator_empty_oldest(Vm *vm)
{
    struct Translator *t = vm->translator;
    t->exits_end[t->part] = t->exit_count;
    unsigned part = oldest(t);
    const uint8_t *from = t->writable + part * part_size(t);
    for (Block *b = code_next(vm, NULL); b; b = code_next(vm, b))
        if (b->code && (size_t)(b->code - from) < part_size(t)) {
            translation_drop(vm, b);
            block_arm_again(vm, b);
        }
    for (uint32_t n = part * exits_of(part_size(t)); n < t->exits_end[part]; n++)
        exit_unlink(&t->exits[n]);
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n])
            memset(vm->cpu[n]->code_target, 0, sizeof vm->cpu[n]->code_target);
    uint32_t left = 0;
    for (uint32_t n = 0; n < t->made_count; n++)
        if (t->made[n].host - (uintptr_t)executable(t, from) >= part_size(t))
            t->made[left++] = t->made[n];
    t->made_count = left;
    begin_part(t, part);
    vm_count(vm, STAT_CODE_CACHE_EVICTIONS);
}
