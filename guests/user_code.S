# Entries of the user guest. Each calls syscall_handled(AX, BX) and returns with its result in AX.
        .text
        .globl  syscall_entry, sysenter_entry, compatibility
#ifdef __x86_64__
syscall_entry:                          # RCX = return address, R11 = flags, the stack is still the user's
        mov     %rsp, user_stack(%rip)
        lea     kernel_stack_end(%rip), %rsp
        push    %rcx
        push    %r11
        mov     %rax, %rdi
        mov     %rbx, %rsi
        call    syscall_handled
        pop     %r11
        pop     %rcx
        mov     user_stack(%rip), %rsp
        sysretq
sysenter_entry:                         # RCX, RDX: stack and address to return to
        push    %rcx
        push    %rdx
        mov     %rax, %rdi
        mov     %rbx, %rsi
        call    syscall_handled
        pop     %rdx
        pop     %rcx
        sysexitq
compatibility:                          # at CPL 3: 64-bit code calls 32-bit code by a far pointer, which calls ring 0
        push    %rbx
        lea     compatible_target(%rip), %rax
        lcall   *(%rax)
        pop     %rbx
        ret
        .code32
compatible_code:
        mov     $1000, %eax
        mov     %edi, %ebx
        int     $0x80
        lret                            # an offset and a selector of 32 bits, as the 64-bit LCALL with a 32-bit pointer pushed them
        .code64
        .section .rodata
compatible_target:
        .long   compatible_code
        .word   0x23                    # SEL_USER_CODE32
        .bss
        .align  16
user_stack:
        .skip   16
        .skip   4096
kernel_stack_end:
#else
sysenter_entry:
        push    %ecx
        push    %edx
        push    %ebx
        push    %eax
        call    syscall_handled
        add     $8, %esp
        pop     %edx
        pop     %ecx
        sysexit
#endif
        .section .note.GNU-stack, "", @progbits
