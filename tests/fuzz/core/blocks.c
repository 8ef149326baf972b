/* The same program instruction by instruction, in blocks and translated ends in the same state: registers, flags, memory, exits. */
#include "guest.h"
#include "insn.h"
#include "run.h"

#define STEPS 96
#define EXITS 8

typedef struct {
    uint32_t exit;
    uint64_t rip, what;
} Seen;

static bool undefined; /* an instruction of this input leaves flags undefined */

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
        if (piece == 1 && insn_table[c->run->alone[0].id].flags_undefined)
            undefined = true;
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

enum { BY_STEP, IN_BLOCKS, TRANSLATED, WAYS };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[WAYS] = {"by step", "in blocks", "translated"};
    static uint8_t memory[RAM_SIZE];
    State first, state;
    Seen seen[2][EXITS];
    int exits[2];
    unsigned ways = WAYS;
    undefined = false;
    for (unsigned way = 0; way < ways; way++) {
        Input in = {data, data + size};
        Guest g = guest_head(&in);
        g.options &= ~(0x10 | 0x40 | 0x80u); /* debugging stops between instructions */
        Vm *vm = machine_new(false, 1, way == TRANSLATED);
        guest_put(&g, vm->cpu[0], &in);
        kp_vm_set_deadline(vm, 4 * STEPS);
        unsigned at = way != BY_STEP;
        memset(seen[at], 0, sizeof seen[at]);
        exits[at] = run(vm->cpu[0], way == BY_STEP ? 1 : STEPS, g.seed, seen[at]);
        if (exits[at] < 0)
            return 0;
        if (way == IN_BLOCKS && undefined)
            ways = TRANSLATED; /* not compared: the host's own instruction leaves its flags as it likes */
        if (way == BY_STEP) {
            state_get(vm->cpu[0], &first);
            memcpy(memory, ram, RAM_SIZE);
            continue;
        }
        for (unsigned n = 0; n < EXITS; n++)
            CHECK(!memcmp(&seen[0][n], &seen[1][n], sizeof seen[0][n]), "exit %u: %u at %llx (%llx) by step, %u at %llx (%llx) %s", n,
                  seen[0][n].exit, (unsigned long long)seen[0][n].rip, (unsigned long long)seen[0][n].what, seen[1][n].exit,
                  (unsigned long long)seen[1][n].rip, (unsigned long long)seen[1][n].what, name[way]);
        CHECK(exits[0] == exits[1], "%d exits by step, %d %s", exits[0], exits[1], name[way]);
        state_get(vm->cpu[0], &state);
        CHECK(state_equal(&first, &state), "by step and %s end in different states", name[way]);
        for (uint32_t n = 0; n < RAM_SIZE; n++)
            CHECK(memory[n] == ram[n], "memory at %x: %02x by step, %02x %s", n, memory[n], ram[n], name[way]);
    }
    return 0;
}
