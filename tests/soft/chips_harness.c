/* Drives the interrupt chips as drivers do, with two bare vCPUs and a clock of its own. Usage: chips_harness TEST; no argument
   lists the tests. Exit status 0: passed. */
#include <stdio.h>
#include <stdlib.h>

#include "chips_state.h"

#define LAPIC 0xfee00000ull
#define IOAPIC 0xfec00000ull

static Vm vm;
static Cpu *cpu[2];
static uint64_t now;
static int failures;

uint64_t vm_now(Vm *v) { (void)v; return now; }
uint64_t cpu_tsc(Cpu *c) { return now * 2 + c->tsc_offset; }
void cpu_attention(Cpu *c) { c->attention = 1; }
void cpu_timer_changed(Cpu *c) { (void)c; chips_deadline(vm.chips); }

#define EQ(a, b) do { long long a_ = (long long)(a), b_ = (long long)(b); \
    if (a_ != b_) { printf("line %d: %s is %lld (0x%llx), not %lld (0x%llx)\n", __LINE__, #a, a_, a_, b_, b_); failures++; } } while (0)

static void out(uint16_t port, uint8_t value) { EQ(chips_port_write(vm.chips, port, 1, value), 1); }
static uint8_t in(uint16_t port)
{
    uint32_t value = 0;
    EQ(chips_port_read(vm.chips, port, 1, &value), 1);
    return (uint8_t)value;
}
static void apic_write(Cpu *c, unsigned offset, uint32_t value) { chips_mmio_write(vm.chips, c, LAPIC + offset, 4, value); }
static uint32_t apic_read(Cpu *c, unsigned offset) { return (uint32_t)chips_mmio_read(vm.chips, c, LAPIC + offset, 4); }
static void io_write(unsigned reg, uint32_t value)
{
    chips_mmio_write(vm.chips, cpu[0], IOAPIC, 4, reg);
    chips_mmio_write(vm.chips, cpu[0], IOAPIC + 0x10, 4, value);
}
static uint32_t io_read(unsigned reg)
{
    chips_mmio_write(vm.chips, cpu[0], IOAPIC, 4, reg);
    return (uint32_t)chips_mmio_read(vm.chips, cpu[0], IOAPIC + 0x10, 4);
}
static void route(unsigned pin, uint32_t low, uint8_t destination)
{
    io_write(0x11 + pin * 2, (uint32_t)destination << 24);
    io_write(0x10 + pin * 2, low);
}
/* Time goes on to `to`; every deadline on the way fires at its moment. */
static void run_to(uint64_t to)
{
    uint64_t deadline;
    while ((deadline = chips_deadline(vm.chips)) <= to) {
        now = deadline > now ? deadline : now;
        chips_tick(vm.chips, now);
    }
    now = to;
}
static void pic_setup(void) /* as Linux sets it up */
{
    out(0x21, 0xff);
    out(0x20, 0x11), out(0x21, 0x30), out(0x21, 4), out(0x21, 1);
    out(0xa0, 0x11), out(0xa1, 0x38), out(0xa1, 2), out(0xa1, 1);
    out(0x21, 0xfb), out(0xa1, 0xff);
}
static void apic_on(Cpu *c) { apic_write(c, 0xf0, 0x1ff); }
static void pulse(unsigned gsi) { chips_irq_line(vm.chips, gsi, 1), chips_irq_line(vm.chips, gsi, 0); }

static void test_pic(void)
{
    pic_setup();
    EQ(in(0x21), 0xfb);
    pulse(4);
    EQ(chips_pending(cpu[0]), -1);
    EQ(in(0x20), 0x10);
    out(0x21, 0xeb);
    EQ(cpu[0]->attention, 1);
    EQ(chips_pending(cpu[1]), -1); /* LINT0 of the other is masked */
    EQ(chips_pending(cpu[0]), 0x34);
    EQ(chips_acknowledge(cpu[0]), 0x34);
    out(0x20, 0x0b);
    EQ(in(0x20), 0x10);
    pulse(4);
    EQ(chips_pending(cpu[0]), -1);
    out(0x21, 0xe0); /* higher priority interrupts the handler */
    pulse(1);
    EQ(chips_acknowledge(cpu[0]), 0x31);
    out(0x20, 0x20);
    EQ(in(0x20), 0x10);
    out(0x20, 0x64);
    EQ(chips_acknowledge(cpu[0]), 0x34);
    out(0x20, 0x20);
    EQ(in(0x20), 0);
}

static void test_cascade(void)
{
    pic_setup();
    out(0xa1, 0);
    pulse(12);
    EQ(chips_pending(cpu[0]), 0x3c);
    EQ(chips_acknowledge(cpu[0]), 0x3c);
    pulse(14);
    EQ(chips_pending(cpu[0]), -1); /* lower in the slave */
    pulse(8);
    EQ(chips_pending(cpu[0]), -1); /* the master holds IR2 in service */
    out(0x20, 0x08 | 0x60 | 3); /* special mask off, read ISR */
    out(0x20, 0x0b);
    EQ(in(0x20), 4);
    out(0xa0, 0x20), out(0x20, 0x20);
    EQ(chips_acknowledge(cpu[0]), 0x38);
    out(0xa0, 0x20), out(0x20, 0x20);
    EQ(chips_acknowledge(cpu[0]), 0x3e);
    out(0xa0, 0x66), out(0x20, 0x62);
    EQ(chips_pending(cpu[0]), -1);
    /* A level line that falls before its acknowledgement: spurious IR7 of the slave, of the master. */
    out(0x4d1, 0xff), out(0x4d0, 0xff);
    EQ(in(0x4d1), 0xde);
    EQ(in(0x4d0), 0xf8);
    chips_irq_line(vm.chips, 10, 1);
    EQ(chips_pending(cpu[0]), 0x3a);
    chips_irq_line(vm.chips, 10, 0);
    EQ(chips_acknowledge(cpu[0]), 0x3f);
    out(0x20, 0x62);
    chips_irq_line(vm.chips, 11, 1);
    EQ(chips_acknowledge(cpu[0]), 0x3b);
    out(0xa0, 0x20), out(0x20, 0x20);
    EQ(chips_acknowledge(cpu[0]), 0x3b); /* the line is still high */
}

static void test_pic_modes(void)
{
    out(0x20, 0x11), out(0x21, 0x20), out(0x21, 4), out(0x21, 3); /* automatic EOI */
    out(0x21, 0);
    pulse(3);
    EQ(chips_acknowledge(cpu[0]), 0x23);
    out(0x20, 0x0b);
    EQ(in(0x20), 0);
    out(0x20, 0x80); /* rotate in automatic EOI */
    pulse(3);
    EQ(chips_acknowledge(cpu[0]), 0x23);
    pulse(3), pulse(5);
    EQ(chips_acknowledge(cpu[0]), 0x25);
    pic_setup();
    out(0x21, 0);
    out(0x20, 0xc2); /* IR3 first */
    pulse(0), pulse(3);
    EQ(chips_acknowledge(cpu[0]), 0x33);
    out(0x20, 0xa0); /* rotating EOI: IR4 first now */
    pulse(3), pulse(4);
    EQ(chips_acknowledge(cpu[0]), 0x34);
    out(0x20, 0x20);
    EQ(chips_acknowledge(cpu[0]), 0x30);
    out(0x21, 1); /* special mask mode: a masked request in service holds back nobody */
    EQ(chips_pending(cpu[0]), -1);
    out(0x20, 0x68);
    EQ(chips_pending(cpu[0]), 0x33);
    out(0x20, 0x0c); /* poll */
    EQ(in(0x20), 0x83);
    out(0x20, 0x0c);
    EQ(in(0x20), 0);
    uint32_t value = 7;
    EQ(chips_port_read(vm.chips, 0x20, 2, &value), 1);
    EQ(value, 0);
    EQ(chips_port_read(vm.chips, 0x21, 2, &value), 0);
}

static void test_ioapic(void)
{
    pic_setup();
    apic_on(cpu[0]), apic_on(cpu[1]);
    EQ(io_read(1), 0x170011);
    io_write(0, 0x05000000);
    EQ(io_read(0), 0x05000000);
    io_write(1, 0);
    EQ(io_read(1), 0x170011);
    EQ(io_read(0x10), 0x10000);
    EQ(io_read(0x40), 0xffffffff);
    route(4, 0x41, 1);
    pulse(4);
    EQ(chips_pending(cpu[0]), -1);
    EQ(chips_pending(cpu[1]), 0x41);
    EQ(chips_acknowledge(cpu[1]), 0x41);
    apic_write(cpu[1], 0xb0, 0);
    route(19, 0xa053, 0); /* level, active low */
    EQ(io_read(0x10 + 38), 0xa053);
    chips_irq_line(vm.chips, 19, 1);
    EQ(io_read(0x10 + 38), 0xe053);
    EQ(chips_acknowledge(cpu[0]), 0x53);
    EQ(apic_read(cpu[0], 0x180 + 0x20), 1u << 19); /* TMR */
    EQ(apic_read(cpu[0], 0x100 + 0x20), 1u << 19);
    apic_write(cpu[0], 0xb0, 0);
    EQ(io_read(0x10 + 38), 0xe053); /* again: the line is high */
    EQ(chips_acknowledge(cpu[0]), 0x53);
    chips_irq_line(vm.chips, 19, 0);
    apic_write(cpu[0], 0xb0, 0);
    EQ(io_read(0x10 + 38), 0xa053);
    EQ(chips_pending(cpu[0]), -1);
    io_write(0x10 + 38, 0x1a053); /* masked while the line rises; delivered when unmasked */
    chips_irq_line(vm.chips, 19, 1);
    EQ(chips_pending(cpu[0]), -1);
    io_write(0x10 + 38, 0xa053);
    EQ(chips_acknowledge(cpu[0]), 0x53);
    io_write(0x10 + 38, 0x10053); /* masked edge clears Remote IRR */
    EQ(io_read(0x10 + 38), 0x10053);
    apic_write(cpu[0], 0xb0, 0);
    io_write(0x10 + 38, 0xfffe0053);
    EQ(io_read(0x10 + 38), 0x53);
    chips_irq_line(vm.chips, 99, 1);
}

static void test_priorities(void)
{
    apic_write(cpu[0], 0x350, 0x10000);
    EQ(chips_signal_msi(vm.chips, LAPIC, 0x61), 0); /* disabled by software */
    apic_on(cpu[0]);
    EQ(chips_signal_msi(vm.chips, LAPIC, 0x61), 1);
    EQ(chips_signal_msi(vm.chips, LAPIC, 0x52), 1);
    EQ(chips_signal_msi(vm.chips, LAPIC | 5 << 12, 0x52), 0); /* nobody has ID 5 */
    EQ(apic_read(cpu[0], 0x230), 2);
    apic_write(cpu[0], 0x80, 0x60);
    EQ(chips_pending(cpu[0]), -1);
    EQ(apic_read(cpu[0], 0xa0), 0x60);
    EQ(lapic_get_cr8(cpu[0]), 6);
    cpu[0]->attention = 0;
    lapic_set_cr8(cpu[0], 5);
    EQ(cpu[0]->attention, 1);
    EQ(chips_acknowledge(cpu[0]), 0x61);
    EQ(apic_read(cpu[0], 0xa0), 0x60);
    EQ(chips_pending(cpu[0]), -1);
    chips_signal_msi(vm.chips, LAPIC, 0x71);
    EQ(chips_acknowledge(cpu[0]), 0x71);
    apic_write(cpu[0], 0xb0, 0);
    EQ(apic_read(cpu[0], 0x130), 2);
    apic_write(cpu[0], 0xb0, 0);
    EQ(chips_pending(cpu[0]), -1); /* 52h is not above TPR 50h */
    apic_write(cpu[0], 0x80, 0);
    EQ(chips_acknowledge(cpu[0]), 0x52);
    EQ(apic_read(cpu[0], 0x30), 0x50014);
    /* errors */
    apic_write(cpu[0], 0x370, 0xf0);
    apic_write(cpu[0], 0x300, 5);
    EQ(chips_acknowledge(cpu[0]), 0xf0);
    apic_write(cpu[0], 0x280, 0);
    EQ(apic_read(cpu[0], 0x280), 0x20);
    apic_write(cpu[0], 0x280, 0);
    EQ(apic_read(cpu[0], 0x280), 0);
    apic_read(cpu[0], 0x40);
    apic_write(cpu[0], 0x280, 0);
    EQ(apic_read(cpu[0], 0x280), 0x80);
    EQ(chips_mmio_read(vm.chips, cpu[0], LAPIC + 0x32, 2), 5); /* halves of a register */
    EQ(chips_mmio_read(vm.chips, cpu[0], LAPIC + 0x33, 2), 0);
    apic_write(cpu[0], 0xf0, 0xff);
    EQ(apic_read(cpu[0], 0x370), 0x100f0);
}

static void test_ipi(void)
{
    apic_on(cpu[0]), apic_on(cpu[1]);
    cpu[1]->wait_sipi = true;
    apic_write(cpu[0], 0x310, 1u << 24);
    apic_write(cpu[0], 0x300, 0x4500); /* INIT */
    EQ(cpu[1]->init_pending, 1);
    apic_write(cpu[0], 0x300, 0x8500); /* de-assertion does nothing */
    apic_write(cpu[0], 0x300, 0x4608);
    EQ(cpu[1]->sipi_pending, 1);
    EQ(cpu[1]->sipi_vector, 8);
    EQ(cpu[0]->sipi_pending, 0);
    cpu[1]->init_pending = cpu[1]->sipi_pending = cpu[1]->wait_sipi = false;
    apic_write(cpu[0], 0x300, 0x4609);
    EQ(cpu[1]->sipi_pending, 0);
    apic_write(cpu[0], 0x300, 0x4041);
    EQ(chips_acknowledge(cpu[1]), 0x41);
    EQ(chips_pending(cpu[0]), -1);
    apic_write(cpu[0], 0x300, 0xc4000 | 0x42); /* all but self */
    EQ(chips_pending(cpu[0]), -1);
    EQ(apic_read(cpu[1], 0x220), 4);
    apic_write(cpu[0], 0x300, 0x84043); /* all */
    EQ(chips_acknowledge(cpu[0]), 0x43);
    apic_write(cpu[0], 0x300, 0x44044); /* self */
    EQ(apic_read(cpu[0], 0x220), 0x10);
    apic_write(cpu[0], 0x300, 0x4400); /* NMI */
    EQ(cpu[1]->nmi_pending, 1);
    EQ(cpu[0]->nmi_pending, 0);
    /* logical destinations: flat, then cluster */
    apic_write(cpu[0], 0xd0, 1u << 24), apic_write(cpu[1], 0xd0, 2u << 24);
    apic_write(cpu[0], 0x310, 2u << 24);
    apic_write(cpu[0], 0x300, 0x4851);
    EQ(chips_acknowledge(cpu[1]), 0x51);
    for (int n = 0; n < 2; n++) {
        apic_write(cpu[n], 0xe0, 0x0fffffff);
        apic_write(cpu[n], 0xd0, (0x10u | 1u << n) << 24);
        EQ(apic_read(cpu[n], 0xe0), 0x0fffffff);
    }
    apic_write(cpu[0], 0x310, 0x22u << 24);
    apic_write(cpu[0], 0x300, 0x4852);
    EQ(apic_read(cpu[1], 0x220), 0xc);
    apic_write(cpu[0], 0x310, 0x12u << 24);
    apic_write(cpu[0], 0x300, 0x4862);
    EQ(chips_acknowledge(cpu[1]), 0x62);
    /* lowest priority: one of the two, by vector */
    EQ(chips_signal_msi(vm.chips, LAPIC | 0x13 << 12 | 4, 0x170), 1);
    EQ(chips_signal_msi(vm.chips, LAPIC | 0x13 << 12 | 4, 0x171), 1);
    EQ(chips_acknowledge(cpu[0]), 0x70);
    EQ(chips_acknowledge(cpu[1]), 0x71);
    EQ(chips_signal_msi(vm.chips, LAPIC | 0xff << 12, 0x80), 2);
}

static int wrmsr(Cpu *c, uint32_t index, uint64_t value) { return lapic_msr_write(c, index, value, false); }

static void test_x2apic(void)
{
    uint64_t value = 0;
    apic_on(cpu[1]);
    EQ(lapic_msr_read(cpu[1], 0x802, &value), -1);
    EQ(lapic_msr_read(cpu[0], 0x1b, &value), 0);
    EQ(value, 0xfee00900);
    EQ(wrmsr(cpu[0], 0x1b, 0xfee00d00), -1); /* CPUID lacks x2APIC */
    for (int n = 0; n < 2; n++) {
        cpu[n]->features[FEAT_X2APIC >> 6] |= 1ull << (FEAT_X2APIC & 63);
        EQ(wrmsr(cpu[n], 0x1b, 0xfee00500), -1);
        EQ(wrmsr(cpu[n], 0x1b, 0xfee00c00), 0);
        EQ(wrmsr(cpu[n], 0x1b, 0xfee00800), -1);
        EQ(wrmsr(cpu[n], 0x80f, 0x1ff), 0);
    }
    EQ(apic_read(cpu[0], 0x20), 0xffffffff);
    EQ(lapic_msr_read(cpu[1], 0x802, &value), 0);
    EQ(value, 1);
    EQ(lapic_msr_read(cpu[1], 0x80d, &value), 0);
    EQ(value, 2);
    EQ(lapic_msr_read(cpu[1], 0x80e, &value), -1);
    EQ(lapic_msr_read(cpu[1], 0x831, &value), -1);
    EQ(lapic_msr_read(cpu[1], 0x80b, &value), -1);
    EQ(wrmsr(cpu[1], 0x802, 3), -1);
    EQ(wrmsr(cpu[1], 0x80b, 1), -1);
    EQ(wrmsr(cpu[1], 0x808, 0x100), -1);
    EQ(wrmsr(cpu[1], 0x808, 1ull << 32), -1);
    EQ(wrmsr(cpu[1], 0x8ff, 0), -1);
    EQ(wrmsr(cpu[0], 0x830, 1ull << 32 | 0x4055), 0);
    EQ(chips_acknowledge(cpu[1]), 0x55);
    EQ(lapic_msr_read(cpu[0], 0x830, &value), 0);
    EQ(value, 0x100004055);
    EQ(wrmsr(cpu[0], 0x830, 0x24055), -1);
    EQ(wrmsr(cpu[0], 0x830, 2ull << 32 | 0x4856), 0); /* logical: cluster 0, member 1 */
    EQ(apic_read(cpu[0], 0x220), 0xffffffff);
    EQ(wrmsr(cpu[1], 0x80b, 0), 0);
    EQ(chips_acknowledge(cpu[1]), 0x56);
    EQ(wrmsr(cpu[0], 0x83f, 0x66), 0);
    EQ(chips_acknowledge(cpu[0]), 0x66);
    EQ(wrmsr(cpu[0], 0x830, 0xffffffffull << 32 | 0x4077), 0);
    EQ(chips_acknowledge(cpu[0]), 0x77);
    EQ(chips_acknowledge(cpu[1]), 0x77);
    struct kvm_lapic_state state;
    EQ(lapic_get_state(cpu[1], &state), 0);
    EQ((uint8_t)state.regs[0x23], 1);
    lapic_reset(cpu[1], true);
    EQ(lapic_msr_read(cpu[1], 0x802, &value), 0);
    EQ(value, 1);
    EQ(wrmsr(cpu[1], 0x1b, 0xfee00000), 0);
    EQ(wrmsr(cpu[1], 0x1b, 0xfee00c00), -1);
    EQ(wrmsr(cpu[1], 0x1b, 0xfee00800), 0);
    EQ(apic_read(cpu[1], 0x20), 1u << 24);
}

static void test_apic_timer(void)
{
    apic_on(cpu[0]);
    run_to(1000);
    apic_write(cpu[0], 0x3e0, 3); /* by 16 */
    apic_write(cpu[0], 0x320, 0x20030);
    apic_write(cpu[0], 0x380, 62500); /* 1 ms */
    EQ(apic_read(cpu[0], 0x390), 62500);
    EQ(chips_deadline(vm.chips), 1001000);
    run_to(501000);
    EQ(apic_read(cpu[0], 0x390), 31250);
    EQ(chips_pending(cpu[0]), -1);
    run_to(1000999);
    EQ(chips_pending(cpu[0]), -1);
    EQ(apic_read(cpu[0], 0x390), 0);
    run_to(1001000);
    EQ(chips_acknowledge(cpu[0]), 0x30);
    EQ(chips_deadline(vm.chips), 2001000);
    EQ(apic_read(cpu[0], 0x390), 62500);
    now = 5500000; /* the host was away */
    chips_tick(vm.chips, now);
    EQ(chips_deadline(vm.chips), 6001000);
    apic_write(cpu[0], 0xb0, 0);
    EQ(chips_acknowledge(cpu[0]), 0x30);
    apic_write(cpu[0], 0xb0, 0);
    apic_write(cpu[0], 0x3e0, 0xb); /* by 1: counts left keep their number */
    EQ(apic_read(cpu[0], 0x390), 501000 / 16);
    apic_write(cpu[0], 0x320, 0x30);
    apic_write(cpu[0], 0x380, 777);
    run_to(now + 777);
    EQ(chips_acknowledge(cpu[0]), 0x30);
    EQ(chips_deadline(vm.chips), NEVER);
    EQ(apic_read(cpu[0], 0x390), 0);
    apic_write(cpu[0], 0xb0, 0);
    apic_write(cpu[0], 0x320, 0x10030); /* masked: counts, does not interrupt */
    apic_write(cpu[0], 0x380, 50);
    run_to(now + 100);
    EQ(chips_pending(cpu[0]), -1);
    /* TSC deadline: 2 ticks a ns */
    apic_write(cpu[0], 0x320, 0x40031);
    EQ(apic_read(cpu[0], 0x320), 0x31); /* CPUID lacks it */
    cpu[0]->features[FEAT_TSCDEADLINE >> 6] |= 1ull << (FEAT_TSCDEADLINE & 63);
    apic_write(cpu[0], 0x320, 0x40031);
    EQ(apic_read(cpu[0], 0x320), 0x40031);
    uint64_t target = cpu_tsc(cpu[0]) + 4001, value = 0;
    EQ(wrmsr(cpu[0], 0x6e0, target), 0);
    EQ(chips_deadline(vm.chips), now + 2001);
    cpu[0]->tsc_offset -= 100;
    EQ(chips_deadline(vm.chips), now + 2051);
    run_to(now + 2050);
    EQ(chips_pending(cpu[0]), -1);
    lapic_msr_read(cpu[0], 0x6e0, &value);
    EQ(value, target);
    apic_write(cpu[0], 0x380, 50); /* no effect in this mode */
    run_to(now + 1);
    EQ(chips_acknowledge(cpu[0]), 0x31);
    lapic_msr_read(cpu[0], 0x6e0, &value);
    EQ(value, 0);
    EQ(wrmsr(cpu[0], 0x6e0, 1), 0); /* in the past: at once */
    run_to(now);
    apic_write(cpu[0], 0xb0, 0);
    EQ(chips_acknowledge(cpu[0]), 0x31);
    EQ(wrmsr(cpu[0], 0x6e0, ~0ull), 0);
    EQ(wrmsr(cpu[0], 0x6e0, 0), 0);
    EQ(chips_deadline(vm.chips), NEVER);
}

static uint16_t pit_count(unsigned n)
{
    out(0x43, (uint8_t)(n << 6));
    uint8_t low = in((uint16_t)(0x40 + n));
    return (uint16_t)(low | in((uint16_t)(0x40 + n)) << 8);
}
static void pit_program(unsigned n, unsigned mode, unsigned count)
{
    out(0x43, (uint8_t)(n << 6 | 0x30 | mode << 1));
    out((uint16_t)(0x40 + n), (uint8_t)count), out((uint16_t)(0x40 + n), (uint8_t)(count >> 8));
}
static uint64_t tick(uint64_t ticks) { return (ticks * 1000000000ull + 1193181) / 1193182; }

static void test_pit_irq(void)
{
    pic_setup();
    out(0x21, 0xfe);
    EQ(chips_deadline(vm.chips), NEVER);
    pit_program(0, 2, 1193);
    EQ(chips_deadline(vm.chips), tick(1193));
    run_to(tick(1193) - 1);
    EQ(chips_pending(cpu[0]), -1);
    EQ(pit_count(0), 1);
    run_to(tick(1193));
    EQ(chips_acknowledge(cpu[0]), 0x30);
    EQ(pit_count(0), 1193);
    run_to(tick(3 * 1193)); /* two more edges while in service: given back one by one */
    EQ(chips_pending(cpu[0]), -1);
    for (int n = 0; n < 2; n++) {
        out(0x20, 0x20);
        EQ(chips_acknowledge(cpu[0]), 0x30);
    }
    out(0x20, 0x20);
    EQ(chips_pending(cpu[0]), -1);
    EQ(chips_deadline(vm.chips), tick(4 * 1193));
    run_to(tick(1000000 * 1193ull) - 1); /* no drift; masked edges are forgotten on unmasking */
    EQ(chips_deadline(vm.chips), tick(1000000 * 1193ull));
    out(0x21, 0xff), out(0x21, 0xfe);
    EQ(chips_acknowledge(cpu[0]), 0x30);
    out(0x20, 0x20);
    EQ(chips_pending(cpu[0]), -1);
    pit_program(0, 0, 100);
    uint64_t from = now;
    EQ(chips_deadline(vm.chips), from + tick(100));
    run_to(from + tick(100));
    EQ(chips_acknowledge(cpu[0]), 0x30);
    EQ(chips_deadline(vm.chips), NEVER);
    out(0x20, 0x20);
    out(0x43, 0x30); /* a control word stops the count */
    EQ(chips_deadline(vm.chips), NEVER);
    pit_program(0, 2, 5); /* 4 us: no more often than every 200 us, still on an edge */
    from = now;
    run_to(from + tick(5));
    EQ(chips_deadline(vm.chips), from + tick(245));
    /* through the I/O APIC's pin 0 */
    out(0x21, 0xff);
    apic_on(cpu[0]);
    pit_program(0, 3, 2000);
    from = now;
    route(0, 0x20 + 0x10, 0);
    run_to(from + tick(2000));
    EQ(chips_acknowledge(cpu[0]), 0x30);
    run_to(from + tick(4000));
    apic_write(cpu[0], 0xb0, 0);
    EQ(chips_acknowledge(cpu[0]), 0x30);
}

static void test_pit_modes(void)
{
    uint64_t from;
    out(0x61, 1);
    pit_program(2, 3, 10); /* square wave: 5 high, 5 low */
    from = now;
    static const uint8_t even[10] = {10, 8, 6, 4, 2, 10, 8, 6, 4, 2}, odd[9] = {8, 6, 4, 2, 0, 8, 6, 4, 2};
    for (unsigned n = 0; n < 20; n++) {
        now = from + tick(n);
        EQ(pit_count(2), even[n % 10]);
        EQ(in(0x61) & 0x2f, n % 10 < 5 ? 0x21 : 1);
    }
    pit_program(2, 3, 9);
    from = now;
    for (unsigned n = 0; n < 18; n++) {
        now = from + tick(n);
        EQ(pit_count(2), odd[n % 9]);
        EQ(in(0x61) >> 5 & 1, n % 9 < 5);
    }
    pit_program(2, 2, 10);
    from = now;
    now = from + tick(13);
    EQ(pit_count(2), 7);
    out(0x42, 4), out(0x42, 0); /* takes effect at the end of the wave */
    out(0x43, 0xe8);
    EQ(in(0x42), 0x80 | 0x40 | 0x34);
    EQ(pit_count(2), 7);
    now = from + tick(21);
    EQ(pit_count(2), 3);
    now = from + tick(23);
    EQ(in(0x61) & 0x20, 0);
    out(0x61, 0); /* gate off: OUT high; on: anew */
    EQ(in(0x61) & 0x20, 0x20);
    now += 1000000;
    out(0x61, 3);
    EQ(pit_count(2), 4);
    EQ(in(0x61) & 3, 3);
    pit_program(2, 0, 100);
    from = now;
    EQ(in(0x61) & 0x20, 0);
    now = from + tick(40);
    out(0x61, 0);
    now += 12345678;
    EQ(pit_count(2), 60);
    from = now;
    out(0x61, 1);
    now = from + tick(59);
    EQ(in(0x61) & 0x20, 0);
    now = from + tick(60);
    EQ(in(0x61) & 0x20, 0x20);
    now = from + tick(61);
    EQ(pit_count(2), 0xffff);
    pit_program(2, 1, 50); /* one-shot by the gate */
    EQ(in(0x61) & 0x20, 0x20);
    now += tick(500);
    EQ(in(0x61) & 0x20, 0x20);
    out(0x61, 0), out(0x61, 1);
    from = now;
    EQ(in(0x61) & 0x20, 0);
    now = from + tick(50);
    EQ(in(0x61) & 0x20, 0x20);
    pit_program(2, 4, 50);
    from = now;
    now = from + tick(49);
    EQ(in(0x61) & 0x20, 0x20);
    now = from + tick(50);
    EQ(in(0x61) & 0x20, 0);
    now = from + tick(51);
    EQ(in(0x61) & 0x20, 0x20);
    out(0x43, 0xb1 | 4); /* mode 2, decimal */
    out(0x42, 0x00), out(0x42, 0x10);
    from = now;
    now = from + tick(1);
    EQ(pit_count(2), 0x999);
    out(0x43, 0x90); /* low byte only, mode 0 */
    out(0x42, 9);
    EQ(in(0x42), 9);
    EQ(in(0x42), 9);
    out(0x43, 0x43 & 0x3f); /* latch of counter 0 without a program: nothing latched */
    uint8_t refresh = in(0x61) & 0x10;
    now += tick(18);
    EQ(in(0x61) & 0x10, refresh ^ 0x10);
    uint32_t value;
    EQ(chips_port_read(vm.chips, 0x61, 2, &value), 0);
}

static void test_state(void)
{
    pic_setup();
    out(0x21, 0xfe);
    apic_on(cpu[0]);
    run_to(12345);
    pit_program(0, 2, 3000);
    out(0x61, 1);
    pit_program(2, 3, 1001);
    apic_write(cpu[0], 0x320, 0x20040);
    apic_write(cpu[0], 0x3e0, 3);
    apic_write(cpu[0], 0x380, 100000);
    run_to(1000000);
    out(0x42, 77), out(0x42, 0);
    uint64_t deadline = chips_deadline(vm.chips), wave = pit_count(2);
    struct kvm_irqchip chip[3];
    struct kvm_pit_state2 pit;
    struct kvm_lapic_state lapic, again;
    for (uint32_t n = 0; n < 3; n++) {
        chip[n] = (struct kvm_irqchip){.chip_id = n};
        EQ(chips_get_irqchip(vm.chips, &chip[n]), 0);
    }
    EQ(chips_get_pit(vm.chips, &pit), 0);
    EQ(lapic_get_state(cpu[0], &lapic), 0);
    chips_destroy(vm.chips);
    lapic_destroy(cpu[0]->lapic), lapic_destroy(cpu[1]->lapic);
    cpu[0]->lapic = cpu[1]->lapic = NULL;
    vm.chips = chips_create(&vm);
    chips_create_pit(vm.chips);
    lapic_create(cpu[0]), lapic_create(cpu[1]);
    now = 50; /* a new process: its clock starts anew */
    for (uint32_t n = 0; n < 3; n++)
        EQ(chips_set_irqchip(vm.chips, &chip[n]), 0);
    EQ(chips_set_pit(vm.chips, &pit), 0);
    EQ(lapic_set_state(cpu[0], &lapic), 0);
    EQ(lapic_get_state(cpu[0], &again), 0);
    EQ(memcmp(&lapic, &again, sizeof(lapic)), 0);
    EQ(chips_deadline(vm.chips) - now, deadline - 1000000);
    EQ(pit_count(2), wave);
    EQ(in(0x21), 0xfe);
    memset(&pit, 0xff, sizeof(pit)); /* any bytes are survived */
    EQ(chips_set_pit(vm.chips, &pit), 0);
    memset(&lapic, 0xff, sizeof(lapic));
    EQ(lapic_set_state(cpu[0], &lapic), 0);
    for (uint32_t n = 0; n < 3; n++) {
        memset(&chip[n].chip, 0xff, sizeof(chip[n].chip));
        EQ(chips_set_irqchip(vm.chips, &chip[n]), 0);
    }
    chip[0].chip_id = 3;
    EQ(chips_set_irqchip(vm.chips, &chip[0]), -EINVAL);
    EQ(chips_get_irqchip(vm.chips, &chip[0]), -EINVAL);
    for (unsigned n = 0; n < 100; n++)
        pit_count(n % 3), run_to(now + 100000);
}

static void test_clock(void)
{
    apic_on(cpu[0]);
    run_to(1000);
    pit_program(0, 2, 3000);
    apic_write(cpu[0], 0x3e0, 0xb);
    apic_write(cpu[0], 0x320, 0x20040);
    apic_write(cpu[0], 0x380, 10000000);
    run_to(500000);
    uint64_t left = chips_deadline(vm.chips) - now;
    uint16_t count = pit_count(0);
    now += 1ull << 40;
    chips_clock_moved(vm.chips, 1ll << 40);
    EQ(chips_deadline(vm.chips) - now, left);
    EQ(apic_read(cpu[0], 0x390), 10000000 - 499000);
    EQ(pit_count(0), count);
    now -= 1ull << 40;
    chips_clock_moved(vm.chips, -(1ll << 40));
    EQ(chips_deadline(vm.chips) - now, left);
    EQ(pit_count(0), count);
}

/* Random accesses: nothing to be right but the sanitizers. */
static void test_random(void)
{
    uint64_t seed = 88172645463325252ull;
    for (unsigned n = 0; n < 300000; n++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x43};
        uint16_t port = ports[seed >> 8 & 0xff & 7 ? (seed >> 8 & 0xff) % 12 : 9];
        uint32_t value = (uint32_t)(seed >> 32), any = value & 0xff;
        Cpu *c = cpu[seed >> 20 & 1];
        uint64_t msr;
        switch (seed & 15) {
        case 0: case 1: case 2: chips_port_write(vm.chips, port, 1, value & 0xff); break;
        case 3: chips_port_read(vm.chips, port, 1, &any); break;
        case 4: case 5: apic_write(c, value & 0x3f0, (uint32_t)(seed >> 13)); break;
        case 6: apic_read(c, value & 0xfff); break;
        case 7: io_write(value & 0x3f, (uint32_t)(seed >> 11) & ~0x10000u); break;
        case 8: case 9: chips_irq_line(vm.chips, value % 26, (int)(value >> 8 & 1)); break;
        case 10: chips_signal_msi(vm.chips, value, (uint32_t)(seed >> 7)); break;
        case 11: chips_acknowledge(c); break;
        case 12: wrmsr(c, value & 64 ? 0x1b : 0x800 + (value & 63), value & 64 ? 0xfee00000 | (value & 0xc00) : seed >> 17); break;
        case 13: lapic_msr_read(c, 0x800 + (value & 63), &msr); break;
        case 14: apic_write(c, 0xb0, 0), apic_write(c, 0xf0, 0x1ff); break;
        default: run_to(now + (value & 0xfffff)); break;
        }
    }
}

static const struct { const char *name; void (*run)(void); } tests[] = {
    {"pic", test_pic}, {"cascade", test_cascade}, {"pic_modes", test_pic_modes}, {"ioapic", test_ioapic},
    {"priorities", test_priorities}, {"ipi", test_ipi}, {"x2apic", test_x2apic}, {"apic_timer", test_apic_timer},
    {"clock", test_clock}, {"pit_irq", test_pit_irq}, {"pit_modes", test_pit_modes}, {"state", test_state}, {"random", test_random},
};

int main(int argc, char **argv)
{
    vm.tsc_khz = 2000000;
    vm.chips = chips_create(&vm);
    chips_create_pit(vm.chips);
    for (uint32_t n = 0; n < 2; n++) {
        vm.cpu[n] = cpu[n] = calloc(1, sizeof(Cpu));
        vm.cpu_count = n + 1;
        cpu[n]->vm = &vm;
        cpu[n]->index = n;
        lapic_create(cpu[n]);
    }
    for (unsigned n = 0; n < ARRAY_SIZE(tests); n++) {
        if (argc < 2)
            puts(tests[n].name);
        else if (!strcmp(argv[1], tests[n].name))
            tests[n].run();
    }
    chips_destroy(vm.chips);
    for (int n = 0; n < 2; n++)
        lapic_destroy(cpu[n]->lapic), free(cpu[n]);
    return failures != 0;
}
