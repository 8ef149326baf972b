/* Channels of the trace: rules, the records that met them, files. */
#include "trace.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "parallel.h"
#include "run.h"
#include "trace_channel.h"

_Static_assert(sizeof(struct kp_trace_record) == 80, "the record of trace files");

#define ROOM_FIRST 4096u
#define ROOM_MOST (1u << 20)

/* ---- rules ---- */

static bool within(const uint64_t range[2], uint64_t v) { return v - range[0] <= range[1] - range[0]; }
static bool within32(const uint32_t range[2], uint32_t v) { return v - range[0] <= range[1] - range[0]; }
static bool unlimited(const uint64_t range[2]) { return range[0] == 0 && range[1] == UINT64_MAX; }

static bool has_value(unsigned kind)
{
    return kind == KP_TRACE_IO || kind == KP_TRACE_MMIO || kind == KP_TRACE_MSR || kind == KP_TRACE_MEMORY;
}

static bool meets(const struct kp_trace_rule *u, const struct kp_trace_record *r)
{
    if (u->kind != r->kind || (u->flags & (r->flags & KP_RECORD_WRITE ? KP_RULE_READ : KP_RULE_WRITE)))
        return false;
    uint64_t first = r->data[0], last = first + (r->size && r->kind != KP_TRACE_MSR ? r->size - 1u : 0);
    if (first > u->subject[1] || last < u->subject[0])
        return false;
    if (!unlimited(u->value) && (!has_value(r->kind) || (r->flags & KP_RECORD_BYTES) || !within(u->value, r->data[1])))
        return false;
    return within(u->rip, r->rip) && within32(u->size, r->size) && within32(u->vcpu, r->vcpu) && within32(u->cpl, r->cpl);
}

/* Does a channel want the record? *stop: and an answer is asked for. */
static bool wants(const Channel *ch, const struct kp_trace_record *r, uint32_t need, bool *stop)
{
    bool any = false;
    for (uint32_t n = 0; n < ch->rule_count;) {
        uint32_t group = ch->rule[n].group, flags = 0;
        bool yes = false, no = false;
        for (; n < ch->rule_count && ch->rule[n].group == group; n++) {
            const struct kp_trace_rule *u = &ch->rule[n];
            if (no || (u->flags & need) != need || (!need && (u->flags & KP_RULE_EXITS)) || !meets(u, r))
                continue;
            if (u->flags & KP_RULE_NOT)
                no = true;
            else
                yes = true, flags |= u->flags;
        }
        if (yes && !no) {
            any = true;
            *stop |= !!(flags & KP_RULE_STOP);
        }
    }
    return any;
}

/* ---- records ---- */

uint64_t trace_host_ns(const Vm *vm)
{
    if (vm->ns_per_tsc && !vm->virtual_clock) { /* as run.c's host_now: a tenth of the time */
        uint64_t tsc = __builtin_ia32_rdtsc(), past = tsc > vm->slice_tsc ? tsc - vm->slice_tsc : 0;
        return vm->clock_base + vm->slice_ns + (uint64_t)((unsigned __int128)past * vm->ns_per_tsc >> 32);
    }
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int write_all(int fd, const void *from, size_t bytes)
{
    const uint8_t *p = from;
    while (bytes) {
        ssize_t done = write(fd, p, bytes);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done ? -errno : -EIO;
        p += done;
        bytes -= (size_t)done;
    }
    return 0;
}

static int flush(Channel *ch)
{
    if (ch->fd >= 0 && ch->used && !ch->error)
        ch->error = write_all(ch->fd, ch->ring, ch->used * sizeof *ch->ring);
    if (ch->fd >= 0)
        ch->used = 0;
    return ch->error;
}

/* Room for `more` records, or false. */
static bool make_room(Channel *ch, uint32_t more)
{
    if (ch->used + more <= ch->room)
        return true;
    if (ch->fd >= 0)
        flush(ch);
    if (ch->used + more <= ch->room)
        return true;
    if (ch->room >= ROOM_MOST)
        return false;
    struct kp_trace_record *larger = realloc(ch->ring, 2 * ch->room * sizeof *larger);
    if (!larger)
        return false;
    ch->ring = larger;
    ch->room *= 2;
    return true;
}

static void append(Cpu *c, Channel *ch, const struct kp_trace_record *r, const void *bytes)
{
    uint32_t size = r->flags & KP_RECORD_BYTES ? (uint32_t)r->data[1] : 0;
    uint32_t slots = (size + sizeof *r - 1) / sizeof *r;
    if (!make_room(ch, 1 + slots)) {
        ch->lost++;
        return;
    }
    ch->ring[ch->used++] = *r;
    if (slots) {
        memset(&ch->ring[ch->used], 0, slots * sizeof *r);
        memcpy(&ch->ring[ch->used], bytes, size);
        ch->used += slots;
    }
    if (ch->fd < 0 && ch->used > ROOM_FIRST / 2)
        trace_leave(c);
}

void trace_leave(Cpu *c)
{
    if (!c->run->exit_pending)
        c->record->exit_reason = KP_EXIT_TRACE;
    c->run->exit_pending = true;
    c->attention = 1;
}

bool trace_append(Cpu *c, struct kp_trace_record *r, const void *bytes, bool served)
{
    struct Trace *t = c->vm->trace;
    bool any_stop = false;
    for (unsigned n = 0; n < KP_TRACE_CHANNELS; n++) {
        Channel *ch = &t->channel[n];
        bool stop = false;
        if (!((served ? ch->served : ch->kinds) >> r->kind & 1) || !wants(ch, r, served ? KP_RULE_SERVED : 0, &stop))
            continue;
        struct kp_trace_record kept = *r;
        kept.flags |= stop ? KP_RECORD_STOP : 0;
        if (!(ch->flags & KP_TRACE_HOST))
            kept.host = kept.guest = kept.cost = 0;
        else if (!kept.host)
            kept.host = r->host = trace_host_ns(c->vm);
        append(c, ch, &kept, bytes);
        any_stop |= stop;
    }
    return any_stop;
}

/* ---- the interface ---- */

static bool is_code(const struct kp_trace_rule *u) { return TRACE_BIT(u->kind) & TRACE_CODE; }

bool trace_page(const Vm *vm, uint64_t linear)
{
    if (!(vm->tracing & TRACE_BIT(KP_TRACE_MEMORY)))
        return false;
    for (unsigned n = 0; n < KP_TRACE_CHANNELS; n++)
        for (uint32_t k = 0; k < vm->trace->channel[n].rule_count; k++) {
            const struct kp_trace_rule *u = &vm->trace->channel[n].rule[k];
            if (u->kind == KP_TRACE_MEMORY && !(u->flags & KP_RULE_NOT) && (linear & ~0xfffull) <= u->subject[1] &&
                u->subject[0] <= (linear | 0xfff))
                return true;
        }
    return false;
}

bool trace_wants_code(const Vm *vm, unsigned kind, uint64_t linear)
{
    for (unsigned n = 0; n < KP_TRACE_CHANNELS; n++)
        for (uint32_t k = 0; k < vm->trace->channel[n].rule_count; k++) {
            const struct kp_trace_rule *u = &vm->trace->channel[n].rule[k];
            if (u->kind == kind && !(u->flags & KP_RULE_NOT) && within(u->subject, linear) && within(u->rip, linear))
                return true;
        }
    return false;
}

bool trace_wants_stop(const Vm *vm, unsigned kind, uint64_t subject, unsigned size)
{
    for (uint32_t k = 0; k < vm->trace->channel[0].rule_count; k++) {
        const struct kp_trace_rule *u = &vm->trace->channel[0].rule[k];
        if (u->kind == kind && (u->flags & KP_RULE_STOP) && subject <= u->subject[1] && u->subject[0] <= subject + (size - 1))
            return true;
    }
    return false;
}

static void close_channel(Channel *ch)
{
    free(ch->rule);
    free(ch->ring);
    *ch = (Channel){.fd = -1};
}

/* What the rules of all channels want together; code is decoded and pages are looked up anew where that changes it. */
static void rules_changed(Vm *vm, bool code, bool memory)
{
    vm->tracing = 0;
    vm->trace_served = false;
    for (unsigned n = 0; n < KP_TRACE_CHANNELS; n++) {
        vm->tracing |= vm->trace->channel[n].kinds;
        vm->trace_served |= vm->trace->channel[n].served != 0;
    }
    vm->watching = vm->watch_count || vm->tracing & TRACE_BIT(KP_TRACE_MEMORY);
    if (!vm->trace_served)
        vm->trace->exited = NULL;
    if (code)
        code_drop_all(vm);
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n]) {
            if (memory)
                tlb_flush_all(vm->cpu[n]);
            if (code)
                cpu_attention(vm->cpu[n]);
        }
}

static int set_trace(Vm *vm, uint32_t channel, const struct kp_trace_rule *rules, uint32_t count, uint32_t flags, int fd)
{
    if (channel >= KP_TRACE_CHANNELS)
        return -EINVAL;
    for (uint32_t n = 0; n < count; n++)
        if (rules[n].kind > 31 || ((rules[n].flags & KP_RULE_STOP) && (channel || vm->parallel)) ||
            ((rules[n].flags & KP_RULE_SERVED) && vm->parallel))
            return -EINVAL;
    if (!vm->trace) {
        if (!count)
            return 0;
        if (!(vm->trace = calloc(1, sizeof *vm->trace)))
            return -ENOMEM;
        for (unsigned n = 0; n < KP_TRACE_CHANNELS; n++)
            vm->trace->channel[n].fd = -1;
    }
    Channel *ch = &vm->trace->channel[channel];
    struct kp_trace_rule *copy = NULL;
    if (count) {
        if (!ch->ring) {
            ch->ring = malloc(ROOM_FIRST * sizeof *ch->ring);
            ch->room = ROOM_FIRST;
        }
        copy = malloc(count * sizeof *copy);
        if (!copy || !ch->ring) {
            free(copy);
            return -ENOMEM;
        }
        memcpy(copy, rules, count * sizeof *copy);
    }
    bool code = false, memory = false;
    for (uint32_t n = 0; n < ch->rule_count; n++) {
        code |= is_code(&ch->rule[n]);
        memory |= ch->rule[n].kind == KP_TRACE_MEMORY;
    }
    free(ch->rule);
    ch->rule = copy;
    ch->rule_count = count;
    ch->kinds = ch->served = 0;
    ch->flags = flags;
    ch->fd = fd;
    for (uint32_t n = 0; n < count; n++) {
        code |= is_code(&copy[n]);
        memory |= copy[n].kind == KP_TRACE_MEMORY;
        if (!(copy[n].flags & KP_RULE_NOT)) {
            ch->kinds |= copy[n].flags & KP_RULE_EXITS ? 0 : TRACE_BIT(copy[n].kind);
            ch->served |= copy[n].flags & KP_RULE_SERVED ? TRACE_BIT(copy[n].kind) : 0;
        }
    }
    if (!count)
        close_channel(ch);
    rules_changed(vm, code, memory);
    return 0;
}

int kp_vm_set_trace(Vm *vm, uint32_t channel, const struct kp_trace_rule *rules, uint32_t count, uint32_t flags, int fd)
{
    core_lock(vm);
    core_stop(vm);
    int result = set_trace(vm, channel, rules, count, flags, fd);
    core_unlock(vm);
    return result;
}

int kp_vm_trace_take(Vm *vm, uint32_t channel, struct kp_trace_record *out, uint32_t room)
{
    if (channel >= KP_TRACE_CHANNELS || !vm->trace)
        return 0;
    core_lock(vm);
    Channel *ch = &vm->trace->channel[channel];
    uint32_t taken = 0;
    while (taken < ch->used) {
        const struct kp_trace_record *r = &ch->ring[taken];
        uint32_t whole = 1 + (r->flags & KP_RECORD_BYTES ? ((uint32_t)r->data[1] + sizeof *r - 1) / sizeof *r : 0);
        if (taken + whole > room)
            break;
        taken += whole;
    }
    if (taken) {
        memcpy(out, ch->ring, taken * sizeof *out);
        memmove(ch->ring, ch->ring + taken, (ch->used - taken) * sizeof *out);
        ch->used -= taken;
    }
    core_unlock(vm);
    return (int)taken;
}

const uint32_t *kp_vm_trace_waiting(Vm *vm, uint32_t channel)
{
    return channel < KP_TRACE_CHANNELS && vm->trace ? &vm->trace->channel[channel].used : NULL;
}

int kp_vm_trace_flush(Vm *vm, uint32_t channel, int last)
{
    if (channel >= KP_TRACE_CHANNELS || !vm->trace)
        return 0;
    core_lock(vm);
    if (last && vm->trace_served)
        trace_answered(vm);
    int result = flush(&vm->trace->channel[channel]);
    core_unlock(vm);
    return result;
}

uint64_t kp_vm_trace_lost(Vm *vm, uint32_t channel)
{
    return channel < KP_TRACE_CHANNELS && vm->trace ? vm->trace->channel[channel].lost : 0;
}

void trace_destroy(Vm *vm)
{
    if (!vm->trace)
        return;
    for (unsigned n = 0; n < KP_TRACE_CHANNELS; n++)
        close_channel(&vm->trace->channel[n]);
    free(vm->trace);
}
