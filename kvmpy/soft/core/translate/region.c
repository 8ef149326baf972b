/* Forms regions. All parts lie in the physical page of the first, under its mode: so the ways between them hold as long as the
   blocks do, whatever happens to the page tables. Where a conditional jump has two hot successors the hotter one is taken in. */
#include "region.h"

#include "emit.h"

static bool armed(const Block *b) { return b->insn[0].exec == exec_counted || b->insn[0].exec == exec_translated; }

static unsigned heat(const Block *b) { return b->code ? 0 : b->heat; }

static bool hot(const Cpu *c, const Block *b) { return heat(b) <= c->vm->translator->threshold * 3 / 4; }

static void append(Region *r, Block *b)
{
    for (unsigned n = 0; n < r->count; n++)
        r->of[n].behind = (uint8_t)(r->of[n].behind + b->count);
    for (unsigned n = 0; n <= b->count; n++) {
        r->insn[r->count + n] = b->insn[n];
        r->of[r->count + n] = (RegionInsn){.origin = &b->insn[n]};
    }
    r->count += b->count;
    r->part[r->parts++] = b;
}

static bool contains(const Region *r, const Block *b)
{
    for (unsigned n = 0; n < r->parts; n++)
        if (r->part[n] == b)
            return true;
    return false;
}

/* The block at an address in the head's page, where there is one that may become part of the region; NULL else. */
static Block *candidate(Cpu *c, const Region *r, uint64_t rip)
{
    const Block *head = r->part[0];
    if ((rip ^ head->rip) & ~0xfffull)
        return NULL;
    Block *b = block_known(c->vm, (head->phys & ~0xfffull) | (rip & 0xfff), head->space, rip, head->mode);
    return b && b->phys2 == NO_PAGE && armed(b) && hot(c, b) ? b : NULL;
}

/* The return address of the call in the region that a return at its end answers; 0: there is none. */
static uint64_t expected_return(const Region *r)
{
    unsigned returns = 0;
    for (unsigned n = r->count - 1; n-- > 0;) {
        emit_fn fn = emitter[r->insn[n].id];
        if (fn == translate_ret)
            returns++;
        else if (fn == translate_call && r->of[n].follows && returns-- == 0)
            return r->insn[n].next_rip;
    }
    return 0;
}

static Block *successor(Cpu *c, const Region *r, unsigned *follows)
{
    const Block *last = r->part[r->parts - 1];
    const Insn *end = &last->insn[last->count - 1];
    emit_fn fn = emitter[end->id];
    unsigned uncovered = last->edges_left;
    if (end->flags & INSN_CHECK || end->osize == 2)
        return NULL;
    *follows = FOLLOWS_JUMP;
    if (fn == translate_jmp || (fn == translate_call && (end->osize == 8) == in_64bit(c)))
        return uncovered & 1 ? NULL : candidate(c, r, end->imm);
    if (fn == translate_ret && (end->osize == 8) == in_64bit(c)) {
        uint64_t to = expected_return(r);
        *follows = FOLLOWS_RETURN;
        return to ? candidate(c, r, to) : NULL;
    }
    if (fn != translate_jcc)
        return NULL;
    Block *taken = candidate(c, r, end->imm), *fall = candidate(c, r, end->next_rip);
    if (taken && (!fall || heat(taken) < heat(fall)))
        return uncovered & 1 ? NULL : taken;
    *follows = FOLLOWS_FALL;
    return uncovered & 2 ? NULL : fall;
}

void region_form(Cpu *c, Block *head, Region *r)
{
    r->count = r->parts = 0;
    append(r, head);
    bool alone = head->phys2 != NO_PAGE || (c->seg_base[SEG_CS] & 0xfff) || head->splits >= KP_REGION_SPLITS;
    while (!alone && r->parts < REGION_PARTS) {
        unsigned follows;
        Block *next = successor(c, r, &follows);
        /* a way back into the region stays a jump: unrolled, every way but one would give budget back */
        if (!next || contains(r, next) || r->count + next->count > BLOCK_MAX || block_vectors(next) > block_vectors(head))
            break;
        next = block_keep(c->vm, next);
        if (!next)
            break;
        r->of[r->count - 1].follows = (uint8_t)follows;
        append(r, next);
    }
    for (unsigned n = 0; n < r->count; n++)
        r->insn[n].left = (uint8_t)(r->count - n);
    r->insn[r->count].left = 0;
}
