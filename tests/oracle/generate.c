/* Random encodings of table lines, alone and in sequences. */
#include "oracle.h"

/* An encoding in the making. */
typedef struct {
    Case *test;
    State *state;
    unsigned id;
    bool fixed;          /* in a sequence: registers keep their values, pointers[] lead into the data */
    uint8_t tail[16];    /* ModRM and what follows */
    unsigned length;
    uint8_t rxb;
    bool address_prefix;
    uint8_t segment;     /* override prefix, or 0 */
    bool rip_relative;
    uint64_t target;     /* linear address of the memory operand */
} Maker;

static const uint8_t pointers[] = {RBX, RBP, RSI, RDI, R12, R13};

/* An offset in the data: aligned more often than not, seldom across or beyond its end, sometimes across pages. */
static uint64_t choose_target(const Maker *m)
{
    uint64_t at = 256 + pick(DATA_WRITABLE - 512) / 32 * 32;
    switch (pick(m->fixed ? 24 : 12)) {
    case 0: case 1: at += pick(32); break;
    case 2: at = 0x1000 - pick(40); break;
    case 3: at = DATA_WRITABLE + pick(DATA_BYTES - DATA_WRITABLE - 256) / 16 * 16; break;
    case 4: at = DATA_WRITABLE - pick(40); break;
    case 5: at = pick(4) ? at : DATA_BYTES - pick(40); break;
    default: break;
    }
    return (m->test->bits == 16 ? 0 : DATA) + at;
}

static void put(Maker *m, uint64_t v, unsigned bytes)
{
    memcpy(m->tail + m->length, &v, bytes);
    m->length += bytes;
}

static void operand16(Maker *m, unsigned reg, uint64_t target)
{
    static const int8_t parts[8][2] = {{RBX, RSI}, {RBX, RDI}, {RBP, RSI}, {RBP, RDI}, {RSI, -1}, {RDI, -1}, {RBP, -1}, {RBX, -1}};
    unsigned rm = m->fixed ? 4 + pick(4) : pick(8);
    uint64_t *gpr = m->state->gpr, *base = &gpr[(unsigned)parts[rm][0]];
    if (!pick(4)) {
        put(m, reg << 3 | 6, 1);
        put(m, target, 2);
        return;
    }
    unsigned mod = 1 + pick(2);
    if (m->fixed) {
        put(m, 2 << 6 | reg << 3 | rm, 1);
        put(m, target - *base, 2);
        return;
    }
    uint16_t disp = mod == 1 ? (uint16_t)(int8_t)rnd() : (uint16_t)rnd();
    uint64_t index = parts[rm][1] >= 0 ? (gpr[(unsigned)parts[rm][1]] &= 0xff) : 0;
    *base = (*base & ~0xffffull) | ((target - disp - index) & 0xffff);
    put(m, mod << 6 | reg << 3 | rm, 1);
    put(m, disp, mod);
}

static void vector_index(Maker *m, unsigned index)
{
    Ymm *v = &m->state->ymm[index];
    bool wide = pick(2);
    for (unsigned k = 0; k < 4; k++)
        v->u64[k] = wide ? (uint64_t)(int64_t)(int)(pick(32) - 16u) :
                           (uint32_t)(pick(32) - 16u) | (uint64_t)(uint32_t)(pick(32) - 16u) << 32;
    if (!pick(20))
        v->u32[pick(8)] = 0x10000;
}

static void operand32(Maker *m, unsigned reg, uint64_t target, bool vsib)
{
    uint64_t *gpr = m->state->gpr;
    unsigned registers = m->test->bits == 64 ? 16 : 8, base, index = RSP, scale = pick(4);
    bool narrow = m->test->bits != 64 || m->address_prefix;
    if (!vsib && !pick(m->fixed ? 3 : 8)) { /* no base */
        m->rip_relative = m->test->bits == 64 && pick(2);
        bool sib = !m->rip_relative && m->test->bits == 64;
        put(m, reg << 3 | (sib ? 4 : 5), 1);
        if (sib)
            put(m, 0x25, 1);
        put(m, target, 4);
        return;
    }
    do
        base = m->fixed ? pointers[pick(registers == 16 ? 6 : 4)] : pick(registers);
    while (base == RSP);
    bool sib = vsib || (base & 7) == RSP || !pick(3);
    if (vsib) {
        index = pick(registers);
        if (!m->fixed)
            vector_index(m, index);
    } else if (sib && pick(2) && !m->fixed) {
        do
            index = pick(registers);
        while (index == RSP || index == base);
        gpr[index] = pick(16) * 16;
    }
    unsigned mod = m->fixed ? 2 : pick(4) ? 1 + pick(2) : (base & 7) == RBP;
    int32_t disp = mod == 0 ? 0 : mod == 1 ? (int8_t)(rnd() & 0xf0) : (int32_t)(rnd() & 0xffff0) - 0x80000;
    if (m->fixed) {
        disp = (int32_t)(target - gpr[base]);
    } else {
        gpr[base] = target - (uint64_t)(int64_t)disp;
        if (!vsib && index != RSP)
            gpr[base] -= gpr[index] << scale;
        if (narrow)
            gpr[base] = (uint32_t)gpr[base] | (m->test->bits == 64 ? rnd() << 32 : 0);
    }
    put(m, mod << 6 | reg << 3 | (sib ? 4 : base & 7), 1);
    if (sib)
        put(m, scale << 6 | (index & 7) << 3 | (base & 7), 1);
    put(m, (uint32_t)disp, mod == 0 ? 0 : mod == 1 ? 1 : 4);
    m->rxb |= (uint8_t)(base >> 3 | index >> 3 << 1);
}

static void memory_operand(Maker *m, unsigned reg, bool vsib)
{
    unsigned bits = m->test->bits;
    m->address_prefix = !vsib && !pick(bits == 16 ? 3 : 16);
    if (m->address_prefix && bits == 32)
        m->address_prefix = !pick(4); /* 16-bit addresses reach nothing there */
    if (vsib && bits == 16)
        m->address_prefix = true;
    uint64_t target = choose_target(m);
    if (strstr(insn_table[m->id].mnemonic, "xsave") || strstr(insn_table[m->id].mnemonic, "xrstor")) /* an image: aligned, with room */
        target = (bits == 16 ? 0 : DATA) + (pick(40) ? pick(64) * 64 : pick(0x2000));
    m->target = target + (bits == 16 ? DATA : 0);
    if (bits == 64 && !m->fixed && !m->address_prefix && !pick(60))
        target ^= 1ull << (48 + pick(16));
    if (!pick(16)) {
        static const uint8_t overrides[] = {0x26, 0x2e, 0x36, 0x3e, 0x65};
        m->segment = overrides[pick(bits == 64 ? 5 : 4)];
        if (m->segment == 0x65)
            target -= GS_BASE;
    }
    if (bits != 64 && (bits == 16) != m->address_prefix)
        operand16(m, reg, target);
    else
        operand32(m, reg, target, vsib);
}

static bool named(const InsnInfo *info, const char *mnemonic) { return !strcmp(info->mnemonic, mnemonic); }

/* What an instruction needs of the state, to do more than fault. */
static void prepare(Maker *m, const InsnInfo *info, const Insn *i)
{
    State *s = m->state;
    uint64_t stack = s->gpr[RSP] + data_base(m->test) - DATA;
    bool on_stack = stack <= DATA_WRITABLE - 16;
    if (strstr(info->mnemonic, "div") && info->operands[0] == 'E' && pick(4)) {
        s->gpr[RDX] = pick(2) ? (uint64_t)-(int64_t)(s->gpr[RAX] >> 63) : pick(16);
        if (info->operands[1] == 'b')
            s->gpr[RAX] = pick(2) ? pick(2048) : (uint64_t)-(int64_t)pick(1024);
    } else if (info->mnemonic[0] == 'b' && info->mnemonic[1] == 't' && i->flags & INSN_MEM && !strcmp(info->operands, "Ev,Gv") && pick(4)) {
        if (i->reg != i->base && i->reg != i->index)
            s->gpr[i->reg] = (uint64_t)(int64_t)(int)(pick(8192) - 4096u);
    } else if (!strncmp(info->mnemonic, "cmpxchg", 7) && i->flags & INSN_MEM && pick(2) && m->target - DATA <= DATA_BYTES - 16) {
        unsigned half = named(info, "cmpxchg8b") ? 4 : 8;
        uint64_t low = 0, high = 0;
        memcpy(&low, s->data + (m->target - DATA), half);
        memcpy(&high, s->data + (m->target - DATA) + half, half);
        if (i->base != RAX && i->index != RAX)
            s->gpr[RAX] = low;
        if (half != 8 || named(info, "cmpxchg16b"))
            if (i->base != RDX && i->index != RDX)
                s->gpr[RDX] = high;
    } else if (named(info, "ret") && on_stack && pick(4)) {
        uint64_t to = (m->test->bits == 16 ? 0 : CODE) + 0x100 + pick(0x200);
        memcpy(s->data + stack, &to, i->osize);
    } else if (named(info, "popf") && on_stack) {
        uint64_t flags = (rnd() & (FL_OSZAPC | FL_DF | FL_IOPL)) | 2 | (pick(2) ? FL_IF : 0);
        memcpy(s->data + stack, &flags, 8);
    } else if ((!strcmp(info->name, "jmp_Ev") || !strcmp(info->name, "call_Ev")) && pick(4)) {
        uint64_t to = (m->test->bits == 16 ? 0 : CODE) + 0x100 + pick(0x200);
        if (!(i->flags & INSN_MEM))
            s->gpr[i->rm] = to;
        else if (m->target - DATA <= DATA_WRITABLE - 8)
            memcpy(s->data + (m->target - DATA), &to, 8);
    } else if (strstr(info->mnemonic, "xsave") || strstr(info->mnemonic, "xrstor")) {
        s->gpr[RAX] = pick(4) ? pick(8) : 7;
        s->gpr[RDX] = 0;
        if (m->target - DATA <= DATA_WRITABLE - 832 && pick(8)) { /* what can be restored */
            uint8_t *image = s->data + (m->target - DATA);
            uint32_t mxcsr = (uint32_t)(rnd() & MXCSR_VALID);
            uint64_t header[8] = {pick(8), i->id == INSN_XRSTOR && !pick(3) ? 1ull << 63 | 7 : 0};
            memcpy(image + 24, &mxcsr, 4);
            memcpy(image + 512, header, sizeof header);
            image[0] |= 0x3f; /* no exception pends */
        }
    } else if (named(info, "xlat") && pick(4)) {
        s->gpr[RBX] = DATA - data_base(m->test) + pick(DATA_BYTES);
    }
}

/* Immediates that are addresses, or that decide how much is done. */
static void fix_immediate(Maker *m, const InsnInfo *info, const Insn *i, uint8_t *bytes, unsigned n)
{
    if (info->attributes & A_JUMP || named(info, "call")) {
        if (info->operands[1] == 'b') {
            bytes[n - 1] = (uint8_t)(pick(2) ? pick(100) : 0x80 + pick(90));
        } else if (info->operands[0] == 'J' && pick(4)) {
            uint32_t disp = (uint32_t)(pick(2) ? pick(100) : -100 - pick(100));
            memcpy(bytes + n - (i->osize == 2 ? 2 : 4), &disp, i->osize == 2 ? 2 : 4);
        }
    } else if (strchr(info->operands, 'O') && pick(8)) {
        unsigned size = i->amask == 0xffff ? 2 : i->amask == 0xffffffff ? 4 : 8;
        uint64_t to = choose_target(m);
        memcpy(bytes + n - size, &to, size);
    } else if (named(info, "enter")) {
        bytes[n - 1] = (uint8_t)(rnd() & 0xe7);
        bytes[n - 2] = (uint8_t)pick(8);
    }
}

/* One instruction at `rip` into bytes; its length, or 0. */
static unsigned make(const Cpu *c, unsigned id, Maker *m, uint8_t bytes[16], uint64_t rip, Insn *i)
{
    static const uint8_t mandatory[5] = {0, 0, 0x66, 0xf3, 0xf2};
    const InsnInfo *info = &insn_table[id];
    uint64_t k = info->key;
    unsigned bits = m->test->bits, registers = bits == 64 ? 16 : 8, at = 0, pfx = K_PFX(k), start;
    unsigned reg = k & K_REG(0) ? k >> 16 & 7 : pick(registers), vvvv = strchr(info->operands, 'H') || strchr(info->operands, 'B') ?
        pick(registers) : 0;
    bool w = k & K_W1 || (!(k & K_W0) && pick(2)), l = k & K_L1 || (!(k & K_L0) && pick(2));
    bool memory = k & K_MEM || (!(k & (K_MOD3 | K_RM(0))) && pick(2));
    uint8_t opcode = (uint8_t)((k & 0xff) + (k & K_ROW8 ? pick(8) : 0));
    m->rxb = (uint8_t)(reg >> 3 << 2);
    m->length = 0;
    m->id = id;
    m->address_prefix = m->rip_relative = false;
    m->segment = 0;
    m->target = 0;
    if (memory) {
        memory_operand(m, reg & 7, info->attributes & A_VSIB);
    } else {
        unsigned rm = k & K_RM(0) ? k >> 20 & 7 : pick(registers);
        if (k & K_REG(0) && !pick(2))
            rm &= 7;
        m->tail[m->length++] = (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7));
        m->rxb |= (uint8_t)(rm >> 3);
        m->address_prefix = !pick(40);
    }
    if (!memory && !strchr("ERMGVWPQUNSCD", info->operands[0]))
        m->rxb &= bits == 64 ? 7 : 0;
    for (unsigned n = 0; n < 8; n++)
        m->tail[m->length + n] = (uint8_t)rnd();
    if (info->attributes & A_LOCK && memory && !pick(6))
        bytes[at++] = 0xf0;
    if (m->segment)
        bytes[at++] = m->segment;
    if (m->address_prefix)
        bytes[at++] = 0x67;
    if (info->attributes & A_REP && pick(2))
        bytes[at++] = pick(2) ? 0xf2 : 0xf3;
    if (k & K_VEX) {
        bool two = K_MAP(k) == 1 && !w && !(m->rxb & 3) && pick(2);
        uint8_t last = (uint8_t)((~vvvv & 15) << 3 | l << 2 | (pfx ? pfx - 1 : 0));
        bytes[at++] = two ? 0xc5 : 0xc4;
        if (!two)
            bytes[at++] = (uint8_t)((~m->rxb & 7) << 5 | K_MAP(k));
        bytes[at++] = two ? (uint8_t)(last | (~m->rxb >> 2 & 1) << 7) : (uint8_t)(last | w << 7);
        bytes[at++] = opcode;
    } else {
        /* 66 with near branches of 64-bit mode: ignored by Intel's, not by AMD's */
        bool plain = bits == 64 && ((k & K_F64) == K_F64);
        if (mandatory[pfx])
            bytes[at++] = mandatory[pfx];
        else if (!pfx && !plain && !pick(4))
            bytes[at++] = 0x66;
        if (bits == 64 && (m->rxb || w || !pick(8)))
            bytes[at++] = (uint8_t)(0x40 | w << 3 | m->rxb);
        if (K_MAP(k))
            bytes[at++] = 0x0f;
        if (K_MAP(k) > 1)
            bytes[at++] = K_MAP(k) == 2 ? 0x38 : 0x3a;
        bytes[at++] = opcode;
    }
    start = at;
    memcpy(bytes + at, m->tail, at + sizeof m->tail > 15 ? 15 - at : sizeof m->tail);
    int n = decode(c, bytes, 15, rip, c->mode, i);
    if (n <= 0 || i->id != id)
        return 0;
    bool image = strstr(info->mnemonic, "xsave") || strstr(info->mnemonic, "xrstor");
    if (image && memory && (i->base == RAX || i->base == RDX || i->index == RAX || i->index == RDX))
        return 0; /* they name components */
    if (m->rip_relative && memory) {
        uint32_t disp;
        memcpy(&disp, bytes + start + 1, 4);
        disp -= (uint32_t)rip + (uint32_t)n;
        memcpy(bytes + start + 1, &disp, 4);
    }
    fix_immediate(m, info, i, bytes, (unsigned)n);
    return (unsigned)n;
}

/* Where the code stands: in the middle of a page, across two, or (`edge`) against the end of what is mapped. */
static unsigned choose_offset(bool edge)
{
    if (edge && !pick(40))
        return CODE_BYTES - 1 - pick(10);
    return pick(4) ? 0x400 + pick(0x800) : 0x1000 - pick(16);
}

bool generate(const Cpu *c, unsigned id, Case *t, State *s)
{
    const InsnInfo *info = &insn_table[id];
    Insn i;
    for (unsigned attempt = 0; attempt < 64; attempt++) {
        Maker m = {.test = t, .state = s};
        random_state(s, t);
        t->offset = choose_offset(t->how != DIRECT);
        t->count = 1;
        t->id[0] = (uint16_t)id;
        t->at[0] = 0;
        t->undefined = t->undefined_inside = info->flags_undefined;
        t->length = make(c, id, &m, t->bytes, (t->bits == 16 ? 0 : CODE) + t->offset, &i);
        if (!t->length)
            continue;
        prepare(&m, info, &i);
        t->operand = m.target;
        if (t->bits != 64)
            for (unsigned n = 0; n < 8; n++)
                s->gpr[n] = (uint32_t)s->gpr[n];
        return true;
    }
    return false;
}

/* Flags whose value is used, unlike those that a count of 0 or an empty repetition hands on. */
static uint32_t really_read(const InsnInfo *info)
{
    if (named(info, "rcl") || named(info, "rcr"))
        return FL_CF;
    bool hands_on = info->flags_written && !(info->flags_written & ~info->flags_read) && !named(info, "adc") && !named(info, "sbb") &&
                    !named(info, "adcx") && !named(info, "adox") && !named(info, "cmc");
    return hands_on ? 0 : info->flags_read;
}

static unsigned find_line(const char *name)
{
    for (unsigned id = 0; id < INSN_COUNT; id++)
        if (!strcmp(insn_table[id].name, name))
            return id;
    return 0;
}

/* Conditional jumps stand in the table in the order of their conditions, four lines each. */
static unsigned some_jump(void)
{
    static unsigned first;
    if (!first)
        first = find_line("jo_Jb");
    return first + 4 * pick(16);
}

static bool sets_flags_to_compare(const InsnInfo *info)
{
    static const char *const names[] = {"cmp", "test", "sub", "and", "add", "inc", "dec"};
    for (unsigned n = 0; n < ARRAY_SIZE(names); n++)
        if (named(info, names[n]))
            return true;
    return false;
}

bool generate_sequence(const Cpu *c, const uint16_t *ids, unsigned ids_count, Case *t, State *s)
{
    static const uint8_t count_down[] = {0x83, 0x2c, 0x25, 0, 0, 0, 0, 1}; /* sub dword ptr [COUNTER], 1 */
    Maker m = {.test = t, .state = s, .fixed = true};
    unsigned wanted = 4 + pick(9), jump_at[SEQUENCE_MAX], jumps = 0, conditional_until = 0;
    bool loop = t->bits == 64 && !pick(3);
    random_state(s, t);
    s->mxcsr |= MXCSR_MASKS; /* an unmasked exception differs in small ways: left to single instructions */
    if (pick(4))
        s->control |= 0x3f, s->status &= 0x7f7f;
    for (unsigned n = 0; n < ARRAY_SIZE(pointers); n++)
        if (t->bits == 64 || pointers[n] < 8)
            s->gpr[pointers[n]] = DATA - data_base(t) + 0x200 + pick(0x1800) / 16 * 16;
    t->offset = choose_offset(false) - (pick(4) ? 0 : pick(64));
    t->count = t->length = 0;
    t->undefined = t->undefined_inside = 0;
    bool pair = false;
    for (unsigned attempt = 0; attempt < 400 && t->count < wanted; attempt++) {
        unsigned id = pair ? some_jump() : ids[pick(ids_count)];
        const InsnInfo *info = &insn_table[id];
        if (!pair && pick(3) == 0 && !sets_flags_to_compare(info))
            continue;
        if (really_read(info) & t->undefined) {
            pair = false;
            continue;
        }
        Insn i;
        uint8_t bytes[16];
        unsigned n = make(c, id, &m, bytes, (t->bits == 16 ? 0 : CODE) + t->offset + t->length, &i);
        if (!n)
            continue;
        memcpy(t->bytes + t->length, bytes, n);
        t->id[t->count] = (uint16_t)id;
        t->at[t->count] = (uint8_t)t->length;
        t->length += n;
        bool certain = t->count >= conditional_until;
        if (certain && really_read(info) == info->flags_read)
            t->undefined &= ~info->flags_written;
        t->undefined |= info->flags_undefined;
        t->undefined_inside |= info->flags_undefined;
        if (info->attributes & A_JUMP) { /* its target is found once all is there */
            jump_at[jumps++] = t->count;
            conditional_until = t->count + 4;
        }
        t->count++;
        pair = !pair && sets_flags_to_compare(info) && pick(2);
    }
    if (t->count < 2)
        return false;
    if (loop) {
        uint32_t to = (uint32_t)COUNTER;
        unsigned at = t->length;
        memcpy(t->bytes + at, count_down, sizeof count_down);
        memcpy(t->bytes + at + 3, &to, 4);
        t->at[t->count] = (uint8_t)at;
        at += sizeof count_down;
        int32_t back = -(int32_t)(at + 6);
        t->bytes[at] = 0x0f;
        t->bytes[at + 1] = 0x85; /* jne to the start */
        memcpy(t->bytes + at + 2, &back, 4);
        t->length = at + 6;
    }
    for (unsigned n = 0; n < jumps; n++) {
        unsigned k = jump_at[n], last = k + 4 < t->count - 1 + (loop ? 1u : 0u) ? k + 4 : t->count - 1 + (loop ? 1u : 0u);
        unsigned to = k + 1 < last ? k + 1 + pick(last - k) : last;
        unsigned end = k + 1 < t->count ? t->at[k + 1] : loop ? t->at[t->count] : t->length;
        unsigned target = to > k ? t->at[to] : end;
        const InsnInfo *info = &insn_table[t->id[k]];
        uint32_t disp = target - end;
        if (info->operands[1] == 'b') {
            t->bytes[end - 1] = (uint8_t)disp;
        } else {
            Insn i;
            decode(c, t->bytes + t->at[k], 15, CODE, c->mode, &i);
            memcpy(t->bytes + end - (i.osize == 2 ? 2 : 4), &disp, i.osize == 2 ? 2 : 4);
        }
    }
    return true;
}
