/* oracle [-n COUNT] [-q SEQUENCES] [-s SEED] [-f] [-l] [-c] [-r FILE] [ID...]: compares COUNT random cases of each instruction that
   can be compared (ID: of the lines whose id starts so), then SEQUENCES of several of them. -f: with the portable FMA; -r: the
   recorded cases of a file instead; -l: lists the lines that cannot be compared; -c: runs the core alone and compares nothing
   (address sanitizers map what has to be free). Prints what differs; exits with 1 where anything does. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "oracle.h"
#include "vec_fp.h"

static Cpu *c;
static State before, core, host;
static Case test;
static unsigned compared, failures;
static bool core_only;

static const char *mode_name(const Case *t)
{
    static char name[32];
    snprintf(name, sizeof name, "%u-bit, %s", t->bits, t->how == DIRECT ? "alone" : t->how == BLOCKS ? "in blocks" : "by steps");
    return name;
}

/* Both sides; true where they agree. */
static bool agree(bool print)
{
    core = host = before;
    if (!core_only)
        native_run(&test, &host);
    core_run(c, &test, &core);
    compared++;
    if (core_only)
        return true;
    if (exempt(c, &core, &host, &test) || !differences(&core, &host, &test, false))
        return true;
    if (print) {
        for (unsigned n = 0; n < test.count; n++)
            printf("%s%s (%s)", n ? ", " : "", insn_table[test.id[n]].name, insn_table[test.id[n]].operands);
        printf(": %s\n", mode_name(&test));
        print_case(&test, &before);
        differences(&core, &host, &test, true);
    }
    return false;
}

static void seed_case(uint64_t seed, uint64_t a, uint64_t b)
{
    rnd_seed(seed * 1000003 + a * 7919 + b * 104729);
    for (unsigned k = 0; k < 8; k++)
        rnd();
}

static unsigned choose_bits(const InsnInfo *info)
{
    unsigned kind = pick(8), bits = kind < 4 ? 64 : kind < 6 ? 32 : 16;
    for (unsigned n = 0; n < 3; n++) {
        if (!info || line_in_mode(info, bits))
            if (bits == 64 || native_modes & (bits == 32 ? 1 : 2))
                return bits;
        bits = bits == 64 ? 32 : bits == 32 ? 16 : 64;
    }
    return 0;
}

static bool wanted(const InsnInfo *info, char **names, int count)
{
    for (int n = 0; n < count; n++)
        if (!strncmp(info->name, names[n], strlen(names[n])))
            return true;
    return count == 0;
}

/* COUNT cases of a line; false: there were none. */
static bool run_line(unsigned id, unsigned count, uint64_t seed)
{
    const InsnInfo *info = &insn_table[id];
    unsigned bad = 0, made = 0, missed = 0;
    for (unsigned n = 0; n < count; n++) {
        seed_case(seed, n, id);
        test.bits = choose_bits(info);
        if (!test.bits)
            return false;
        test.how = pick(2) ? BLOCKS : pick(3) && !(info->attributes & (A_END | A_REP | A_IO)) ? DIRECT : STEPS;
        core_mode(c, test.bits);
        if (!generate(c, id, &test, &before)) {
            missed++;
            continue;
        }
        made++;
        bad += !agree(bad < 2);
    }
    if (bad)
        printf("%s: %u of %u cases differ\n", info->name, bad, made);
    if (missed > count / 4)
        printf("%s: no encoding found in %u of %u cases\n", info->name, missed, count);
    failures += bad != 0 || missed > count / 4;
    return made;
}

static void run_sequences(unsigned count, uint64_t seed)
{
    static uint16_t ids[3][2 * INSN_COUNT];
    unsigned ids_count[3] = {0}, bad = 0;
    for (unsigned k = 0; k < 3; k++)
        for (unsigned id = 0; id < INSN_COUNT; id++)
            if (line_in_sequence(&insn_table[id]) && line_in_mode(&insn_table[id], 64 >> k)) {
                ids[k][ids_count[k]++] = (uint16_t)id;
                if (!(insn_table[id].attributes & (A_VEC | A_X87))) /* integer lines more often */
                    ids[k][ids_count[k]++] = (uint16_t)id;
            }
    for (unsigned n = 0; n < count; n++) {
        seed_case(seed, n, INSN_COUNT + 1);
        test.bits = choose_bits(NULL);
        test.how = pick(8) ? BLOCKS : STEPS;
        core_mode(c, test.bits);
        unsigned k = test.bits == 64 ? 0 : test.bits == 32 ? 1 : 2;
        if (generate_sequence(c, ids[k], ids_count[k], &test, &before))
            bad += !agree(bad < 10);
    }
    if (bad)
        printf("%u of %u sequences differ\n", bad, count);
    failures += bad;
}

static const Cpu *in_mode(unsigned bits)
{
    core_mode(c, bits);
    return c;
}

static int run_recorded(const char *path)
{
    static char line[4096];
    unsigned number = 0, skipped = 0;
    FILE *f = fopen(path, "r");
    if (!f)
        return -1;
    while (fgets(line, sizeof line, f)) {
        number++;
        if (line[0] == '#' || line[0] == '\n')
            continue;
        if (!parse_case(line, in_mode, &test, &before)) {
            printf("%s:%u: no case\n", path, number);
            failures++;
            continue;
        }
        bool here = test.bits == 64 || native_modes & (test.bits == 32 ? 1 : 2);
        for (unsigned n = 0; n < test.count; n++)
            here = here && line_comparable(&insn_table[test.id[n]]);
        if (!here) {
            skipped++;
            continue;
        }
        for (test.how = test.count == 1 ? DIRECT : BLOCKS; test.how <= STEPS; test.how++)
            if (!agree(true)) {
                printf("%s:%u differs\n", path, number);
                failures++;
            }
    }
    fclose(f);
    printf("%u recorded cases compared, %u not possible here, %u failures\n", compared, skipped, failures);
    return 0;
}

int main(int argc, char **argv)
{
    unsigned count = 100, sequences = 0, lines = 0, absent = 0;
    uint64_t seed = 1;
    bool list = false;
    const char *recorded = NULL;
    for (int option; (option = getopt(argc, argv, "n:q:s:flctr:")) != -1;) {
        switch (option) {
        case 'n': count = (unsigned)atoi(optarg); break;
        case 'q': sequences = (unsigned)atoi(optarg); break;
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'f': fma_on_host = 0; break;
        case 'l': list = true; break;
        case 't': translated = true; break;
        case 'c': core_only = true; break;
        case 'r': recorded = optarg; break;
        default: return 2;
        }
    }
    c = core_open();
    if (!c || native_open()) {
        fprintf(stderr, "the oracle cannot map its memory\n");
        return 2;
    }
    if (recorded) {
        if (run_recorded(recorded)) {
            perror(recorded);
            return 2;
        }
        return failures != 0;
    }
    for (unsigned id = 0; id < INSN_COUNT; id++) {
        const InsnInfo *info = &insn_table[id];
        bool comparable = line_comparable(info);
        if (list && !comparable)
            printf("%s %s\n", info->attributes & A_NOTEST ? "system" : "absent", info->name);
        if (list || !comparable || !wanted(info, argv + optind, argc - optind)) {
            absent += !comparable && !(info->attributes & A_NOTEST);
            continue;
        }
        lines += run_line(id, count, seed);
    }
    if (list)
        return 0;
    if (sequences)
        run_sequences(sequences, seed);
    printf("%u of %u lines, %u cases compared, %u failures, %u lines are not on this host, modes 64%s%s\n", lines, (unsigned)INSN_COUNT,
           compared, failures, absent, native_modes & 1 ? " 32" : "", native_modes & 2 ? " 16" : "");
    return failures != 0;
}
