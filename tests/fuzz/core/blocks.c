/* The same program in blocks and instruction by instruction ends in the same state: registers, flags, memory, exits. */
#include "guest.h"

#define STEPS 96
#define EXITS 8

typedef struct {
    uint32_t exit;
    uint64_t rip, what;
} Seen;

/* Runs up to STEPS instructions, `piece` at a time; gives how many exits were seen on the way, or -1 where steps stay on the same
   instruction: a repeated string instruction counts by elements then, and once in a block. */
static int run(Cpu *c, unsigned piece, uint64_t seed, Seen seen[EXITS])
{
    int exits = 0;
    uint64_t start = c->stat[0]; /* retired instructions */
    while (exits < EXITS) {
        uint64_t done = c->stat[0] - start;
        if (done >= STEPS)
            break;
        uint64_t rip = c->rip, count = STEPS - done < piece ? STEPS - done : piece;
        if (kp_vcpu_step(c, count)) /* the deadline: events without end */
            return -1;
        if (piece == 1 && c->rip == rip)
            return -1;
        if (c->record->exit_reason == KVM_EXIT_DEBUG)
            continue;
        struct kvm_run *r = c->record;
        uint64_t what = r->exit_reason == KVM_EXIT_IO ? r->io.port | (uint64_t)r->io.count << 16
                        : r->exit_reason == KVM_EXIT_MMIO ? r->mmio.phys_addr : 0;
        seen[exits++] = (Seen){r->exit_reason, c->rip, what};
        if (!answer_exit(c, &seed))
            break;
    }
    return exits;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t memory[RAM_SIZE];
    State state[2];
    Seen seen[2][EXITS] = {0};
    int exits[2];
    for (unsigned way = 2; way-- > 0;) {
        Input in = {data, data + size};
        Guest g = guest_head(&in);
        g.options &= ~(0x10 | 0x40 | 0x80u); /* debugging stops between instructions */
        Vm *vm = machine_new(false, 1);
        guest_put(&g, vm->cpu[0], &in);
        kp_vm_set_deadline(vm, 4 * STEPS);
        exits[way] = run(vm->cpu[0], way ? 1 : STEPS, g.seed, seen[way]);
        state_get(vm->cpu[0], &state[way]);
        if (exits[way] < 0)
            return 0;
        if (way)
            memcpy(memory, ram, RAM_SIZE);
    }
    for (unsigned n = 0; n < EXITS; n++)
        CHECK(!memcmp(&seen[0][n], &seen[1][n], sizeof seen[0][n]), "exit %u: %u at %llx (%llx), %u at %llx (%llx)", n, seen[0][n].exit,
              (unsigned long long)seen[0][n].rip, (unsigned long long)seen[0][n].what, seen[1][n].exit,
              (unsigned long long)seen[1][n].rip, (unsigned long long)seen[1][n].what);
    CHECK(exits[0] == exits[1], "%d exits in blocks, %d by step", exits[0], exits[1]);
    CHECK(state_equal(&state[0], &state[1]), "blocks and steps end in different states");
    for (uint32_t n = 0; n < RAM_SIZE; n++)
        CHECK(memory[n] == ram[n], "memory at %x: %02x by step, %02x in blocks", n, memory[n], ram[n]);
    return 0;
}
