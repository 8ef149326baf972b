/* Quicksort of 200000 words per unit, the same disorder each time. */
#include "bench.h"

enum { COUNT = 200000 };

static void sort(u32 *low, u32 *high) {
    while (high - low > 12) {
        const u32 pivot = low[(high - low) / 2];
        u32 *i = low, *j = high;
        while (i <= j) {
            while (*i < pivot) i++;
            while (*j > pivot) j--;
            if (i <= j) {
                const u32 t = *i;
                *i++ = *j;
                *j-- = t;
            }
        }
        if (j - low < high - i) { /* the smaller part by recursion: depth stays logarithmic */
            sort(low, j);
            low = i;
        } else {
            sort(i, high);
            high = j;
        }
    }
    for (u32 *i = low + 1; i <= high; i++) {
        const u32 value = *i;
        u32 *j = i;
        for (; j > low && j[-1] > value; j--) *j = j[-1];
        *j = value;
    }
}

u64 quicksort(u32 work) {
    u32 *data = (u32 *)arena;
    u64 sum = 0;
    for (u32 round = 0; round < work; round++) {
        u32 seed = 12345 + round;
        for (u32 n = 0; n < COUNT; n++) data[n] = next_random(&seed);
        sort(data, data + COUNT - 1);
        for (u32 n = 1; n < COUNT; n++) sum += data[n - 1] > data[n];
        sum = sum * 131 + data[COUNT / 2] + data[COUNT / 5];
    }
    return sum;
}
