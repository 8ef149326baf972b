/* The same program instruction by instruction, in blocks and translated ends in the same state: registers, flags, memory, exits.
   What an instruction leaves undefined the host may set as it likes: such flags are not compared, and a program is compared up to
   where it looks at one. */
#include "guest.h"
#include "insn.h"
#include "run.h"
#include "undefined.h"

#define STEPS 256
#define EXITS 8

typedef struct {
    uint32_t exit;
    uint64_t rip, what;
} Seen;

/* One run and what it ended in. */
typedef struct {
    Seen seen[EXITS];
    int exits;
    State state;
    uint8_t memory[RAM_SIZE];
} Result;

/* Flags that stand as an instruction that leaves them undefined has left them. */
typedef struct {
    uint32_t now;      /* in a run by step */
    uint32_t at_limit; /* before the instruction that looks at some, */
    uint64_t limit;    /* which is the one behind so many; or STEPS */
} Undefined;

static uint64_t events(const Cpu *c) { return c->stat[STAT_EXCEPTIONS] + c->stat[STAT_INTERRUPTS]; }

/* The instruction at RIP, or one of id ud2. */
static Insn insn_at(Cpu *c)
{
    uint8_t bytes[15];
    unsigned got = 0;
    for (; got < sizeof bytes; got++) {
        struct kvm_translation t = {.linear_address = fetch_address(c, c->rip + got)};
        if (kp_vcpu_translate(c, &t) || !t.valid)
            break;
        uint64_t at = t.physical_address - ROM_AT < 0x1000 ? t.physical_address - ROM_AT + DATA_AT : t.physical_address;
        if (at >= RAM_SIZE)
            break;
        bytes[got] = ram[at];
    }
    Insn i;
    if (decode(c, bytes, got, c->rip, c->mode, &i) == 0)
        i.id = INSN_ud2;
    return i;
}

/* Runs up to `limit` instructions, `piece` at a time; false where steps stay on the same instruction: a repeated string instruction
   counts by elements then, and once in a block. */
static bool run(Cpu *c, unsigned piece, uint64_t limit, uint64_t seed, Result *to, Undefined *u)
{
    uint64_t start = c->stat[STAT_INSTRUCTIONS];
    to->exits = 0;
    memset(to->seen, 0, sizeof to->seen);
    while (to->exits < EXITS) {
        uint64_t done = c->stat[STAT_INSTRUCTIONS] - start;
        if (done >= limit)
            break;
        uint64_t rip = c->rip, rcx = c->gpr[RCX], before = events(c);
        Insn i = u && u->limit == STEPS ? insn_at(c) : (Insn){0};
        if (kp_vcpu_step(c, limit - done < piece ? limit - done : piece)) /* the deadline: events without end */
            return false;
        if (piece == 1 && c->rip == rip)
            return false;
        if (u && u->limit == STEPS) {
            InsnFlags flags;
            bool defined = insn_flags(&i, &rcx, &flags);
            if (events(c) != before) /* it pushes them */
                flags.read = FL_OSZAPC;
            if (!defined || u->now & flags.read) {
                u->limit = done;
                u->at_limit = u->now;
            }
            if (c->stat[STAT_INSTRUCTIONS] - start != done) /* else it waits for an answer, or has faulted */
                u->now = flags_undefined_behind(u->now, &flags);
        }
        struct kvm_run *r = c->record;
        if (r->exit_reason == KVM_EXIT_DEBUG)
            continue;
        uint64_t what = r->exit_reason == KVM_EXIT_IO ? r->io.port | (uint64_t)r->io.count << 16
                        : r->exit_reason == KVM_EXIT_MMIO ? r->mmio.phys_addr : 0;
        to->seen[to->exits++] = (Seen){r->exit_reason, c->rip, what};
        if (!answer_exit(c, &seed))
            break;
    }
    state_get(c, &to->state);
    memcpy(to->memory, ram, RAM_SIZE);
    return true;
}

static void compare(const Result *a, const Result *b, const char *how)
{
    for (unsigned n = 0; n < EXITS; n++)
        CHECK(!memcmp(&a->seen[n], &b->seen[n], sizeof a->seen[n]), "exit %u: %u at %llx (%llx), %u at %llx (%llx) %s", n, a->seen[n].exit,
              (unsigned long long)a->seen[n].rip, (unsigned long long)a->seen[n].what, b->seen[n].exit, (unsigned long long)b->seen[n].rip,
              (unsigned long long)b->seen[n].what, how);
    CHECK(a->exits == b->exits, "%d exits, %d %s", a->exits, b->exits, how);
    CHECK(state_equal(&a->state, &b->state), "another state %s", how);
    if (memcmp(a->memory, b->memory, RAM_SIZE))
        for (uint32_t n = 0; n < RAM_SIZE; n++)
            CHECK(a->memory[n] == b->memory[n], "memory at %x: %02x, %02x %s", n, a->memory[n], b->memory[n], how);
}

/* Has the guest changed its page tables, but for the bits that the walk sets? What it reaches then is up to what the TLB holds. */
static bool tables_changed(const uint8_t *before, const uint8_t *after)
{
    for (uint32_t at = LONG_AT; at < DIRECTORY_AT + 0x1000; at += 4)
        if ((before[at] ^ after[at]) & 0x9f || memcmp(before + at + 1, after + at + 1, 3))
            return true;
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { BY_STEP, IN_BLOCKS, SHORTER, TRANSLATED };
    static Result first, second;
    static uint8_t tables[RAM_SIZE];
    Undefined u = {.limit = STEPS};
    for (unsigned way = BY_STEP; way <= TRANSLATED; way++) {
        if (way == SHORTER && u.limit == STEPS)
            continue;
        Input in = {data, data + size};
        Guest g = guest_head(&in);
        g.options &= ~(0x10 | 0x40 | 0x80u); /* debugging stops between instructions */
        Vm *vm = machine_new(false, 1, way == TRANSLATED ? 1 + (g.options >> 13 & 1) : 0); /* interrupts come between blocks */
        guest_put(&g, vm->cpu[0], &in);
        memcpy(tables + LONG_AT, ram + LONG_AT, DIRECTORY_AT + 0x1000 - LONG_AT);
        kp_vm_set_deadline(vm, 4 * STEPS);
        Result *to = way == BY_STEP || way == SHORTER ? &first : &second;
        if (!run(vm->cpu[0], way == BY_STEP ? 1 : STEPS, way >= SHORTER ? u.limit : STEPS, g.seed, to, way == BY_STEP ? &u : NULL) || tables_changed(tables, ram))
            return 0;
        if (way == IN_BLOCKS)
            compare(&first, &second, "in blocks");
        if (way == TRANSLATED) {
            uint32_t masked = u.limit == STEPS ? u.now : u.at_limit;
            first.state.regs.rflags &= ~(uint64_t)masked;
            second.state.regs.rflags &= ~(uint64_t)masked;
            compare(&first, &second, "translated");
        }
    }
    return 0;
}
