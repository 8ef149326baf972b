/* IN, OUT, INS, OUTS: permission, chips in the core, exits to user space as KVM gives them. */
#include "exec.h"
#include "run.h"
#include "trace.h"

/* SDM 1 19.5: IOPL, then the bit map of the 32-bit TSS. */
static void check_permission(Cpu *c, const Insn *i, uint16_t port, unsigned size)
{
    if (in_real_mode(c) || (!(c->mode & MODE_VM86) && c->cpl <= ((c->eflags & FL_IOPL) >> 12)))
        return;
    const struct kvm_segment *tr = &c->seg[SEG_TR];
    if (!tr->present || tr->unusable || (tr->type & ~2) != 9 || tr->limit < 103)
        raise_gp0(c, i);
    uint32_t at = (uint32_t)sys_read(c, i, tr->base + 102, 2) + port / 8;
    if (at + 1 > tr->limit)
        raise_gp0(c, i);
    uint32_t bits = (uint32_t)sys_read(c, i, tr->base + at, 2) >> (port & 7);
    if (bits & ((1u << size) - 1))
        raise_gp0(c, i);
}

static void exit_record(Cpu *c, uint16_t port, unsigned size, unsigned count, int direction)
{
    struct kvm_run *r = c->record;
    r->exit_reason = KVM_EXIT_IO;
    r->io.direction = (uint8_t)direction;
    r->io.size = (uint8_t)size;
    r->io.port = port;
    r->io.count = count;
    r->io.data_offset = 4096;
}

/* Data of `count` elements read from a port: from the chips, or what user space answered; else leaves to it. */
static const uint8_t *port_read(Cpu *c, const Insn *i, uint16_t port, unsigned size, unsigned count)
{
    struct RunState *r = c->run;
    uint32_t value;
    uint64_t address = port | LOG_PORT;
    if (r->log_next < r->log_count && r->log[r->log_next].address == address && r->log[r->log_next].done) {
        r->log_next++;
        return r->string_data;
    }
    if (c->vm->chips && count == 1 && chips_port_read(c->vm->chips, port, size, &value)) {
        memcpy(r->string_data, &value, 4);
        if (traced(c, KP_TRACE_IO))
            trace_port(c, i, port, size, false, size == 4 ? value : value & ((1u << 8 * size) - 1));
        return r->string_data;
    }
    r->log_count = r->log_next;
    r->log[r->log_count++] = (LogEntry){.address = address, .size = size * count};
    exit_record(c, port, size, count, KVM_EXIT_IO_IN);
    memset((uint8_t *)c->record + 4096, 0, size * count);
    c->insn = i;
    unwind(c, UNWIND_EXIT);
}

/* What a write to a chip's port writes, when the trace has been told of it; before the instruction has done anything. */
static uint32_t port_told(Cpu *c, const Insn *i, uint16_t port, unsigned size, uint32_t value)
{
    if (!traced(c, KP_TRACE_IO) || !chips_has_port(c->vm->chips, port, size))
        return value;
    return (uint32_t)trace_port(c, i, port, size, true, value);
}

static void port_write(Cpu *c, const Insn *i, uint16_t port, unsigned size, uint32_t value)
{
    c->access_linear = insn_address(c, i);
    if (c->vm->chips && chips_port_write(c->vm->chips, port, size, value))
        return;
    exit_record(c, port, size, 1, KVM_EXIT_IO_OUT);
    memcpy((uint8_t *)c->record + 4096, &value, 4);
    c->stat[STAT_IO_EXITS]++;
    cpu_exit_after(c, KVM_EXIT_IO);
}

static unsigned port_size(const Insn *i) { return i->osize == 8 ? 4 : i->osize; }

static const Insn *in(Cpu *c, const Insn *i, uint16_t port, unsigned size)
{
    check_permission(c, i, port, size);
    uint32_t value = 0;
    memcpy(&value, port_read(c, i, port, size, 1), size);
    forget_accesses(c);
    if (size == 1)
        REG8(0) = (uint8_t)value;
    else
        set_reg(c, RAX, size, value);
    LEAVE();
}

static const Insn *out(Cpu *c, const Insn *i, uint16_t port, unsigned size)
{
    check_permission(c, i, port, size);
    uint32_t value = (uint32_t)(size == 4 ? c->gpr[RAX] : c->gpr[RAX] & ((1u << 8 * size) - 1));
    port_write(c, i, port, size, port_told(c, i, port, size, value));
    LEAVE();
}

EXEC(in_al_ib) { return in(c, i, (uint8_t)i->imm, 1); }
EXEC(in_eax_ib) { return in(c, i, (uint8_t)i->imm, port_size(i)); }
EXEC(out_ib_al) { return out(c, i, (uint8_t)i->imm, 1); }
EXEC(out_ib_eax) { return out(c, i, (uint8_t)i->imm, port_size(i)); }
EXEC(in_al_dx) { return in(c, i, (uint16_t)c->gpr[RDX], 1); }
EXEC(in_eax_dx) { return in(c, i, (uint16_t)c->gpr[RDX], port_size(i)); }
EXEC(out_dx_al) { return out(c, i, (uint16_t)c->gpr[RDX], 1); }
EXEC(out_dx_eax) { return out(c, i, (uint16_t)c->gpr[RDX], port_size(i)); }
ONE(IN_ALIb, in_al_ib)
ONE(IN_eAXIb, in_eax_ib)
ONE(OUT_IbAL, out_ib_al)
ONE(OUT_IbeAX, out_ib_eax)
ONE(IN_ALDX, in_al_dx)
ONE(IN_eAXDX, in_eax_dx)
ONE(OUT_DXAL, out_dx_al)
ONE(OUT_DXeAX, out_dx_eax)

/* Index and count registers move by the address size: 16-bit keeps the upper bits, 32-bit clears them. */
static void set_by_asize(Cpu *c, const Insn *i, unsigned reg, uint64_t value)
{
    set_reg(c, reg, i->amask == 0xffff ? 2 : i->amask == 0xffffffff ? 4 : 8, value & i->amask);
}

/* As KVM: one exit brings as many elements as the count, the destination's page and the buffer allow. */
static const Insn *ins(Cpu *c, const Insn *i, unsigned size)
{
    bool rep = i->prefix & (PFX_REP | PFX_REPNE);
    uint16_t port = (uint16_t)c->gpr[RDX];
    uint64_t left = rep ? c->gpr[RCX] & i->amask : 1;
    check_permission(c, i, port, size);
    if (!left)
        LEAVE();
    bool down = c->eflags & FL_DF;
    uint64_t di = c->gpr[RDI] & i->amask;
    unsigned room = down ? di & 0xfff : 0x1000 - (di & 0xfff);
    unsigned count = room / size ? room / size : 1;
    if (count > 1024 / size)
        count = 1024 / size;
    if (count > left)
        count = (unsigned)left;
    if (c->vm->chips && !rep)
        count = 1;
    for (unsigned n = 0; n < count; n++) { /* every element's page must take it before the device is asked */
        uint64_t at = (down ? di - n * size : di + n * size) & i->amask;
        uint64_t linear = mem_linear(c, i, SEG_ES, at, size, true);
        if (n == 0 || ((linear ^ (linear + size - 1)) & ~0xfffull) || !(linear & 0xfff))
            mem_probe_write(c, i, SEG_ES, linear, size);
    }
    const uint8_t *data = port_read(c, i, port, size, count);
    for (unsigned n = 0; n < count; n++) {
        uint64_t at = (down ? di - n * size : di + n * size) & i->amask, v = 0;
        memcpy(&v, data + n * size, size);
        if (size == 1)
            write8(c, i, SEG_ES, at, (uint8_t)v);
        else if (size == 2)
            write16(c, i, SEG_ES, at, (uint16_t)v);
        else
            write32(c, i, SEG_ES, at, (uint32_t)v);
    }
    forget_accesses(c);
    set_by_asize(c, i, RDI, down ? di - (uint64_t)count * size : di + (uint64_t)count * size);
    if (rep) {
        set_by_asize(c, i, RCX, left - count);
        if (left > count)
            LEAVE_AT(i->next_rip - i->len);
    }
    LEAVE();
}

static const Insn *outs(Cpu *c, const Insn *i, unsigned size)
{
    bool rep = i->prefix & (PFX_REP | PFX_REPNE);
    uint16_t port = (uint16_t)c->gpr[RDX];
    uint64_t left = rep ? c->gpr[RCX] & i->amask : 1;
    check_permission(c, i, port, size);
    if (!left)
        LEAVE();
    uint64_t si = c->gpr[RSI] & i->amask;
    uint32_t value = size == 1 ? read8(c, i, i->seg, si) : size == 2 ? read16(c, i, i->seg, si) : read32(c, i, i->seg, si);
    value = port_told(c, i, port, size, value);
    forget_accesses(c);
    set_by_asize(c, i, RSI, c->eflags & FL_DF ? si - size : si + size);
    port_write(c, i, port, size, value);
    if (rep) {
        set_by_asize(c, i, RCX, left - 1);
        if (left > 1)
            LEAVE_AT(i->next_rip - i->len);
    }
    LEAVE();
}

EXEC(insb) { return ins(c, i, 1); }
EXEC(insz) { return ins(c, i, port_size(i)); }
EXEC(outsb) { return outs(c, i, 1); }
EXEC(outsz) { return outs(c, i, port_size(i)); }
ONE(INSB, insb)
ONE(INSZ, insz)
ONE(OUTSB, outsb)
ONE(OUTSZ, outsz)
