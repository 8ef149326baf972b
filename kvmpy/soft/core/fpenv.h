/* The guest's MXCSR on the host. While instructions execute, the host's MXCSR has the guest's rounding, DAZ and FTZ, all
   exceptions masked, and gathers the guest's exception flags; c->mxcsr has the rest. Code between fp_enter and fp_leave does
   no floating-point arithmetic of its own: it would leave its flags to the guest. */
#ifndef KP_FPENV_H
#define KP_FPENV_H

#include "cpu.h"

#define MXCSR_IE 0x1u
#define MXCSR_DE 0x2u
#define MXCSR_ZE 0x4u
#define MXCSR_OE 0x8u
#define MXCSR_UE 0x10u
#define MXCSR_PE 0x20u
#define MXCSR_FLAGS 0x3fu
#define MXCSR_DAZ 0x40u
#define MXCSR_UM 0x800u
#define MXCSR_MASKS 0x1f80u
#define MXCSR_RC 0x6000u
#define MXCSR_FTZ 0x8000u
#define MXCSR_VALID 0xffffu /* MXCSR_MASK of FXSAVE */
#define MXCSR_RESET 0x1f80u

static inline uint32_t host_mxcsr_read(void)
{
    uint32_t v;
    __asm__ volatile("stmxcsr %0" : "=m"(v) : : "memory");
    return v;
}
static inline void host_mxcsr_write(uint32_t v) { __asm__ volatile("ldmxcsr %0" : : "m"(v) : "memory"); }

/* What the host's MXCSR holds for the guest: no flags yet. FTZ counts only while underflow is masked (SDM 1 11.5.2.5). */
static inline uint32_t mxcsr_for_host(uint32_t guest)
{
    uint32_t v = (guest & (MXCSR_RC | MXCSR_DAZ | MXCSR_FTZ)) | MXCSR_MASKS;
    return guest & MXCSR_UM ? v : v & ~MXCSR_FTZ;
}

/* Recomputes trap_sse and trap_avx; after any change of deny_sse, deny_avx or the masks in MXCSR. */
static inline void fp_update_trap(Cpu *c)
{
    bool unmasked = (c->mxcsr & MXCSR_MASKS) != MXCSR_MASKS;
    c->trap_sse = unmasked || c->deny_sse != EXC_NONE;
    c->trap_avx = unmasked || c->deny_avx != EXC_NONE;
}

/* Before the first instruction of a run and after its last one. */
static inline void fp_enter(Cpu *c)
{
    c->host_mxcsr = host_mxcsr_read();
    host_mxcsr_write(mxcsr_for_host(c->mxcsr));
    fp_update_trap(c);
    c->fp_live = true;
}
static inline void fp_leave(Cpu *c)
{
    c->mxcsr |= host_mxcsr_read() & MXCSR_FLAGS;
    host_mxcsr_write(c->host_mxcsr);
    c->fp_live = false;
}

/* Makes c->mxcsr complete and gives it. */
static inline uint32_t mxcsr_sync(Cpu *c)
{
    if (c->fp_live) {
        c->mxcsr |= host_mxcsr_read() & MXCSR_FLAGS;
        host_mxcsr_write(mxcsr_for_host(c->mxcsr));
    }
    return c->mxcsr;
}

/* Loads MXCSR; the caller has refused the reserved bits (~MXCSR_VALID). */
static inline void mxcsr_write(Cpu *c, uint32_t v)
{
    c->mxcsr = v & MXCSR_VALID;
    fp_update_trap(c);
    if (c->fp_live)
        host_mxcsr_write(mxcsr_for_host(v));
}

/* Flags that portable code has found, as if the host had raised them. */
static inline void fp_raise(uint32_t flags)
{
    if (flags)
        host_mxcsr_write(host_mxcsr_read() | flags);
}

#endif
