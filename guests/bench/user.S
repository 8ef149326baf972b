# Loops of system calls for ring 3, and what they call in ring 0: 64-bit mode.
        .text
        .globl  syscall_loop, interrupt_loop, syscall_entry, interrupt_entry
syscall_loop:                           # RDI = how many
1:      syscall                         # RCX and R11 are lost
        dec     %rdi
        jnz     1b
        ret
interrupt_loop:
1:      int     $0x80
        dec     %rdi
        jnz     1b
        ret

syscall_entry:                          # no stack is needed to count
        incq    system_calls(%rip)
        sysretq
interrupt_entry:
        incq    system_calls(%rip)
        iretq

        .bss
        .align  8
        .globl  system_calls
system_calls:
        .quad   0
        .section .note.GNU-stack, "", @progbits
