/* State of the interrupt chips, shared by their files. Everything declared here is called with the chips' lock held. */
#ifndef KP_CHIPS_STATE_H
#define KP_CHIPS_STATE_H

#include <errno.h>
#include <pthread.h>

#include "vm.h"

#define GSI_COUNT 24
#define PIC_PINS 16
#define IOAPIC_BASE 0xfec00000ull
#define IOAPIC_BYTES 0x100
#define APIC_DEFAULT_BASE 0xfee00000ull
#define APIC_BASE_BSP 0x100u
#define APIC_BASE_X2APIC 0x400u
#define APIC_BASE_ENABLE 0x800u

/* Registers of the local APIC by offset / 16, which is also the x2APIC MSR less 0x800 (SDM 3A table 10-6). */
enum {
    APIC_ID = 0x02, APIC_VERSION = 0x03, APIC_TPR = 0x08, APIC_APR = 0x09, APIC_PPR = 0x0a, APIC_EOI = 0x0b, APIC_LDR = 0x0d,
    APIC_DFR = 0x0e, APIC_SVR = 0x0f, APIC_ISR = 0x10, APIC_TMR = 0x18, APIC_IRR = 0x20, APIC_ESR = 0x28, APIC_ICR = 0x30,
    APIC_ICR2 = 0x31, APIC_LVT_TIMER = 0x32, APIC_LVT_THERMAL = 0x33, APIC_LVT_PMC = 0x34, APIC_LVT_LINT0 = 0x35,
    APIC_LVT_LINT1 = 0x36, APIC_LVT_ERROR = 0x37, APIC_INITIAL = 0x38, APIC_CURRENT = 0x39, APIC_DIVIDE = 0x3e,
    APIC_SELF_IPI = 0x3f, APIC_REGISTERS = 0x40
};
#define SVR_ENABLE 0x100u
#define SVR_NO_EOI_BROADCAST 0x1000u
#define VERSION_EOI_SUPPRESSION 0x1000000u
#define LVT_MASKED 0x10000u
#define LVT_LEVEL 0x8000u
#define LVT_TIMER_MODE 0x60000u
#define LVT_TIMER_PERIODIC 0x20000u
#define LVT_TIMER_TSC_DEADLINE 0x40000u
#define ESR_SEND_ILLEGAL_VECTOR 0x20u
#define ESR_RECEIVE_ILLEGAL_VECTOR 0x40u
#define ESR_ILLEGAL_REGISTER 0x80u

/* Delivery modes of messages, LVT and redirection entries. */
enum { DM_FIXED, DM_LOWEST, DM_SMI, DM_RESERVED, DM_NMI, DM_INIT, DM_STARTUP, DM_EXTINT };
enum { SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS };

typedef struct {
    uint32_t destination;
    uint8_t vector, mode, shorthand;
    bool logical, level, assert, redirect; /* level: level-triggered; assert means something to those only */
} Message;

struct Lapic {
    Cpu *cpu;
    Chips *chips;
    uint32_t reg[APIC_REGISTERS];
    uint32_t errors;     /* found since ESR was written last */
    uint64_t period;     /* of the timer, ns; 0: no count */
    uint64_t deadline;   /* ns, or NEVER */
    uint64_t tsc_offset, tsc_adjust, tsc_khz; /* under which a TSC deadline became `deadline` */
};
typedef struct Lapic Lapic;

typedef struct {
    uint32_t count, next;      /* 1-65536 in effect; and, where not 0, what takes its place at `switch_tick` or the next trigger */
    int64_t start, offset;     /* clock ticks counted: those since `start` (ns) plus `offset` */
    int64_t switch_tick;
    bool switch_low;           /* mode 3: the new count begins with the low half of the wave */
    bool loaded, running;      /* a count was written since the control word; the counter counts (else it stands at `offset`) */
    uint16_t latched_count;
    uint8_t count_latched, status_latched, status, read_state, write_state, write_latch, access, mode, bcd, gate;
} PitChannel;

typedef struct {
    PitChannel channel[3];
    bool speaker_data;
    uint64_t deadline; /* of the next rising edge of OUT 0, ns, or NEVER */
    uint32_t pending;  /* edges not yet acknowledged by the guest */
    bool acknowledged, work;
} Pit;

struct Chips {
    pthread_mutex_t lock;
    Vm *vm;
    struct kvm_pic_state pic[2];
    bool pic_output;
    struct kvm_ioapic_state ioapic;
    uint32_t ioapic_delivered; /* edges in ioapic.irr that were sent */
    uint8_t sources[GSI_COUNT]; /* SOURCE_* that hold the line high */
    bool has_pit;
    Pit pit;
};
#define SOURCE_USER 1u
#define SOURCE_PIT 2u

static inline void chips_lock(Chips *chips) { pthread_mutex_lock(&chips->lock); }
static inline void chips_unlock(Chips *chips) { pthread_mutex_unlock(&chips->lock); }

/* chips.c */
void gsi_set(Chips *chips, uint32_t gsi, uint8_t source, int level);
void gsi_acknowledged(Chips *chips, uint32_t gsi);      /* EOI reached the line's interrupt */
void gsi_mask_changed(Chips *chips, uint32_t gsi, bool masked);
int cpu_pending(Cpu *c);
void chips_work(Chips *chips); /* what EOIs left to do; at the end of every access */

/* lapic.c */
static inline bool lapic_x2apic(const Lapic *l)
{
    return (l->cpu->apic_base & (APIC_BASE_ENABLE | APIC_BASE_X2APIC)) == (APIC_BASE_ENABLE | APIC_BASE_X2APIC);
}
static inline bool lapic_hw_enabled(const Lapic *l) { return l->cpu->apic_base & APIC_BASE_ENABLE; }
static inline bool lapic_enabled(const Lapic *l) { return lapic_hw_enabled(l) && l->reg[APIC_SVR] & SVR_ENABLE; }
static inline uint32_t x2apic_ldr(uint32_t id) { return (id >> 4) << 16 | 1u << (id & 15); }
int lapic_pending(const Lapic *l);                        /* vector above the processor priority, or -1 */
int lapic_acknowledge(Lapic *l);
bool lapic_accepts_extint(const Lapic *l);
bool lapic_accept(Lapic *l, const Message *m);            /* a message that is for this APIC */
bool lapic_local(Lapic *l, unsigned lvt);                 /* an event of a local vector table entry */
void lapic_error(Lapic *l, uint32_t bits);
uint32_t lapic_ppr(const Lapic *l);
uint32_t lapic_read(Lapic *l, unsigned reg);
int lapic_write(Lapic *l, unsigned reg, uint32_t value);  /* -1: no such register, or a value it refuses (x2APIC) */
bool lapic_readable(const Lapic *l, unsigned reg);
uint32_t lapic_mmio_read(Lapic *l, uint32_t offset, unsigned size);
void lapic_mmio_write(Lapic *l, uint32_t offset, unsigned size, uint32_t value);
void lapic_set_version(Lapic *l);

/* lapic_message.c */
int chips_deliver(Chips *chips, const Cpu *source, const Message *m); /* count of APICs that took it */
void lapic_send(Lapic *l, uint32_t command, uint32_t destination);

/* lapic_timer.c */
void lapic_timer_reset(Lapic *l);
void lapic_timer_mode(Lapic *l, uint32_t lvt_before);
void lapic_timer_start(Lapic *l);
void lapic_timer_divide(Lapic *l, uint32_t divide_before);
uint32_t lapic_timer_current(Lapic *l);
uint64_t lapic_timer_remaining(Lapic *l); /* ns; 0: stopped or due */
void lapic_timer_resume(Lapic *l, uint64_t remaining);
void lapic_timer_set_tsc_deadline(Lapic *l, uint64_t deadline);
uint64_t lapic_timer_deadline(Lapic *l);
void lapic_timer_tick(Lapic *l, uint64_t now);
void lapic_timer_clock_moved(Lapic *l, int64_t ns);

/* ioapic.c */
void ioapic_reset(Chips *chips);
uint32_t ioapic_read(Chips *chips, uint32_t offset);
void ioapic_write(Chips *chips, uint32_t offset, uint32_t value);
void ioapic_line(Chips *chips, uint32_t pin, int level);
void ioapic_eoi(Chips *chips, uint8_t vector, bool level, bool broadcast);
void ioapic_get(const Chips *chips, struct kvm_ioapic_state *state);
void ioapic_set(Chips *chips, const struct kvm_ioapic_state *state);

/* pic.c */
void pic_reset(Chips *chips);
void pic_line(Chips *chips, uint32_t pin, int level);
int pic_pending(const Chips *chips);
int pic_acknowledge(Chips *chips);
bool pic_port(uint16_t port, unsigned size);
uint8_t pic_read(Chips *chips, uint16_t port);
void pic_write(Chips *chips, uint16_t port, uint8_t value);
void pic_set(Chips *chips, unsigned which, const struct kvm_pic_state *state);

/* pit.c */
void pit_reset(Chips *chips);
uint8_t pit_read(Chips *chips, uint16_t port);
void pit_write(Chips *chips, uint16_t port, uint8_t value);
void pit_acknowledged(Chips *chips);
void pit_forget(Chips *chips); /* drops edges that were never acknowledged */
void pit_work(Chips *chips);
void pit_tick(Chips *chips, uint64_t now);
void pit_clock_moved(Chips *chips, int64_t ns);
void pit_get(Chips *chips, struct kvm_pit_state2 *state);
void pit_set(Chips *chips, const struct kvm_pit_state2 *state);

#endif
