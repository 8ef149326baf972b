"""Writes to an image for ever, and says on standard output what is flushed. Its parent kills it.

Each write is one block, marked with the number of the write; a log line "BLOCK NUMBER" goes out before it, "flushed" after a flush.
"""

from __future__ import annotations

import random
import sys

from kvmpy.host.images import open_image

BLOCK = 4096


def main() -> None:
    image = open_image(sys.argv[1])
    rng = random.Random(int(sys.argv[2]))
    blocks = image.size // BLOCK
    number = 0
    while True:
        for _ in range(rng.randrange(1, 12)):
            number += 1
            block = rng.randrange(blocks)
            if rng.random() < 0.15:
                print(block, 0, flush=True)
                image.write_zeroes(block * BLOCK, BLOCK, may_unmap=True)
            else:
                print(block, number, flush=True)
                image.write_from(block * BLOCK, [memoryview(number.to_bytes(8, "little") * (BLOCK // 8))])
        image.flush()
        print("flushed", flush=True)


main()
