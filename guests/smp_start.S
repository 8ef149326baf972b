# Where the other processors begin: copied to 8000h, entered by SIPI in real mode with CS = 800h, IP = 0. Goes to 64-bit mode and processor_main
# on the stack that trampoline_stack names.
        .text
        .globl  trampoline_start, trampoline_end
        .code16
trampoline_start:
        cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        lgdtl   table_pointer - trampoline_start + 0x8000
        mov     %cr4, %eax
        or      $0x20, %eax             # PAE
        mov     %eax, %cr4
        mov     $page_map, %eax
        mov     %eax, %cr3
        mov     $0xC0000080, %ecx
        rdmsr
        or      $0x100, %eax            # LME
        wrmsr
        mov     %cr0, %eax
        or      $0x80000001, %eax       # PG and PE at once: long mode from here on
        and     $~0x60000000, %eax      # caches on
        mov     %eax, %cr0
        ljmpl   $0x10, $long_mode - trampoline_start + 0x8000
        .code64
long_mode:
        mov     $0x18, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     trampoline_stack, %rsp
        mov     $processor_main, %rax
        call    *%rax
        .align  8
table:  .quad   0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
table_pointer:
        .word   . - table - 1
        .long   table - trampoline_start + 0x8000
trampoline_end:
        .section .note.GNU-stack, "", @progbits
