/* The code cache: one piece of memory mapped twice, writable and executable, and the thunks at its start. */
#define _GNU_SOURCE /* memfd_create, mremap */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emit.h"
#include "run.h"
#include "run_translated.h"

#define GPR(n) rm_gs(offsetof(Cpu, gpr) + 8u * (unsigned)(n))
#define MOVAPS_LOAD (0x28u | K_0F)
#define MOVAPS_STORE (0x29u | K_0F)
#define VZEROUPPER (0x77u | K_0F)
#define VINSERTF128 (0x18u | K_0F3A | OP_66 | OP_L)

/* Copies between the Cpu and the frame, which begins at rsp + `above`; rcx is lost. */
static void each_slot(Code *e, bool load, int32_t above)
{
    static const struct { unsigned slot; size_t place; } slots[] = {
        {SLOT_BUDGET, offsetof(Cpu, budget)}, {SLOT_FLAGS, offsetof(Cpu, native_flags)}, {SLOT_R13, offsetof(Cpu, gpr[R13])},
        {SLOT_R14, offsetof(Cpu, gpr[R14])}, {SLOT_R15, offsetof(Cpu, gpr[R15])},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(slots); n++) {
        Rm slot = rm_slot(slots[n].slot), place = rm_gs(slots[n].place);
        slot.disp += above;
        emit_load(e, H_RCX, load ? place : slot);
        emit_store(e, load ? slot : place, H_RCX);
    }
}

/* Loads or spills everything but the vectors; rcx is lost. */
static void each_register(Code *e, bool load, int32_t above)
{
    each_slot(e, load, above);
    for (unsigned n = 0; n < 16; n++) {
        if (host_register[n] == IN_MEMORY)
            continue;
        if (load)
            emit_load(e, host_register[n], GPR(n));
        else
            emit_store(e, GPR(n), host_register[n]);
    }
}

static Rm ymm(unsigned n) { return rm_gs(offsetof(Cpu, ymm) + n * sizeof(Ymm)); }

static void set_live(Code *e, unsigned live)
{
    emit_op(e, 0xc6, 0, rm_gs(offsetof(Cpu, vectors_live)));
    put8(e, live);
}

static void load_lower(Code *e)
{
    for (unsigned n = 0; n < 16; n++)
        emit_op(e, MOVAPS_LOAD, (int)n, ymm(n));
    set_live(e, VECTORS_LOWER);
}

static void load_whole(Code *e)
{
    for (unsigned n = 0; n < 16; n++)
        emit_vex(e, MOVAPS_LOAD | OP_L, (int)n, 0, ymm(n));
    set_live(e, VECTORS_WHOLE);
}

/* The upper halves beside the lower ones, which are live. */
static void load_upper(Code *e)
{
    for (unsigned n = 0; n < 16; n++) {
        Rm upper = ymm(n);
        upper.disp += 16;
        emit_vex(e, VINSERTF128, (int)n, (int)n, upper);
        put8(e, 1);
    }
    set_live(e, VECTORS_WHOLE);
}

/* cmp with what is live */
static void compare_live(Code *e, unsigned live)
{
    emit_op(e, 0x80, 7, rm_gs(offsetof(Cpu, vectors_live)));
    put8(e, live);
}

/* Spills the vector registers that are live. Uses RFLAGS. */
static void spill_vectors(Code *e)
{
    compare_live(e, VECTORS_LOWER);
    uint8_t *none = emit_jcc(e, CC_B), *whole = NULL, *done = NULL;
    if (host_has(FEAT_AVX2))
        whole = emit_jcc(e, CC_A);
    for (unsigned n = 0; n < 16; n++)
        emit_op(e, MOVAPS_STORE, (int)n, ymm(n));
    set_live(e, VECTORS_NONE);
    if (whole) {
        done = emit_jump(e, NULL, NULL);
        set_rel32(whole, e->p);
        for (unsigned n = 0; n < 16; n++)
            emit_vex(e, MOVAPS_STORE | OP_L, (int)n, 0, ymm(n));
        emit_vex(e, VZEROUPPER, 0, 0, (Rm){.kind = RM_NONE}); /* compiled code is slower with upper halves in use */
        set_live(e, VECTORS_NONE);
        set_rel32(done, e->p);
    }
    set_rel32(none, e->p);
}

/* With six registers and the return address the stack is a multiple of 16 again. */
#define FRAME (8 * SLOT_COUNT + 8)

static const int saved[] = {H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15};

static void push(Code *e, int reg)
{
    if (reg & 8)
        put8(e, 0x41);
    put8(e, 0x50 | (reg & 7));
}
static void pop(Code *e, int reg)
{
    if (reg & 8)
        put8(e, 0x41);
    put8(e, 0x58 | (reg & 7));
}
static void add_rsp(Code *e, int n)
{
    emit_op(e, 0x83 | OP_W, 0, rm_reg(H_RSP));
    put8(e, (unsigned)n);
}

const size_t tlb_tables[TABLES] = {
    [TABLE_USER] = offsetof(Cpu, tlb_user), [TABLE_SUPER] = offsetof(Cpu, tlb_super), [TABLE_SUPER_AC] = offsetof(Cpu, tlb_super_ac),
};
const size_t tlb_tags[CHECK_KINDS] = {[CHECK_READ] = offsetof(TlbEntry, read), [CHECK_WRITE] = offsetof(TlbEntry, write)};

/* rcx: the address less the first way's tag; rax: the entry's index times its size */
static void emit_second_way(Code *e, unsigned table, unsigned kind)
{
    const size_t first = tlb_tables[table] + tlb_tags[kind], way = TLB_SIZE * sizeof(TlbEntry);
    emit_op(e, 0x03 | OP_W, H_RCX, rm_gs_index(H_RAX, first)); /* add */
    emit_op(e, 0x2b | OP_W, H_RCX, rm_gs_index(H_RAX, way + first)); /* sub */
    emit_load(e, H_RAX, rm_gs_index(H_RAX, tlb_tables[table] + way + offsetof(TlbEntry, host)));
    put8(e, 0xc3);
}

static void emit_thunks(struct Translator *t)
{
    Code e = {t->writable};
    /* enter(rdi: Cpu, rsi: code): the stack is a multiple of 16 in translated code */
    t->enter = (uint64_t (*)(Cpu *, const uint8_t *))(uintptr_t)executable(t, e.p);
    for (unsigned n = 0; n < ARRAY_SIZE(saved); n++)
        push(&e, saved[n]);
    add_rsp(&e, -FRAME);
    emit_mov(&e, H_RAX, H_RSI);
    each_register(&e, true, 0);
    put8(&e, 0xff); /* jmp rax */
    put8(&e, 0xe0);

    t->exit = executable(t, e.p);
    each_register(&e, false, 0);
    spill_vectors(&e);
    t->exit_saved = executable(t, e.p);
    add_rsp(&e, FRAME);
    for (unsigned n = ARRAY_SIZE(saved); n-- > 0;)
        pop(&e, saved[n]);
    put8(&e, 0xc3);

    for (unsigned n = 0; n < TABLES * CHECK_KINDS; n++) {
        t->second[n / CHECK_KINDS][n % CHECK_KINDS] = executable(t, e.p);
        emit_second_way(&e, n / CHECK_KINDS, n % CHECK_KINDS);
    }

    t->load_vectors[VECTORS_LOWER] = executable(t, e.p);
    load_lower(&e);
    put8(&e, 0xc3);
    if (host_has(FEAT_AVX2)) {
        t->load_vectors[VECTORS_WHOLE] = executable(t, e.p);
        compare_live(&e, VECTORS_NONE);
        uint8_t *lower_live = emit_jcc(&e, CC_NE);
        load_whole(&e);
        put8(&e, 0xc3);
        set_rel32(lower_live, e.p);
        load_upper(&e);
        put8(&e, 0xc3);
    }

    /* rax: the Insn; RFLAGS are in their slot, and come back from there */
    t->fallback = executable(t, e.p);
    each_register(&e, false, 8);
    emit_op(&e, 0xb6 | K_0F, H_RCX, rm_gs(offsetof(Cpu, vectors_live))); /* movzx ecx, byte */
    push(&e, H_RCX);
    spill_vectors(&e);
    emit_load(&e, H_RDI, rm_gs(offsetof(Cpu, self)));
    emit_mov(&e, H_RSI, H_RAX);
    emit_constant(&e, H_RAX, (uintptr_t)translated_fallback);
    put8(&e, 0xff); /* call rax */
    put8(&e, 0xd0);
    pop(&e, H_RCX);
    emit_op(&e, 0x85 | OP_W, H_RAX, rm_reg(H_RAX)); /* test: 0: go on behind the instruction */
    uint8_t *leave = emit_jcc(&e, CC_NE);
    emit_op(&e, 0x83, 7, rm_reg(H_RCX)); /* cmp */
    put8(&e, VECTORS_LOWER);
    uint8_t *none = emit_jcc(&e, CC_B), *whole = host_has(FEAT_AVX2) ? emit_jcc(&e, CC_A) : NULL;
    load_lower(&e);
    if (whole) {
        uint8_t *done = emit_jump(&e, t, NULL);
        set_rel32(whole, e.p);
        load_whole(&e);
        set_rel32(done, e.p);
    }
    set_rel32(none, e.p);
    each_register(&e, true, 8);
    emit_load32(&e, H_RAX, rm_gs(offsetof(Cpu, native_flags)));
    put8(&e, 0x04); /* add al, 0x7f: OF */
    put8(&e, 0x7f);
    put8(&e, 0x9e); /* sahf */
    put8(&e, 0xc3);
    set_rel32(leave, e.p);
    add_rsp(&e, 8);
    /* LEFT_RIP: RIP is set, nothing to go on with */
    emit_op(&e, 0x83 | OP_W, 7, rm_reg(H_RAX));
    put8(&e, LEFT_RIP);
    uint8_t *other = emit_jcc(&e, CC_NE);
    emit_constant(&e, H_RAX, 0);
    set_rel32(other, e.p);
    emit_jump(&e, t, t->exit_saved);

    /* rax: the Insn; RFLAGS are in their slot */
    t->finish = executable(t, e.p);
    each_register(&e, false, 0);
    spill_vectors(&e);
    emit_load(&e, H_RDI, rm_gs(offsetof(Cpu, self)));
    emit_mov(&e, H_RSI, H_RAX);
    emit_constant(&e, H_RAX, (uintptr_t)translated_finish);
    put8(&e, 0xff); /* call rax */
    put8(&e, 0xd0);
    emit_op(&e, 0x85 | OP_W, H_RAX, rm_reg(H_RAX)); /* test: Way.code */
    uint8_t *out = emit_jcc(&e, CC_E);
    each_register(&e, true, 0);
    put8(&e, 0xff); /* jmp rax */
    put8(&e, 0xe0);
    set_rel32(out, e.p);
    emit_mov(&e, H_RAX, H_RDX);
    emit_jump(&e, t, t->exit_saved);
    t->blocks = e.p;
}

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
