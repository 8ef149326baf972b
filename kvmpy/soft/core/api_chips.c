/* kp_* functions of the interrupt chips and of time: checks of existence, and errors as the KVM ioctls give them. */
#include <errno.h>

#include "parallel.h"

int kp_vm_create_irqchip(KpVm *vm)
{
    if (vm->chips)
        return -EEXIST;
    if (vm->cpu_count)
        return -EINVAL;
    vm->chips = chips_create(vm);
    return vm->chips ? 0 : -ENOMEM;
}

int kp_vm_create_pit(KpVm *vm)
{
    struct kvm_pit_state2 state;
    if (!vm->chips)
        return -ENOENT;
    if (!chips_get_pit(vm->chips, &state))
        return -EEXIST;
    chips_create_pit(vm->chips);
    return 0;
}

int kp_vm_irq_line(KpVm *vm, uint32_t gsi, int level)
{
    if (!vm->chips)
        return -ENXIO;
    core_lock(vm);
    chips_irq_line(vm->chips, gsi, level);
    core_unlock(vm);
    return 0;
}

int kp_vm_signal_msi(KpVm *vm, uint64_t address, uint32_t data)
{
    if (!vm->chips)
        return -EINVAL;
    core_lock(vm);
    int count = chips_signal_msi(vm->chips, address, data);
    core_unlock(vm);
    return count;
}

int kp_vm_get_irqchip(KpVm *vm, struct kvm_irqchip *chip) { return vm->chips ? chips_get_irqchip(vm->chips, chip) : -ENXIO; }
int kp_vm_set_irqchip(KpVm *vm, const struct kvm_irqchip *chip) { return vm->chips ? chips_set_irqchip(vm->chips, chip) : -ENXIO; }
int kp_vm_get_pit(KpVm *vm, struct kvm_pit_state2 *pit) { return vm->chips ? chips_get_pit(vm->chips, pit) : -ENXIO; }
int kp_vm_set_pit(KpVm *vm, const struct kvm_pit_state2 *pit) { return vm->chips ? chips_set_pit(vm->chips, pit) : -ENXIO; }
int kp_vcpu_get_lapic(KpVcpu *cpu, struct kvm_lapic_state *lapic) { return lapic_get_state(cpu, lapic); }
int kp_vcpu_set_lapic(KpVcpu *cpu, const struct kvm_lapic_state *lapic) { return lapic_set_state(cpu, lapic); }

int kp_vm_set_clock(KpVm *vm, const struct kvm_clock_data *data)
{
    int64_t moved = (int64_t)(data->clock - vm_now(vm));
    if (vm->virtual_clock)
        vm->virtual_skip += (uint64_t)moved;
    else
        vm->clock_base -= (uint64_t)moved;
    vm->first_tsc = vm->ns_per_tsc = vm->last_ns = 0;
    if (vm->chips)
        chips_clock_moved(vm->chips, moved);
    vm->timers_changed = true;
    return 0;
}

uint64_t kp_vm_get_tsc_khz(KpVm *vm) { return vm->tsc_khz; }

int kp_vm_set_tsc_khz(KpVm *vm, uint64_t khz)
{
    if (!khz || khz >> 32)
        return -EINVAL;
    uint64_t now = vm_now(vm), before = vm->tsc_khz;
    uint64_t moved = (uint64_t)((unsigned __int128)now * before / 1000000) - (uint64_t)((unsigned __int128)now * khz / 1000000);
    vm->tsc_khz = khz;
    for (uint32_t n = 0; n < vm->cpu_count; n++)
        if (vm->cpu[n])
            vm->cpu[n]->tsc_offset += moved;
    vm->timers_changed = true;
    return 0;
}
