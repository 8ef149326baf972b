/* A case on the host. A breakpoint enters the signal handler, which replaces the interrupted context by the state to test; the
   breakpoint behind the code, or its fault, comes back with the result in the signal frame. A frame with another code segment
   leads into 32-bit or 16-bit code: its segments are Linux's own, or entries of the LDT. */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "oracle.h"

static const int greg[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

unsigned native_modes;
static State *state;
static const Case *test;
static volatile int phase;
static gregset_t saved_gregs;
static uint8_t saved_fp[832];
static uint8_t *data, *code; /* where this program itself may write them */
static volatile uint32_t *counter;

#define FX_POINTERS 6
#define FX_MXCSR 24
#define FX_ST 32
#define FX_XMM 160
#define XS_BV 512
#define XS_YMM 576

static void put_fp(uint8_t *fx, const State *s)
{
    unsigned top = s->status >> 11 & 7;
    memcpy(fx, &s->control, 2);
    memcpy(fx + 2, &s->status, 2);
    fx[4] = s->tag;
    memset(fx + FX_POINTERS, 0, FX_MXCSR - FX_POINTERS);
    memcpy(fx + FX_MXCSR, &s->mxcsr, 4);
    for (unsigned n = 0; n < 8; n++) {
        memcpy(fx + FX_ST + 16 * n, &s->mant[(top + n) & 7], 8);
        memcpy(fx + FX_ST + 16 * n + 8, &s->se[(top + n) & 7], 2);
    }
    for (unsigned n = 0; n < 16; n++) {
        memcpy(fx + FX_XMM + 16 * n, &s->ymm[n], 16);
        memcpy(fx + XS_YMM + 16 * n, &s->ymm[n].u64[2], 16);
    }
    fx[XS_BV] |= 7;
}

static void get_fp(const uint8_t *fx, State *s)
{
    memcpy(&s->control, fx, 2);
    memcpy(&s->status, fx + 2, 2);
    s->tag = fx[4];
    memcpy(&s->mxcsr, fx + FX_MXCSR, 4);
    unsigned top = s->status >> 11 & 7, bv = fx[XS_BV];
    for (unsigned n = 0; n < 8; n++) {
        memcpy(&s->mant[(top + n) & 7], fx + FX_ST + 16 * n, 8);
        memcpy(&s->se[(top + n) & 7], fx + FX_ST + 16 * n + 8, 2);
    }
    for (unsigned n = 0; n < 16; n++) {
        s->ymm[n] = (Ymm){0};
        if (bv & 2)
            memcpy(&s->ymm[n], fx + FX_XMM + 16 * n, 16);
        if (bv & 4)
            memcpy(&s->ymm[n].u64[2], fx + XS_YMM + 16 * n, 16);
    }
}

static int vector_of(int sig, const siginfo_t *info, const greg_t *g)
{
    switch (sig) {
    case SIGTRAP: return EXC_BP;
    case SIGILL: return EXC_UD;
    case SIGFPE: return g[REG_TRAPNO] ? (int)g[REG_TRAPNO] : info->si_code == FPE_INTDIV ? EXC_DE : EXC_XM;
    case SIGSEGV: return g[REG_TRAPNO] ? (int)g[REG_TRAPNO] : info->si_code == SI_KERNEL ? EXC_GP : EXC_PF;
    case SIGBUS: return g[REG_TRAPNO] ? (int)g[REG_TRAPNO] : EXC_AC; /* #SS or #AC */
    default: return EXC_DB;
    }
}

static void handler(int sig, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    greg_t *g = u->uc_mcontext.gregs;
    uint8_t *fx = (uint8_t *)u->uc_mcontext.fpregs;
    if (phase == 0) {
        if (sig != SIGTRAP) { /* a fault of this program itself */
            dprintf(2, "signal %d at %#lx, address %p, base %p\n", sig, (unsigned long)g[REG_RIP], info->si_addr, (void *)core_open);
            _exit(3);
        }
        memcpy(saved_gregs, g, sizeof saved_gregs);
        memcpy(saved_fp, fx, sizeof saved_fp);
        for (unsigned n = 0; n < 16; n++)
            g[greg[n]] = (greg_t)state->gpr[n];
        g[REG_RIP] = (greg_t)((test->bits == 16 ? 0 : CODE) + test->offset);
        g[REG_EFL] = (greg_t)state->rflags;
        if (test->bits != 64) {
            uint64_t cs = test->bits == 32 ? SEL_USER32 : SEL_CODE16, ss = test->bits == 32 ? SEL_DATA : SEL_DATA16;
            g[REG_CSGSFS] = (greg_t)(((uint64_t)g[REG_CSGSFS] & 0x0000ffffffff0000) | cs | ss << 48);
        }
        put_fp(fx, state);
        phase = 1;
        return;
    }
    for (unsigned n = 0; n < 16; n++)
        state->gpr[n] = (uint64_t)g[greg[n]];
    state->rflags = (uint64_t)g[REG_EFL];
    state->rip = (uint64_t)g[REG_RIP];
    state->vector = vector_of(sig, info, g);
    state->error = state->vector == EXC_PF ? (uint32_t)g[REG_ERR] : 0;
    state->cr2 = state->vector == EXC_PF ? (uint64_t)g[REG_CR2] : 0;
    if (state->vector == EXC_BP) {
        state->rip--;
        state->vector = -1;
    }
    get_fp(fx, state);
    memcpy(g, saved_gregs, sizeof saved_gregs);
    memcpy(fx, saved_fp, sizeof saved_fp);
    phase = 0;
}

/* Memory of two mappings: one at `at` with the rights under test, one for this program. */
static uint8_t *map_twice(uint64_t at, size_t bytes, int rights)
{
    int fd = memfd_create("oracle", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes))
        return NULL;
    void *here = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    void *there = mmap((void *)at, bytes, rights, MAP_SHARED | MAP_POPULATE | MAP_FIXED_NOREPLACE, fd, 0);
    close(fd);
    return here == MAP_FAILED || there != (void *)at ? NULL : here;
}

static void load_segments(unsigned selector)
{
    __asm__ volatile("mov %0, %%ds\n\tmov %0, %%es" : : "r"(selector) : "memory");
}

static void probe_modes(void)
{
    struct user_desc segment = {.entry_number = 0, .base_addr = (unsigned)CODE, .limit = 0xffff, .contents = 2, .seg_32bit = 0};
    bool ldt = !syscall(SYS_modify_ldt, 0x11, &segment, sizeof segment);
    segment = (struct user_desc){.entry_number = 1, .base_addr = (unsigned)DATA, .limit = DATA_BYTES - 1, .contents = 0};
    ldt = ldt && !syscall(SYS_modify_ldt, 0x11, &segment, sizeof segment);
    static State s;
    for (unsigned bits = 32; bits >= 16; bits -= 16) {
        if (bits == 16 && !ldt)
            break;
        Case t = {.bytes = {0x40}, .length = 1, .offset = 0x400, .bits = bits, .count = 1}; /* INC eAX, but a prefix in 64-bit mode */
        memset(&s, 0, sizeof s);
        s.gpr[RSP] = DATA + 0x1000 - data_base(&t);
        s.rflags = 0x202;
        s.control = 0x37f;
        s.mxcsr = MXCSR_RESET;
        native_run(&t, &s);
        if (s.vector == -1 && s.gpr[RAX] == 1 && s.rip == (bits == 16 ? 0 : CODE) + 0x401)
            native_modes |= bits == 32 ? 1 : 2;
    }
}

int native_open(void)
{
    data = map_twice(DATA, DATA_BYTES, PROT_READ | PROT_WRITE);
    code = map_twice(CODE, CODE_BYTES, PROT_READ | PROT_EXEC);
    counter = (uint32_t *)map_twice(COUNTER, 0x1000, PROT_READ | PROT_WRITE);
    if (!data || !code || !counter || mprotect((void *)(DATA + DATA_WRITABLE), DATA_BYTES - DATA_WRITABLE, PROT_READ))
        return -1;
    memset(code, 0xcc, CODE_BYTES);
    stack_t stack = {.ss_sp = malloc(1 << 17), .ss_size = 1 << 17};
    if (!stack.ss_sp || sigaltstack(&stack, NULL))
        return -1;
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&action.sa_mask);
    static const int signals[] = {SIGTRAP, SIGSEGV, SIGILL, SIGFPE, SIGBUS};
    for (unsigned n = 0; n < ARRAY_SIZE(signals); n++)
        if (sigaction(signals[n], &action, NULL))
            return -1;
    probe_modes();
    return 0;
}

void native_run(const Case *t, State *s)
{
    state = s;
    test = t;
    memcpy(data, s->data, DATA_BYTES);
    *counter = s->counter;
    unsigned length = t->length < CODE_BYTES - t->offset ? t->length : CODE_BYTES - t->offset;
    memcpy(code + t->offset, t->bytes, length);
    load_segments(t->bits == 64 ? 0 : t->bits == 32 ? SEL_DATA : SEL_DATA16);
    syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE); /* translated code of the core has a GS of its own */
    __asm__ volatile("int3" : : : "memory");
    load_segments(0);
    memset(code + t->offset, 0xcc, length);
    memcpy(s->data, data, DATA_BYTES);
    s->counter = *counter;
}
