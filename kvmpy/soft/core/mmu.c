/* Paging: walks of the page tables in all modes. SDM 3A chapter 4. */
#include "block.h"
#include "cpu.h"
#include "monitor.h"
#include "parallel.h"
#include "system.h"
#include "translate/verify.h"
#include "vm.h"

#define PTE_P 0x1ull
#define PTE_W 0x2ull
#define PTE_U 0x4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_ADDRESS 0x000ffffffffff000ull

#define PF_P 0x1u
#define PF_W 0x2u
#define PF_U 0x4u
#define PF_RSVD 0x8u
#define PF_ID 0x10u
#define WALK_FAULT 0x80000000u

void *phys_host(Cpu *c, uint64_t phys, unsigned size, bool write)
{
    Slot *slot = vm_slot(c->vm, phys);
    if (!slot || phys - slot->gpa > slot->size - size)
        return NULL;
    if (write) {
        if (slot->flags & KVM_MEM_READONLY)
            return NULL;
        if (unlikely(c->vm->verifier))
            verify_store(c->vm, phys);
        if (slot->dirty) {
            uint64_t page = (phys - slot->gpa) >> 12;
            slot->dirty[page >> 6] |= 1ull << (page & 63);
        }
        if (code_in_page(c->vm, phys))
            code_written(c->vm, phys, size);
        if (unlikely(c->vm->monitors))
            monitor_stored(c->vm, phys, size);
    }
    return slot->host + (phys - slot->gpa);
}

/* One paging-structure entry that a walk has gone through. */
typedef struct {
    uint64_t phys, value;
} Step;

/* A finished walk: what the entries say together, before it is asked whether they allow the access. */
typedef struct {
    Step step[4];
    unsigned steps;
    unsigned entry_size;  /* bytes: 4 or 8 */
    uint64_t phys;        /* of the 4 KiB page */
    uint64_t rights;      /* PTE_W and PTE_U where all levels have them */
    bool nx, global;
    unsigned shift;       /* page size as a power of two */
    uint32_t fault;       /* 0, or WALK_FAULT with PF_P and PF_RSVD as the entries give them */
} Walk;

/* Page tables without RAM behind them read as all-ones. */
static uint64_t read_entry(Cpu *c, uint64_t phys, unsigned size)
{
    const void *p = phys_host(c, phys & c->a20_mask, size, false);
    if (!p)
        return size == 8 ? ~0ull : 0xffffffff;
    return size == 8 ? __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED) : __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED);
}

/* Takes the entry at `phys` into the walk; false where it ends it with a fault. */
static bool step(Cpu *c, Walk *w, uint64_t phys, uint64_t reserved, uint64_t *value)
{
    uint64_t v = read_entry(c, phys, w->entry_size);
    if (!(v & PTE_P)) {
        w->fault = WALK_FAULT;
        return false;
    }
    if (v & reserved) {
        w->fault = WALK_FAULT | PF_P | PF_RSVD;
        return false;
    }
    w->step[w->steps++] = (Step){phys, v};
    w->rights &= v;
    w->nx |= v >> 63 & 1;
    *value = v;
    return true;
}

static uint64_t table_at(uint64_t base, uint64_t linear, unsigned shift, unsigned bits, unsigned size)
{
    return base + (linear >> shift & ((1ull << bits) - 1)) * size;
}

static void leaf(Walk *w, uint64_t linear, uint64_t base, unsigned shift, uint64_t value)
{
    uint64_t inside = (1ull << shift) - 1;
    w->shift = shift;
    w->phys = (base & ~inside) | (linear & inside & ~0xfffull);
    w->global = value & PTE_G;
}

static void walk_32(Cpu *c, uint64_t linear, Walk *w)
{
    uint64_t e;
    w->entry_size = 4;
    if (!step(c, w, table_at(c->cr3 & 0xfffff000, linear, 22, 10, 4), 0, &e))
        return;
    if (e & PTE_PS && c->cr4 & CR4_PSE) {
        /* PSE-36: bits 13-20 are address bits 32-39, as far as the processor has them; the rest up to 21 is reserved */
        unsigned high = c->phys_bits > 40 ? 8 : c->phys_bits < 32 ? 0 : c->phys_bits - 32u;
        uint64_t high_mask = ((1ull << high) - 1) << 13;
        if (e & 0x3fe000 & ~high_mask) {
            w->fault = WALK_FAULT | PF_P | PF_RSVD;
            return;
        }
        leaf(w, linear, (e & 0xffc00000) | (e & high_mask) << 19, 22, e);
        return;
    }
    uint64_t table = e & 0xfffff000;
    if (step(c, w, table_at(table, linear, 12, 10, 4), 0, &e))
        leaf(w, linear, e & 0xfffff000, 12, e);
}

/* PDE and PTE of PAE and 4-level paging; `reserved` at every level. */
static void walk_64_low(Cpu *c, uint64_t linear, uint64_t directory, uint64_t reserved, Walk *w)
{
    uint64_t e;
    if (!step(c, w, table_at(directory, linear, 21, 9, 8), reserved, &e))
        return;
    if (e & PTE_PS) {
        if (e & 0x1fe000)
            w->fault = WALK_FAULT | PF_P | PF_RSVD;
        else
            leaf(w, linear, e & PTE_ADDRESS, 21, e);
        return;
    }
    if (step(c, w, table_at(e & PTE_ADDRESS, linear, 12, 9, 8), reserved, &e))
        leaf(w, linear, e & PTE_ADDRESS, 12, e);
}

static uint64_t reserved_bits(const Cpu *c)
{
    uint64_t reserved = PTE_ADDRESS & ~((1ull << c->phys_bits) - 1);
    if (!(c->efer & EFER_NXE))
        reserved |= PTE_NX;
    return reserved;
}

static void walk_pae(Cpu *c, uint64_t linear, Walk *w)
{
    uint64_t pdpte = c->pdpte[linear >> 30 & 3];
    w->entry_size = 8;
    if (!(pdpte & PTE_P)) {
        w->fault = WALK_FAULT;
        return;
    }
    walk_64_low(c, linear, pdpte & PTE_ADDRESS, reserved_bits(c) | 0x7ff0000000000000, w);
}

static void walk_4level(Cpu *c, uint64_t linear, Walk *w)
{
    uint64_t e, reserved = reserved_bits(c);
    w->entry_size = 8;
    if (!step(c, w, table_at(c->cr3 & PTE_ADDRESS, linear, 39, 9, 8), reserved | PTE_PS, &e))
        return;
    uint64_t no_1g = has_feature(c, FEAT_PDPE1GB) ? 0 : PTE_PS;
    if (!step(c, w, table_at(e & PTE_ADDRESS, linear, 30, 9, 8), reserved | no_1g, &e))
        return;
    if (e & PTE_PS) {
        if (e & 0x3fffe000)
            w->fault = WALK_FAULT | PF_P | PF_RSVD;
        else
            leaf(w, linear, e & PTE_ADDRESS, 30, e);
        return;
    }
    walk_64_low(c, linear, e & PTE_ADDRESS, reserved, w);
}

static void walk(Cpu *c, uint64_t linear, Walk *w)
{
    *w = (Walk){.rights = PTE_W | PTE_U};
    if (c->efer & EFER_LMA)
        walk_4level(c, linear, w);
    else if (c->cr4 & CR4_PAE)
        walk_pae(c, linear, w);
    else
        walk_32(c, linear, w);
}

/* TLBF_R, W, X that the rights of a walk give. smap: user pages are out of a supervisor's reach. */
static uint32_t allowed(const Cpu *c, const Walk *w, bool user, bool smap)
{
    bool user_page = w->rights & PTE_U, writable = w->rights & PTE_W, exec = !w->nx;
    if (user)
        return !user_page ? 0 : TLBF_R | (writable ? TLBF_W : 0) | (exec ? TLBF_X : 0);
    uint32_t flags = 0;
    if (!(user_page && smap))
        flags = TLBF_R | (writable || !(c->cr0 & CR0_WP) ? TLBF_W : 0);
    if (exec && !(user_page && c->cr4 & CR4_SMEP))
        flags |= TLBF_X;
    return flags;
}

/* The bits that a walk leaves in its step n. */
static uint64_t marks(const Walk *w, unsigned n, bool write) { return PTE_A | (write && n + 1 == w->steps ? PTE_D : 0); }

static bool marked(const Walk *w, bool write)
{
    for (unsigned n = 0; n < w->steps; n++)
        if (marks(w, n, write) & ~w->step[n].value)
            return false;
    return true;
}

/* False: another vCPU has changed an entry since it was read (SDM 3A 4.8: it is written by a locked operation). */
static bool set_accessed_dirty(Cpu *c, Walk *w, bool write)
{
    for (unsigned n = 0; n < w->steps; n++) {
        Step *s = &w->step[n];
        uint64_t bits = marks(w, n, write);
        if ((s->value & bits) == bits)
            continue;
        uint64_t before = s->value;
        s->value |= bits;
        void *p = phys_host(c, s->phys & c->a20_mask, w->entry_size, true);
        if (!p)
            continue;
        if (!c->parallel)
            memcpy(p, &s->value, w->entry_size);
        else if (!atomic_exchange_if(p, w->entry_size, before, s->value))
            return false;
        if (unlikely(c->vm->verifier))
            verify_walk(c->vm, s->phys & c->a20_mask);
    }
    return true;
}

uint32_t mmu_walk(Cpu *c, uint64_t linear, int access, bool user, TlbEntry *out)
{
    bool implicit = access & ACCESS_IMPLICIT, unmarked = access & ACCESS_UNMARKED;
    access &= ~(ACCESS_IMPLICIT | ACCESS_UNMARKED);
    if (!(c->efer & EFER_LMA))
        linear = (uint32_t)linear;
    out->linear = linear & ~0xfffull;
    if (!(c->cr0 & CR0_PG)) {
        out->phys = out->linear & c->a20_mask;
        out->flags = TLBF_R | TLBF_W | TLBF_X;
        out->shift = 12;
    } else {
        Walk w;
        uint32_t flags;
        for (;;) {
            walk(c, linear, &w);
            bool smap = c->cr4 & CR4_SMAP && (implicit || c->cpl == 3 || !(c->eflags & FL_AC));
            uint32_t need = access == ACCESS_READ ? TLBF_R : access == ACCESS_WRITE ? TLBF_W : TLBF_X;
            flags = w.fault ? 0 : allowed(c, &w, user, smap);
            if (!(flags & need)) {
                uint32_t error = w.fault ? w.fault : WALK_FAULT | PF_P;
                bool fetch_bit = (c->cr4 & CR4_PAE && c->efer & EFER_NXE) || c->cr4 & CR4_SMEP;
                if (access == ACCESS_WRITE)
                    error |= PF_W;
                else if (access == ACCESS_EXEC && fetch_bit)
                    error |= PF_ID;
                return error | (user ? PF_U : 0);
            }
            if (unmarked && !marked(&w, access == ACCESS_WRITE))
                return WALK_FAULT;
            if (likely(set_accessed_dirty(c, &w, access == ACCESS_WRITE)))
                break;
            core_stop(c->vm); /* the next walk is of entries that stay */
        }
        if (!(w.step[w.steps - 1].value & PTE_D))
            flags &= ~TLBF_W; /* the first write has to come back here */
        bool global = w.global && c->cr4 & CR4_PGE;
        out->phys = w.phys & c->a20_mask;
        out->flags = flags | (global ? TLBF_GLOBAL : 0);
        out->shift = (uint8_t)w.shift;
    }
    const Slot *slot = vm_slot(c->vm, out->phys);
    if (!slot)
        out->flags |= TLBF_MMIO;
    else if (slot->flags & KVM_MEM_READONLY)
        out->flags |= TLBF_ROM;
    return 0;
}

int mmu_translate(Cpu *c, uint64_t linear, uint64_t *phys, bool *writable, bool *user)
{
    if (!(c->efer & EFER_LMA))
        linear = (uint32_t)linear;
    else if (!is_canonical(linear))
        return -1;
    *writable = *user = true;
    if (!(c->cr0 & CR0_PG)) {
        *phys = linear & c->a20_mask;
        return 0;
    }
    Walk w;
    walk(c, linear, &w);
    if (w.fault)
        return -1;
    *phys = (w.phys | (linear & 0xfff)) & c->a20_mask;
    *writable = w.rights & PTE_W;
    *user = w.rights & PTE_U;
    return 0;
}
