/* What is translated together: a hot block and those that it mostly goes on to, in one straight line. */
#ifndef KP_REGION_H
#define KP_REGION_H

#include "block.h"

#define REGION_PARTS 8

/* How a region goes on behind an instruction that ends a block. */
enum { REGION_ENDS, FOLLOWS_JUMP, FOLLOWS_FALL, FOLLOWS_RETURN };

typedef struct {
    const Insn *origin; /* in its block */
    uint8_t behind;     /* instructions of the parts behind its own: their budget is given back where the region is left */
    uint8_t follows;
} RegionInsn;

typedef struct {
    Insn insn[BLOCK_MAX + 1]; /* one behind the other; `left` counts to the end of the region; behind the last one the closing one */
    RegionInsn of[BLOCK_MAX + 1];
    unsigned count;
    Block *part[REGION_PARTS];
    unsigned parts;
} Region;

void region_form(Cpu *c, Block *head, Region *r);

#endif
