/* What a person may see of the translator, and set. */
#include <errno.h>
#include <stdlib.h>

#include "translate.h"

int kp_vm_set_code_cache(Vm *vm, uint64_t bytes)
{
    if (bytes < KP_CODE_CACHE_LEAST || bytes > KP_CODE_CACHE_MOST)
        return -EINVAL;
    vm->code_cache = bytes & ~0xfffull;
    return 0;
}

int kp_vm_set_translator(Vm *vm, uint32_t threshold)
{
    code_drop_all(vm);
    translator_destroy(vm);
    bool made = threshold == 0 || translator_create(vm, threshold);
    code_make_room(vm); /* it has not run yet: memory is shared out anew */
    return made ? 0 : -EACCES;
}

static uint64_t host_address(const Vm *vm, const Block *b) { return (uintptr_t)executable(vm->translator, b->code); }

/* Translations of a part of the cache lie one behind the other, and so do their exits. */
static const Exit *first_exit(const Exit *low, const Exit *high, const uint8_t *code)
{
    while (low < high) {
        const Exit *middle = low + (high - low) / 2;
        if (middle->stub < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void describe(const Vm *vm, const Block *b, struct kp_translation *out)
{
    const struct Translator *t = vm->translator;
    uint32_t size = b->mode & MODE_SIZE;
    *out = (struct kp_translation){
        .rip = b->rip, .phys = b->phys, .mode = size == MODE_64 ? 64 : size == MODE_32 ? 32 : 16, .user = !!(b->mode & MODE_USER),
        .instructions = b->count, .bytes = b->bytes, .runs_left = b->heat,
    };
    if (!b->code)
        return;
    out->code_size = b->code_size;
    out->host = host_address(vm, b);
    out->translated = b->translated;
    for (unsigned n = 0; n <= b->translated; n++) {
        out->start[n] = t->start[b->starts + n].code;
        out->place[n] = t->start[b->starts + n].place;
    }
    const Exit *end, *x = translator_exits(t, b->code, &end);
    for (x = first_exit(x, end, b->code); x < end && x->stub < b->code + b->code_size; x++) {
        out->exits++;
        out->links += x->linked;
    }
}

uint32_t kp_vm_translations(Vm *vm, uint64_t rip, struct kp_translation *out, uint32_t room)
{
    uint32_t count = 0;
    for (const Block *b = code_next(vm, NULL); b; b = code_next(vm, b)) {
        if (rip != KP_ANY_RIP && rip - b->rip >= b->bytes)
            continue;
        if (count < room)
            describe(vm, b, &out[count]);
        count++;
    }
    return count;
}

uint32_t kp_vm_host_code(Vm *vm, uint64_t host, uint8_t *code, uint32_t room)
{
    for (const Block *b = code_next(vm, NULL); b; b = code_next(vm, b))
        if (b->code && host_address(vm, b) == host) {
            uint32_t size = b->code_size < room ? b->code_size : room;
            memcpy(code, b->code, size);
            return size;
        }
    return 0;
}

const char *kp_vm_thunk(Vm *vm, uint32_t n, uint64_t *host, uint32_t *size)
{
    const struct Translator *t = vm->translator;
    if (!t)
        return NULL;
    const struct { const uint8_t *at; const char *name; } thunks[] = {
        {t->executable, "enter"}, {t->exit, "exit"}, {t->exit_saved, "exit_saved"},
        {t->piece[PIECE_LEAVE][FLAGS_LIVE], "save_leave"}, {t->piece[PIECE_LEAVE][FLAGS_SAVED], "leave"},
        {t->piece[PIECE_LEAVE_SHARED][FLAGS_LIVE], "save_leave_shared"}, {t->piece[PIECE_LEAVE_SHARED][FLAGS_SAVED], "leave_shared"},
        {t->piece[PIECE_EXIT][FLAGS_LIVE], "save_unlinked"}, {t->piece[PIECE_EXIT][FLAGS_SAVED], "unlinked"}, {t->refuse, "refuse"},
        {t->second[0][0][0], "second_way"}, {t->load_vectors[VECTORS_LOWER], "load_vectors"},
        {t->load_vectors[VECTORS_WHOLE], "load_whole_vectors"}, {t->piece[PIECE_HANDLER][FLAGS_LIVE], "save_fallback"},
        {t->piece[PIECE_HANDLER][FLAGS_SAVED], "fallback"}, {t->piece[PIECE_FINISH][FLAGS_LIVE], "save_finish"},
        {t->piece[PIECE_FINISH][FLAGS_SAVED], "finish"}, {executable(t, t->blocks), NULL},
    };
    for (unsigned k = 0; k + 1 < ARRAY_SIZE(thunks); k++) {
        if (!thunks[k].at || n--) /* one that this host has no use for */
            continue;
        const uint8_t *end = thunks[k + 1].at ? thunks[k + 1].at : thunks[k + 2].at;
        *host = (uintptr_t)thunks[k].at;
        *size = (uint32_t)(end - thunks[k].at);
        return thunks[k].name;
    }
    return NULL;
}

int kp_vm_remember_translations(Vm *vm)
{
    struct Translator *t = vm->translator;
    if (!t)
        return -EINVAL;
    if (t->made)
        return 0;
    t->made_room = (uint32_t)(t->size / 128); /* a translation is larger, but for few */
    t->made = calloc(t->made_room, sizeof *t->made);
    return t->made ? 0 : -ENOMEM;
}

void translation_remember(struct Translator *t, const Block *b)
{
    if (t->made_count < t->made_room)
        t->made[t->made_count++] = (struct kp_made){b->rip, (uintptr_t)executable(t, b->code), b->code_size};
}

uint32_t kp_vm_remembered(Vm *vm, struct kp_made *out, uint32_t room)
{
    const struct Translator *t = vm->translator;
    uint32_t count = t && t->made ? t->made_count : 0;
    for (uint32_t n = 0; n < count && n < room; n++)
        out[n] = t->made[n];
    return count;
}
