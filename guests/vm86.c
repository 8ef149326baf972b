/* A monitor for virtual-8086 mode, in 32-bit protected mode: 16-bit code runs at IOPL 0, its sensitive instructions trap and are carried out here. */
#include "guest.h"

enum { SEGMENT = 0x0900, STACK_SEGMENT = 0x0A00 };
extern const u8 vm86_code[], vm86_end[];
extern void vm86_enter(void);

__asm__(
    ".text\n.code16\n.globl vm86_code, vm86_end\n"
    "vm86_code:\n"
    "mov $0xB800, %ax\n mov %ax, %es\n movb $'V', %es:0\n"   /* real-mode addressing: linear B8000 */
    "mov %cs, %ax\n mov %ax, %ds\n"
    "cli\n pushf\n pop %bx\n sti\n pushf\n pop %cx\n"        /* virtual IF by the monitor */
    "mov $0x4321, %ax\n int $0x21\n"                          /* the monitor adds 1 */
    "mov %ax, %si\n"
    "mov $0x5A, %al\n out %al, $0x80\n"                       /* allowed by the I/O bitmap */
    "mov $0xA5, %al\n out %al, $0x81\n"                       /* not allowed: the monitor does it */
    "hlt\n"
    "int $0x20\n"
    "vm86_end:\n.code32\n");

struct vm86_frame { /* what the processor pushed on entry from virtual-8086 mode, from the error code's frame on */
    struct frame f;
    ulong es, ds, fs, gs;
};

static volatile u32 interrupts, flag_reads, hlts, emulated_outs, refused_port, final_si, final_bx, final_cx;
static bool virtual_if = true;

static u8 *linear(ulong segment, ulong offset) { return (u8 *)((segment << 4) + (offset & 0xFFFF)); }

static void push16(struct frame *f, u16 value) {
    f->sp = (f->sp & ~0xFFFFul) | ((f->sp - 2) & 0xFFFF);
    memcpy(linear(f->ss, f->sp), &value, 2);
}

static u16 pop16(struct frame *f) {
    u16 value;
    memcpy(&value, linear(f->ss, f->sp), 2);
    f->sp = (f->sp & ~0xFFFFul) | ((f->sp + 2) & 0xFFFF);
    return value;
}

static void monitor(struct frame *f) {
    if (!(f->flags & FLAG_VM)) {
        print("#GP outside virtual-8086 mode at 0x%lx, error 0x%lx\n", f->ip, f->error);
        leave(255);
    }
    const u8 *code = linear(f->cs, f->ip);
    switch (code[0]) {
    case 0xFA: virtual_if = false; f->ip++; return; /* CLI */
    case 0xFB: virtual_if = true; f->ip++; return;  /* STI */
    case 0x9C:                                      /* PUSHF */
        flag_reads++;
        push16(f, (u16)((f->flags & ~(ulong)FLAG_IF) | (virtual_if ? FLAG_IF : 0)));
        f->ip++;
        return;
    case 0x9D: virtual_if = pop16(f) & FLAG_IF; f->ip++; return; /* POPF */
    case 0xF4: hlts++; f->ip++; return;                          /* HLT */
    case 0xE6: /* OUT to a port that the bitmap keeps */
        emulated_outs++;
        refused_port = code[1];
        outb(code[1], (u8)f->ax);
        f->ip += 2;
        return;
    case 0xCD:
        interrupts++;
        if (code[1] == 0x21) {
            f->ax++;
            f->ip += 2;
            return;
        }
        if (code[1] == 0x20) {
            final_si = f->si & 0xFFFF;
            final_bx = f->bx & 0xFFFF;
            final_cx = f->cx & 0xFFFF;
            user_leave(1);
        }
    }
    print("instruction %02x %02x in virtual-8086 mode\n", code[0], code[1]);
    leave(255);
}

/* IRET into virtual-8086 mode, from a frame that holds all segments; user_call's way back does the rest. */
__asm__(
    ".text\n.globl vm86_enter\nvm86_enter:\n" /* as a user_call target it would be at CPL 3; it is called at CPL 0 with the saved stack */
    "pushl $0\n pushl $0\n pushl $0\n pushl $0\n"             /* GS, FS, DS, ES */
    "pushl $0x0A00\n pushl $0x0FF0\n"                         /* SS, ESP */
    "pushl $0x20002\n"                                        /* EFLAGS: VM, IOPL 0 */
    "pushl $0x0900\n pushl $0\n"                              /* CS, EIP */
    "iretl\n");

static ulong enter(ulong unused) {
    (void)unused;
    __asm__ volatile("int $0x82"); /* to CPL 0, from where virtual-8086 mode can be entered */
    return 0;
}

static void on_enter(struct frame *f) {
    (void)f;
    vm86_enter();
}

void guest_main(void) {
    traps_open();
    user_open();
    on_trap(GP, monitor);
    on_trap(0x82, on_enter);
    set_gate(0x82, vector_entries[0x82], SEL_CODE, 0xEE, 0);
    memcpy((void *)(SEGMENT << 4), vm86_code, (size_t)(vm86_end - vm86_code));
    *(volatile u8 *)0xB8000 = 0;
    tss.bitmap[0x80 / 8] &= (u8)~1;
    check_equal(in_user_mode(enter, 0), 1, "into virtual-8086 mode and back by INT 20h");
    check_equal(interrupts, 2, "INT n traps to the monitor at IOPL 0");
    check_equal(final_si, 0x4322, "  and its answer is there");
    check_equal(flag_reads, 2, "PUSHF traps");
    check(!(final_bx & FLAG_IF) && (final_cx & FLAG_IF), "CLI and STI, virtually");
    check_equal(hlts, 1, "HLT traps");
    check(emulated_outs == 1 && refused_port == 0x81, "OUT: the I/O bitmap decides");
    all_good("vm86");
}
