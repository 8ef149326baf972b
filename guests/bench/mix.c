/* Integer work of many small kinds, a round of each per unit: CRC-32 by bits, list walk and reversal, 16x16 matrix, number scanner. */
#include "bench.h"

static u32 crc(u32 value, const u8 *data, u32 count) {
    while (count--) {
        value ^= *data++;
        for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (0xEDB88320u & -(value & 1));
    }
    return value;
}

struct node {
    struct node *next;
    u32 key, value;
};

static u32 list(struct node *nodes, u32 count, u32 seed) {
    for (u32 n = 0; n < count; n++) {
        nodes[n].next = n + 1 < count ? &nodes[n + 1] : 0;
        nodes[n].key = next_random(&seed);
        nodes[n].value = n;
    }
    struct node *head = nodes;
    u32 sum = 0;
    for (int round = 0; round < 8; round++) {
        struct node *before = 0;
        while (head) { /* reverse, looking at each */
            struct node *after = head->next;
            head->next = before;
            sum = sum * 31 + ((head->key & 255) > 128 ? head->value : head->key);
            before = head;
            head = after;
        }
        head = before;
    }
    return sum;
}

static u32 matrix(u32 seed) {
    enum { N = 16 };
    static u32 a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = next_random(&seed) & 0xFFFF;
            b[i][j] = next_random(&seed) & 0xFFFF;
        }
    u32 sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            u32 dot = 0;
            for (int k = 0; k < N; k++) dot += a[i][k] * b[k][j];
            c[i][j] = dot;
            sum ^= dot + (u32)i * 17;
        }
    return sum + c[3][5];
}

static u32 scan(const char *text) {
    enum { START, SIGN, DIGITS, POINT, FRACTION, EXPONENT, BAD } state = START;
    u32 counts[7] = { 0 };
    for (; *text; text++) {
        const char c = *text;
        if (c == ',') {
            counts[state]++;
            state = START;
            continue;
        }
        const bool digit = c >= '0' && c <= '9';
        switch (state) {
        case START: state = digit ? DIGITS : c == '-' || c == '+' ? SIGN : c == '.' ? POINT : BAD; break;
        case SIGN: state = digit ? DIGITS : c == '.' ? POINT : BAD; break;
        case DIGITS: state = digit ? DIGITS : c == '.' ? POINT : c == 'e' ? EXPONENT : BAD; break;
        case POINT:
        case FRACTION: state = digit ? FRACTION : c == 'e' ? EXPONENT : BAD; break;
        case EXPONENT: state = digit ? EXPONENT : BAD; break;
        case BAD: break;
        }
    }
    u32 sum = 0;
    for (int n = 0; n < 7; n++) sum = sum * 13 + counts[n];
    return sum;
}

u64 mix(u32 work) {
    static const char numbers[] = "5012,-874,+122,.1232,-3.5,3e8,5T-,e9,99.99e12,--1,0,7.,+.5,1234567890,3.14159265358979,x,12e,-0.0e0,";
    u8 table[2048];
    for (u32 n = 0; n < sizeof table; n++) table[n] = (u8)(n * n >> 3);
    u64 sum = 1;
    for (u32 n = 0; n < work; n++) {
        u32 part = list((struct node *)arena, 800, n + 1);
        part ^= crc(part, (const u8 *)numbers, sizeof numbers) + crc(n, table, sizeof table);
        part += matrix(n + 77);
        for (int round = 0; round < 20; round++) part = part * 5 + scan(numbers);
        sum = sum * 0x9E3779B97F4A7C15ull + part;
    }
    return sum;
}
