# Ring 3 and back, in 32 and 64 bits. user_call(function, argument, stack) runs function(argument) at CPL 3 with all interrupts off; its result
# comes back by INT3: of all gates the one that works from user mode everywhere. user_leave(result) does the same from any handler.
        .text
        .globl  user_call, user_leave, user_done
#ifdef __x86_64__
user_call:
        push    %rbx
        push    %rbp
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        mov     %rsp, user_saved(%rip)
        mov     %rdi, %rax
        mov     %rsi, %rdi
        lea     -8(%rdx), %rdx          # as a CALL leaves it
        lea     user_done(%rip), %rcx
        mov     %rcx, (%rdx)
        pushq   $0x2B                   # SS: SEL_USER_DATA
        push    %rdx
        pushq   $2                      # flags: interrupts off
        pushq   $0x33                   # CS: SEL_USER_CODE
        push    %rax
        mov     $0x2B, %eax
        mov     %eax, %ds
        mov     %eax, %es
        iretq
user_leave:
        mov     user_saved(%rip), %rsp
        mov     %rdi, %rax
        mov     $0x18, %ecx
        mov     %ecx, %ds
        mov     %ecx, %es
        mov     %ecx, %ss               # null after an interrupt from ring 3
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %rbp
        pop     %rbx
        ret
#else
user_call:
        mov     4(%esp), %eax
        mov     8(%esp), %ecx
        mov     12(%esp), %edx
        push    %ebx
        push    %ebp
        push    %esi
        push    %edi
        mov     %esp, user_saved
        mov     %ecx, -4(%edx)          # the argument, and the way back
        movl    $user_done, -8(%edx)
        sub     $8, %edx
        pushl   $0x2B                   # SS: SEL_USER_DATA
        push    %edx
        pushl   $2                      # flags: interrupts off
        pushl   $0x23                   # CS: SEL_USER_CODE32
        push    %eax
        mov     $0x2B, %eax
        mov     %eax, %ds
        mov     %eax, %es
        iretl
user_leave:
        mov     4(%esp), %eax
        mov     user_saved, %esp
        mov     $0x18, %ecx
        mov     %ecx, %ds
        mov     %ecx, %es
        pop     %edi
        pop     %esi
        pop     %ebp
        pop     %ebx
        ret
#endif
user_done:
        int3
        jmp     user_done

        .bss
        .align  8
user_saved:
        .skip   8
        .section .note.GNU-stack, "", @progbits
