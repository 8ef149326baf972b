/* The code cache: one piece of memory mapped twice, writable and executable, and the thunks at its start. */
#define _GNU_SOURCE /* memfd_create */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "encode.h"
#include "run_translated.h"

#define GPR(n) rm_gs(offsetof(Cpu, gpr) + 8u * (unsigned)(n))
#define MOVAPS_LOAD 0x128u  /* 0F 28 */
#define MOVAPS_STORE 0x129u

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

static void each_vector(Code *e, bool load)
{
    for (unsigned n = 0; n < 16; n++)
        emit_op(e, load ? MOVAPS_LOAD : MOVAPS_STORE, (int)n, rm_gs(offsetof(Cpu, ymm) + n * sizeof(Ymm)));
    emit_op(e, 0xc6, 0, rm_gs(offsetof(Cpu, vectors_live)));
    put8(e, load);
}

/* Spills the vector registers where they are live. Uses RFLAGS. */
static void spill_vectors(Code *e)
{
    emit_op(e, 0x80, 7, rm_gs(offsetof(Cpu, vectors_live))); /* cmp */
    put8(e, 0);
    uint8_t *none = emit_jcc(e, CC_E);
    each_vector(e, false);
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

    t->load_vectors = executable(t, e.p);
    each_vector(&e, true);
    put8(&e, 0xc3);

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
    emit_op(&e, 0x85, H_RCX, rm_reg(H_RCX));
    uint8_t *no_vectors = emit_jcc(&e, CC_E);
    each_vector(&e, true);
    set_rel32(no_vectors, e.p);
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
    t->blocks = t->next = e.p;
}

bool translator_create(Vm *vm, uint32_t threshold)
{
    struct Translator *t = calloc(1, sizeof *t);
    if (!t)
        return false;
    t->threshold = threshold;
    t->exits = calloc(EXIT_COUNT, sizeof *t->exits);
    int fd = memfd_create("kvmpy-code", MFD_CLOEXEC);
    void *w = MAP_FAILED, *x = MAP_FAILED;
    if (t->exits && fd >= 0 && ftruncate(fd, CODE_CACHE) == 0) {
        w = mmap(NULL, CODE_CACHE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        x = mmap(NULL, CODE_CACHE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    if (fd >= 0)
        close(fd);
    if (w == MAP_FAILED || x == MAP_FAILED) {
        if (w != MAP_FAILED)
            munmap(w, CODE_CACHE);
        free(t->exits);
        free(t);
        return false;
    }
    t->writable = w;
    t->executable = x;
    emitters_prepare();
    emit_thunks(t);
    vm->translator = t;
    return true;
}

void translator_destroy(Vm *vm)
{
    struct Translator *t = vm->translator;
    if (!t)
        return;
    munmap(t->writable, CODE_CACHE);
    munmap(t->executable, CODE_CACHE);
    free(t->exits);
    free(t);
    vm->translator = NULL;
}

void translator_forget(struct Translator *t)
{
    t->next = t->blocks;
    t->exit_count = 0;
}
