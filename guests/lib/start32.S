# Entered by a PVH loader, or as a plain ELF32 file, in 32-bit protected mode: flat segments, no paging, EBX = hvm_start_info. Calls guest_main.

        .section .note.pvh, "a", @note
        .align  4
        .long   4, 4, 18                # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   start32

        .section .text.start, "ax"
        .globl  start32
start32:
        cli
        cld
        mov     $stack_top, %esp
        mov     %ebx, start_info
        lgdt    early_gdt
        ljmp    $0x10, $1f
1:      mov     $0x18, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %eax, %fs
        mov     %eax, %gs
        xor     %ebp, %ebp
        call    console_open
        call    guest_main
        push    $254                    # a guest that returns has no verdict
        call    leave

        .section .rodata
        .align  8
early_table:
        .quad   0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF
early_gdt:
        .word   . - early_table - 1
        .long   early_table

        .bss
        .align  4096
        .skip   32768
        .globl  stack_top
stack_top:
        .globl  start_info
start_info:
        .long   0
        .section .note.GNU-stack, "", @progbits
