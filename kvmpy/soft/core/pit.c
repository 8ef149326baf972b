/* 8254 interval timer: three counters at 1.193182 MHz, port 61h beside them (Intel 8254 data sheet). A count takes effect when
   it is written, not at the next clock edge. Edges of OUT 0 reach GSI 0 by KVM's default policy: each one waits for the EOI
   of the one before, so that none is lost. */
#include "chips_state.h"

#define PIT_HZ 1193182
#define SECOND 1000000000ll
#define MIN_PERIOD 200000 /* ns between interrupts, as KVM limits them */
#define REFRESH_TICKS 18  /* counter 1 refreshes memory every 15 us and toggles bit 4 of port 61h */
enum { ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH, ACCESS_SECOND };
#define MODE_UNSET 0xff

/* In `reserved` of the state struct, which KVM ignores: what its other members cannot hold. */
enum { SAVED_NOW_LOW, SAVED_NOW_HIGH, SAVED_PENDING, SAVED_FLAGS, SAVED_NEXT }; /* SAVED_NEXT: one for each channel */
#define SAVED_VALID 0x80000000u
#define SAVED_ACKNOWLEDGED 0x40000000u
#define SAVED_SWITCH_LOW 0x80000000u
#define LONGEST (1ll << 60) /* ns that a counter can have run */

static int64_t ticks_of(int64_t ns) { return (int64_t)((__int128)ns * PIT_HZ / SECOND); }

static int64_t ns_of(int64_t ticks) { return (int64_t)(((__int128)ticks * SECOND + (ticks > 0 ? PIT_HZ - 1 : 0)) / PIT_HZ); }

static int64_t ticks(const PitChannel *p, int64_t now)
{
    return p->running && now > p->start ? ticks_of(now - p->start) + p->offset : p->offset;
}

/* The first nanosecond at which `tick` ticks have passed. */
static int64_t moment(const PitChannel *p, int64_t tick) { return p->start + ns_of(tick - p->offset); }

static bool one_shot(const PitChannel *p) { return p->mode == 1 || p->mode == 5; }
static bool repeats(const PitChannel *p) { return p->mode == 2 || p->mode == 3; }

/* Puts a count in effect that was written while the counter of mode 2 or 3 ran: at the end of its (half) wave. */
static void synchronize(PitChannel *p, int64_t now)
{
    if (!repeats(p) || !p->next || ticks(p, now) < p->switch_tick)
        return;
    p->count = p->next;
    p->next = 0;
    p->offset += (p->switch_low ? (int64_t)(p->count + 1) / 2 : 0) - p->switch_tick;
}

static bool output(PitChannel *p, int64_t now)
{
    synchronize(p, now);
    int64_t d = ticks(p, now);
    bool set = p->loaded && (p->running || !one_shot(p));
    switch (p->mode) {
    case 1:
        return !set || d >= p->count;
    case 2:
        return !set || !p->gate || d % p->count != p->count - 1;
    case 3:
        return !set || !p->gate || d % p->count < (p->count + 1) / 2;
    case 4:
    case 5:
        return !set || d != p->count;
    default:
        return set && d >= p->count;
    }
}

static uint16_t to_bcd(uint32_t v) { return (uint16_t)(v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 % 10 << 12); }
static uint32_t from_bcd(uint32_t v) { return (v & 15) + (v >> 4 & 15) * 10 + (v >> 8 & 15) * 100 + (v >> 12 & 15) * 1000; }

static uint16_t counter(PitChannel *p, int64_t now)
{
    synchronize(p, now);
    int64_t modulus = p->bcd ? 10000 : 65536, d = ticks(p, now), value;
    if (p->mode == 2) {
        value = p->count - d % p->count;
    } else if (p->mode == 3) {
        int64_t high = (p->count + 1) / 2, at = d % p->count;
        value = (p->count & ~1ll) - 2 * (at < high ? at : at - high);
    } else {
        value = p->count - d % modulus;
        if (value < 0)
            value += modulus;
    }
    value %= modulus;
    return p->bcd ? to_bcd((uint32_t)value) : (uint16_t)value;
}

static void run_from(PitChannel *p, int64_t now, int64_t tick)
{
    p->running = true;
    p->start = now;
    p->offset = tick;
}

static void stop_at(PitChannel *p, int64_t tick)
{
    p->running = false;
    p->offset = tick;
}

/* Finds the next rising edge of OUT 0 after the tick `d`. */
static void arm(Chips *chips, int64_t d)
{
    Pit *pit = &chips->pit;
    const PitChannel *p = &pit->channel[0];
    int64_t edge = -1;
    if (p->loaded && p->running) {
        if (repeats(p) && p->next)
            edge = p->switch_tick + (p->switch_low ? p->next / 2 : 0);
        else if (repeats(p))
            edge = (d / p->count + 1) * p->count;
        else if (p->mode == 4)
            edge = p->count + 1;
        else if (p->mode == 0 || p->mode > 5)
            edge = p->count;
    }
    uint64_t deadline = edge > d ? (uint64_t)moment(p, edge) : NEVER;
    if (pit->deadline != deadline) {
        pit->deadline = deadline;
        for (uint32_t n = 0; n < chips->vm->cpu_count; n++)
            if (chips->vm->cpu[n]) {
                cpu_timer_changed(chips->vm->cpu[n]);
                break;
            }
    }
}

void pit_forget(Chips *chips)
{
    chips->pit.pending = 0;
    chips->pit.acknowledged = true;
}

static void take_next(PitChannel *p, uint32_t count, int64_t now)
{
    int64_t d = ticks(p, now), at = d % p->count, high = (p->count + 1) / 2;
    p->switch_low = p->mode == 3 && at < high;
    p->switch_tick = d - at + (p->switch_low ? high : p->count);
    p->next = count;
}

static void write_count(Chips *chips, unsigned n, uint32_t value, int64_t now)
{
    PitChannel *p = &chips->pit.channel[n];
    uint32_t count = p->bcd ? from_bcd(value) : value;
    if (!count)
        count = p->bcd ? 10000 : 65536;
    bool fresh = !p->loaded;
    p->loaded = true;
    if (repeats(p) && !fresh && p->running) {
        synchronize(p, now);
        take_next(p, count, now);
    } else if (one_shot(p) && !fresh) {
        p->next = count; /* for the next trigger */
    } else {
        p->count = count;
        p->next = 0;
        stop_at(p, 0);
        if (p->gate && !one_shot(p))
            run_from(p, now, 0);
    }
    if (n == 0) {
        pit_forget(chips);
        arm(chips, ticks(p, now));
    }
}

static void set_gate(PitChannel *p, bool gate, int64_t now)
{
    bool rises = gate && !p->gate;
    synchronize(p, now);
    int64_t d = ticks(p, now);
    p->gate = gate;
    if (!p->loaded)
        return;
    if (rises && (one_shot(p) || repeats(p))) {
        if (p->next)
            p->count = p->next;
        p->next = 0;
        run_from(p, now, 0);
    } else if (repeats(p) && !gate) {
        stop_at(p, 0);
    } else if (rises) {
        run_from(p, now, d);
    } else if (!gate && !one_shot(p)) {
        stop_at(p, d);
    }
}

static void latch_count(PitChannel *p, int64_t now)
{
    if (p->count_latched)
        return;
    p->latched_count = counter(p, now);
    p->count_latched = p->access;
}

static void read_back(Chips *chips, uint8_t command, int64_t now)
{
    for (unsigned n = 0; n < 3; n++) {
        PitChannel *p = &chips->pit.channel[n];
        if (!(command >> (n + 1) & 1))
            continue;
        if (!(command & 0x20))
            latch_count(p, now);
        if (!(command & 0x10) && !p->status_latched) {
            bool null_count = !p->loaded || p->next;
            p->status = (uint8_t)(output(p, now) << 7 | null_count << 6 | p->access << 4 | (p->mode & 7) << 1 | p->bcd);
            p->status_latched = 1;
        }
    }
}

static void write_control(Chips *chips, uint8_t value, int64_t now)
{
    unsigned n = value >> 6, access = value >> 4 & 3;
    if (n == 3) {
        read_back(chips, value, now);
        return;
    }
    PitChannel *p = &chips->pit.channel[n];
    if (access == ACCESS_LATCH) {
        latch_count(p, now);
        return;
    }
    synchronize(p, now);
    stop_at(p, ticks(p, now));
    p->loaded = false;
    p->next = 0;
    p->access = p->read_state = p->write_state = (uint8_t)access;
    p->count_latched = p->status_latched = 0;
    p->mode = value >> 1 & 7;
    if (p->mode > 5)
        p->mode -= 4;
    p->bcd = value & 1;
    if (n == 0)
        arm(chips, 0);
}

static uint8_t read_counter(PitChannel *p, int64_t now)
{
    uint8_t value;
    if (p->status_latched) {
        p->status_latched = 0;
        return p->status;
    }
    if (p->count_latched) {
        bool high = p->count_latched == ACCESS_HIGH;
        value = (uint8_t)(high ? p->latched_count >> 8 : p->latched_count);
        p->count_latched = p->count_latched == ACCESS_BOTH ? ACCESS_HIGH : 0;
        return value;
    }
    uint16_t count = counter(p, now);
    bool high = p->read_state == ACCESS_HIGH || p->read_state == ACCESS_SECOND;
    if (p->read_state == ACCESS_BOTH)
        p->read_state = ACCESS_SECOND;
    else if (p->read_state == ACCESS_SECOND)
        p->read_state = ACCESS_BOTH;
    return (uint8_t)(high ? count >> 8 : count);
}

static void write_counter(Chips *chips, unsigned n, uint8_t value, int64_t now)
{
    PitChannel *p = &chips->pit.channel[n];
    switch (p->write_state) {
    case ACCESS_HIGH:
        write_count(chips, n, (uint32_t)value << 8, now);
        break;
    case ACCESS_BOTH:
        p->write_latch = value;
        p->write_state = ACCESS_SECOND;
        if (p->mode == 0) { /* the first byte stops the count and takes OUT low */
            stop_at(p, ticks(p, now));
            p->loaded = false;
            if (n == 0)
                arm(chips, 0);
        }
        break;
    case ACCESS_SECOND:
        p->write_state = ACCESS_BOTH;
        write_count(chips, n, (uint32_t)value << 8 | p->write_latch, now);
        break;
    default:
        write_count(chips, n, value, now);
        break;
    }
}

uint8_t pit_read(Chips *chips, uint16_t port)
{
    int64_t now = (int64_t)vm_now(chips->vm);
    Pit *pit = &chips->pit;
    if (port == 0x61) {
        bool refresh = ticks_of(now) / REFRESH_TICKS & 1;
        return (uint8_t)(pit->channel[2].gate | pit->speaker_data << 1 | refresh << 4 | output(&pit->channel[2], now) << 5);
    }
    return port == 0x43 ? 0 : read_counter(&pit->channel[port & 3], now);
}

void pit_write(Chips *chips, uint16_t port, uint8_t value)
{
    int64_t now = (int64_t)vm_now(chips->vm);
    if (port == 0x61) {
        chips->pit.speaker_data = value >> 1 & 1;
        set_gate(&chips->pit.channel[2], value & 1, now);
    } else if (port == 0x43) {
        write_control(chips, value, now);
    } else {
        write_counter(chips, port & 3, value, now);
    }
}

/* ---- interrupts ---- */

void pit_acknowledged(Chips *chips)
{
    Pit *pit = &chips->pit;
    pit->acknowledged = true;
    if (pit->pending && --pit->pending)
        pit->work = true;
}

void pit_work(Chips *chips)
{
    Pit *pit = &chips->pit;
    while (pit->work) {
        pit->work = false;
        if (!pit->acknowledged)
            return;
        pit->acknowledged = false;
        gsi_set(chips, 0, SOURCE_PIT, 1);
        gsi_set(chips, 0, SOURCE_PIT, 0);
        for (uint32_t n = 0; n < chips->vm->cpu_count; n++) { /* the NMI watchdog of old: LINT0 as NMI */
            Lapic *l = chips->vm->cpu[n] ? chips->vm->cpu[n]->lapic : NULL;
            if (l && (l->reg[APIC_LVT_LINT0] >> 8 & 7) == DM_NMI)
                lapic_local(l, APIC_LVT_LINT0);
        }
    }
}

void pit_tick(Chips *chips, uint64_t now)
{
    Pit *pit = &chips->pit;
    PitChannel *p = &pit->channel[0];
    while (pit->deadline <= now) {
        int64_t at = (int64_t)pit->deadline;
        synchronize(p, at);
        if (pit->pending < UINT32_MAX)
            pit->pending++;
        pit->work = true;
        /* Not more often than the limit, and still on the wave's edges. */
        arm(chips, ticks(p, repeats(p) && !p->next ? at + MIN_PERIOD - 1 : at));
        pit_work(chips);
    }
}

void pit_clock_moved(Chips *chips, int64_t ns)
{
    Pit *pit = &chips->pit;
    for (unsigned n = 0; n < 3; n++)
        pit->channel[n].start = (int64_t)((uint64_t)pit->channel[n].start + (uint64_t)ns);
    if (pit->deadline != NEVER)
        pit->deadline += (uint64_t)ns;
}

void pit_reset(Chips *chips)
{
    memset(&chips->pit, 0, sizeof(chips->pit));
    for (unsigned n = 0; n < 3; n++)
        chips->pit.channel[n] = (PitChannel){.count = 65536, .mode = MODE_UNSET, .gate = n != 2};
    chips->pit.deadline = NEVER;
    pit_forget(chips);
}

/* ---- state ---- */

void pit_get(Chips *chips, struct kvm_pit_state2 *state)
{
    Pit *pit = &chips->pit;
    uint64_t now = vm_now(chips->vm);
    memset(state, 0, sizeof(*state));
    uint32_t flags = SAVED_VALID | (pit->acknowledged ? SAVED_ACKNOWLEDGED : 0);
    for (unsigned n = 0; n < 3; n++) {
        PitChannel *p = &pit->channel[n];
        synchronize(p, (int64_t)now);
        state->channels[n] = (struct kvm_pit_channel_state){
            .count = p->count, .latched_count = p->latched_count, .count_latched = p->count_latched,
            .status_latched = p->status_latched, .status = p->status, .read_state = p->read_state, .write_state = p->write_state,
            .write_latch = p->write_latch, .rw_mode = p->access, .mode = p->mode, .bcd = p->bcd, .gate = p->gate,
            .count_load_time = (p->running ? p->start : (int64_t)now) - ns_of(p->offset),
        };
        state->reserved[SAVED_NEXT + n] = p->next | (p->switch_low ? SAVED_SWITCH_LOW : 0);
        flags |= (uint32_t)p->loaded << (n * 4) | (uint32_t)p->running << (n * 4 + 1);
    }
    state->flags = pit->speaker_data ? KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0;
    state->reserved[SAVED_NOW_LOW] = (uint32_t)now;
    state->reserved[SAVED_NOW_HIGH] = (uint32_t)(now >> 32);
    state->reserved[SAVED_PENDING] = pit->pending;
    state->reserved[SAVED_FLAGS] = flags;
}

/* A state from KVM has times of another clock: its counters start anew. */
void pit_set(Chips *chips, const struct kvm_pit_state2 *state)
{
    Pit *pit = &chips->pit;
    int64_t now = (int64_t)vm_now(chips->vm);
    uint32_t flags = state->reserved[SAVED_FLAGS];
    bool ours = flags & SAVED_VALID;
    int64_t then = (int64_t)((uint64_t)state->reserved[SAVED_NOW_HIGH] << 32 | state->reserved[SAVED_NOW_LOW]);
    for (unsigned n = 0; n < 3; n++) {
        const struct kvm_pit_channel_state *s = &state->channels[n];
        PitChannel *p = &pit->channel[n];
        *p = (PitChannel){
            .count = s->count && s->count <= 65536 ? s->count : 65536, .latched_count = s->latched_count,
            .count_latched = s->count_latched & 3, .status_latched = s->status_latched & 1, .status = s->status,
            .read_state = s->read_state & 7, .write_state = s->write_state & 7, .write_latch = s->write_latch,
            .access = s->rw_mode & 3, .mode = s->mode <= 5 ? s->mode : MODE_UNSET, .bcd = s->bcd & 1,
            .gate = n == 2 ? s->gate & 1 : 1,
        };
        p->loaded = ours ? flags >> (n * 4) & 1 : p->mode != MODE_UNSET;
        bool running = ours ? flags >> (n * 4 + 1) & 1 : p->loaded && p->gate && !one_shot(p);
        int64_t elapsed = ours ? (int64_t)((uint64_t)then - (uint64_t)s->count_load_time) : 0;
        elapsed = elapsed < 0 ? 0 : elapsed > LONGEST ? LONGEST : elapsed;
        if (running)
            run_from(p, now - elapsed, 0);
        else
            stop_at(p, ticks_of(elapsed));
        uint32_t next = ours ? state->reserved[SAVED_NEXT + n] & ~SAVED_SWITCH_LOW : 0;
        if (next && next <= 65536 && repeats(p) && running)
            take_next(p, next, now);
        else if (next && next <= 65536 && one_shot(p))
            p->next = next;
    }
    pit->speaker_data = state->flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON;
    pit_forget(chips);
    if (ours) {
        pit->pending = state->reserved[SAVED_PENDING];
        pit->acknowledged = flags & SAVED_ACKNOWLEDGED;
    }
    arm(chips, ticks(&pit->channel[0], now));
}
