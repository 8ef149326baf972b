# Start-up for C: main's value is the exit code. The loader has set flat segments and, in 32 and 64 bits, a stack.
        .section .text.start, "ax"
        .globl  _start
#if KVMPY_BITS == 16
        .code16
_start: xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7C00, %esp           # below the image
        calll   main
#elif KVMPY_BITS == 32
_start: mov     $kvmpy_stack, %esp      # multiboot and PVH give none
        xor     %ebp, %ebp
        call    main
#else
_start: lea     kvmpy_stack(%rip), %rsp
        xor     %ebp, %ebp
        call    main
#endif
        mov     $0xF4, %dx
        out     %eax, %dx
1:      cli                             # no debug-exit port here
        hlt
        jmp     1b

#if KVMPY_BITS != 16
        .bss
        .balign 16
        .skip   0x4000
kvmpy_stack:
#endif
