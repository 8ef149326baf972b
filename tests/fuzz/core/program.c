/* Whole programs on the core: any bytes as code in any state. Every run gives an exit in bounded time, nothing outside RAM is
   touched, and the core takes back the state that it gave. */
#include <errno.h>

#include "guest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Input in = {data, data + size};
    Guest g = guest_head(&in);
    Vm *vm = machine_new(g.chips, g.chips ? 2 : 1, g.options >> 12 & 1);
    Cpu *c = vm->cpu[0];
    guest_put(&g, c, &in);
    if (g.chips && g.options & 0x200) {
        kp_vm_irq_line(vm, (uint32_t)next_random(&g.seed) % 24, 1);
        kp_vm_signal_msi(vm, 0xfee00000, (uint32_t)next_random(&g.seed));
    } else if (g.options & 0x400)
        (void)kp_vcpu_interrupt(c, (uint32_t)next_random(&g.seed) & 0xff);
    if (g.options & 0x800)
        (void)kp_vcpu_nmi(c);
    kp_vm_set_deadline(vm, kp_vm_now(vm) + 2000);
    for (unsigned n = 0; n < 16; n++) {
        int index = kp_vm_run(vm);
        if (index == -EAGAIN || index == -EINTR)
            break;
        CHECK(index >= 0 && vm->cpu[index], "kp_vm_run gave %d", index);
        if (!answer_exit(vm->cpu[index], &g.seed))
            break;
    }
    State first, second;
    state_get(c, &first);
    state_set(c, &first);
    state_get(c, &second);
    CHECK(state_equal(&first, &second), "a state that was set is another one");
    struct kvm_translation t = {.linear_address = first.regs.rip};
    CHECK(!kp_vcpu_translate(c, &t), "translate");
    return 0;
}
