/* The interrupt chips and the interval timer of a VM, in the role of KVM's in-kernel ones. Times are nanoseconds of vm_now. */
#ifndef KP_CHIPS_H
#define KP_CHIPS_H

#include "cpu.h"

#define NEVER UINT64_MAX

/* The chips of one VM; made by chips_create, NULL in vm->chips before. The 8254 stands in it too, absent until chips_create_pit. */
typedef struct Chips Chips;
Chips *chips_create(Vm *vm);
void chips_destroy(Chips *chips);
void chips_create_pit(Chips *chips);
/* The local APIC of a vCPU: allocated with the vCPU, state after reset; INIT keeps its id. */
struct Lapic *lapic_create(Cpu *c);
void lapic_destroy(struct Lapic *lapic);
void lapic_reset(Cpu *c, bool init);
/* INIT and SIPI. An INIT sets init_pending and drops a pending SIPI. A SIPI sets sipi_vector and sipi_pending, but only on a
   vCPU that waits for one or is about to (wait_sipi or init_pending); elsewhere it is lost. Both call cpu_attention.
   At a boundary the run loop does, in this order:
     init_pending: cpu_reset(c, true), which clears it, calls lapic_reset and sets wait_sipi except on the bootstrap processor;
     sipi_pending: clears it; where wait_sipi is set: CS = sipi_vector << 8 with base sipi_vector << 12, RIP = 0, wait_sipi = false.
   Until then a vCPU with wait_sipi set executes nothing and takes no interrupt. */

/* Ports and addresses of the chips; false where they are not theirs. 8259: 20 21 A0 A1 4D0 4D1; 8254: 40-43, 61. */
bool chips_has_port(const Chips *chips, uint16_t port, unsigned size);
bool chips_port_read(Chips *chips, uint16_t port, unsigned size, uint32_t *value);
bool chips_port_write(Chips *chips, uint16_t port, unsigned size, uint32_t value);
/* I/O APIC, and c's local APIC where APIC_BASE has it (disabled or in x2APIC mode its page reads all-ones). */
bool chips_claims(Chips *chips, const Cpu *c, uint64_t phys);
uint64_t chips_mmio_read(Chips *chips, Cpu *c, uint64_t phys, unsigned size);
void chips_mmio_write(Chips *chips, Cpu *c, uint64_t phys, unsigned size, uint64_t value);

/* Lines and messages from outside; they call cpu_attention for the vCPUs concerned. Every function of this file takes the
   chips' lock, so these may be called from any thread, also while another one runs the VM. Lines above 23 lead nowhere. */
void chips_irq_line(Chips *chips, uint32_t gsi, int level);
int chips_signal_msi(Chips *chips, uint64_t address, uint32_t data); /* count of local APICs that took it */

/* What c would take as external interrupt now, IF aside: vector, or -1; acknowledging makes it in service. */
int chips_pending(Cpu *c);
int chips_acknowledge(Cpu *c);
/* Could anything ever wake a vCPU that sleeps with IF = 1? (a timer armed, or a line that a device may raise: true). */
bool chips_pending_for_halted(Cpu *c);

/* Timers of all chips: earliest deadline or NEVER; and firing those due. */
uint64_t chips_deadline(Chips *chips);
void chips_tick(Chips *chips, uint64_t now);
/* vm_now was set forward by `ns` (or back): what is left of every count stays; TSC deadlines follow the TSC. */
void chips_clock_moved(Chips *chips, int64_t ns);

/* MSRs of the local APIC: APIC_BASE, TSC_DEADLINE, x2APIC 0x800-0x8ff. 0, or -1 for #GP. */
int lapic_msr_read(Cpu *c, uint32_t index, uint64_t *value);
int lapic_msr_write(Cpu *c, uint32_t index, uint64_t value, bool host);
uint64_t lapic_get_cr8(const Cpu *c);
void lapic_set_cr8(Cpu *c, uint64_t cr8);

/* State in KVM's structs; 0 or -EINVAL. */
int chips_get_irqchip(Chips *chips, struct kvm_irqchip *chip);
int chips_set_irqchip(Chips *chips, const struct kvm_irqchip *chip);
int chips_get_pit(Chips *chips, struct kvm_pit_state2 *pit);
int chips_set_pit(Chips *chips, const struct kvm_pit_state2 *pit);
int lapic_get_state(Cpu *c, struct kvm_lapic_state *state);
int lapic_set_state(Cpu *c, const struct kvm_lapic_state *state);

#endif
