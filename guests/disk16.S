# A disk image for the BIOS: the boot sector loads the sectors behind it by INT 13h, in both ways, and goes on there. Real mode, 0000:7C00, DL = drive.
# Exits with the number of the failed step.
        .code16
        .globl  _start
_start: ljmp    $0, $1f
1:      cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7C00, %sp
        sti
        mov     %dl, drive
        mov     $hello, %si
        call    say
        movb    $1, step                # reset
        xor     %ax, %ax
        int     $0x13
        jc      failed
        movb    $2, step                # sectors 2 and 3 of track 0: by cylinder, head, sector
        mov     $0x0202, %ax
        mov     $0x0002, %cx
        mov     drive, %dl
        mov     $0, %dh
        mov     $second, %bx
        int     $0x13
        jc      failed
        movb    $3, step
        cmpw    $0xB00C, second_end - 2
        jne     failed
        jmp     second

say:    lodsb
        test    %al, %al
        jz      1f
        mov     $0x0E, %ah              # teletype
        mov     $0x0007, %bx
        int     $0x10
        jmp     say
1:      ret

failed: mov     step, %al
        out     %al, $0xF4
        cli
        hlt

hello:  .asciz  "Hello from a boot sector by the BIOS\r\n"
drive:  .byte   0
step:   .byte   0
        .org    510
        .word   0xAA55

second: movb    $4, step                # extensions there?
        mov     $0x41, %ah
        mov     $0x55AA, %bx
        mov     drive, %dl
        int     $0x13
        jc      failed2
        cmp     $0xAA55, %bx
        jne     failed2
        movb    $5, step                # block 3 by number
        mov     $0x42, %ah
        mov     drive, %dl
        mov     $packet, %si
        int     $0x13
        jc      failed2
        movb    $6, step
        mov     $0x9000, %si
        mov     $512, %cx
        xor     %ax, %ax
        xor     %bx, %bx
1:      lodsb                           # the sum of its bytes
        add     %ax, %bx
        loop    1b
        cmp     $512 * 0x33, %bx
        jne     failed2
        movb    $7, step                # geometry
        mov     $0x08, %ah
        mov     drive, %dl
        xor     %di, %di
        int     $0x13
        push    $0
        pop     %es
        jc      failed2
        movb    $8, step                # a block beyond the end
        movl    $0x7FFFFFFF, packet + 8
        mov     $0x42, %ah
        mov     drive, %dl
        mov     $packet, %si
        int     $0x13
        jnc     failed2
        movb    $9, step                # conventional memory
        int     $0x12
        cmp     $600, %ax
        jb      failed2
        cmp     $640, %ax
        ja      failed2
        movb    $10, step               # the memory map's first entry
        mov     $0xE820, %eax
        mov     $0x534D4150, %edx       # "SMAP"
        xor     %ebx, %ebx
        mov     $24, %ecx
        mov     $0x9400, %di
        int     $0x15
        jc      failed2
        cmp     $0x534D4150, %eax
        jne     failed2
        movb    $11, step               # the clock ticks
        mov     $0x00, %ah
        int     $0x1A
        mov     %dx, %bp
1:      hlt
        mov     $0x00, %ah
        int     $0x1A
        cmp     %dx, %bp
        je      1b
        mov     $bye, %si
        call    say
        xor     %al, %al
        out     %al, $0xF4
failed2:
        jmp     failed

bye:    .asciz  "disk16: all checks good\r\n"
        .align  4
packet: .byte   16, 0
        .word   1                       # one block
        .word   0x9000, 0               # to 0000:9000
        .quad   3
        .org    512 + 1024 - 2
        .word   0xB00C
second_end:
        .fill   512, 1, 0x33            # block 3
        .fill   512 * 12, 1, 0
        .section .note.GNU-stack, "", @progbits
