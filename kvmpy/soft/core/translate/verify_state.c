#include "verify_state.h"

#include "flags.h"
#include "fpenv.h"

static const struct {
    const char *name;
    uint32_t at, size;
} field[] = {
#define F(name, f) {name, offsetof(Cpu, f), sizeof ((Cpu *)0)->f}
#define G(name, n) {name, offsetof(Cpu, gpr[n]), 8}
    G("rax", RAX), G("rcx", RCX), G("rdx", RDX), G("rbx", RBX), G("rsp", RSP), G("rbp", RBP), G("rsi", RSI), G("rdi", RDI),
    G("r8", R8), G("r9", R9), G("r10", R10), G("r11", R11), G("r12", R12), G("r13", R13), G("r14", R14), G("r15", R15),
    F("eflags", eflags), F("mode", mode), F("cpl", cpl), F("shadow", shadow), F("mxcsr", mxcsr),
    F("ymm0", ymm[0]), F("ymm1", ymm[1]), F("ymm2", ymm[2]), F("ymm3", ymm[3]), F("ymm4", ymm[4]), F("ymm5", ymm[5]),
    F("ymm6", ymm[6]), F("ymm7", ymm[7]), F("ymm8", ymm[8]), F("ymm9", ymm[9]), F("ymm10", ymm[10]), F("ymm11", ymm[11]),
    F("ymm12", ymm[12]), F("ymm13", ymm[13]), F("ymm14", ymm[14]), F("ymm15", ymm[15]),
#define ST(n) {"x87 r" #n, offsetof(Cpu, x87.st[n]), 10}
    ST(0), ST(1), ST(2), ST(3), ST(4), ST(5), ST(6), ST(7),
    F("x87 control", x87.control), F("x87 status", x87.status), F("x87 tag", x87.tag), F("x87 opcode", x87.opcode),
    F("x87 ip", x87.ip), F("x87 dp", x87.dp), F("x87 cs", x87.cs), F("x87 ds", x87.ds),
    F("es", seg[SEG_ES]), F("cs", seg[SEG_CS]), F("ss", seg[SEG_SS]), F("ds", seg[SEG_DS]), F("fs", seg[SEG_FS]), F("gs", seg[SEG_GS]),
    F("tr", seg[SEG_TR]), F("ldtr", seg[SEG_LDTR]), F("gdt", gdt), F("idt", idt),
    F("es base", seg_base[SEG_ES]), F("cs base", seg_base[SEG_CS]), F("ss base", seg_base[SEG_SS]), F("ds base", seg_base[SEG_DS]),
    F("fs base", seg_base[SEG_FS]), F("gs base", seg_base[SEG_GS]),
    F("cr0", cr0), F("cr2", cr2), F("cr3", cr3), F("cr4", cr4), F("cr8", cr8), F("efer", efer), F("xcr0", xcr0), F("xss", xss),
    F("dr6", dr[6]), F("dr7", dr[7]), F("star", star), F("lstar", lstar), F("kernel_gs_base", kernel_gs_base), F("pdpte", pdpte),
#undef ST
#undef G
#undef F
};

/* What stands outside of Cpu's part. */
static const struct {
    const char *name;
    uint32_t at, size;
} other[] = {
#define F(name, f) {name, offsetof(VerifyState, f), sizeof ((VerifyState *)0)->f}
    F("rip", rip), F("left of budget", left), F("ended by", why), F("fault", fault), F("nmi_masked", nmi_masked),
    F("pending_debug", pending_debug),
#undef F
};

void verify_state_take(const Cpu *c, VerifyState *to)
{
    memcpy(to->cpu, c, sizeof to->cpu);
    to->nmi_masked = c->nmi_masked;
    to->pending_debug = c->pending_debug;
    memset(to->fault, 0, sizeof to->fault);
    if (to->why == UNWIND_FAULT) {
        to->fault[0] = (uint64_t)c->run->fault_vector;
        to->fault[1] = c->run->fault_has_error;
        to->fault[2] = c->run->fault_has_error ? c->run->fault_error : 0;
    }
}

void verify_state_restore(Cpu *c, const VerifyState *from)
{
    memcpy(c, from->cpu, sizeof from->cpu);
    c->nmi_masked = from->nmi_masked;
    c->pending_debug = from->pending_debug;
    host_mxcsr_write(mxcsr_for_host(c->mxcsr));
}

bool verify_state_same_generations(const Cpu *c, const VerifyState *s)
{
    return !memcmp(s->cpu + offsetof(Cpu, generation), c->generation, sizeof c->generation);
}

static void get(const VerifyState *s, size_t at, void *to, size_t size) { memcpy(to, s->cpu + at, size); }

const VerifyDifference *verify_state_compare(const VerifyState *a, const VerifyState *b, uint32_t undefined, unsigned *n)
{
    static __thread VerifyDifference d;
    static __thread uint64_t flags[2];
    while (*n < ARRAY_SIZE(field)) {
        unsigned k = (*n)++;
        if (!memcmp(a->cpu + field[k].at, b->cpu + field[k].at, field[k].size))
            continue;
        d = (VerifyDifference){field[k].name, field[k].size, a->cpu + field[k].at, b->cpu + field[k].at};
        return &d;
    }
    while (*n < ARRAY_SIZE(field) + ARRAY_SIZE(other)) {
        unsigned k = (*n)++ - ARRAY_SIZE(field);
        const uint8_t *left = (const uint8_t *)a + other[k].at, *right = (const uint8_t *)b + other[k].at;
        if (!memcmp(left, right, other[k].size))
            continue;
        d = (VerifyDifference){other[k].name, other[k].size, left, right};
        return &d;
    }
    if ((*n)++ == ARRAY_SIZE(field) + ARRAY_SIZE(other)) {
        get(a, offsetof(Cpu, cc_dst), &flags[0], 8);
        get(b, offsetof(Cpu, cc_dst), &flags[1], 8);
        if ((flags[0] ^ flags[1]) & FL_OSZAPC & ~undefined) {
            d = (VerifyDifference){"flags", 8, &flags[0], &flags[1]};
            return &d;
        }
    }
    return NULL;
}
