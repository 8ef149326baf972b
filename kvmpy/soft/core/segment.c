/* Selectors, descriptors and the loading of segment registers. SDM 3A chapter 5, SDM 2 MOV. */
#include "system.h"

bool desc_find(Cpu *c, const Insn *i, uint16_t sel, bool wide, Desc *d)
{
    uint64_t base = c->gdt.base, limit = c->gdt.limit;
    if (sel & SEL_LDT) {
        const struct kvm_segment *ldt = &c->seg[SEG_LDTR];
        if (ldt->unusable || !ldt->present || SEL_NULL(ldt->selector))
            return false;
        base = ldt->base;
        limit = ldt->limit;
    }
    uint64_t offset = sel & ~7u;
    if (offset + (wide ? 15 : 7) > limit)
        return false;
    d->linear = base + offset;
    if (!in_long_mode(c))
        d->linear = (uint32_t)d->linear;
    d->low = sys_read(c, i, d->linear, 8);
    d->high = wide ? sys_read(c, i, d->linear + 8, 8) : 0;
    return true;
}

void desc_read(Cpu *c, const Insn *i, uint16_t sel, bool wide, int vector, uint32_t ext, Desc *d)
{
    if (!desc_find(c, i, sel, wide, d))
        raise_error(c, i, vector, SEL_ERROR(sel) | ext);
}

void desc_set_accessed(Cpu *c, const Insn *i, Desc *d)
{
    if (d->low >> 40 & 1)
        return;
    d->low |= 1ull << 40;
    sys_write(c, i, d->linear + 5, 1, d->low >> 40 & 0xff);
}

void desc_set_busy(Cpu *c, const Insn *i, const Desc *d, bool busy)
{
    uint64_t type = (d->low >> 40 & 0xfd) | (busy ? 2 : 0);
    sys_write(c, i, d->linear + 5, 1, type);
}

static uint32_t desc_limit(const Desc *d)
{
    uint32_t limit = (uint32_t)((d->low & 0xffff) | (d->low >> 32 & 0xf0000));
    return d->low >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

void seg_from_desc(struct kvm_segment *s, uint16_t sel, const Desc *d)
{
    *s = (struct kvm_segment){
        .base = (d->low >> 16 & 0xffffff) | (d->low >> 32 & 0xff000000),
        .limit = desc_limit(d),
        .selector = sel,
        .type = (uint8_t)DESC_TYPE(d),
        .present = (uint8_t)DESC_P(d),
        .dpl = (uint8_t)DESC_DPL(d),
        .db = (uint8_t)DESC_DB(d),
        .s = (uint8_t)DESC_S(d),
        .l = (uint8_t)DESC_L(d),
        .g = d->low >> 55 & 1,
        .avl = d->low >> 52 & 1,
    };
    if (!s->s) /* system descriptors of long mode have 64-bit bases */
        s->base |= d->high << 32;
}

void seg_set_null(struct kvm_segment *s, uint16_t sel)
{
    *s = (struct kvm_segment){.selector = sel, .unusable = 1, .type = 1, .s = 1};
}

void seg_set_null_ss(Cpu *c, unsigned cpl)
{
    c->seg[SEG_SS] = (struct kvm_segment){.selector = (uint16_t)cpl, .unusable = 1, .type = 3, .s = 1, .dpl = (uint8_t)cpl};
}

void seg_set_real(Cpu *c, unsigned seg, uint16_t sel)
{
    struct kvm_segment *s = &c->seg[seg];
    if (c->mode & MODE_VM86) {
        *s = (struct kvm_segment){.limit = 0xffff, .type = 3, .present = 1, .dpl = 3, .s = 1};
    } else if (s->unusable) {
        *s = (struct kvm_segment){.limit = 0xffff, .type = 3, .present = 1, .s = 1};
    } else {
        s->dpl = 0; /* limit and attributes stay as protected mode left them */
    }
    s->selector = sel;
    s->base = (uint64_t)sel << 4;
}

void seg_set_cs(Cpu *c, uint16_t sel, const Desc *d, unsigned cpl)
{
    seg_from_desc(&c->seg[SEG_CS], (uint16_t)((sel & ~3u) | cpl), d);
}

void seg_check_stack(Cpu *c, const Insn *i, uint16_t sel, unsigned cpl, int vector, uint32_t ext, Desc *d)
{
    if (SEL_NULL(sel))
        raise_error(c, i, vector, ext);
    desc_read(c, i, sel, false, vector, ext, d);
    if (SEL_RPL(sel) != cpl || !DESC_IS_WRITABLE(d) || DESC_DPL(d) != cpl)
        raise_error(c, i, vector, SEL_ERROR(sel) | ext);
    if (!DESC_P(d))
        raise_error(c, i, EXC_SS, SEL_ERROR(sel) | ext);
}

void seg_load(Cpu *c, const Insn *i, unsigned seg, uint16_t sel)
{
    if (!(c->mode & MODE_PROT)) {
        seg_set_real(c, seg, sel);
        return;
    }
    Desc d;
    if (seg == SEG_SS) {
        if (SEL_NULL(sel)) {
            if (!in_64bit(c) || c->cpl == 3 || SEL_RPL(sel) != c->cpl)
                raise_gp0(c, i);
            seg_set_null_ss(c, c->cpl);
            return;
        }
        seg_check_stack(c, i, sel, c->cpl, EXC_GP, 0, &d);
    } else {
        if (SEL_NULL(sel)) {
            seg_set_null(&c->seg[seg], sel);
            return;
        }
        desc_read(c, i, sel, false, EXC_GP, 0, &d);
        bool code = DESC_IS_CODE(&d);
        if (!DESC_S(&d) || (code && !(DESC_TYPE(&d) & 2)))
            raise_error(c, i, EXC_GP, SEL_ERROR(sel));
        if (!(code && DESC_IS_CONFORMING(&d)) && (SEL_RPL(sel) > DESC_DPL(&d) || c->cpl > DESC_DPL(&d)))
            raise_error(c, i, EXC_GP, SEL_ERROR(sel));
        if (!DESC_P(&d))
            raise_error(c, i, EXC_NP, SEL_ERROR(sel));
    }
    desc_set_accessed(c, i, &d);
    seg_from_desc(&c->seg[seg], sel, &d);
}

bool seg_drop_inner(Cpu *c)
{
    bool any = false;
    static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned n = 0; n < ARRAY_SIZE(data); n++) {
        struct kvm_segment *s = &c->seg[data[n]];
        bool conforming = (s->type & 0xc) == 0xc;
        if (!s->unusable && s->dpl < c->cpl && !conforming) {
            seg_set_null(s, 0);
            any = true;
        }
    }
    return any;
}

/* ---- stacks in the TSS ---- */

void tss_stack(Cpu *c, const Insn *i, unsigned cpl, uint32_t ext, uint16_t *ss, uint32_t *sp)
{
    const struct kvm_segment *tr = &c->seg[SEG_TR];
    bool wide = tr->type & 8;
    uint32_t at = wide ? cpl * 8 + 4 : cpl * 4 + 2;
    if (at + (wide ? 5 : 3) > tr->limit)
        raise_error(c, i, EXC_TS, SEL_ERROR(tr->selector) | ext);
    *sp = (uint32_t)sys_read(c, i, tr->base + at, wide ? 4 : 2);
    *ss = (uint16_t)sys_read(c, i, tr->base + at + (wide ? 4 : 2), 2);
}

uint64_t tss_rsp(Cpu *c, const Insn *i, unsigned slot, uint32_t ext)
{
    const struct kvm_segment *tr = &c->seg[SEG_TR];
    uint32_t at = slot * 8 + 4;
    if (at + 7 > tr->limit)
        raise_error(c, i, EXC_TS, SEL_ERROR(tr->selector) | ext);
    return sys_read(c, i, tr->base + at, 8);
}

/* ---- work on a stack before anything of it is committed ---- */

Stack stack_of(Cpu *c, const Insn *i, const struct kvm_segment *ss, uint64_t sp, unsigned cpl, uint32_t error)
{
    uint64_t mask = !ss ? ~0ull : ss->db ? 0xffffffff : 0xffff;
    return (Stack){.c = c, .i = i, .ss = ss, .sp = sp, .mask = mask, .cpl = cpl, .error = error};
}

Stack stack_current(Cpu *c, const Insn *i)
{
    Stack s = stack_of(c, i, in_64bit(c) ? NULL : &c->seg[SEG_SS], c->gpr[RSP], c->cpl, 0);
    s.mask = stack_mask(c);
    return s;
}

static uint64_t stack_linear(const Stack *s, uint64_t offset, unsigned size)
{
    if (!s->ss) {
        if (!is_canonical(offset) || !is_canonical(offset + size - 1))
            raise_error(s->c, s->i, EXC_SS, s->error);
        return offset;
    }
    uint64_t last = offset + size - 1;
    bool expand_down = (s->ss->type & 0xc) == 4 && !in_real_mode(s->c);
    uint64_t top = s->ss->db ? 0xffffffff : 0xffff;
    if (s->ss->unusable || (expand_down ? offset <= s->ss->limit || last > top : last > s->ss->limit))
        raise_error(s->c, s->i, EXC_SS, s->error);
    return (uint32_t)(s->ss->base + offset);
}

/* An inner stack is reached with supervisor rights while CPL is still 3. */
static bool stack_is_inner(const Stack *s) { return s->c->cpl == 3 && s->cpl < 3; }

void stack_push(Stack *s, unsigned size, uint64_t value)
{
    Cpu *c = s->c;
    uint64_t sp = (s->sp - size) & s->mask, linear = stack_linear(s, sp, size);
    if (stack_is_inner(s))
        sys_write(c, s->i, linear, size, value);
    else if (size == 8)
        write64_linear(c, s->i, SEG_SS, linear, value);
    else if (size == 4)
        write32_linear(c, s->i, SEG_SS, linear, (uint32_t)value);
    else
        write16_linear(c, s->i, SEG_SS, linear, (uint16_t)value);
    s->sp = sp;
}

uint64_t stack_pop(Stack *s, unsigned size)
{
    Cpu *c = s->c;
    uint64_t sp = s->sp & s->mask, linear = stack_linear(s, sp, size);
    s->sp = (sp + size) & s->mask;
    return size == 8   ? read64_linear(c, s->i, SEG_SS, linear)
           : size == 4 ? read32_linear(c, s->i, SEG_SS, linear)
                       : read16_linear(c, s->i, SEG_SS, linear);
}

void stack_commit(Stack *s)
{
    uint64_t *rsp = &s->c->gpr[RSP];
    *rsp = s->mask == 0xffff ? (*rsp & ~0xffffull) | (s->sp & 0xffff) : s->sp & s->mask;
}
