# A boot sector: loaded at 0000:7C00 in real mode by a BIOS or by kvmpy's loader, DL = drive. Speaks to COM1 itself, so that it needs no BIOS.
        .code16
        .globl  _start
_start: ljmp    $0, $1f                 # some loaders come in as 07C0:0000
1:      cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7C00, %sp
        mov     $hello, %si
        call    say
        smsww   %ax                     # PE is clear in real mode
        mov     $1, %bl
        test    $1, %al
        jnz     failed
        mov     $2, %bl                 # 20-bit addresses: FFFF0h + 0 is in the ROM area, 07C0:0 is this sector
        mov     $0x07C0, %ax
        mov     %ax, %es
        cmpw    $0xAA55, %es:510
        jne     failed
        mov     $3, %bl                 # an interrupt through the vector table and back
        movw    $service, 0x42 * 4
        movw    $0, 0x42 * 4 + 2
        mov     $41, %ax
        int     $0x42
        cmp     $42, %ax
        jne     failed
        mov     $4, %bl                 # 32-bit operands in 16-bit code
        mov     $100000, %eax
        mov     $100000, %ecx
        mul     %ecx
        cmp     $0x540BE400, %eax
        jne     failed
        cmp     $2, %edx
        jne     failed
        mov     $bye, %si
        call    say
        mov     $0, %bl
failed: mov     %bl, %al
        out     %al, $0xF4
        cli
        hlt

service:
        inc     %ax
        iret

say:    mov     $0x3FD, %dx
1:      in      %dx, %al
        test    $0x20, %al              # transmitter empty
        jz      1b
        lodsb
        test    %al, %al
        jz      2f
        mov     $0x3F8, %dx
        out     %al, %dx
        jmp     say
2:      ret

hello:  .asciz  "Hello from real mode\n"
bye:    .asciz  "hello16: all checks good\n"
        .org    510
        .word   0xAA55
        .section .note.GNU-stack, "", @progbits
