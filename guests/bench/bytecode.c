/* An interpreter: a stack machine runs a program that counts Collatz steps. One unit: starts 1 to 100. */
#include "bench.h"

enum { PUSH, LOAD, STORE, ADD, SUBTRACT, MULTIPLY, SHIFT, AND, JUMP, JUMP_ZERO, LESS, STOP };

/* Locals: 0 number, 1 steps, 2 start, 3 end. */
static const u8 program[] = {
    PUSH, 1, STORE, 2,                                  /*  0 */
    LOAD, 2, STORE, 0,                                  /*  4: next start */
    LOAD, 0, PUSH, 1, SUBTRACT, JUMP_ZERO, 43,          /*  8: until the number is 1 */
    LOAD, 1, PUSH, 1, ADD, STORE, 1,                    /* 15 */
    LOAD, 0, PUSH, 1, AND, JUMP_ZERO, 36,               /* 22 */
    LOAD, 0, PUSH, 3, MULTIPLY, JUMP, 52,               /* 29: odd */
    LOAD, 0, SHIFT, STORE, 0, JUMP, 8,                  /* 36: even */
    LOAD, 2, PUSH, 1, ADD, STORE, 2,                    /* 43: the next start */
    JUMP, 59,                                           /* 50 */
    PUSH, 1, ADD, STORE, 0, JUMP, 8,                    /* 52: the rest of 3n + 1 */
    LOAD, 2, LOAD, 3, LESS, JUMP_ZERO, 68,              /* 59 */
    JUMP, 4,                                            /* 66 */
    STOP,                                               /* 68 */
};
static u8 code[sizeof program];

void bytecode_prepare(void) {
    for (u32 n = 0; n < sizeof program; n++) code[n] = program[n];
}

static u64 interpret(u64 end) {
    u64 locals[4] = { 0, 0, 0, end }, stack[8], *top = stack;
    for (const u8 *ip = code;;) {
        switch (*ip++) {
        case PUSH: *top++ = *ip++; break;
        case LOAD: *top++ = locals[*ip++ & 3]; break;
        case STORE: locals[*ip++ & 3] = *--top; break;
        case ADD: top--; top[-1] += top[0]; break;
        case SUBTRACT: top--; top[-1] -= top[0]; break;
        case MULTIPLY: top--; top[-1] *= top[0]; break;
        case SHIFT: top[-1] >>= 1; break;
        case AND: top--; top[-1] &= top[0]; break;
        case JUMP: ip = code + *ip; break;
        case JUMP_ZERO: ip = *--top ? ip + 1 : code + *ip; break;
        case LESS: top--; top[-1] = top[-1] < top[0]; break;
        default: return locals[1];
        }
    }
}

u64 bytecode(u32 work) {
    u64 sum = 0;
    for (u32 n = 0; n < work; n++) sum = sum * 3 + interpret(101 + n % 3);
    return sum;
}
