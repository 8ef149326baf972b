# Loaded by the test at 0:7C00 in real mode. COM1, keyboard and clock by interrupt; exits with 42 when each has done its part.
        .code16
        .globl  _start
_start: cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7000, %sp
        movw    $keyboard, 0x09 * 4
        movw    %ax, 0x09 * 4 + 2
        movw    $serial, 0x0C * 4
        movw    %ax, 0x0C * 4 + 2
        movw    $clock, 0x70 * 4
        movw    %ax, 0x70 * 4 + 2

        mov     $0x11, %al              # ICW1: edge, cascade, ICW4 follows
        out     %al, $0x20
        out     %al, $0xA0
        mov     $0x08, %al              # ICW2: vectors as a PC's BIOS has them
        out     %al, $0x21
        mov     $0x70, %al
        out     %al, $0xA1
        mov     $0x04, %al              # ICW3
        out     %al, $0x21
        mov     $0x02, %al
        out     %al, $0xA1
        mov     $0x01, %al              # ICW4: 8086
        out     %al, $0x21
        out     %al, $0xA1
        mov     $0xE9, %al              # IRQ 1, 2, 4
        out     %al, $0x21
        mov     $0xFE, %al              # IRQ 8
        out     %al, $0xA1

        mov     $0x3FA, %dx             # FIFO with trigger level 14: short input comes by character timeout
        mov     $0xC7, %al
        out     %al, %dx
        mov     $0x3FC, %dx
        mov     $0x0B, %al              # DTR, RTS, OUT2
        out     %al, %dx
        mov     $0x3F9, %dx
        mov     $0x01, %al
        out     %al, %dx

        mov     $0x0B, %al              # periodic interrupt at the BIOS rate of 1024 Hz
        out     %al, $0x70
        mov     $0x42, %al
        out     %al, $0x71
        mov     $0x0C, %al
        out     %al, $0x70
        in      $0x71, %al

        mov     $ready, %si
        mov     $0x3F8, %dx
say:    lodsb
        test    %al, %al
        jz      wait
        out     %al, %dx
        jmp     say
wait:   sti
        hlt
        cli
        cmpb    $3, done
        jne     wait
        cmpw    $16, ticks
        jb      wait
        mov     $42, %al
        out     %al, $0xF4
        hlt

serial: push    %ax
        push    %dx
1:      mov     $0x3FD, %dx
        in      %dx, %al
        test    $1, %al
        jz      2f
        mov     $0x3F8, %dx
        in      %dx, %al
        out     %al, %dx
        cmp     $'!', %al
        jne     1b
        orb     $1, done
        jmp     1b
2:      pop     %dx
        jmp     eoi

keyboard:
        push    %ax
        in      $0x60, %al
        mov     %al, %ah
        in      $0x60, %al              # a chained handler sees the same byte
        cmp     %al, %ah
        jne     eoi
        cmp     $0x9C, %al              # Enter released
        jne     eoi
        orb     $2, done
        jmp     eoi

clock:  push    %ax
        mov     $0x0C, %al
        out     %al, $0x70
        in      $0x71, %al
        incw    ticks
        mov     $0x20, %al
        out     %al, $0xA0
eoi:    mov     $0x20, %al
        out     %al, $0x20
        pop     %ax
        iret

ready:  .asciz  "ready\n"
done:   .byte   0
ticks:  .word   0
