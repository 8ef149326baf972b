# Power-on: from the reset vector to INT 19h.
#
# Entered in real mode at F000:FFF0 (base FFFF0000h after a reset). ROM is read-only; the only RAM used before INT 19h
# is below 500h, a stack below 7000h and the text screen, so that what a loader put elsewhere (7C00h, 90000h) survives.
#include "bios.inc"

        .code16
        .section .text

        .globl  post
post:
        cli
        cld
        inb     $PORT92, %al            # A20 on, but leave the reset bit alone
        orb     $2, %al
        andb    $0xFE, %al
        outb    %al, $PORT92
        movb    $0x8F, %al              # CMOS shutdown byte, NMI off
        outb    %al, $CMOS
        inb     $CMOS+1, %al
        movb    %al, %bl
        movb    $0x0F, %al
        outb    %al, $CMOS
        xorb    %al, %al
        outb    %al, $CMOS+1
        cmpb    $0x0A, %bl              # a 286-style return from protected mode: jump through 40:67
        je      warm
        cmpb    $0x05, %bl
        jne     cold
        movb    $0x20, %al
        outb    %al, $PIC2
        outb    %al, $PIC1
warm:   pushw   $BDA
        popw    %ds
        ljmpw   *0x67

cold:   xorw    %ax, %ax
        movw    %ax, %ss
        movw    $0x7000, %sp
        call    init_pic
        call    init_data
        call    init_vectors
        call    init_apic
        call    init_pit
        call    init_serial
        call    init_screen
        call    init_keyboard
        call    init_disks
        call    init_clock
        movb    $0xB8, %al              # open: timer, keyboard, cascade, floppy (6)
        outb    %al, $PIC1+1
        movb    $0xFF, %al
        outb    %al, $PIC2+1
        sti
        int     $0x19
        int     $0x18

# Both 8259s: edge triggered, cascaded on IRQ 2, vectors 08h and 70h, all masked.
init_pic:
        movb    $0x11, %al
        outb    %al, $PIC1
        outb    %al, $PIC2
        movb    $0x08, %al
        outb    %al, $PIC1+1
        movb    $0x70, %al
        outb    %al, $PIC2+1
        movb    $0x04, %al
        outb    %al, $PIC1+1
        movb    $0x02, %al
        outb    %al, $PIC2+1
        movb    $0x01, %al
        outb    %al, $PIC1+1
        outb    %al, $PIC2+1
        movb    $0xFF, %al
        outb    %al, $PIC1+1
        outb    %al, $PIC2+1
        ret

# BIOS data area from nothing. Leaves DS = BDA for all that follows.
init_data:
        pushw   $BDA
        popw    %es
        movw    %es:B_WARM, %bx         # Ctrl-Alt-Del leaves 1234h here for programs that look
        xorw    %di, %di
        xorw    %ax, %ax
        movw    $0x80, %cx
        rep stosw
        pushw   $BDA
        popw    %ds
        movw    %bx, B_WARM
        movw    $EBDA, B_EBDA
        movw    $639, B_MEMORY
        pushw   $TABLE
        popw    %es
        call    has_table
        jne     1f
        movw    %es:T_LOWER, %ax
        movw    %ax, B_MEMORY
1:      movw    $0x0022, B_EQUIP        # FPU, 80x25 colour
        movw    $B_KEYS, %ax
        movw    %ax, B_HEAD
        movw    %ax, B_TAIL
        movw    %ax, B_KEYBUF
        movw    $B_KEYS+32, B_KEYEND
        movb    $0x10, B_SHIFT3
        ret

# ZF when the firmware table is there. ES = TABLE.
        .globl  has_table
has_table:
        cmpl    $0x504D564B, %es:T_MAGIC        # "KVMP"
        jne     1f
        cmpl    $0x31574659, %es:T_MAGIC+4      # "YFW1"
1:      ret

# All 256 vectors: a bare return first, then interrupt requests, then the services.
init_vectors:
        xorw    %ax, %ax
        movw    %ax, %es
        xorw    %di, %di
        movw    $256, %cx
        movl    $(ROM << 16), %eax
        movw    $ignore, %ax
        rep stosl
        movw    $irq_low, %ax
        movw    $0x0A*4, %di            # IRQ 2-7
        movw    $6, %cx
        rep stosl
        movw    $irq_high, %ax
        movw    $0x70*4, %di            # IRQ 8-15
        movw    $8, %cx
        rep stosl
        movw    $vectors, %si
1:      movw    %cs:(%si), %di
        cmpw    $-1, %di
        je      2f
        movw    %cs:2(%si), %ax
        stosl
        addw    $4, %si
        jmp     1b
2:      xorl    %eax, %eax
        movw    $0x60*4, %di            # 60h-67h belong to programs
        movw    $8, %cx
        rep stosl
        ret

        .macro  VECTOR number, handler
        .short  \number * 4, \handler
        .endm
vectors:
        VECTOR  0x00, divide_error
        VECTOR  0x06, invalid_opcode
        VECTOR  0x08, irq_timer
        VECTOR  0x09, irq_keyboard
        VECTOR  0x0C, irq_serial
        VECTOR  0x10, int10
        VECTOR  0x11, int11
        VECTOR  0x12, int12
        VECTOR  0x13, int13
        VECTOR  0x14, int14
        VECTOR  0x15, int15
        VECTOR  0x16, int16
        VECTOR  0x17, int17
        VECTOR  0x18, int18
        VECTOR  0x19, int19
        VECTOR  0x1A, int1a
        VECTOR  0x1E, floppy_parameters
        VECTOR  0x70, irq_rtc
        .short  -1

ignore: iretw

irq_high:
        pushw   %ax
        movb    $0x20, %al
        outb    %al, $PIC2
        jmp     1f
irq_low:
        pushw   %ax
        movb    $0x20, %al
1:      outb    %al, $PIC1
        popw    %ax
        iretw

# Local APIC in virtual wire mode (MultiProcessor Specification 3.6.2.2): LINT0 passes the 8259's interrupts, LINT1 the NMI.
# Its registers lie at 4 GiB - 18 MiB, which takes a moment in protected mode.
#define APIC_SVR   0xFEE000F0
#define APIC_LINT0 0xFEE00350
#define APIC_LINT1 0xFEE00360
init_apic:
        movl    $1, %eax
        cpuid
        testb   $0x02, %dh              # EDX bit 9: there is one
        jz      9f
        movl    $0x1B, %ecx
        rdmsr
        testb   $0x08, %ah              # bit 11: and it is on
        jz      9f
        lgdtl   %cs:gdtr
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpw   $0x10, $1f
1:      movw    $0x08, %ax
        movw    %ax, %fs
        movl    $APIC_SVR, %ebx         # first of all on: while it is off its entries stay masked
        movl    $0x000001FF, %fs:(%ebx)
        movl    $APIC_LINT0, %ebx
        movl    $0x00000700, %fs:(%ebx)
        movl    $APIC_LINT1, %ebx
        movl    $0x00000400, %fs:(%ebx)
        movw    $0x18, %ax              # back to the limit of real mode
        movw    %ax, %fs
        movl    %cr0, %eax
        andb    $0xFE, %al
        movl    %eax, %cr0
        ljmpw   $ROM, $2f
2:      xorw    %ax, %ax
        movw    %ax, %fs
9:      ret

        .balign 8
gdt:    .quad   0
        .quad   0x00CF93000000FFFF      # 08: data, 4 GiB
        .quad   0x00009B0F0000FFFF      # 10: this code
        .quad   0x000093000000FFFF      # 18: data, 64 KiB
gdtr:   .short  gdtr - gdt - 1
        .long   (ROM << 4) + gdt

# Channel 0: 65536 counts, 18.2 Hz. Mode 2 and not 3, so that a latched count falls by one per tick (INT 15h/86h).
init_pit:
        movb    $0x34, %al
        outb    %al, $PITCTL
        xorb    %al, %al
        outb    %al, $PIT0
        outb    %al, $PIT0
        ret

# The day's ticks so far, from the RTC: hours * 65543.33 + minutes * 1092.39 + seconds * 18.2.
init_clock:
        movb    $0x04, %al
        call    cmos_bcd
        movzbl  %al, %ecx
        imull   $3600, %ecx, %ecx
        movb    $0x02, %al
        call    cmos_bcd
        movzbl  %al, %eax
        imull   $60, %eax, %eax
        addl    %eax, %ecx
        movb    $0x00, %al
        call    cmos_bcd
        movzbl  %al, %eax
        addl    %ecx, %eax
        cmpl    $86400, %eax
        jae     1f                      # no clock there
        movl    $1193182, %edx
        mull    %edx
        shrdl   $16, %edx, %eax
        movl    %eax, B_TICKS
1:      ret

# AL = CMOS register, gives its BCD content as binary in AL.
cmos_bcd:
        call    cmos_read
        movb    %al, %ah
        shrb    $4, %ah
        andb    $0x0F, %al
        aad
        ret

        .globl  cmos_read
cmos_read:
        outb    %al, $CMOS
        inb     $CMOS+1, %al
        ret

        .globl  cmos_write
# AL = register, AH = value
cmos_write:
        outb    %al, $CMOS
        xchgb   %al, %ah
        outb    %al, $CMOS+1
        xchgb   %al, %ah
        ret

# Faults in a boot program: say where, and stop. Returning would fault again for ever.
divide_error:
        movw    $text_divide, %si
        jmp     1f
invalid_opcode:
        movw    $text_opcode, %si
1:      movw    %sp, %bp
        pushw   $BDA
        popw    %ds
        cld
        call    print
        movw    2(%bp), %ax
        call    print_word
        movb    $':', %al
        call    tty_plain
        movw    0(%bp), %ax
        call    print_word
        movw    $text_newline, %si
        call    print
        jmp     stop

        .globl  stop
stop:   cli
        hlt
        jmp     stop

# CS:SI = text with a final zero, through the screen.
        .globl  print
print:  pushw   %ax
1:      lodsb   %cs:(%si), %al
        testb   %al, %al
        jz      2f
        call    tty_plain
        jmp     1b
2:      popw    %ax
        ret

# AX in four hexadecimal digits.
print_word:
        movw    $4, %cx
1:      rolw    $4, %ax
        pushw   %ax
        andb    $0x0F, %al
        cmpb    $10, %al
        jb      2f
        addb    $7, %al
2:      addb    $'0', %al
        call    tty_plain
        popw    %ax
        loop    1b
        ret

text_divide:    .asciz  "\r\nBIOS: division error at "
text_opcode:    .asciz  "\r\nBIOS: invalid opcode at "
text_newline:   .asciz  "\r\n"

        .section .reset, "ax"
        ljmpw   $ROM, $post             # FFFF:0000
        .ascii  "01/01/26"              # at FFF5: the customary date
        .byte   0xFF
        .byte   0xFC                    # model: AT
        .byte   0x00
