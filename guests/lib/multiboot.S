# Entered by a multiboot loader in 32-bit protected mode, EAX = its magic number, EBX = boot information. Version 1, or 2 with MULTIBOOT2.
        .section .multiboot, "ax"
        .align  8
header:
#ifdef MULTIBOOT2
        .long   0xE85250D6, 0, end - header
        .long   -(0xE85250D6 + 0 + (end - header))
        .short  1, 0                    # information request, not optional
        .long   16
        .long   1, 6                    # command line, memory map
        .short  0, 0                    # the last tag
        .long   8
end:
#else
        .long   0x1BADB002, 3           # modules on page boundaries, memory information
        .long   -(0x1BADB002 + 3)
#endif
        .text
        .globl  start32
start32:
        cli
        cld
        mov     $stack_top, %esp
        mov     %eax, multiboot_magic
        mov     %ebx, multiboot_info
        lgdt    early_gdt
        ljmp    $0x10, $1f
1:      mov     $0x18, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %eax, %fs
        mov     %eax, %gs
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
        .align  16
        .skip   32768
        .globl  stack_top, start_info, multiboot_magic, multiboot_info
stack_top:
multiboot_magic:
        .long   0
multiboot_info:
        .long   0
start_info:                             # PVH's, not here
        .long   0
        .section .note.GNU-stack, "", @progbits
