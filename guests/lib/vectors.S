# 256 entries for the IDT, in 32 and 64 bits. Each pushes its number (and a zero where the processor pushes no error code) and meets at `common`,
# which saves the general registers as struct frame and calls trap(frame).
#ifdef __x86_64__
#define WORD    .quad
#else
#define WORD    .long
#endif
        .text
        .altmacro
        .macro  entry n
        .align  8
vector\n:
        .if     !(\n == 8 || (\n >= 10 && \n <= 14) || \n == 17)
        push    $0
        .endif
        push    $\n
        jmp     common
        .endm
        .macro  address n
        WORD    vector\n
        .endm

number = 0
        .rept   256
        entry   %number
number = number + 1
        .endr

#ifdef __x86_64__
common: push    %rax
        push    %rcx
        push    %rdx
        push    %rbx
        push    %rbp
        push    %rsi
        push    %rdi
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        cld
        mov     %rsp, %rdi
        mov     %rsp, %rbx              # the ABI wants 16-byte alignment at the call
        and     $-16, %rsp
        call    trap
        mov     %rbx, %rsp
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rbp
        pop     %rbx
        pop     %rdx
        pop     %rcx
        pop     %rax
        add     $16, %rsp               # vector, error code
        iretq
#else
common: push    %eax
        push    %ecx
        push    %edx
        push    %ebx
        push    %ebp
        push    %esi
        push    %edi
        cld
        mov     %esp, %eax
        push    %ds
        push    %es
        mov     $0x18, %ecx             # the interrupted code may have had segments of its own
        mov     %ecx, %ds
        mov     %ecx, %es
        push    %eax
        call    trap
        add     $4, %esp
        pop     %es
        pop     %ds
        pop     %edi
        pop     %esi
        pop     %ebp
        pop     %ebx
        pop     %edx
        pop     %ecx
        pop     %eax
        add     $8, %esp                # vector, error code
        iretl
#endif

        .section .rodata
        .align  8
        .globl  vector_entries
vector_entries:
number = 0
        .rept   256
        address %number
number = number + 1
        .endr
        .section .note.GNU-stack, "", @progbits
