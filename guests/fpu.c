/* x87, SSE, SSE2 and AVX at CPL 0: results known to the bit, flags, rounding; FXSAVE and XSAVE keep the state. PVH; 32 and 64 bits. */
#include "guest.h"

struct extended { u64 mantissa; u16 sign_exponent; } __attribute__((packed));

static void check_extended(const struct extended *x, u16 sign_exponent, u64 mantissa, const char *what) {
    if (x->sign_exponent != sign_exponent || x->mantissa != mantissa) print("got %04x %016llx: ", x->sign_exponent, (unsigned long long)x->mantissa);
    check(x->sign_exponent == sign_exponent && x->mantissa == mantissa, what);
}

static void control(u16 word) { __asm__ volatile("fldcw %0" : : "m"(word)); }
static u16 status(void) { u16 s; __asm__ volatile("fnstsw %0" : "=m"(s)); return s; }

static void x87(void) {
    struct extended r;
    static const u32 three = 3;
    static const double big = 1e300;
    __asm__ volatile("fninit; fldpi; fstpt %0" : "=m"(r));
    check_extended(&r, 0x4000, 0xC90FDAA22168C235, "FLDPI");
    __asm__ volatile("fld1; fidivl %1; fstpt %0" : "=m"(r) : "m"(three));
    check_extended(&r, 0x3FFD, 0xAAAAAAAAAAAAAAAB, "1/3 to 64 bits");
    check(status() & 0x20, "  precision flag");
    control(0x077F); /* down */
    __asm__ volatile("fld1; fidivl %1; fstpt %0" : "=m"(r) : "m"(three));
    check_extended(&r, 0x3FFD, 0xAAAAAAAAAAAAAAAA, "1/3 rounded down");
    control(0x027F); /* 53 bits */
    __asm__ volatile("fld1; fidivl %1; fstpt %0" : "=m"(r) : "m"(three));
    check_extended(&r, 0x3FFD, 0xAAAAAAAAAAAAA800, "1/3 to 53 bits");
    control(0x037F);
    __asm__ volatile("fld1; fadd %%st(0); fsqrt; fstpt %0" : "=m"(r));
    check_extended(&r, 0x3FFF, 0xB504F333F9DE6484, "square root of 2");
    __asm__ volatile("fldl %1; fmul %%st(0); fstpt %0" : "=m"(r) : "m"(big));
    check(r.sign_exponent == 0x47C8, "1e300 squared is within reach");
    __asm__ volatile("fldz; fchs; fld1; fdivp; fstpt %0" : "=m"(r));
    check((r.sign_exponent & 0x7FFF) == 0x7FFF || r.mantissa == 0, "division with zero");
    __asm__ volatile("fnclex; fldz; fldz; fdivrp; fstpt %0" : "=m"(r));
    check_extended(&r, 0xFFFF, 0xC000000000000000, "0/0 is the default NaN");
    check((status() & 0x41) == 1, "  invalid, no stack fault");
    __asm__ volatile("fnclex; ffree %%st(0); fstpt %0" : "=m"(r));
    check((status() & 0x41) == 0x41, "reading an empty register: stack fault");
    __asm__ volatile("fninit");
    static const u64 number = 12345678901234567ull;
    static u8 bcd[10];
    __asm__ volatile("fildq %1; fbstp %0" : "=m"(bcd) : "m"(number));
    check(bcd[0] == 0x67 && bcd[1] == 0x45 && bcd[8] == 0x01 && bcd[9] == 0, "FBSTP");
    u16 word = 0;
    __asm__ volatile("fldpi; fld1; fcompp; fnstsw %0" : "=m"(word));
    check((word & 0x4500) == 0x0100, "FCOM: 1 is below pi");
    static u32 integer;
    __asm__ volatile("fldpi; fistpl %0" : "=m"(integer));
    check_equal(integer, 3, "FIST rounds");
    __asm__ volatile("fninit; fldpi; fxtract; fstpt %0; fstpt %1" : "=m"(r), "=m"(bcd));
    check_extended(&r, 0x3FFF, 0xC90FDAA22168C235, "FXTRACT: the significand");
}

static u32 mxcsr(void) { u32 v; __asm__ volatile("stmxcsr %0" : "=m"(v)); return v; }
static void set_mxcsr(u32 v) { __asm__ volatile("ldmxcsr %0" : : "m"(v)); }

static void sse(void) {
    static u32 r[4] __attribute__((aligned(16)));
    static const u32 a[4] __attribute__((aligned(16))) = { 0x3F800000, 0x40000000, 0x40400000, 0x40800000 }; /* 1 2 3 4 */
    static const u32 b[4] __attribute__((aligned(16))) = { 0x40400000, 0x40400000, 0x40400000, 0x40400000 }; /* 3 */
    set_mxcsr(0x1F80);
    __asm__ volatile("movaps %1, %%xmm0; divps %2, %%xmm0; movaps %%xmm0, %0" : "=m"(r) : "m"(a), "m"(b));
    check(r[0] == 0x3EAAAAAB && r[1] == 0x3F2AAAAB && r[2] == 0x3F800000 && r[3] == 0x3FAAAAAB, "DIVPS");
    check_equal(mxcsr(), 0x1FA0, "  MXCSR: precision");
    set_mxcsr(0x3F80); /* down */
    __asm__ volatile("movaps %1, %%xmm0; divps %2, %%xmm0; movaps %%xmm0, %0" : "=m"(r) : "m"(a), "m"(b));
    check(r[0] == 0x3EAAAAAA && r[3] == 0x3FAAAAAA, "DIVPS rounded down");
    set_mxcsr(0x1F80);
    static u64 d[2] __attribute__((aligned(16)));
    static const u64 two[2] __attribute__((aligned(16))) = { 0x4000000000000000, 0x4022000000000000 }; /* 2, 9 */
    __asm__ volatile("sqrtpd %1, %%xmm1; movapd %%xmm1, %0" : "=m"(d) : "m"(two));
    check(d[0] == 0x3FF6A09E667F3BCD && d[1] == 0x4008000000000000, "SQRTPD");
    __asm__ volatile("movdqa %1, %%xmm2; paddd %2, %%xmm2; pshufd $0x1B, %%xmm2, %%xmm2; movdqa %%xmm2, %0" : "=m"(r) : "m"(a), "m"(b));
    check(r[0] == 0x80C00000 && r[3] == 0x7FC00000, "PADDD and PSHUFD");
    __asm__ volatile("movdqa %1, %%xmm2; pmuludq %2, %%xmm2; movdqa %%xmm2, %0" : "=m"(d) : "m"(a), "m"(b));
    check(d[0] == 0x3F800000ull * 0x40400000 && d[1] == 0x40400000ull * 0x40400000, "PMULUDQ");
    u32 count;
    static const u64 value = 0xC05EDD2F1A9FBE77; /* -123.456 */
    __asm__ volatile("movsd %1, %%xmm0; cvttsd2si %%xmm0, %0" : "=r"(count) : "m"(value));
    check_equal(count, (u32)-123, "CVTTSD2SI");
    __asm__ volatile("movsd %1, %%xmm0; cvtsd2si %%xmm0, %0" : "=r"(count) : "m"(two[1]));
    check_equal(count, 9, "CVTSD2SI");
    TRY("movaps %0, %%xmm0", : : "m"(((const u8 *)a)[4]) : "ax");
    check_trap(GP, 0, false, "#GP: MOVAPS not aligned");
}

static void saves(void) {
    static u8 area[512] __attribute__((aligned(16)));
    static u32 r[4] __attribute__((aligned(16)));
    static const u32 a[4] __attribute__((aligned(16))) = { 1, 2, 3, 4 };
    struct extended x;
    __asm__ volatile("fninit; fldpi; movdqa %0, %%xmm3; fxsave %1; fninit; pxor %%xmm3, %%xmm3; fxrstor %1" : : "m"(a), "m"(area) : "memory");
    __asm__ volatile("fstpt %0; movdqa %%xmm3, %1" : "=m"(x), "=m"(r));
    check_extended(&x, 0x4000, 0xC90FDAA22168C235, "FXSAVE and FXRSTOR: x87");
    check(r[0] == 1 && r[3] == 4, "FXSAVE and FXRSTOR: XMM");
}

static void avx(void) {
    const struct cpuid features = cpuid(1, 0);
    if (!(features.c >> 26 & 1) || !(features.c >> 28 & 1)) {
        print("no AVX here\n");
        return;
    }
    write_cr4(read_cr4() | CR4_OSXSAVE);
    __asm__ volatile("xsetbv" : : "a"(7), "d"(0), "c"(0));
    u32 low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    check_equal(low, 7, "XCR0");
    static u32 r[8] __attribute__((aligned(32)));
    static const u32 a[8] __attribute__((aligned(32))) = { 0x3F800000, 0x40000000, 0x40400000, 0x40800000, 0x3F800000, 0x40000000, 0x40400000, 0x40800000 };
    __asm__ volatile("vmovaps %1, %%ymm0; vaddps %%ymm0, %%ymm0, %%ymm1; vmovaps %%ymm1, %0" : "=m"(r) : "m"(a));
    check(r[0] == 0x40000000 && r[7] == 0x41000000, "VADDPS of 256 bits");
    __asm__ volatile("vmovaps %1, %%ymm2; vaddps %%xmm2, %%xmm2, %%xmm2; vmovups %%ymm2, %0" : "=m"(r) : "m"(a));
    check(r[3] == 0x41000000 && r[4] == 0 && r[7] == 0, "a VEX instruction of 128 bits clears the upper half");
    static u8 area[2048] __attribute__((aligned(64)));
    __asm__ volatile("vmovaps %1, %%ymm4; xsave %0; vzeroall; xrstor %0; vmovaps %%ymm4, %2" : "+m"(area) : "m"(a), "m"(r), "a"(7), "d"(0) : "memory");
    check(r[0] == 0x3F800000 && r[7] == 0x40800000, "XSAVE and XRSTOR: YMM");
    check((area[512] & 4) == 4, "  XSTATE_BV has AVX");
    if (cpuid(7, 0).b >> 5 & 1) {
        __asm__ volatile("vmovdqa %1, %%ymm0; vpaddd %%ymm0, %%ymm0, %%ymm1; vpermq $0x1B, %%ymm1, %%ymm1; vmovdqa %%ymm1, %0" : "=m"(r) : "m"(a));
        check(r[0] == 0x80800000 && r[1] == 0x81000000 && r[6] == 0x7F000000, "VPADDD and VPERMQ");
    }
}

void guest_main(void) {
    traps_open();
    write_cr0((read_cr0() & ~(ulong)(CR0_EM | CR0_TS)) | CR0_MP | CR0_NE);
    x87();
    if (cpuid(1, 0).d >> 25 & 1) {
        write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
        sse();
        saves();
        avx();
    }
    all_good("fpu");
}
