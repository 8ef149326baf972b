/* The run loop: slices, faults, events at instruction boundaries, exits to user space. */
#define _GNU_SOURCE /* ppoll */
#include "run.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "coverage.h"
#include "exec.h"
#include "fpenv.h"
#include "monitor.h"
#include "parallel.h"
#include "system.h"
#include "timing.h"
#include "translate/verify.h"

#define SLICE 8192        /* instructions between looks at timers, kicks and user space */
#define SLICE_TRANSLATED 32768 /* the same where translated code runs some times as fast */
#define SLICE_SHARED 2048 /* the same where several vCPUs take turns */
#define EVENTS 1024       /* deliveries after which a slice ends: a handler that faults at once retires nothing, yet time goes on */
#define VISIT_NS 20000000 /* control goes back to Python this often, for its signals */

void unwind(Cpu *c, int why)
{
    jmp_buf *stretch = unlikely(c->vm->verifier) ? verify_unwinding(c->vm) : NULL;
    _longjmp(stretch ? *stretch : c->run->unwind, why);
}

static _Noreturn void fault(Cpu *c, const Insn *i, int vector, bool has_error, uint32_t error)
{
    struct RunState *r = c->run;
    r->fault_vector = vector;
    r->fault_has_error = has_error;
    r->fault_error = error;
    c->insn = i;
    unwind(c, UNWIND_FAULT);
}

void raise_fault(Cpu *c, const Insn *i, int vector) { fault(c, i, vector, false, 0); }
void raise_error(Cpu *c, const Insn *i, int vector, uint32_t error)
{
    fault(c, i, vector, c->mode & (MODE_PROT | MODE_VM86), error); /* real mode pushes no error codes */
}

void raise_page_fault(Cpu *c, const Insn *i, uint64_t linear, uint32_t error)
{
    c->cr2 = linear;
    fault(c, i, EXC_PF, true, error);
}

void raise_shutdown(Cpu *c) { unwind(c, UNWIND_SHUTDOWN); }

/* ---- time ---- */

static uint64_t host_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t retired_now(const Vm *vm)
{
    return vm->retired + (vm->current ? (uint64_t)(vm->current->run->slice - vm->current->budget) : 0);
}

/* The host's clock by its TSC, which is read in a tenth of the time: linear from the reading of both that began the slice.
   Never goes back: an estimate ahead of the clock is held until the clock has passed it. */
static uint64_t host_now(Vm *vm)
{
    uint64_t ns;
    if (vm->parallel)
        return host_ns() - vm->clock_base;
    if (vm->current && vm->ns_per_tsc) {
        uint64_t tsc = __builtin_ia32_rdtsc();
        ns = vm->slice_ns + (tsc > vm->slice_tsc ? (uint64_t)((unsigned __int128)(tsc - vm->slice_tsc) * vm->ns_per_tsc >> 32) : 0);
    } else {
        ns = host_ns() - vm->clock_base;
    }
    return ns < vm->last_ns ? vm->last_ns : (vm->last_ns = ns);
}

static void begin_slice_clock(Vm *vm)
{
    if (vm->virtual_clock || vm->parallel)
        return;
    uint64_t ns = host_ns() - vm->clock_base, tsc = __builtin_ia32_rdtsc();
    if (!vm->first_tsc) {
        vm->first_tsc = tsc;
        vm->first_ns = ns;
    } else if (tsc - vm->first_tsc > 1000000) { /* a base long enough for six digits */
        vm->ns_per_tsc = (uint64_t)(((unsigned __int128)(ns - vm->first_ns) << 32) / (tsc - vm->first_tsc));
    }
    vm->slice_ns = ns;
    vm->slice_tsc = tsc;
}

/* Virtual time: an instruction takes a nanosecond. */
uint64_t vm_now(Vm *vm) { return vm->virtual_clock ? retired_now(vm) + vm->virtual_skip : host_now(vm); }

uint64_t cpu_tsc(Cpu *c)
{
    uint64_t ns = vm_now(c->vm), khz = c->vm->tsc_khz;
    uint64_t ticks = khz == 1000000 ? ns : (uint64_t)((unsigned __int128)ns * khz / 1000000);
    return ticks + c->tsc_offset + c->tsc_adjust;
}

uint64_t cpu_icount(const Cpu *c)
{
    return c->stat[STAT_INSTRUCTIONS] + (c->run->slicing ? (uint64_t)(c->run->slice - c->budget) : 0);
}

/* ---- attention ---- */

void cpu_attention(Cpu *c)
{
    c->run->check = true;
    __atomic_store_n(&c->attention, 1, __ATOMIC_RELEASE);
    if (unlikely(c->parallel))
        core_wake(c);
}

void cpu_end_slice(Cpu *c)
{
    __atomic_store_n(&c->run->ending, true, __ATOMIC_RELEASE);
    cpu_attention(c);
}

void cpu_timer_changed(Cpu *c)
{
    /* The slice ends, so that the next one is cut to the earliest deadline again. */
    if (c->parallel) {
        cpu_end_slice(c);
        return;
    }
    cpu_attention(c);
    c->vm->timers_changed = true;
}

void cpu_exit_after(Cpu *c, uint32_t exit_reason)
{
    c->record->exit_reason = exit_reason;
    c->run->exit_pending = true;
    c->attention = 1;
}

/* ---- events ---- */

static bool slow_steps(Cpu *c)
{
    return c->eflags & FL_TF || any_breakpoint(c) || (c->guest_debug.control & KVM_GUESTDBG_ENABLE) ||
           c->resume_linear == fetch_address(c, c->rip);
}

void exit_debug(Cpu *c, uint32_t exception, uint64_t dr6)
{
    struct kvm_run *r = c->record;
    r->exit_reason = KVM_EXIT_DEBUG;
    r->debug.arch.exception = exception;
    r->debug.arch.pc = fetch_address(c, c->rip);
    r->debug.arch.dr6 = dr6 | 0xffff0ff0;
    r->debug.arch.dr7 = c->dr[7];
    c->run->exit_pending = true;
}

static void shutdown(Cpu *c)
{
    c->record->exit_reason = KVM_EXIT_SHUTDOWN;
    c->run->exit_pending = true;
    c->run->delivering = -1;
}

/* Delivers the event that stands in the state of the run; what its delivery raises comes back through the unwinding. */
static void deliver_noted(Cpu *c)
{
    struct RunState *r = c->run;
    int kind = r->delivering_kind;
    c->alone = true;
    c->halted = false;
    mwait_end(c);
    r->log_next = 0;
    cpu_deliver(c, r->delivering, kind, r->delivering_has_error, r->delivering_error);
    c->alone = false;
    r->delivering = -1;
    forget_accesses(c);
    c->stat[kind == EVENT_EXTERNAL ? STAT_INTERRUPTS : STAT_EXCEPTIONS]++;
    if (++c->vm->deliveries % EVENTS == 0) {
        c->vm->virtual_skip += EVENTS;
        if (c->parallel)
            r->ending = true;
        else
            c->vm->timers_changed = true;
    }
    if (!r->delivering_fault)
        return;
    if (c->guest_debug.control & KVM_GUESTDBG_SINGLESTEP)
        c->pending_debug |= 0x4000;
    if (r->stop_at != NEVER) { /* a step of the host ends with the exception taken, before its handler's first instruction */
        r->stop_at = 0;
        r->slice -= c->budget;
        c->budget = 0;
    }
}

static void note_event(Cpu *c, int vector, int kind, bool has_error, uint32_t error, bool fault)
{
    struct RunState *r = c->run;
    r->delivering = vector;
    r->delivering_kind = kind;
    r->delivering_has_error = has_error;
    r->delivering_error = error;
    r->delivering_fault = fault;
    r->redelivering = false;
}

static void deliver(Cpu *c, int vector, int kind, bool has_error, uint32_t error)
{
    note_event(c, vector, kind, has_error, error, false);
    deliver_noted(c);
}

static void debug_trap(Cpu *c, uint64_t dr6)
{
    if (dr6 & DEBUG_POINT) {
        c->pending_debug = dr6 & ~DEBUG_POINT; /* what else the instruction met follows */
        exit_debug(c, EXC_DB, 0);
        return;
    }
    if (c->guest_debug.control & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP)) {
        bool step = (dr6 & 0x4000) && (c->guest_debug.control & KVM_GUESTDBG_SINGLESTEP);
        bool hw = (dr6 & 15) && (c->guest_debug.control & KVM_GUESTDBG_USE_HW_BP);
        if (step || hw) {
            exit_debug(c, EXC_DB, dr6);
            return;
        }
    }
    c->dr[6] = (c->dr[6] & ~15ull) | dr6;
    c->dr[7] &= ~(1ull << 13); /* GD */
    deliver(c, EXC_DB, EVENT_EXCEPTION, false, 0);
}

static void on_fault(Cpu *c)
{
    struct RunState *r = c->run;
    int vector = r->fault_vector;
    bool has_error = r->fault_has_error;
    uint32_t error = r->fault_error;
    if (r->delivering >= 0) {
        /* a fault of delivering an exception; interrupts count as benign */
        int first = r->delivering_kind == EVENT_EXCEPTION ? r->delivering : EXC_DB;
        int next = cpu_combine(first, vector);
        if (next != vector)
            note_delivery(c, vector, EVENT_EXCEPTION, has_error, error, c->rip)->outcome = KP_DELIVERY_MET;
        if (next < 0) {
            shutdown(c);
            return;
        }
        if (next != vector) {
            vector = next;
            has_error = true;
            error = 0;
        }
        c->alone = false;
        forget_accesses(c);
        r->write_count = 0;
    } else {
        const Insn *i = c->insn;
        if (i != &r->boundary[0]) {
            refund(c, i);
            if (!i->block)
                c->budget++;
            c->rip = i->next_rip - i->len;
            if (!in_64bit(c))
                c->rip = (c->mode & MODE_SIZE) == MODE_16 ? (uint16_t)c->rip : (uint32_t)c->rip;
        }
        c->alone = false;
        forget_accesses(c);
        r->write_count = 0;
        if (vector == EXC_DB) { /* a fault-type #DB: general detect or instruction breakpoint have set DR6 */
            deliver(c, EXC_DB, EVENT_EXCEPTION, false, 0);
            return;
        }
        c->eflags |= FL_RF; /* SDM 3B 18.3.1.1; delivery clears it, a shutdown leaves it to be seen */
    }
    note_event(c, vector, EVENT_EXCEPTION, has_error, error, true);
    deliver_noted(c);
}

/* The instruction that has to run alone, or is abandoned for an answer of user space: back to before it. */
static void abandon(Cpu *c)
{
    const Insn *i = c->insn;
    struct RunState *r = c->run;
    r->write_count = 0;
    r->log_next = 0;
    if (TRACE_IN)
        trace_forget(c);
    if (i == &r->boundary[0])
        return;
    refund(c, i);
    if (!i->block)
        c->budget++;
    c->rip = i->next_rip - i->len;
    if (!in_64bit(c))
        c->rip = (c->mode & MODE_SIZE) == MODE_16 ? (uint16_t)c->rip : (uint32_t)c->rip;
}

static bool is_insn(const Insn *i, const char *mnemonic) { return !strncmp(insn_table[i->id].mnemonic, mnemonic, strlen(mnemonic)); }

/* fresh: the instruction is not one that was begun already and has to run alone, or had to wait for an answer. */
static void step_alone(Cpu *c, bool fresh)
{
    struct RunState *r = c->run;
    uint32_t flags_before = c->eflags;
    uint8_t shadow_before = c->shadow;
    uint64_t linear = fetch_address(c, c->rip);
    c->stat[STAT_ALONE]++;
    bool resumed = c->resume_linear == linear;
    if (unlikely(c->vm->breaking) && !resumed && r->log_count == 0 && point_at(c->vm, linear)) {
        exec_point(c, NULL);
        return;
    }
    if (!(flags_before & FL_RF) && r->log_count == 0) {
        uint64_t hit = breakpoints_at(c, linear);
        if (hit) {
            if (c->guest_debug.control & KVM_GUESTDBG_USE_HW_BP) {
                exit_debug(c, EXC_DB, hit);
                return;
            }
            c->dr[6] = (c->dr[6] & ~15ull) | hit;
            c->eflags |= FL_RF;
            deliver(c, EXC_DB, EVENT_EXCEPTION, false, 0);
            return;
        }
    }
    block_decode_alone(c, r->alone);
    if ((c->guest_debug.control & KVM_GUESTDBG_USE_SW_BP) && is_insn(r->alone, "int3")) {
        exit_debug(c, EXC_BP, 0);
        return;
    }
    if (TRACE_IN && unlikely(c->vm->tracing & TRACE_CODE) && fresh && trace_alone(c, r->alone))
        return;
    if (unlikely(c->vm->covering))
        cover_alone(c, r->alone);
    c->alone = true;
    c->budget--;
    r->log_next = 0;
    run_insns(c, r->alone);
    c->alone = false;
    if (unlikely(c->vm->covering))
        cover_alone_end(c, r->alone);
    if (resumed)
        c->resume_linear = NEVER;
    forget_accesses(c);
    if (c->shadow == shadow_before)
        c->shadow = 0;
    if ((flags_before & FL_RF) && (c->eflags & FL_RF) && !is_insn(r->alone, "iret"))
        c->eflags &= ~FL_RF;
    /* INT n and its like clear TF before the trap would be taken (SDM 3B 18.3.1.4) */
    bool trap = flags_before & FL_TF && !(is_insn(r->alone, "int") && !(c->eflags & FL_TF));
    if ((trap || (c->guest_debug.control & KVM_GUESTDBG_SINGLESTEP)) && c->shadow != 2)
        c->pending_debug |= 0x4000;
}

/* Interrupt window, NMI, INIT, SIPI, external interrupts. True: something was done, look again. */
static bool take_event(Cpu *c)
{
    struct RunState *r = c->run;
    struct kvm_vcpu_events *e = &c->events;
    if (c->init_pending) {
        cpu_reset(c, true);
        return true;
    }
    if (c->wait_sipi) {
        if (!c->sipi_pending)
            return false;
        c->sipi_pending = false;
        c->wait_sipi = false;
        c->seg[SEG_CS].selector = (uint16_t)(c->sipi_vector << 8);
        c->seg[SEG_CS].base = (uint64_t)c->sipi_vector << 12;
        c->rip = 0;
        cpu_update_mode(c);
        return true;
    }
    bool stepping = (c->guest_debug.control & KVM_GUESTDBG_SINGLESTEP) && (c->guest_debug.control & KVM_GUESTDBG_BLOCKIRQ);
    if (c->pending_debug) {
        uint64_t bits = c->pending_debug;
        c->pending_debug = 0;
        debug_trap(c, bits);
        return true;
    }
    if (e->exception.injected || e->exception.pending) {
        e->exception.injected = e->exception.pending = 0;
        deliver(c, e->exception.nr, EVENT_EXCEPTION, e->exception.has_error_code, e->exception.error_code);
        return true;
    }
    if (e->interrupt.injected) {
        e->interrupt.injected = 0;
        deliver(c, e->interrupt.nr, e->interrupt.soft ? EVENT_SOFT_INT : EVENT_EXTERNAL, false, 0);
        return true;
    }
    if (unlikely(stepping))
        return false;
    if (c->nmi_pending && !c->nmi_masked && !c->shadow) {
        c->nmi_pending = false;
        c->nmi_masked = true;
        deliver(c, EXC_NMI, EVENT_NMI, false, 0);
        return true;
    }
    if (!(c->eflags & FL_IF) || c->shadow)
        return false;
    if (c->queued_interrupt >= 0) {
        int vector = c->queued_interrupt;
        c->queued_interrupt = -1;
        deliver(c, vector, EVENT_EXTERNAL, false, 0);
        return true;
    }
    if (c->lapic && r->check) {
        if (chips_pending(c) >= 0) {
            int vector = chips_acknowledge(c);
            if (vector >= 0) {
                deliver(c, vector, EVENT_EXTERNAL, false, 0);
                return true;
            }
        }
        r->check = false;
    }
    return false;
}

/* One pending MMIO write becomes the exit of this run. */
static bool exit_write(Cpu *c)
{
    struct RunState *r = c->run;
    if (r->write_next >= r->write_count) {
        r->write_next = r->write_count = 0;
        return false;
    }
    const PendingWrite *w = &r->write[r->write_next++];
    c->record->exit_reason = KVM_EXIT_MMIO;
    c->record->mmio.phys_addr = w->phys;
    c->record->mmio.len = w->size;
    c->record->mmio.is_write = 1;
    memcpy(c->record->mmio.data, &w->value, 8);
    r->exit_pending = true;
    c->stat[STAT_MMIO_EXITS]++;
    return true;
}

/* Fields that KVM fills at every exit. */
void run_fill_record(Cpu *c)
{
    struct kvm_run *r = c->record;
    r->if_flag = !!(c->eflags & FL_IF);
    r->cr8 = c->lapic ? lapic_get_cr8(c) : c->cr8;
    r->apic_base = c->apic_base;
    r->flags = 0;
    if (TRACE_IN && unlikely(c->vm->trace_served))
        trace_exit(c);
    uint32_t cpl;
    exits_add(&c->run->exits, r, kp_vcpu_position(c, &cpl));
    r->ready_for_interrupt_injection = !c->lapic && (c->eflags & FL_IF) && !c->shadow && c->queued_interrupt < 0;
}

/* Takes user space's answers to the exit before. */
static void take_answers(Cpu *c)
{
    struct RunState *r = c->run;
    exits_answered(&r->exits, c->record);
    if (r->log_count && !r->log[r->log_count - 1].done) {
        LogEntry *e = &r->log[r->log_count - 1];
        if (r->log_rip != c->rip) { /* user space moved RIP: the instruction is not resumed */
            r->log_count = r->log_next = 0;
        } else {
            if (e->address & LOG_PORT)
                memcpy(r->string_data, (uint8_t *)c->record + c->record->io.data_offset, e->size <= 1024 ? e->size : 1024);
            else
                memcpy(&e->value, c->record->mmio.data, e->size);
            e->done = true;
        }
    }
    if (r->msr_pending) {
        r->msr_pending = false;
        msr_complete(c);
    }
}

/* Other things than its budget that end c's slice. */
static bool slice_over(const Cpu *c)
{
    const Vm *vm = c->vm;
    if (c->parallel)
        return c->run->ending || c->run->rang || __atomic_load_n(&c->run->kicked, __ATOMIC_ACQUIRE);
    return vm->timers_changed || vm->rung || (vm->kicked && !vm->virtual_clock);
}

/* Runs c for at most `budget` instructions. exact: for just so many, where nothing else ends the slice; otherwise it ends before
   the block that would go beyond, which depends on nothing but the instructions either. */
int run_slice(Cpu *c, int64_t budget, bool exact)
{
    Vm *vm = c->vm;
    struct RunState *r = c->run;
    vm->current = c->parallel ? NULL : c;
    if (!(c->pending_debug & DEBUG_POINT))
        c->debug_hit.kind = 0;
    r->slice = c->budget = budget;
    r->slicing = true;
    begin_slice_clock(vm);
    r->time_kind = TIME_OUTSIDE;
    time_goes_to(c, TIME_INTERPRETED);
    int result;
    fp_enter(c);
    int why = _setjmp(r->unwind);
    core_take(c); /* after an unwinding of what ran without it */
    if (why) {
        switch (why) {
        case UNWIND_FAULT:
            on_fault(c);
            break;
        case UNWIND_ALONE:
            abandon(c);
            if (c->insn->block) {
                uint64_t *seen = &r->io_rip[fetch_address(c, c->rip) % IO_RIPS];
                if (*seen != fetch_address(c, c->rip)) {
                    *seen = fetch_address(c, c->rip);
                    code_written(vm, c->insn->block->phys, 1); /* decoded again, it ends behind this instruction */
                }
            }
            r->log_count = 0;
            step_alone(c, false);
            break;
        case UNWIND_EXIT:
            c->alone = false;
            abandon(c);
            r->log_rip = c->rip;
            r->exit_pending = true;
            if (c->record->exit_reason != KP_EXIT_TRACE)
                c->stat[c->record->exit_reason == KVM_EXIT_IO ? STAT_IO_EXITS : STAT_MMIO_EXITS]++;
            break;
        case UNWIND_ROOM: /* between two blocks */
            break;
        default:
            shutdown(c);
            break;
        }
    } else {
        take_answers(c);
        if (r->delivering >= 0) {
            r->redelivering = true;
            deliver_noted(c);
        } else if (r->log_count) {
            step_alone(c, false);
        }
    }
    for (;;) {
        c->attention = 0;
        if (unlikely(vm->crowded) && !c->parallel)
            code_make_room(vm);
        if (TRACE_IN && unlikely(r->seen_count))
            trace_settle(c);
        if (r->write_count && exit_write(c)) {
            result = SLICE_EXIT;
            break;
        }
        if (r->exit_pending) {
            result = SLICE_EXIT;
            break;
        }
        if (slice_over(c) || c->budget <= 0) {
            result = SLICE_DONE;
            break;
        }
        if (take_event(c))
            continue;
        if (c->waiting && mwait_over(c))
            mwait_end(c);
        if (c->halted || c->waiting || c->wait_sipi) {
            result = SLICE_HALTED;
            break;
        }
        if (!c->lapic && c->record->request_interrupt_window && (c->eflags & FL_IF) && !c->shadow && c->queued_interrupt < 0) {
            c->record->exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
            r->exit_pending = true;
            continue;
        }
        r->slow_steps = slow_steps(c);
        if (r->slow_steps || c->shadow) {
            step_alone(c, true);
            continue;
        }
        Block *b = block_find(c);
        if (unlikely(vm->verifier) && verify_apart(b->insn)) {
            step_alone(c, true);
            continue;
        }
        if (unlikely(b->count > c->budget)) {
            if (!exact) { /* the next turn is longer than any block */
                result = SLICE_SHORT;
                break;
            }
            step_alone(c, true);
            continue;
        }
        if (unlikely(c->eflags & FL_RF) && !resume_flag_done(c, b)) {
            step_alone(c, true);
            continue;
        }
        if (unlikely(vm->verifier) && verify_stretch(c))
            continue;
        c->budget -= b->count;
        core_give(c, c->parallel);
        run_insns(c, b->insn);
        core_take(c);
        forget_accesses(c); /* the last instruction of a block may have reached a device, and has retired */
    }
    fp_leave(c);
    time_goes_to(c, TIME_OUTSIDE);
    uint64_t used = (uint64_t)(r->slice - c->budget);
    r->slicing = false;
    vm->current = NULL;
    vm->retired += used;
    c->stat[STAT_INSTRUCTIONS] += used;
    r->exit_pending = false;
    return result;
}

uint64_t run_deadline(Vm *vm)
{
    uint64_t d = vm->deadline;
    if (vm->chips) {
        uint64_t chips = chips_deadline(vm->chips);
        if (chips < d)
            d = chips;
    }
    return d;
}

/* Could c run now? An event for a halted one wakes it. */
bool run_runnable(Cpu *c)
{
    if (!c || (c->wait_sipi && !c->sipi_pending && !c->init_pending))
        return false;
    if ((!c->halted && !c->waiting) || c->init_pending || c->pending_debug || (c->nmi_pending && !c->nmi_masked))
        return true;
    if (c->waiting && mwait_over(c))
        return true;
    if (!(c->eflags & FL_IF))
        return false;
    return c->queued_interrupt >= 0 || (c->lapic && chips_pending(c) >= 0);
}

/* Halted, and nothing that the chips or devices do can ever wake it. */
static bool dead(const Cpu *c) { return c->wait_sipi || (c->halted && !(c->eflags & FL_IF)); }

/* Linux lets a sleep be 50 us late unless told otherwise (prctl(2), PR_SET_TIMERSLACK): too late for a guest's timers. */
int run_timer_slack(int ns)
{
    int before = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    if (ns > 0)
        prctl(PR_SET_TIMERSLACK, ns, 0, 0, 0);
    return before;
}

uint64_t run_visit(void) { return host_ns() + VISIT_NS; }

/* Sleeps until a timer is due, a kick comes, or it is time to visit Python. True: `visit` is over. */
static bool sleep_until(Vm *vm, uint64_t deadline, uint64_t visit)
{
    if (vm->virtual_clock) {
        if (deadline == NEVER) /* only a device's host end can wake the guest: real time has to pass */
            deadline = vm_now(vm) + 1000000;
        uint64_t now = vm_now(vm);
        if (deadline > now)
            vm->virtual_skip += deadline - now;
        if (run_deadline(vm) != NEVER)
            return host_ns() >= visit;
        deadline = NEVER;
    }
    uint64_t now = host_ns(), until = visit;
    if (deadline != NEVER && deadline + vm->clock_base < until)
        until = deadline + vm->clock_base;
    if (until > now) {
        struct timespec t = {(time_t)((until - now) / 1000000000u), (long)((until - now) % 1000000000u)};
        struct pollfd p = {.fd = vm->wake_fd, .events = POLLIN};
        int slack = run_timer_slack(1);
        int woken = ppoll(&p, 1, &t, NULL);
        run_timer_slack(slack);
        if (woken > 0) {
            uint64_t count;
            if (read(vm->wake_fd, &count, sizeof count) < 0)
                count = 0;
        }
    }
    return host_ns() >= visit;
}

int run_interrupted(Cpu *c)
{
    c->vm->kicked = false;
    c->record->exit_reason = KVM_EXIT_INTR;
    run_fill_record(c);
    return -EINTR;
}

bool run_step_done(Cpu *c, int64_t *budget)
{
    struct RunState *r = c->run;
    if (r->stop_at == NEVER)
        return false;
    /* an MSR access whose answer is still to be taken, and further writes to devices, belong to the last instruction */
    bool unfinished = r->msr_pending || r->write_next < r->write_count;
    uint64_t done = c->stat[STAT_INSTRUCTIONS];
    if (done >= r->stop_at && !unfinished) {
        exit_debug(c, EXC_DB, 0x4000);
        r->exit_pending = false;
        r->stop_at = NEVER;
        run_fill_record(c);
        return true;
    }
    uint64_t left = r->stop_at > done ? r->stop_at - done : 0;
    if (left < (uint64_t)*budget)
        *budget = (int64_t)left;
    return false;
}

bool run_halt_exits(Cpu *c)
{
    if (c->lapic || !c->halted || c->pending_debug) /* a trap behind HLT wakes */
        return false;
    c->halted = false;
    c->record->exit_reason = KVM_EXIT_HLT;
    c->stat[STAT_HALTS]++;
    return true;
}

/* The vCPU `only`, or all in turns. Index of the one that exited, -EINTR, or -EAGAIN: call again (Python's signals first). */
static int run(Vm *vm, Cpu *only)
{
    uint64_t visit = run_visit();
    if (TRACE_IN && unlikely(vm->trace_served))
        trace_answered(vm);
    bool shared = !only && vm->cpu_count > 1;
    for (;;) {
        Cpu *c = only;
        uint64_t now = vm_now(vm);
        vm->timers_changed = false;
        if (vm->chips && chips_deadline(vm->chips) <= now)
            chips_tick(vm->chips, now);
        if (!c) {
            for (uint32_t n = 0; n < vm->cpu_count && !c; n++)
                if (run_runnable(vm->cpu[(vm->turn + n) % vm->cpu_count])) {
                    if (n)
                        vm->turn_left = 0;
                    vm->turn = (vm->turn + n) % vm->cpu_count;
                    c = vm->cpu[vm->turn];
                }
        } else if (!run_runnable(c))
            c = NULL;
        Cpu *speaker = c ? c : only ? only : vm->cpu[0];
        if (vm->kicked || vm->rung || speaker->record->immediate_exit)
            return run_interrupted(speaker);
        if (vm->deadline <= now) {
            vm->deadline = NEVER;
            return run_interrupted(speaker);
        }
        if (!c) {
            bool all_dead = true;
            for (uint32_t n = 0; n < vm->cpu_count; n++)
                if (vm->cpu[n] && !dead(vm->cpu[n]))
                    all_dead = false;
            if (all_dead && !(only && only->wait_sipi)) {
                Cpu *h = only;
                for (uint32_t n = 0; n < vm->cpu_count && !h; n++)
                    if (vm->cpu[n] && vm->cpu[n]->halted)
                        h = vm->cpu[n];
                if (!h)
                    h = vm->cpu[0];
                h->record->exit_reason = KVM_EXIT_HLT;
                run_fill_record(h);
                return (int)h->index;
            }
            if (sleep_until(vm, run_deadline(vm), visit))
                return -EAGAIN;
            continue;
        }
        if (vm->turn_left <= 0)
            vm->turn_left = shared ? SLICE_SHARED : vm->translator ? SLICE_TRANSLATED : SLICE;
        int64_t budget = vm->turn_left;
        uint64_t deadline = run_deadline(vm);
        if (vm->virtual_clock && deadline != NEVER && deadline - now < (uint64_t)budget)
            budget = deadline > now ? (int64_t)(deadline - now) : 1;
        if (run_step_done(c, &budget))
            return (int)c->index;
        int result = run_slice(c, budget, budget < vm->turn_left);
        vm->turn_left -= c->run->slice - c->budget;
        if (result == SLICE_EXIT) {
            run_fill_record(c);
            return (int)c->index;
        }
        if (run_halt_exits(c)) { /* also where the slice ended with HLT */
            run_fill_record(c);
            return (int)c->index;
        }
        if (result == SLICE_HALTED || result == SLICE_SHORT || vm->turn_left <= 0) {
            vm->turn_left = 0;
            if (shared)
                vm->turn = (c->index + 1) % vm->cpu_count;
        }
        if (host_ns() >= visit)
            return -EAGAIN;
    }
}

/* In turns one thread runs them all. */
static int run_turns(Vm *vm, Cpu *only)
{
    vm->running = 1;
    int r = run(vm, only);
    vm->running = 0;
    return r;
}

static int run_one(Cpu *c)
{
    if (!c->parallel)
        return run_turns(c->vm, c);
    __atomic_fetch_add(&c->vm->running, 1, __ATOMIC_ACQ_REL);
    int r = run_parallel(c);
    __atomic_fetch_sub(&c->vm->running, 1, __ATOMIC_ACQ_REL);
    return r;
}

int kp_vm_run(Vm *vm) { return vm->parallel ? -EINVAL : run_turns(vm, NULL); }

int kp_vm_running(Vm *vm) { return __atomic_load_n(&vm->running, __ATOMIC_ACQUIRE) != 0; }

int kp_vcpu_run(Cpu *c)
{
    int r = run_one(c);
    return r < 0 ? r : 0;
}

int kp_vcpu_step(Cpu *c, uint64_t count)
{
    if (c->run->stop_at == NEVER)
        c->run->stop_at = c->stat[STAT_INSTRUCTIONS] + count;
    int r;
    while ((r = run_one(c)) == -EAGAIN)
        ;
    if (c->record->exit_reason == KVM_EXIT_DEBUG)
        c->run->stop_at = NEVER;
    return r < 0 ? r : 0;
}

void kp_vcpu_kick(Cpu *c)
{
    Vm *vm = c->vm;
    uint64_t one = 1;
    if (c->parallel) {
        core_kick(c);
        return;
    }
    __atomic_store_n(&vm->kicked, true, __ATOMIC_RELEASE);
    /* Under virtual time a turn goes on to its end, some microseconds later: where host time cut it, code would be looked up
       anew and translations filled that an undisturbed run does not fill. */
    for (uint32_t n = 0; !vm->virtual_clock && n < vm->cpu_count; n++)
        if (vm->cpu[n])
            __atomic_store_n(&vm->cpu[n]->attention, 1, __ATOMIC_RELEASE);
    if (write(vm->wake_fd, &one, sizeof one) < 0)
        return; /* the counter is full: it is readable then anyway */
}
