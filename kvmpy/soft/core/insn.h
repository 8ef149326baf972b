/* Decoded instructions, and the reading of the instruction table. */
#ifndef KP_INSN_H
#define KP_INSN_H

#include "cpu.h"

/* Executes one instruction and gives the next one to execute, or NULL to leave the block with c->rip set.
   Built with tail calls, NEXT runs the next instruction directly and comes back only at the end. */
typedef const Insn *(*exec_fn)(Cpu *c, const Insn *i);

struct Insn {
    exec_fn exec;
    uint64_t next_rip; /* RIP after this instruction, cut to the code segment's size */
    uint64_t imm;      /* immediate, sign-extended to 64 bits; for relative branches the target RIP; for ptr16:32 the offset */
    uint64_t disp;     /* displacement, sign-extended; RIP-relative operands have the absolute address here and no base;
                          moffs forms too */
    uint64_t amask;    /* address size: 0xffff, 0xffffffff or all ones; cuts effective addresses and RCX/RSI/RDI use */
    uint8_t base, index, scale, seg; /* memory operand: gpr[base] + (gpr[index] << scale) + disp in segment `seg`;
                                        absent base or index: ZERO_REG */
    uint8_t reg, rm, vvvv; /* ModRM.reg, ModRM.rm (register form; also the register in the opcode byte), VEX.vvvv: register
                              numbers with REX/VEX bits in; for 8-bit general register operands BYTE OFFSETS into gpr[] */
    uint8_t osize;     /* operand size of `v` operands in bytes: 2, 4, 8 */
    uint8_t len;       /* bytes */
    uint8_t modrm;     /* the raw byte */
    uint8_t imm2;      /* second immediate (ENTER's level, is4 register number, selector's low byte never) */
    uint8_t flags;     /* INSN_* */
    uint16_t id;       /* index into the table */
    uint8_t prefix;    /* PFX_* seen */
    uint8_t left;      /* instructions of the block from this one on; 0: the closing pseudo-instruction, or run alone */
    Block *block;      /* the block this instruction is part of; NULL when run alone */
} __attribute__((aligned(64)));

#define INSN_MEM 0x1u    /* the ModRM operand is memory */
#define INSN_REXW 0x2u   /* REX.W or VEX.W */
#define INSN_VEXL 0x4u   /* VEX.L: 256 bits */
#define INSN_VEX 0x8u
#define INSN_CHECK 0x10u /* the memory operand needs its segment's checks (block not MODE_FLAT, or FS/GS/CS outside 64-bit mode) */
#define INSN_ATOMIC 0x40u /* locked, or XCHG with memory, where vCPUs run in parallel */
#define INSN_STACKSEG 0x20u /* faults of the memory operand are #SS, not #GP: its segment is SS */

#define PFX_OPSIZE 0x1u /* 66 */
#define PFX_ADSIZE 0x2u /* 67 */
#define PFX_REPNE 0x4u  /* F2 */
#define PFX_REP 0x8u    /* F3 */
#define PFX_LOCK 0x10u
#define PFX_REX 0x20u
#define PFX_SEG 0x40u   /* a segment override was given */

/* ---- key: which bytes are this instruction; a 64-bit OR of the following ---- */
#define K_OP(n) ((uint64_t)(n)) /* opcode byte */
#define K_0F (1ull << 8)        /* map 0F; without: one-byte map */
#define K_0F38 (2ull << 8)
#define K_0F3A (3ull << 8)
#define K_MAP(k) ((k) >> 8 & 3)
#define K_ROW8 (1ull << 10)     /* eight opcodes from here on, register in the low three bits (Insn.rm, with REX.B) */
#define K_NP (1ull << 12)       /* only without 66, F2, F3 */
#define K_66 (2ull << 12)       /* 66 is part of the opcode (then it is no operand-size prefix, but where operands are `v`) */
#define K_F3 (3ull << 12)
#define K_F2 (4ull << 12)
#define K_PFX(k) ((k) >> 12 & 7) /* 0: prefixes have their ordinary meaning */
#define K_REG(n) (0x8ull << 16 | (uint64_t)(n) << 16) /* ModRM.reg is n (/n) */
#define K_RM(n) (0x8ull << 20 | (uint64_t)(n) << 20)  /* ModRM.rm is n; goes with K_MOD3 */
#define K_MOD3 (1ull << 24)     /* register form only */
#define K_MEM (2ull << 24)      /* memory form only */
#define K_MODRM (1ull << 26)    /* has a ModRM byte; implied by K_REG, K_RM, K_MOD3, K_MEM and by operand letters E M G V W P Q U N R C D S */
#define K_VEX (1ull << 28)      /* VEX-encoded only; without: legacy-encoded only */
#define K_W0 (1ull << 30)       /* REX.W/VEX.W must be 0 */
#define K_W1 (2ull << 30)
#define K_L0 (1ull << 32)       /* VEX.L must be 0 (128 bits or scalar) */
#define K_L1 (2ull << 32)
#define K_O64 (1ull << 34)      /* valid in 64-bit mode only */
#define K_NO64 (2ull << 34)     /* invalid in 64-bit mode */
#define K_D64 (1ull << 36)      /* operand size is 64 in 64-bit mode without REX.W (66 gives 16) */
#define K_F64 (2ull << 36)      /* operand size is 64 in 64-bit mode whatever the prefixes */

/* ---- attributes ---- */
#define A_LOCK 0x1u   /* LOCK is allowed (memory destination); else LOCK is #UD */
#define A_END 0x2u    /* ends a block: changes RIP, mode, mappings or interrupts */
#define A_REP 0x4u    /* string instruction: REP prefixes repeat it */
#define A_CPL0 0x8u   /* #GP(0) where CPL is not 0 (also in virtual 8086 mode): checked by exec */
#define A_IO 0x10u    /* may leave to user space: always run alone */
#define A_PROT 0x20u  /* #UD in real and virtual 8086 mode */
#define A_X87 0x40u   /* the run loop's deny checks: exec tests c->deny_x87 */
#define A_VEC 0x80u
#define A_NOTEST 0x100u /* cannot be compared against a native run (system state); has tests of its own */
#define A_BYTEREG 0x200u /* set by the decoder's reading of operand letters */
#define A_CALL 0x400u
#define A_RET 0x800u
#define A_JUMP 0x1000u /* relative jump, conditional or not */
#define A_VEX4 0x2000u /* fourth operand in imm8[7:4] */
#define A_VSIB 0x4000u /* Insn.index is a vector register (gathers); a SIB byte is required */

/* The table: insn.def is a list of
     I(id, "mnemonic", key, "operands", FEAT_*, flags read, flags written, flags undefined, attributes)
   operands: letters of the Intel manual (SDM 2 A.2.1), comma separated: E G M R I J O S C D X Y P Q N V W U H L B A,
   and Z: the register in the low three bits of the opcode (K_ROW8); two sizes as in Ry/Mb: register of the one, memory of the
   other;
   sizes b w d q v z y p ps pd ss sd x dq qq o (o: m128/m256 by VEX.L is x), fixed registers by name (AL rAX eAX DX CL 1).
   exec_<id> is an array of eight: [INSN_MEM ? 4 : 0] + log2(operand size in bytes) - that is 0 for byte forms (first
   operand letter b), 1, 2, 3 for 16, 32, 64 bits; instructions whose meaning does not depend on it fill all alike. */
#define I(id, ...) INSN_##id,
enum {
#include "insn.def"
    INSN_COUNT
};
#undef I
#define I(id, ...) extern const exec_fn exec_##id[8];
#include "insn.def"
#undef I

typedef struct {
    const char *name, *mnemonic, *operands;
    uint64_t key;
    const exec_fn *exec;
    uint32_t feature, flags_read, flags_written, flags_undefined, attributes;
} InsnInfo;
extern const InsnInfo insn_table[INSN_COUNT];

/* decode.c: decodes the instruction at `bytes` (`avail` of them can be fetched, at most 15 are read) as at `rip` under `mode`
   for this vCPU's features. Gives its length; 0 where more bytes than `avail` are needed; -EXC_UD or -EXC_GP (longer than 15)
   where it is none: then i->exec raises that fault. c may be NULL: all features, as for the disassembler. */
int decode(const Cpu *c, const uint8_t *bytes, unsigned avail, uint64_t rip, uint32_t mode, Insn *i);
/* The exec_<id> function of a decoded instruction: what decode() put into i->exec. */
exec_fn decode_handler(const Insn *i);

#endif
