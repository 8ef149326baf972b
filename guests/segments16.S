# Segmentation in 16 bits, a boot sector and one more: limits in real mode, 16-bit protected mode, segments with 4 GiB limits taken back to real mode.
# Real mode, 0000:7C00 (by the BIOS, which also loads the second sector), DL = drive. Exits with the number of the failed check.
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
        mov     $0x0201, %ax            # the second sector
        mov     $0x0002, %cx
        mov     $0, %dh
        mov     $second, %bx
        int     $0x13
        mov     $99, %bl
        jc      failed
        jmp     second

failed: mov     %bl, %al
        out     %al, $0xF4
        cli
        hlt

# Prints the string at SI on COM1.
say:    mov     $0x3FD, %dx
1:      in      %dx, %al
        test    $0x20, %al
        jz      1b
        lodsb
        test    %al, %al
        jz      2f
        mov     $0x3F8, %dx
        out     %al, %dx
        jmp     say
2:      ret

# Interrupts 12 and 13: count, and go on where `resume` says, with the stack as before.
stack_fault:
        incw    %cs:stack_faults
        jmp     1f
general_fault:
        incw    %cs:general_faults
1:      add     $6, %sp                 # IP, CS, FLAGS: no error code in real mode
        jmp     *%cs:resume

stack_faults:   .word 0
general_faults: .word 0
resume:         .word 0

hello:  .asciz  "segments16\n"
bye:    .asciz  "segments16: all checks good\n"
        .align  8
table:  .quad   0
        .quad   0x00009B000000FFFF      # 08: 16-bit code
        .quad   0x000093000000FFFF      # 10: data, 64 KiB
        .quad   0x00CF93000000FFFF      # 18: data, 4 GiB
        .quad   0x000093009000000F      # 20: data at 9000h, 16 bytes
pointer:
        .word   . - table - 1
        .long   table
        .org    510
        .word   0xAA55

second: mov     $hello, %si
        call    say
        movw    $stack_fault, 12 * 4
        movw    $0, 12 * 4 + 2
        movw    $general_fault, 13 * 4
        movw    $0, 13 * 4 + 2

        mov     $1, %bl                 # a word at FFFFh lies across the limit
        movw    $1f, resume
        mov     %cs:0xFFFF, %ax
        jmp     failed
1:      cmpw    $1, general_faults
        jne     failed
        mov     $2, %bl                 # through SS it is a stack fault
        movw    $1f, resume
        mov     %ss:0xFFFF, %ax
        jmp     failed
1:      cmpw    $1, stack_faults
        jne     failed
        mov     $3, %bl                 # a byte there is within
        movw    $failed, resume
        mov     %ds:0xFFFF, %al
        mov     $4, %bl                 # a 32-bit offset above FFFFh
        movw    $1f, resume
        mov     $0x10000, %esi
        mov     (%esi), %al
        jmp     failed
1:      cmpw    $2, general_faults
        jne     failed
        mov     $5, %bl                 # 16-bit addresses wrap: BX + SI
        mov     %bx, %bp
        movb    $0x77, 0x9000
        mov     $0xF000, %bx
        mov     $0xA000, %si
        mov     (%bx,%si), %al
        mov     %bp, %bx
        cmp     $0x77, %al
        jne     failed

        lgdt    pointer
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmp    $0x08, $protected
protected:
        mov     $6, %bl                 # 16-bit protected mode: the stack is 16 bits wide, PUSH moves 2
        mov     $0x10, %ax
        mov     %ax, %ss
        mov     $0x7C00, %esp
        push    %ax
        cmp     $0x7BFE, %sp
        jne     failed
        pop     %ax
        mov     $7, %bl                 # a segment's base
        mov     $0x20, %ax
        mov     %ax, %fs
        cmpb    $0x77, %fs:0
        jne     failed
        mov     $8, %bl                 # LSL
        mov     $0x20, %ax
        lsl     %ax, %cx
        jnz     failed
        cmp     $15, %cx
        jne     failed
        mov     $0x18, %ax              # limits stay when real mode comes back: "big real mode"
        mov     %ax, %gs
        mov     $0x10, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %fs
        mov     %cr0, %eax
        and     $0xFE, %al
        mov     %eax, %cr0
        ljmp    $0, $real
real:   xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     %ax, %gs
        mov     $9, %bl
        movw    $failed, resume
        mov     $0x200000, %esi
        movl    $0x12345678, %gs:(%esi)
        cmpl    $0x12345678, %gs:(%esi)
        jne     failed
        mov     $10, %bl                # DS still ends at FFFFh
        movw    $1f, resume
        mov     (%esi), %al
        jmp     failed
1:      mov     $bye, %si
        call    say
        xor     %bl, %bl
        jmp     failed
        .org    1024
        .fill   512, 1, 0
        .section .note.GNU-stack, "", @progbits
