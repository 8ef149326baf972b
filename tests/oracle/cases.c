/* Cases as lines of text. A line records what a generator's seed made, so that it stays the same when the generator changes:
     BITS OFFSET BYTES [NAME=VALUE]...
   bytes in hexadecimal, instructions separated by commas; names: registers that matter (rax..r15, flags, mxcsr, cw, sw, tag,
   st0..st7 as SE:MANTISSA, ymm0..ymm15 as four words, low first) and memory as @OFFSET=WORD. Everything else is 0; RSP, RSI
   and RDI lead into the data. */
#include <stdio.h>
#include <stdlib.h>

#include "oracle.h"

static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                      "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};

void print_case(const Case *t, const State *s)
{
    printf("  %u %x ", t->bits, t->offset);
    for (unsigned n = 0, at = 0; n < t->length; n++) {
        if (at < t->count && n == t->at[at] && n)
            printf(",");
        at += at < t->count && n == t->at[at];
        printf("%02x", t->bytes[n]);
    }
    for (unsigned n = 0; n < 16; n++)
        if (s->gpr[n])
            printf(" %s=%lx", names[n], s->gpr[n]);
    printf(" flags=%lx mxcsr=%x cw=%x sw=%x tag=%x", s->rflags, s->mxcsr, s->control, s->status, s->tag);
    for (unsigned n = 0; n < 8; n++)
        printf(" st%u=%x:%lx", n, s->se[n], s->mant[n]);
    printf("\n");
}

static bool set(State *s, const char *name, const char *value)
{
    unsigned n;
    uint64_t v = strtoull(value, NULL, 16);
    for (n = 0; n < 16; n++)
        if (!strcmp(name, names[n])) {
            s->gpr[n] = v;
            return true;
        }
    if (name[0] == '@') {
        unsigned at = (unsigned)strtoul(name + 1, NULL, 16);
        if (at > DATA_BYTES - 8)
            return false;
        memcpy(s->data + at, &v, 8);
        return true;
    }
    if (sscanf(name, "st%u", &n) == 1 && n < 8) {
        const char *colon = strchr(value, ':');
        s->se[n] = (uint16_t)v;
        s->mant[n] = colon ? strtoull(colon + 1, NULL, 16) : 0;
        return colon;
    }
    if (sscanf(name, "ymm%u", &n) == 1 && n < 16) {
        for (unsigned k = 0; k < 4 && value; k++) {
            s->ymm[n].u64[k] = strtoull(value, NULL, 16);
            value = strchr(value, ':');
            value = value ? value + 1 : NULL;
        }
        return true;
    }
    if (!strcmp(name, "flags"))
        s->rflags = v;
    else if (!strcmp(name, "mxcsr"))
        s->mxcsr = (uint32_t)v;
    else if (!strcmp(name, "cw"))
        s->control = (uint16_t)v;
    else if (!strcmp(name, "sw"))
        s->status = (uint16_t)v;
    else if (!strcmp(name, "tag"))
        s->tag = (uint8_t)v;
    else
        return false;
    return true;
}

bool parse_case(const char *line, const Cpu *(*in_mode)(unsigned bits), Case *t, State *s)
{
    static char copy[4096];
    snprintf(copy, sizeof copy, "%s", line);
    char *rest = copy, *bits = strtok_r(copy, " \t\n", &rest);
    char *offset = strtok_r(NULL, " \t\n", &rest), *bytes = strtok_r(NULL, " \t\n", &rest);
    memset(t, 0, sizeof *t);
    memset(s, 0, sizeof *s);
    if (!bytes)
        return false;
    t->bits = (unsigned)atoi(bits);
    t->offset = (unsigned)strtoul(offset, NULL, 16);
    if (t->offset >= CODE_BYTES || (t->bits != 64 && t->bits != 32 && t->bits != 16))
        return false;
    for (; *bytes && t->length < sizeof t->bytes; bytes += 2) {
        bytes += *bytes == ',';
        unsigned v;
        if (sscanf(bytes, "%2x", &v) != 1)
            return false;
        t->bytes[t->length++] = (uint8_t)v;
    }
    s->gpr[RSP] = DATA + 0x1000 - data_base(t);
    s->gpr[RSI] = s->gpr[RDI] = DATA + 0x800 - data_base(t);
    s->rflags = 0x202;
    s->mxcsr = MXCSR_RESET;
    s->control = 0x37f;
    for (char *word; (word = strtok_r(NULL, " \t\n", &rest));) {
        char *equals = strchr(word, '=');
        if (word[0] == '#')
            break;
        if (!equals)
            return false;
        *equals = 0;
        if (!set(s, word, equals + 1))
            return false;
    }
    const Cpu *c = in_mode(t->bits);
    for (unsigned at = 0; at < t->length && t->count < SEQUENCE_MAX;) {
        Insn i;
        int n = decode(c, t->bytes + at, t->length - at, CODE, c->mode, &i);
        if (n <= 0)
            break;
        t->id[t->count] = i.id;
        t->at[t->count++] = (uint8_t)at;
        t->undefined |= insn_table[i.id].flags_undefined;
        at += (unsigned)n;
    }
    t->undefined_inside = t->undefined;
    return true;
}
