/* General registers by operand width in bits, for handlers specialised by macros. */
#ifndef KP_EXEC_INT_H
#define KP_EXEC_INT_H

#include "block.h"
#include "exec.h"

#define GET8(n) REG8(n)
#define GET16(n) REG16(n)
#define GET32(n) REG32(n)
#define GET64(n) REG64(n)
#define SET8(n, v) (REG8(n) = (uint8_t)(v))
#define SET16(n, v) (REG16(n) = (uint16_t)(v))
#define SET32(n, v) (c->gpr[n] = (uint32_t)(v))
#define SET64(n, v) (c->gpr[n] = (v))

#define UINT(bits) uint##bits##_t
#define INT(bits) int##bits##_t

/* A handler with a register form and a memory form, by width: arrays from functions NAME_r8 .. NAME_m64. */
#define EXEC_BYTE(id, r, m) REG_MEM(id, r, m)
#define EXEC_WIDE(id, r, m) REG_MEM_SIZES(id, r##16, r##32, r##64, m##16, m##32, m##64)
/* The same for a register alone. */
#define EXEC_WIDE_REG(id, r) SIZES(id, r##16, r##32, r##64)

/* Instantiates a macro of a width for all of them. */
#define FOR_WIDTHS(M) M(8) M(16) M(32) M(64)
#define FOR_WIDE(M) M(16) M(32) M(64)

#endif
