/* The places in the core that have something to tell. */
#include <errno.h>

#include "exec.h"
#include "parallel.h"
#include "run.h"
#include "system.h"
#include "trace_channel.h"

/* ---- one event ---- */

static bool is_boundary(const Cpu *c, const Insn *i) { return i == &c->run->boundary[0]; }

/* Instructions that the budget counts as retired already, `i` the first of them: a block's are taken off at its entry. */
static int64_t ahead(const Cpu *c, const Insn *i)
{
    if (is_boundary(c, i))
        return 0;
    return i->block ? i->left : c->alone;
}

/* With the core lock, which covers the channels and the clock. */
static struct kp_trace_record begin(Cpu *c, const Insn *i, unsigned kind)
{
    int64_t counted = ahead(c, i);
    c->budget += counted;
    struct kp_trace_record r = {.time = vm_now(c->vm), .kind = (uint8_t)kind, .flags = KP_RECORD_RIP, .vcpu = (uint8_t)c->index,
                                .cpl = c->cpl, .rip = insn_address(c, i)};
    c->budget -= counted;
    return r;
}

static bool emit(Cpu *c, struct kp_trace_record *r)
{
    trace_settle(c);
    return trace_append(c, r, NULL, false);
}

/* ---- asking user space ---- */

/* Abandons the instruction; user space finds the record in the channel, the next run begins it anew. */
static _Noreturn void ask(Cpu *c, const Insn *i, const struct kp_trace_record *r)
{
    memcpy(c->run->answer, r->data, sizeof c->run->answer);
    c->insn = i;
    c->record->exit_reason = KP_EXIT_TRACE;
    unwind(c, UNWIND_EXIT);
}

/* The answer to what this instruction has asked before it was begun anew. */
static bool asked(Cpu *c, uint64_t key, uint64_t *value)
{
    struct RunState *s = c->run;
    if (s->log_next >= s->log_count || s->log[s->log_next].address != key || !s->log[s->log_next].done)
        return false;
    *value = s->log[s->log_next++].value;
    return true;
}

static uint64_t tell(Cpu *c, const Insn *i, struct kp_trace_record *r, uint64_t key, uint64_t value)
{
    if (emit(c, r) && !is_boundary(c, i)) {
        struct RunState *s = c->run;
        if (s->log_next == LOG_MAX)
            s->log_next = 0;
        s->log_count = s->log_next;
        s->log[s->log_count++] = (LogEntry){.address = key, .value = value, .size = r->size, .done = true};
        ask(c, i, r);
    }
    return value;
}

static uint64_t key_of(const struct kp_trace_record *r)
{
    return LOG_ASKED | (uint64_t)r->kind << 48 | (r->data[0] & 0xffffffffffffull);
}

int kp_vcpu_trace_answer(Cpu *c, const uint64_t *values, uint32_t count)
{
    struct RunState *s = c->run;
    LogEntry *e = s->log_count ? &s->log[s->log_count - 1] : NULL;
    if (!e || !e->done || !count || count > ARRAY_SIZE(s->answer) - 1)
        return -EINVAL;
    e->value = values[0];
    if (e->address & LOG_PORT)
        memcpy(s->string_data, &values[0], 4);
    memcpy(&s->answer[1], values, count * sizeof *values);
    return 0;
}

int kp_vcpu_fault(Cpu *c, uint32_t vector, int has_error, uint32_t error)
{
    if (vector > 31 || vector == EXC_NMI)
        return -EINVAL;
    struct RunState *s = c->run;
    s->log_count = s->log_next = 0;
    s->msr_pending = false;
    c->told_linear = NEVER;
    c->events.exception.injected = 1;
    c->events.exception.nr = (uint8_t)vector;
    c->events.exception.has_error_code = has_error && c->mode & (MODE_PROT | MODE_VM86);
    c->events.exception.error_code = error;
    cpu_attention(c);
    return 0;
}

/* Is the instruction of the present exit behind the vCPU? Writes to devices are handed out once it has retired. */
static bool retired(const Cpu *c)
{
    const struct kvm_run *r = c->record;
    return r->exit_reason == KVM_EXIT_IO ? r->io.direction == KVM_EXIT_IO_OUT : r->exit_reason == KVM_EXIT_MMIO && r->mmio.is_write;
}

uint64_t kp_vcpu_position(Cpu *c, uint32_t *cpl)
{
    *cpl = c->cpl;
    return retired(c) ? c->access_linear : fetch_address(c, c->rip);
}

/* ---- accesses that the core serves ---- */

static struct kp_trace_record begin_access(Cpu *c, const Insn *i, unsigned kind, uint64_t subject, unsigned size, bool write, uint64_t value)
{
    struct kp_trace_record r = begin(c, i, kind);
    r.data[0] = subject;
    r.data[1] = value;
    r.size = (uint16_t)size;
    r.count = 1;
    r.flags |= write ? KP_RECORD_WRITE : 0;
    return r;
}

uint64_t trace_port(Cpu *c, const Insn *i, uint16_t port, unsigned size, bool write, uint64_t value)
{
    bool taken = core_take(c);
    struct kp_trace_record r = begin_access(c, i, KP_TRACE_IO, port, size, write, value);
    uint64_t key = write ? key_of(&r) : port | LOG_PORT, answer;
    uint64_t told = write && asked(c, key, &answer) ? answer : tell(c, i, &r, key, value);
    core_give(c, taken);
    return told;
}

uint64_t trace_mmio_write(Cpu *c, const Insn *i, uint64_t phys, unsigned size, uint64_t value)
{
    bool taken = core_take(c);
    struct kp_trace_record r = begin_access(c, i, KP_TRACE_MMIO, phys, size, true, value);
    uint64_t answer;
    uint64_t told = asked(c, key_of(&r), &answer) ? answer : tell(c, i, &r, key_of(&r), value);
    core_give(c, taken);
    return told;
}

void trace_mmio_read(Cpu *c, const Insn *i, uint64_t phys, unsigned size, uint64_t value)
{
    bool taken = core_take(c);
    struct kp_trace_record r = begin_access(c, i, KP_TRACE_MMIO, phys, size, false, value);
    if (emit(c, &r) && !is_boundary(c, i))
        ask(c, i, &r);
    core_give(c, taken);
}

uint64_t trace_msr(Cpu *c, const Insn *i, uint32_t index, bool write, uint64_t value, bool *served)
{
    struct kp_trace_record r = begin_access(c, i, KP_TRACE_MSR, index, 8, write, value);
    uint64_t answer;
    if (asked(c, key_of(&r), &answer)) {
        *served = true;
        return answer;
    }
    r.flags |= *served ? KP_RECORD_SERVED : 0;
    uint64_t told = tell(c, i, &r, key_of(&r), value);
    return told;
}

bool trace_stops_at(const Cpu *c, unsigned kind, uint64_t subject) { return trace_wants_stop(c->vm, kind, subject, 1); }

void trace_cpuid(Cpu *c, const Insn *i, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    bool taken = core_take(c);
    struct kp_trace_record r = begin(c, i, KP_TRACE_CPUID);
    r.data[0] = leaf;
    r.data[3] = subleaf;
    memcpy(&r.data[1], out, 16);
    uint64_t first;
    if (asked(c, key_of(&r), &first))
        memcpy(out, &c->run->answer[1], 16);
    else
        tell(c, i, &r, key_of(&r), 0);
    core_give(c, taken);
}

uint64_t trace_hypercall(Cpu *c, const Insn *i, uint64_t result)
{
    static const uint8_t arguments[] = {RBX, RCX, RDX, RSI};
    bool taken = core_take(c);
    struct kp_trace_record r = begin(c, i, KP_TRACE_HYPERCALL);
    uint64_t mask = in_64bit(c) ? ~0ull : 0xffffffff, answer;
    r.data[0] = c->gpr[RAX] & mask;
    for (unsigned n = 0; n < 4; n++)
        r.data[1 + n] = c->gpr[arguments[n]] & mask;
    uint64_t told = asked(c, key_of(&r), &answer) ? answer : tell(c, i, &r, key_of(&r), result);
    core_give(c, taken);
    return told;
}

void trace_delivery(Cpu *c, const Insn *i, int vector, int kind, bool has_error, uint32_t error)
{
    bool soft = kind == EVENT_SOFT_INT && vector != EXC_BP && vector != EXC_OF;
    bool interrupt = soft || kind == EVENT_EXTERNAL || kind == EVENT_NMI;
    unsigned what = interrupt ? KP_TRACE_IRQ : KP_TRACE_EXCEPTION;
    if (!traced(c, what))
        return;
    bool taken = core_take(c);
    struct kp_trace_record r = begin(c, i, what);
    r.data[0] = (uint64_t)vector;
    r.data[1] = error;
    r.data[2] = !interrupt && vector == EXC_PF ? c->cr2 : 0;
    r.flags |= soft || (!interrupt && has_error) ? KP_RECORD_ERROR : 0;
    if (emit(c, &r))
        trace_leave(c);
    core_give(c, taken);
}

/* ---- memory ---- */

void trace_settle(Cpu *c)
{
    struct RunState *s = c->run;
    uint32_t count = s->seen_count;
    if (!count)
        return;
    bool taken = core_take(c);
    s->seen_count = 0;
    for (uint32_t n = 0; n < count; n++)
        if (trace_append(c, &s->seen[n].record, NULL, false))
            trace_leave(c);
    core_give(c, taken);
}

void trace_forget(Cpu *c)
{
    struct RunState *s = c->run;
    uint32_t kept = 0;
    for (uint32_t n = 0; n < s->seen_count; n++)
        if (s->seen[n].rcx != c->gpr[RCX])
            s->seen[kept++] = s->seen[n];
    s->seen_count = kept;
}

void trace_before_access(Cpu *c, const Insn *i, uint64_t linear, unsigned size, bool write)
{
    (void)write;
    if (trace_wants_stop(c->vm, KP_TRACE_MEMORY, linear, size))
        require_alone(c, i); /* the stop comes right behind this instruction */
}

void trace_access(Cpu *c, const Insn *i, uint64_t linear, const void *data, unsigned size, bool write)
{
    struct RunState *s = c->run;
    bool taken = core_take(c);
    struct kp_trace_record r = begin_access(c, i, KP_TRACE_MEMORY, linear, size, write, 0);
    memcpy(&r.data[1], data, size < 32 ? size : 32);
    /* Reads wait until the instruction is sure to be ended and not begun anew: another one tells something, or this one writes. */
    if (s->seen_count && (s->seen[0].record.rip != r.rip || s->seen_count == SEEN_MAX))
        trace_settle(c);
    if (!write)
        s->seen[s->seen_count++] = (SeenRead){.record = r, .rcx = c->gpr[RCX]};
    else if (emit(c, &r))
        trace_leave(c);
    core_give(c, taken);
}

/* ---- code ---- */

/* True: a rule stops before the instruction. */
static __attribute__((noinline)) bool tell_code(Cpu *c, const Insn *i, uint32_t block)
{
    uint64_t linear = insn_address(c, i);
    if (c->told_linear == linear) {
        c->told_linear = NEVER;
        return false;
    }
    bool stop = false, taken = core_take(c);
    if (block && traced(c, KP_TRACE_BLOCK)) {
        struct kp_trace_record r = begin(c, i, KP_TRACE_BLOCK);
        r.data[0] = linear;
        r.data[1] = block;
        stop = emit(c, &r);
    }
    if (traced(c, KP_TRACE_INSTRUCTION)) {
        struct kp_trace_record r = begin(c, i, KP_TRACE_INSTRUCTION);
        r.data[0] = linear;
        stop |= emit(c, &r);
    }
    if (stop) {
        c->told_linear = linear;
        trace_leave(c);
    }
    core_give(c, taken);
    return stop;
}

/* Stands before the handler of an instruction whose beginning is told. */
static const Insn *exec_told(Cpu *c, const Insn *i)
{
    if (unlikely(tell_code(c, i, i == i->block->insn ? i->block->count : 0)))
        return insn_leave(c, i);
    return block_originals(i->block)[i - i->block->insn](c, i);
}

bool trace_block(Cpu *c, Block *b, uint64_t linear)
{
    exec_fn *original = block_originals(b);
    bool each = traced(c, KP_TRACE_INSTRUCTION), told = false;
    for (unsigned n = 0; n < b->count; n++) {
        uint64_t at = n ? linear + (b->insn[n].next_rip - b->insn[n].len - b->rip) : linear;
        original[n] = b->insn[n].exec;
        if ((each && trace_wants_code(c->vm, KP_TRACE_INSTRUCTION, at)) || (n == 0 && trace_wants_code(c->vm, KP_TRACE_BLOCK, at))) {
            b->insn[n].exec = exec_told;
            told = true;
        }
    }
    return told;
}

bool trace_alone(Cpu *c, const Insn *i) { return tell_code(c, i, 1); }

/* ---- what user space serves ---- */

static uint32_t saturated(uint64_t ns) { return ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns; }

void trace_exit(Cpu *c)
{
    struct Trace *t = c->vm->trace;
    const struct kvm_run *run = c->record;
    uint32_t cpl;
    struct kp_trace_record r = {.flags = KP_RECORD_RIP, .vcpu = (uint8_t)c->index, .count = 1};
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        r.kind = KP_TRACE_IO;
        r.data[0] = run->io.port;
        r.size = run->io.size;
        r.count = (uint16_t)run->io.count;
        r.flags |= run->io.direction == KVM_EXIT_IO_OUT ? KP_RECORD_WRITE : 0;
        break;
    case KVM_EXIT_MMIO:
        r.kind = KP_TRACE_MMIO;
        r.data[0] = run->mmio.phys_addr;
        r.size = (uint16_t)run->mmio.len;
        r.flags |= run->mmio.is_write ? KP_RECORD_WRITE : 0;
        break;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        r.kind = KP_TRACE_MSR;
        r.data[0] = run->msr.index;
        r.size = 8;
        r.flags |= run->exit_reason == KVM_EXIT_X86_WRMSR ? KP_RECORD_WRITE : 0;
        break;
    case KVM_EXIT_INTR:
        return; /* nothing is answered: the guest's time goes on */
    default:
        break;
    }
    t->left = trace_host_ns(c->vm);
    t->exited = NULL;
    if (!r.kind)
        return;
    r.time = vm_now(c->vm) - (c->vm->virtual_clock && retired(c));
    r.rip = kp_vcpu_position(c, &cpl);
    r.cpl = (uint8_t)cpl;
    r.guest = t->entered ? saturated(t->left - t->entered) : 0;
    t->access = r;
    t->exited = c;
}

void trace_answered(Vm *vm)
{
    struct Trace *t = vm->trace;
    Cpu *c = t->exited;
    uint64_t now = trace_host_ns(vm);
    if (t->left >= t->entered)
        t->entered = now;
    if (!c)
        return;
    t->exited = NULL;
    struct kp_trace_record *r = &t->access;
    const struct kvm_run *run = c->record;
    const uint8_t *data = r->kind == KP_TRACE_IO ? (const uint8_t *)run + 4096 : run->mmio.data;
    unsigned bytes = (unsigned)r->size * r->count;
    if (r->kind == KP_TRACE_MSR) {
        r->data[1] = run->msr.data;
        r->flags |= run->msr.error ? 0 : KP_RECORD_SERVED;
    } else if (bytes <= 8) {
        memcpy(&r->data[1], data, bytes);
    } else {
        r->data[1] = bytes <= 4096 ? bytes : 4096;
        r->flags |= KP_RECORD_BYTES;
    }
    r->host = t->left;
    r->cost = saturated(now - t->left);
    trace_append(c, r, data, true);
}
