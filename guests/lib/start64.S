# Entered by a PVH loader in 32-bit protected mode: flat segments, no paging, EBX = hvm_start_info. Goes on to 64-bit mode and guest_main.
# A loader of plain ELF files comes in at start64, in 64-bit mode already, RDI = hvm_start_info or 0.

        .section .note.pvh, "a", @note
        .align  4
        .long   4, 8, 18                # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .quad   start32

        .section .text.start, "ax"
        .code32
        .globl  start32
start32:
        cli
        cld
        mov     $stack_top, %esp
        xor     %edx, %edx
        mov     %ebx, start_info        # above it are zeros: .bss
        call    tables
        mov     %cr4, %eax
        or      $0x20, %eax             # PAE comes before LME and PG
        mov     %eax, %cr4
        mov     $page_map, %eax
        mov     %eax, %cr3
        mov     $0xC0000080, %ecx       # EFER: LME
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000001, %eax
        mov     %eax, %cr0
        lgdt    early_gdt
        ljmp    $0x10, $enter64

# Identity map of the first 4 GiB by 2 MiB pages.
tables: movl    $page_pointers + 3, page_map
        mov     $page_directories + 3, %eax
        xor     %ecx, %ecx
1:      mov     %eax, page_pointers(,%ecx,8)
        add     $0x1000, %eax
        inc     %ecx
        cmp     $4, %ecx
        jb      1b
        mov     $0x83, %eax             # present, writable, large
        xor     %ecx, %ecx
2:      mov     %eax, page_directories(,%ecx,8)
        add     $0x200000, %eax
        inc     %ecx
        cmp     $2048, %ecx
        jb      2b
        ret

        .code64
        .globl  start64
start64:
        cli
        cld
        mov     %rdi, start_info(%rip)
        lea     stack_top(%rip), %rsp
        # The same tables as by the other way in, written by 64-bit code.
        lea     page_pointers + 3(%rip), %rax
        mov     %rax, page_map(%rip)
        lea     page_directories + 3(%rip), %rax
        lea     page_pointers(%rip), %rdi
        mov     $4, %ecx
1:      mov     %rax, (%rdi)
        add     $0x1000, %rax
        add     $8, %rdi
        dec     %ecx
        jnz     1b
        mov     $0x83, %eax
        lea     page_directories(%rip), %rdi
        mov     $2048, %ecx
2:      mov     %rax, (%rdi)
        add     $0x200000, %rax
        add     $8, %rdi
        dec     %ecx
        jnz     2b
        lea     page_map(%rip), %rax
        mov     %rax, %cr3
        lgdt    early_gdt(%rip)
        pushq   $0x10
        lea     enter64(%rip), %rax
        push    %rax
        lretq

enter64:
        mov     $0x18, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        xor     %eax, %eax
        mov     %eax, %fs
        mov     %eax, %gs
        lea     stack_top(%rip), %rsp
        xor     %ebp, %ebp
        call    console_open
        call    guest_main
        mov     $254, %edi              # a guest that returns has no verdict
        call    leave

        .section .rodata
        .align  8
early_table:
        .quad   0, 0x00CF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
        .globl  early_gdt
early_gdt:
        .word   . - early_table - 1
        .quad   early_table

        .bss
        .align  4096
        .globl  page_map, page_pointers, page_directories
page_map:
        .skip   4096
page_pointers:
        .skip   4096
page_directories:
        .skip   4 * 4096
        .skip   32768
        .globl  stack_top
stack_top:
        .align  8
        .globl  start_info
start_info:
        .quad   0
        .section .note.GNU-stack, "", @progbits
