/* Locked instructions where vCPUs run in parallel: the memory form by its register form, which works on a copy of the operand, and
   one compare and exchange of the host that brings the result back. Emitted code has the host's own locked instructions. */
#include "exec.h"
#include "block.h"
#include "parallel.h"
#include "run.h"

#ifdef __x86_64__
#define EXCHANGE_IF(suffix, type) \
    __asm__ volatile("lock; cmpxchg" suffix " %3, %1" \
                     : "=@cce"(done), "+m"(*(uint8_t(*)[sizeof(type)])p), "+a"(was) \
                     : "r"((type)new) \
                     : "memory")
#define EXCHANGE_CASE(bits, suffix) \
    case bits / 8: { \
        uint##bits##_t was = (uint##bits##_t)old; \
        EXCHANGE_IF(suffix, uint##bits##_t); \
        break; \
    }
bool atomic_exchange_if(void *p, unsigned size, uint64_t old, uint64_t new)
{
    bool done;
    switch (size) {
    EXCHANGE_CASE(8, "b")
    EXCHANGE_CASE(16, "w")
    EXCHANGE_CASE(32, "l")
    default:
    EXCHANGE_CASE(64, "q")
    }
    return done;
}

static bool exchange_16_if(void *p, uint64_t old[2], uint64_t low, uint64_t high)
{
    bool done;
    __asm__ volatile("lock; cmpxchg16b %1"
                     : "=@cce"(done), "+m"(*(uint8_t(*)[16])p), "+a"(old[0]), "+d"(old[1])
                     : "b"(low), "c"(high)
                     : "memory");
    return done;
}
#else /* never called: kp_vm_set_parallel refuses */
bool atomic_exchange_if(void *p, unsigned size, uint64_t old, uint64_t new)
{
    (void)old;
    memcpy(p, &new, size);
    return true;
}

static bool exchange_16_if(void *p, uint64_t old[2], uint64_t low, uint64_t high)
{
    (void)old;
    memcpy(p, (uint64_t[2]){low, high}, 16);
    return true;
}
#endif

static bool is_bit_string(unsigned id) { return id == INSN_bts_EvGv || id == INSN_btr_EvGv || id == INSN_btc_EvGv; }

static unsigned operand_size(const Insn *i, bool byte)
{
    return i->id == INSN_cmpxchg16b ? 16 : i->id == INSN_cmpxchg8b ? 8 : byte ? 1 : i->osize;
}

/* Offset of the operand; in a bit string the register moves it. */
static uint64_t operand_offset(const Cpu *c, const Insn *i)
{
    uint64_t offset = mem_offset(c, i);
    if (!is_bit_string(i->id))
        return offset;
    uint64_t n = get_reg(c, i->reg, i->osize);
    int64_t bits = i->osize == 8 ? (int64_t)n : i->osize == 4 ? (int32_t)n : (int16_t)n;
    unsigned shift = i->osize == 8 ? 6 : i->osize == 4 ? 5 : 4;
    return (offset + (uint64_t)((bits >> shift) * i->osize)) & i->amask;
}

static const Insn *stop_here(Cpu *c, const Insn *i)
{
    (void)c;
    (void)i;
    return NULL;
}

static void exchange_8(Cpu *c, uint8_t *ram)
{
    uint64_t old, want = c->gpr[RDX] << 32 | (uint32_t)c->gpr[RAX], new = c->gpr[RCX] << 32 | (uint32_t)c->gpr[RBX];
    bool equal;
    do {
        memcpy(&old, ram, 8);
        equal = old == want;
    } while (!atomic_exchange_if(ram, 8, old, equal ? new : old));
    if (!equal) {
        c->gpr[RAX] = (uint32_t)old;
        c->gpr[RDX] = old >> 32;
    }
    cc_change(c, FL_ZF, equal ? FL_ZF : 0);
}

static void exchange_16(Cpu *c, uint8_t *ram)
{
    uint64_t old[2] = {c->gpr[RAX], c->gpr[RDX]};
    bool equal = exchange_16_if(ram, old, c->gpr[RBX], c->gpr[RCX]);
    if (!equal) {
        c->gpr[RAX] = old[0];
        c->gpr[RDX] = old[1];
    }
    cc_change(c, FL_ZF, equal ? FL_ZF : 0);
}

/* On plain RAM: the register form's handler computes, with the operand in the register that otherwise reads as 0. */
static void change_ram(Cpu *c, const Insn *i, uint8_t *ram, unsigned size, bool byte)
{
    Insn pair[2] = {*i, {.exec = stop_here}};
    pair[0].flags &= (uint8_t)~(INSN_MEM | INSN_ATOMIC);
    pair[0].rm = byte ? ZERO_REG * 8 : ZERO_REG;
    pair[0].block = NULL;
    exec_fn compute = decode_handler(&pair[0]);
    uint64_t before[GPR_COUNT], dst = c->cc_dst, src = c->cc_src;
    uint32_t op = c->cc_op;
    memcpy(before, c->gpr, sizeof before);
    for (;;) {
        uint64_t old = 0, new;
        memcpy(&old, ram, size);
        c->gpr[ZERO_REG] = old;
        compute(c, pair);
        new = c->gpr[ZERO_REG];
        if (likely(atomic_exchange_if(ram, size, old, new)))
            break;
        memcpy(c->gpr, before, sizeof before);
        c->cc_dst = dst;
        c->cc_src = src;
        c->cc_op = op;
    }
    c->gpr[ZERO_REG] = 0;
}

/* By the memory form, with all other vCPUs stopped: pages without a fast tag, and what lies across a page's end. */
static void change_alone(Cpu *c, const Insn *i)
{
    core_stop(c->vm);
    Insn *pair = c->run->atomic; /* a fault tells of it later */
    pair[0] = *i;
    pair[1] = (Insn){.exec = stop_here};
    pair[0].flags &= (uint8_t)~INSN_ATOMIC;
    decode_handler(&pair[0])(c, pair);
}

EXEC_VOID(exec_atomic_once)
{
    bool byte = insn_table[i->id].operands[1] == 'b';
    unsigned size = operand_size(i, byte);
    uint64_t linear = mem_linear(c, i, i->seg, operand_offset(c, i), size, true);
    if (size == 16 && linear & 15)
        raise_gp0(c, i);
    TlbEntry *e = tlb_entry(c, linear);
    bool taken = false;
    if (unlikely(e->write != TLB_TAG(linear, size))) {
        taken = core_take(c);
        mem_probe_write(c, i, i->seg, linear, size);
    }
    if (unlikely(e->write != TLB_TAG(linear, size)))
        change_alone(c, i);
    else if (size == 16)
        exchange_16(c, (uint8_t *)(uintptr_t)(linear + e->addend));
    else if (i->id == INSN_cmpxchg8b)
        exchange_8(c, (uint8_t *)(uintptr_t)(linear + e->addend));
    else
        change_ram(c, i, (uint8_t *)(uintptr_t)(linear + e->addend), size, byte);
    core_give(c, taken);
}

const Insn *exec_atomic(Cpu *c, const Insn *i) { return exec_atomic_once(c, i); }
