/* The instruction table, built from insn.def. */
#include "insn.h"

#define I(id, mnemonic, key, operands, feature, read, written, undefined, attributes) \
    [INSN_##id] = {#id, mnemonic, operands, key, exec_##id, feature, read, written, undefined, attributes},
const InsnInfo insn_table[INSN_COUNT] = {
#include "insn.def"
};
#undef I
