/* One instruction on the host. A breakpoint enters the signal handler, which replaces the interrupted context by the state to
   test; the breakpoint behind the instruction, or its fault, comes back with the result in the signal frame. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "oracle.h"

static const int greg[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static State *state;
static unsigned insn_length;
static volatile int phase;
static gregset_t saved_gregs;
static uint8_t saved_fp[832];

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
        if (sig != SIGTRAP)
            _exit(3); /* a fault of this program itself */
        memcpy(saved_gregs, g, sizeof saved_gregs);
        memcpy(saved_fp, fx, sizeof saved_fp);
        for (unsigned n = 0; n < 16; n++)
            g[greg[n]] = (greg_t)state->gpr[n];
        g[REG_RIP] = CODE;
        g[REG_EFL] = (greg_t)state->rflags;
        put_fp(fx, state);
        phase = 1;
        return;
    }
    for (unsigned n = 0; n < 16; n++)
        state->gpr[n] = (uint64_t)g[greg[n]];
    state->rflags = (uint64_t)g[REG_EFL];
    state->rip = (uint64_t)g[REG_RIP];
    state->vector = -1;
    if (sig == SIGTRAP && state->rip == CODE + insn_length + 1)
        state->rip--;
    else
        state->vector = vector_of(sig, info, g);
    get_fp(fx, state);
    memcpy(g, saved_gregs, sizeof saved_gregs);
    memcpy(fx, saved_fp, sizeof saved_fp);
    phase = 0;
}

int native_open(void)
{
    void *data = mmap((void *)DATA, DATA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    void *code = mmap((void *)CODE, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (data != (void *)DATA || code != (void *)CODE)
        return -1;
    stack_t stack = {.ss_sp = malloc(1 << 17), .ss_size = 1 << 17};
    if (!stack.ss_sp || sigaltstack(&stack, NULL))
        return -1;
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&action.sa_mask);
    static const int signals[] = {SIGTRAP, SIGSEGV, SIGILL, SIGFPE, SIGBUS};
    for (unsigned n = 0; n < ARRAY_SIZE(signals); n++)
        if (sigaction(signals[n], &action, NULL))
            return -1;
    return 0;
}

void native_run(const uint8_t *bytes, unsigned length, State *s)
{
    state = s;
    insn_length = length;
    memcpy((void *)DATA, s->data, DATA_BYTES);
    memset((void *)CODE, 0xcc, 64);
    memcpy((void *)CODE, bytes, length);
    __asm__ volatile("int3" : : : "memory");
    memcpy(s->data, (void *)DATA, DATA_BYTES);
}
