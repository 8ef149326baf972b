/* What a person may see of the translator, and set. */
#include <errno.h>

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
    return threshold == 0 || translator_create(vm, threshold) ? 0 : -EACCES;
}

static uint64_t host_address(const Vm *vm, const Block *b) { return (uintptr_t)executable(vm->translator, b->code); }

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
    for (uint32_t n = 0; n < t->exit_count; n++)
        if (t->exits[n].patch >= b->code && t->exits[n].patch < b->code + b->code_size) {
            out->exits++;
            out->links += t->exits[n].linked;
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

const char *kp_vm_thunk(Vm *vm, uint64_t host)
{
    const struct Translator *t = vm->translator;
    if (!t)
        return NULL;
    const struct { const uint8_t *at; const char *name; } thunks[] = {
        {t->exit, "exit"}, {t->exit_saved, "exit_saved"}, {t->fallback, "fallback"},
        {t->load_vectors[VECTORS_LOWER], "load_vectors"}, {t->load_vectors[VECTORS_WHOLE], "load_whole_vectors"},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(thunks); n++)
        if ((uintptr_t)thunks[n].at == host)
            return thunks[n].name;
    return NULL;
}
