/* SSE2 floating point: the Mandelbrot set, and five bodies under gravity (positions and masses made up). */
#include "bench.h"

u64 mandelbrot(u32 work) {
    enum { WIDTH = 64, DEPTH = 200 };
    u64 sum = 0;
    for (u32 row = 0; row < work; row++) {
        const double ci = -1.2 + 2.4 * (double)(row % 37) / 37;
        for (int column = 0; column < WIDTH; column++) {
            const double cr = -2.0 + 2.6 * column / WIDTH;
            double zr = 0, zi = 0;
            u32 n = 0;
            while (n < DEPTH) {
                const double rr = zr * zr, ii = zi * zi;
                if (rr + ii > 4) break;
                zi = 2 * zr * zi + ci;
                zr = rr - ii + cr;
                n++;
            }
            sum = sum * 5 + n;
        }
    }
    return sum;
}

u64 nbody(u32 work) {
    enum { N = 5 };
    double position[N][3], velocity[N][3], mass[N];
    for (int n = 0; n < N; n++) {
        mass[n] = n ? 0.02 / n : 40;
        for (int k = 0; k < 3; k++) {
            position[n][k] = n * (k == 0 ? 5.0 : k == 1 ? -3.0 : 0.3);
            velocity[n][k] = n ? (k == 0 ? 0.9 : k == 1 ? 1.4 : 0.1) / n : 0;
        }
    }
    for (u32 step = 0; step < work * 10; step++) {
        for (int i = 0; i < N; i++)
            for (int j = i + 1; j < N; j++) {
                double d[3], square = 0;
                for (int k = 0; k < 3; k++) {
                    d[k] = position[i][k] - position[j][k];
                    square += d[k] * d[k];
                }
                double root;
                __asm__("sqrtsd %1, %0" : "=x"(root) : "x"(square));
                const double force = 0.001 / (square * root);
                for (int k = 0; k < 3; k++) {
                    velocity[i][k] -= d[k] * mass[j] * force;
                    velocity[j][k] += d[k] * mass[i] * force;
                }
            }
        for (int n = 0; n < N; n++)
            for (int k = 0; k < 3; k++) position[n][k] += 0.001 * velocity[n][k];
    }
    u64 sum = 0;
    for (int n = 0; n < N; n++)
        for (int k = 0; k < 3; k++) {
            union { double d; u64 bits; } as = { position[n][k] };
            sum = sum * 0x100000001B3ull + as.bits;
        }
    return sum;
}
