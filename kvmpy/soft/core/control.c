/* Control and debug registers with the checks of the instructions that write them. SDM 3A 2.5, 4.1, 11.8.5; SDM 2 MOV. */
#include "chips.h"
#include "run.h"
#include "system.h"

#define CR0_BITS (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR3_NO_FLUSH (1ull << 63)

bool pdptes_load(Cpu *c, uint64_t cr0, uint64_t cr4, uint64_t cr3)
{
    if (!(cr0 & CR0_PG) || !(cr4 & CR4_PAE) || c->efer & EFER_LMA)
        return true;
    uint64_t reserved = ~((1ull << c->phys_bits) - 1) | 0x1e6, pdpte[4]; /* bits 1, 2, 5-8 and above the address */
    for (unsigned n = 0; n < 4; n++) {
        uint64_t at = ((cr3 & 0xffffffe0) + 8 * n) & c->a20_mask;
        const void *p = phys_host(c, at, 8, false);
        pdpte[n] = ~0ull;
        if (p)
            memcpy(&pdpte[n], p, 8);
        if (pdpte[n] & 1 && pdpte[n] & reserved)
            return false;
    }
    memcpy(c->pdpte, pdpte, sizeof pdpte);
    return true;
}

/* CR0.PG goes on with EFER.LME set: long mode becomes active. */
static void check_long_mode_entry(Cpu *c, const Insn *i)
{
    const struct kvm_segment *tr = &c->seg[SEG_TR];
    bool tss16 = !tr->unusable && !SEL_NULL(tr->selector) && (tr->type & 13) == TYPE_TSS16;
    if (!(c->cr4 & CR4_PAE) || c->seg[SEG_CS].l || tss16)
        raise_gp0(c, i);
}

void cpu_write_cr0(Cpu *c, const Insn *i, uint64_t value)
{
    uint64_t old = c->cr0;
    if (value >> 32)
        raise_gp0(c, i);
    value = (value & CR0_BITS) | CR0_ET;
    if ((value & CR0_PG && !(value & CR0_PE)) || (value & CR0_NW && !(value & CR0_CD)))
        raise_gp0(c, i);
    bool on = value & ~old & CR0_PG, off = old & ~value & CR0_PG;
    if (off && ((c->efer & EFER_LMA && c->seg[SEG_CS].l) || c->cr4 & CR4_PCIDE))
        raise_gp0(c, i);
    if (on && c->efer & EFER_LME) {
        check_long_mode_entry(c, i);
        c->efer |= EFER_LMA;
    } else if ((old ^ value) & (CR0_CD | CR0_NW | CR0_PG) && !pdptes_load(c, value, c->cr4, c->cr3)) {
        raise_gp0(c, i);
    }
    if (off)
        c->efer &= ~(uint64_t)EFER_LMA;
    c->cr0 = value;
    if (value & ~old & CR0_PE && !(c->eflags & FL_VM))
        c->seg[SEG_SS].dpl = 0; /* CPL is 0 until CS is loaded */
    if ((old ^ value) & (CR0_PE | CR0_PG | CR0_WP))
        tlb_flush_all(c);
    cpu_update_mode(c);
}

void cpu_write_cr3(Cpu *c, const Insn *i, uint64_t value)
{
    bool keep = false;
    if (in_long_mode(c)) {
        if (c->cr4 & CR4_PCIDE) {
            keep = value & CR3_NO_FLUSH;
            value &= ~CR3_NO_FLUSH;
        }
        if (value >> c->phys_bits)
            raise_gp0(c, i);
    } else {
        value = (uint32_t)value;
        if (!pdptes_load(c, c->cr0, c->cr4, value))
            raise_gp0(c, i);
    }
    tlb_load_cr3(c, value, keep);
}

void cpu_write_cr4(Cpu *c, const Insn *i, uint64_t value)
{
    uint64_t old = c->cr4, changed = old ^ value;
    if (value & ~c->cr4_allowed)
        raise_gp0(c, i);
    if (c->efer & EFER_LMA && !(value & CR4_PAE))
        raise_gp0(c, i);
    if (value & ~old & CR4_PCIDE && (!(c->efer & EFER_LMA) || c->cr3 & 0xfff))
        raise_gp0(c, i);
    if (changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP) && !pdptes_load(c, c->cr0, value, c->cr3))
        raise_gp0(c, i);
    c->cr4 = value;
    /* SMEP and SMAP: what they forbid stands in the entries, of all PCIDs */
    if (changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP | CR4_SMAP) || old & ~value & CR4_PCIDE)
        tlb_flush_all(c);
    cpu_update_mode(c);
}

static void write_cr8(Cpu *c, const Insn *i, uint64_t value)
{
    if (value > 15)
        raise_gp0(c, i);
    if (c->lapic) {
        lapic_set_cr8(c, value);
        return;
    }
    bool lower = value < c->cr8;
    c->cr8 = value;
    if (lower) /* the interrupt controller in user space may have one waiting that the old priority held back */
        cpu_exit_after(c, KVM_EXIT_SET_TPR);
}

/* A register that is none is no instruction, whatever the privilege. */
static void check_cr(Cpu *c, const Insn *i)
{
    if (i->reg > 8 || !(1u << i->reg & 0x11d))
        raise_ud(c, i);
    CHECK_CPL0();
}

EXEC(read_cr)
{
    uint64_t v;
    check_cr(c, i);
    switch (i->reg) {
    case 0: v = c->cr0; break;
    case 2: v = c->cr2; break;
    case 3: v = c->cr3; break;
    case 4: v = c->cr4; break;
    default: v = c->lapic ? lapic_get_cr8(c) : c->cr8; break;
    }
    set_reg(c, i->rm, in_64bit(c) ? 8 : 4, v);
    NEXT();
}

EXEC(write_cr)
{
    check_cr(c, i);
    uint64_t v = get_reg(c, i->rm, in_64bit(c) ? 8 : 4);
    switch (i->reg) {
    case 0: cpu_write_cr0(c, i, v); break;
    case 2: c->cr2 = v; break;
    case 3: cpu_write_cr3(c, i, v); break;
    case 4: cpu_write_cr4(c, i, v); break;
    default: write_cr8(c, i, v); break;
    }
    LEAVE();
}
ONE(mov_Rd_Cd, read_cr)
ONE(mov_Rq_Cq, read_cr)
ONE(mov_Cd_Rd, write_cr)
ONE(mov_Cq_Rq, write_cr)

/* The number of the debug register; DR4 and DR5 are DR6 and DR7 unless CR4.DE. Raises general detect. */
static unsigned debug_register(Cpu *c, const Insn *i)
{
    unsigned n = i->reg;
    if (n >= 8 || (c->cr4 & CR4_DE && (n == 4 || n == 5)))
        raise_ud(c, i);
    CHECK_CPL0();
    if (c->dr[7] & 0x2000) {
        c->dr[6] |= 0x2000;
        raise_fault(c, i, EXC_DB);
    }
    return n == 4 || n == 5 ? n + 2 : n;
}

EXEC(read_dr)
{
    unsigned n = debug_register(c, i);
    set_reg(c, i->rm, in_64bit(c) ? 8 : 4, c->dr[n]);
    NEXT();
}

EXEC(write_dr)
{
    unsigned n = debug_register(c, i);
    uint64_t v = get_reg(c, i->rm, in_64bit(c) ? 8 : 4);
    if (n >= 6 && v >> 32)
        raise_gp0(c, i);
    if (n == 6)
        v = (v & 0xe00f) | 0xffff0ff0;
    else if (n == 7)
        v = (v & 0xffff2bff) | 0x400;
    c->dr[n] = v;
    if (n != 6)
        tlb_flush_all(c); /* watched pages lose their fast path, others get it back */
    LEAVE();
}
ONE(mov_Rd_Dd, read_dr)
ONE(mov_Rq_Dq, read_dr)
ONE(mov_Dd_Rd, write_dr)
ONE(mov_Dq_Rq, write_dr)

EXEC(clear_ts)
{
    CHECK_CPL0();
    c->cr0 &= ~(uint64_t)CR0_TS;
    cpu_update_mode(c);
    LEAVE();
}
ONE(clts, clear_ts)

/* The low four bits of CR0; PE can be set but not cleared. */
EXEC(load_msw_r)
{
    CHECK_CPL0();
    uint64_t low = c->gpr[i->rm] & 0xf;
    cpu_write_cr0(c, i, (c->cr0 & ~0xeull) | low);
    LEAVE();
}
EXEC(load_msw_m)
{
    CHECK_CPL0();
    uint64_t low = load16(c, i) & 0xf;
    cpu_write_cr0(c, i, (c->cr0 & ~0xeull) | low);
    LEAVE();
}
REG_MEM(lmsw, load_msw_r, load_msw_m)

static void check_umip(Cpu *c, const Insn *i)
{
    if (c->cr4 & CR4_UMIP && c->cpl != 0)
        raise_gp0(c, i);
}

EXEC(store_msw_r)
{
    check_umip(c, i);
    set_reg(c, i->rm, i->osize, c->cr0);
    NEXT();
}
EXEC(store_msw_m)
{
    check_umip(c, i);
    store16(c, i, (uint16_t)c->cr0);
    NEXT();
}
REG_MEM(smsw, store_msw_r, store_msw_m)

/* ---- TLB and caches ---- */

EXEC(inv_page)
{
    CHECK_CPL0();
    uint64_t linear = mem_offset(c, i) + c->seg_base[i->seg];
    if (!in_64bit(c))
        linear = (uint32_t)linear;
    tlb_flush_page(c, linear);
    LEAVE();
}
ONE(invlpg, inv_page)

EXEC(inv_pcid)
{
    CHECK_CPL0();
    uint64_t type = get_reg(c, i->reg, in_64bit(c) ? 8 : 4), desc[2];
    load_vec(c, i, desc, 16, false);
    bool bad = type > 3 || desc[0] >> 12;
    if (type < 2 && desc[0] && !(c->cr4 & CR4_PCIDE))
        bad = true;
    if (type == 0 && !is_canonical(desc[1]))
        bad = true;
    if (bad)
        raise_gp0(c, i);
    switch (type) {
    case 0: tlb_flush_pcid_page(c, (uint32_t)desc[0], desc[1]); break;
    case 1: tlb_flush_pcid(c, (uint32_t)desc[0]); break;
    case 2: tlb_flush_all(c); break;
    default: tlb_flush_pcids(c); break;
    }
    LEAVE();
}
ONE(invpcid, inv_pcid)

/* Caches are not modelled: nothing to write back or to drop. */
EXEC(cache_all)
{
    CHECK_CPL0();
    NEXT();
}
ONE(wbinvd, cache_all)
ONE(invd, cache_all)

EXEC(cache_line)
{
    load8(c, i);
    NEXT();
}
ONE(clflush, cache_line)
ONE(clflushopt, cache_line)
ONE(clwb, cache_line)

/* ---- XCR0 ---- */

EXEC(get_xcr)
{
    if (!(c->cr4 & CR4_OSXSAVE))
        raise_ud(c, i);
    uint32_t index = (uint32_t)c->gpr[RCX];
    if (index > 1 || (index == 1 && !has_feature(c, FEAT_XGETBV1)))
        raise_gp0(c, i);
    /* XCR1 reads as XCR0 and the components in use; all count as in use */
    c->gpr[RAX] = (uint32_t)c->xcr0;
    c->gpr[RDX] = c->xcr0 >> 32;
    NEXT();
}

EXEC(set_xcr)
{
    if (!(c->cr4 & CR4_OSXSAVE))
        raise_ud(c, i);
    CHECK_CPL0();
    uint64_t v = (c->gpr[RDX] << 32) | (uint32_t)c->gpr[RAX];
    if ((uint32_t)c->gpr[RCX] != 0 || !(v & 1) || v & ~c->xcr0_allowed || (v & 4 && !(v & 2)))
        raise_gp0(c, i);
    c->xcr0 = v;
    cpu_update_mode(c);
    LEAVE();
}
ONE(xgetbv, get_xcr)
ONE(xsetbv, set_xcr)
