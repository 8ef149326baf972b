/* The targets without a fuzzer: runs files, or with -rN,SEED N inputs made by a generator. For tests, and to look at a finding. */
#include "fuzz.h"

#define MOST 65536

static uint8_t data[MOST];

static void run(size_t size)
{
    /* the exact size: a sanitizer sees a read past the end */
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static size_t load(const char *name)
{
    FILE *file = fopen(name, "rb");
    if (!file) {
        perror(name);
        exit(2);
    }
    size_t size = fread(data, 1, MOST, file);
    fclose(file);
    return size;
}

int main(int count, char **argument)
{
    unsigned long inputs = 0;
    for (int n = 1; n < count; n++) {
        unsigned long random, first;
        if (sscanf(argument[n], "-r%lu,%lu", &random, &first) != 2) {
            run(load(argument[n]));
            inputs++;
            continue;
        }
        for (unsigned long k = 0; k < random; k++, inputs++) {
            uint64_t seed = first + k;
            size_t size = next_random(&seed) % 400;
            for (size_t at = 0; at < size; at++)
                data[at] = (uint8_t)next_random(&seed);
            run(size);
        }
    }
    printf("%lu inputs\n", inputs);
    return 0;
}
