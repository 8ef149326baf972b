/* diskspeed DEVICE MIB READS RUNS: times a disk past the page cache. In each run: MIB in order in requests of 1 MiB, read, and then
   written with what was read there; and READS reads of 4 KiB at random places, one at a time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MIB (1u << 20)
#define PAGE 4096u

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint32_t checksum(const char *data, size_t size) {
    uint32_t sum = 0;
    for (size_t at = 0; at < size; at += PAGE)
        sum = sum * 31 + *(const uint32_t *)(data + at);
    return sum;
}

static int fail(const char *what) {
    perror(what);
    return 1;
}

int main(int argc, char **argv) {
    void *memory;
    if (argc < 5)
        return 2;
    uint64_t mib = strtoul(argv[2], NULL, 10);
    unsigned long reads = strtoul(argv[3], NULL, 10), runs = strtoul(argv[4], NULL, 10);
    int disk = open(argv[1], O_RDWR | O_DIRECT);
    if (disk < 0)
        return fail(argv[1]);
    off_t size = lseek(disk, 0, SEEK_END);
    if (size < (off_t)(mib * MIB) || posix_memalign(&memory, PAGE, MIB))
        return fail("size");
    char *buffer = memory;
    for (unsigned long run = 0; run < runs; run++) {
        uint32_t sum = 0;
        uint64_t start = now();
        for (uint64_t n = 0; n < mib; n++) {
            if (pread(disk, buffer, MIB, (off_t)(n * MIB)) != MIB)
                return fail("read");
            sum = sum * 17 + checksum(buffer, MIB);
        }
        printf("kvmpy-disk: read %llu %llu %08x\n", (unsigned long long)(mib * MIB), (unsigned long long)(now() - start), sum);

        /* Each MiB is read again before it is written; only the write is timed. */
        uint64_t took = 0;
        for (uint64_t n = 0; n < mib; n++) {
            if (pread(disk, buffer, MIB, (off_t)(n * MIB)) != MIB)
                return fail("read");
            start = now();
            if (pwrite(disk, buffer, MIB, (off_t)(n * MIB)) != MIB)
                return fail("write");
            took += now() - start;
        }
        start = now();
        if (fsync(disk))
            return fail("fsync");
        uint64_t flush = now() - start;
        printf("kvmpy-disk: write %llu %llu %08x\n", (unsigned long long)(mib * MIB), (unsigned long long)took, sum);
        printf("kvmpy-disk: flush 1 %llu %08x\n", (unsigned long long)flush, sum);

        uint64_t seed = 1;
        sum = 0;
        start = now();
        for (unsigned long n = 0; n < reads; n++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            off_t at = (off_t)((seed >> 33) % ((uint64_t)size / PAGE) * PAGE);
            if (pread(disk, buffer, PAGE, at) != PAGE)
                return fail("random read");
            sum = sum * 17 + checksum(buffer, PAGE);
        }
        printf("kvmpy-disk: random %lu %llu %08x\n", reads, (unsigned long long)(now() - start), sum);
        fflush(stdout);
    }
    return 0;
}
