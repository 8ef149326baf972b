/* durable DEVICE SEED: writes blocks of 4 KiB around the page cache, each in its turn of a permutation of the device that SEED begins,
   has the device make it durable, and only then tells the block's number. Never ends of itself before all blocks are written.
   A block holds its number, in every one of its 512 words of 64 bits, times an odd constant, plus SEED. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BLOCK 4096
#define STEP 40503u             /* odd: with a power of two of blocks, each comes once */

int main(int argc, char **argv) {
    uint64_t *buffer;
    uint32_t seed, blocks;
    off_t size;
    int device;

    if (argc != 3 || (device = open(argv[1], O_RDWR | O_DIRECT)) < 0 || posix_memalign((void **)&buffer, BLOCK, BLOCK))
        return 2;
    seed = (uint32_t)strtoul(argv[2], NULL, 10);
    size = lseek(device, 0, SEEK_END);
    blocks = (uint32_t)(size / BLOCK);
    if (!blocks || blocks & (blocks - 1)) {
        fprintf(stderr, "%u blocks: no power of two\n", blocks);
        return 2;
    }
    for (uint32_t turn = 0; turn < blocks; turn++) {
        uint32_t block = (seed + turn * STEP) & (blocks - 1);
        for (int word = 0; word < BLOCK / 8; word++)
            buffer[word] = (block + 1) * UINT64_C(0x9E3779B97F4A7C15) + seed + (uint64_t)word;
        if (pwrite(device, buffer, BLOCK, (off_t)block * BLOCK) != BLOCK || fsync(device)) {
            perror("durable");
            return 1;
        }
        printf("durable %u\n", block);
        fflush(stdout);
    }
    return 0;
}
