# A boot sector that goes through every mode: the BIOS loads it at 0x7C00 in real mode; it enters 32-bit protected mode, then
# 64-bit mode, then user mode, whose INT 0x80 comes back to the kernel; the third one ends the run with status 21.
# A timer interrupt runs all the time (for single-stepping over it).
    .code16
    .globl real_start, protected_start, long_start, user_start, user_loop, system_call, timer, counter, ticks, finish
real_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    ljmp $0x7c0, $(here - real_start)       # a CS.base other than 0
here:
    movw $0x1234, %bx
far_code:
    ljmp $0, $flat
flat:
    lgdtl gdt_pointer
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $protected_start

    .code32
protected_start:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x7c00, %esp
    movl $0x10000, %edi                     # page tables: 0x10000 PML4, 0x11000 PDPT, 0x12000 PD
    movl $0x3000/4, %ecx
    xorl %eax, %eax
    cld
    rep stosl
    movl $0x11007, 0x10000
    movl $0x12007, 0x11000
    movl $0x00000087, 0x12000               # the first 2 MiB, for the user too; all above is not mapped
    movl $0x220, %eax                       # PAE, OSFXSR
    movl %eax, %cr4
    movl $0x10000, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmp $24, $long_start

    .code64
long_start:
    movl $0x7c00, %esp
    movl $system_call, %eax                 # IDT at 0x14000: gate 0x80 for the user, gate 0x20 for the timer
    movl $0x14800, %edi
    movl $0xee00, %edx
    call gate
    movl $timer, %eax
    movl $0x14200, %edi
    movl $0x8e00, %edx
    call gate
    lidt idt_pointer
    movl $0x8800, 0x8004                    # RSP0
    movw $48, %ax
    ltr %ax
    movb $0x11, %al                         # 8259: vectors 0x20 and on, the timer alone
    outb %al, $0x20
    movb $0x20, %al
    outb %al, $0x21
    movb $4, %al
    outb %al, $0x21
    movb $1, %al
    outb %al, $0x21
    movb $0xfe, %al
    outb %al, $0x21
    movb $0x34, %al                         # 8254: channel 0 every 0.2 ms
    outb %al, $0x43
    movb $0xef, %al
    outb %al, $0x40
    xorb %al, %al
    outb %al, $0x40
    pushq $35                               # user mode: SS, RSP, RFLAGS, CS, RIP
    pushq $0x9000
    pushq $0x202
    pushq $43
    pushq $user_start
    iretq

gate:                                       # EAX handler, EDI gate, DX type
    movw %ax, (%rdi)
    movw $24, 2(%rdi)
    movb $0, 4(%rdi)
    movw %dx, 4(%rdi)
    movl $0, 6(%rdi)
    movw $0, 6(%rdi)
    ret

system_call:
    incl counter
    cmpl $3, counter
    je finish
    iretq
finish:
    movl $21, %eax
    outl %eax, $0xf4
    hlt

timer:
    pushq %rax
    incl ticks
    movb $0x20, %al
    outb %al, $0x20
    popq %rax
    iretq

user_start:
    movl $7, %ebx
    pxor %xmm0, %xmm0
user_loop:
    incl %ebx
    movl %ebx, shared
    movl shared, %edx
    int $0x80
    jmp user_loop

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff                # 8: 32-bit code
    .quad 0x00cf92000000ffff                # 16: data
    .quad 0x00af9a000000ffff                # 24: 64-bit code
    .quad 0x00cff2000000ffff                # 32: user data
    .quad 0x00affa000000ffff                # 40: user 64-bit code
    .quad 0x0000890080000067                # 48: TSS at 0x8000
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
idt_pointer:
    .word 0xfff
    .quad 0x14000
counter:
    .long 0
ticks:
    .long 0
shared:
    .long 0
    .globl shared
    .org 510
    .word 0xaa55
