/* A guest to look into: plain ELF, both widths, no library. It takes an invalid-opcode exception deep in a recursion, and its handler
   halts for good; its variables have every kind of C type. */

typedef unsigned long word;
typedef unsigned char u8;

enum colour { RED, GREEN = 5, BLUE = -2 };
union both { int number; char bytes[4]; };
struct list { struct list *next, *prev; };
struct item {
    struct list links;
    char name[8];
    enum colour colour;
    unsigned low : 3, high : 7;
    signed negative : 4;
    union both both;
    struct { short inner; } const *pointer;
    union { int anonymous; float real; };
    _Bool yes;
    double ratio;
    int grid[2][3];
};

static const struct { short inner; } target = { 77 };
const char *greeting = "hello, debugger";
struct item items[2] = { {
    .name = "first", .colour = GREEN, .low = 5, .high = 100, .negative = -3, .both = { .number = 0x64636261 }, .pointer = (void *)&target,
    .anonymous = -9, .yes = 1, .ratio = 2.5, .grid = { { 1, 2, 3 }, { 4, 5, 6 } },
}, { .name = "second!", .colour = BLUE } };
struct item *current = &items[1];
volatile int counter;

struct gate { unsigned short low, selector; u8 ist, type; unsigned short middle;
#ifdef __x86_64__
    unsigned high, zero;
#endif
} __attribute__((packed));
static struct gate idt[32] __attribute__((aligned(16)));

#define NOINLINE __attribute__((noinline))

NOINLINE void stop_here(void)
{
    counter++;
    asm volatile("cli; hlt");
    counter--;
}

NOINLINE void handler(void)
{
    stop_here();
    counter++;
}

void stub(void);
#ifdef __x86_64__
asm(".type stub, @function\nstub: push %rax; push %rcx; push %rdx; push %rsi; push %rdi; push %r8; push %r9; push %r10; push %r11\n"
    "call handler\n1: hlt; jmp 1b\n.size stub, . - stub");
#else
asm(".type stub, @function\nstub: pusha; call handler\n1: hlt; jmp 1b\n.size stub, . - stub");
#endif

NOINLINE void trap(void)
{
    counter++;
    asm volatile("ud2");
    counter++;
}

NOINLINE int recurse(int n)
{
    int below = 0;
    if (n)
        below = recurse(n - 1);
    else
        trap();
    counter++;
    return below + n;
}

void _start(void)
{
    unsigned short cs;
    word at = (word)stub;
    asm volatile("mov %%cs, %0" : "=r"(cs));
    idt[6] = (struct gate){ .low = at, .selector = cs, .type = 0x8E, .middle = at >> 16 };
    struct { unsigned short limit; word base; } __attribute__((packed)) table = { sizeof(idt) - 1, (word)idt };
    asm volatile("lidt %0" : : "m"(table));
    recurse(3);
    for (;;)
        asm volatile("hlt");
}
