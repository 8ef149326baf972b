"""Small programs that show the same exits on every backend. They keep to instructions that KVM's emulator has too, and end with HLT."""

from __future__ import annotations

# Gates for vectors 0-31 in long mode: each handler sends its vector to port 90h, an error code (where there is one) to 91h, CR2 to 92h.
LONG_IDT = """
    lea rdi, [0x3000]
    lea rsi, [rip + handlers]
    mov ecx, 32
1:  mov rax, rsi
    mov word ptr [rdi], ax
    mov word ptr [rdi + 2], 8
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov word ptr [rdi + 6], ax
    mov qword ptr [rdi + 8], 0
    add rdi, 16
    add rsi, 16
    dec ecx
    jnz 1b
    lidt [rip + idtr]
    lgdt [rip + gdtr]
    jmp start
    .balign 8
gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr: .word 23
    .quad gdt
idtr: .word 0x1ff
    .quad 0x3000
    .balign 16
handlers:
    .set v, 0
    .rept 32
    .balign 16
    .if (v == 8) || ((v >= 10) && (v <= 14)) || (v == 17)
    .else
    push 0
    .endif
    push v
    jmp common
    .set v, v + 1
    .endr
common:
    push rax
    mov rax, [rsp + 8]
    out 0x90, al
    mov rax, [rsp + 16]
    out 0x91, eax
    mov rax, cr2
    out 0x92, eax
    mov rax, [resume]
    mov [rsp + 24], rax
    pop rax
    add rsp, 16
    iretq
    .balign 8
resume: .quad 0
start:
"""


def _fault(instruction: str) -> str:
    """Executes an instruction that faults; the handler goes on after it."""
    return f"lea rax, [rip + 9f]\n mov [resume], rax\n {instruction}\n9:\n"


PROGRAMS: dict[str, tuple[str, str]] = {
    "ports of every size": (
        "protected",
        """.code32
        mov eax, 0xdeadbeef
        out 0x10, al
        out 0x10, ax
        out 0x10, eax
        mov dx, 0x3f8
        out dx, al
        in al, 0x60
        in ax, dx
        in eax, 0x70
        out 0x20, eax
        hlt""",
    ),
    "string ports": (
        "real",
        """.code16
        mov di, 0x2000
        mov cx, 10
        mov dx, 0x1f0
        cld
        rep insw
        mov si, 0x2000
        mov cx, 20
        mov dx, 0x80
        rep outsb
        std
        mov di, 0x2100
        mov cx, 3
        rep insb
        hlt""",
    ),
    "MMIO of every size": (
        "long",
        """
        mov rbx, 0x10000000
        mov rax, 0x1122334455667788
        mov [rbx], al
        mov [rbx + 2], ax
        mov [rbx + 4], eax
        mov [rbx + 8], rax
        mov cl, [rbx]
        movzx edx, word ptr [rbx + 2]
        mov esi, [rbx + 4]
        mov rdi, [rbx + 8]
        movsx r8, byte ptr [rbx + 16]
        hlt""",
    ),
    "MMIO read-modify-write": (
        "long",
        """
        mov rbx, 0x10000000
        mov eax, 0x01010101
        add [rbx], eax
        or byte ptr [rbx + 4], 0x40
        xchg [rbx + 8], eax
        inc word ptr [rbx + 12]
        not qword ptr [rbx + 16]
        hlt""",
    ),
    "MMIO string moves": (
        "long",
        """
        cld
        mov rdi, 0x10000000
        lea rsi, [rip + text]
        mov ecx, 5
        rep movsb
        mov rsi, 0x10000100
        mov edi, 0x2000
        mov ecx, 3
        rep movsd
        mov rdi, 0x10000200
        mov eax, 0x5a
        mov ecx, 4
        rep stosb
        hlt
text:   .ascii "KVMPY" """,
    ),
    "MMIO reads and writes in a loop": (
        "long",
        """
        cld
        mov rbx, 0x10000000
        mov ecx, 4
1:      mov eax, [rbx]
        mov [rbx + 4], eax
        mov rdi, 0x10000100
        mov rdx, rcx
        mov ecx, 3
        rep stosw
        mov rcx, rdx
        dec ecx
        jnz 1b
        mov rdi, 0x10000100
        mov ecx, 3
        rep stosb
        hlt""",
    ),
    "arithmetic and flags": (
        "long",
        """
        mov rax, 0x7fffffffffffffff
        add rax, 1
        pushfq
        pop r8
        mov al, 0xff
        add al, 1
        adc ebx, 5
        pushfq
        pop r9
        mov eax, 1000
        mov ecx, 7
        xor edx, edx
        div ecx
        mov r10, rdx
        mov rax, -5
        imul r11, rax, 77
        mov rax, 0xffffffffffffffff
        mov rcx, 3
        mul rcx
        mov r12, rdx
        mov r13, 0x8000000000000001
        rol r13, 4
        shl rax, 7
        sbb rsi, rsi
        bsf rdi, r13
        bswap r13
        cmp r12, 2
        sete bpl
        and r8, 0xcd5
        and r9, 0xcd5
        hlt""",
    ),
    "real mode interrupts": (
        "real",
        """.code16
        mov word ptr [0x21 * 4], offset handler
        mov word ptr [0x21 * 4 + 2], 0
        mov word ptr [0], offset divide
        mov word ptr [2], 0
        mov ax, 0x1234
        int 0x21
        out 0x11, ax
        xor cx, cx
        div cx
        hlt
handler: out 0x10, ax
        mov ax, 0x4321
        iret
divide: pop bx
        out 0x12, al
        add bx, 2
        push bx
        iret""",
    ),
    "real mode segments and far calls": (
        "real",
        """.code16
        mov ax, 0x200
        mov es, ax
        mov word ptr es:[5], 0xbeef
        mov ax, [0x2005]
        out 0x10, ax
        push cs
        call far_target
        mov sp, 0x6ff0
        pushf
        pop ax
        and ax, 0xfd5
        out 0x11, ax
        hlt
far_target: mov bx, sp
        mov dx, [bx]
        retf""",
    ),
    "64-bit exceptions": (
        "long",
        LONG_IDT
        + _fault("ud2")
        + _fault("mov rbx, 0x40000003000; mov rbx, [rbx]")
        + _fault("mov rbx, 0x8000000000000000; mov [rbx], al")
        + _fault("mov ebx, 0x1234; mov ds, bx")
        + _fault("xor ecx, ecx; div ecx")
        + _fault("mov ecx, 0x12345678; rdmsr")
        + "out 0x99, al\nhlt",
    ),
    "triple fault": ("long", "ud2"),
    "real to long mode": (
        "real",
        """.code16
        cli
        lgdt [gdtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        .byte 0xea
        .word start32, 8
        .code32
start32: mov ax, 16
        mov ds, ax
        mov ss, ax
        mov es, ax
        out 0x32, al
        mov eax, cr4
        or eax, 0x20
        mov cr4, eax
        mov eax, 0x100000
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        .byte 0xea
        .long start64
        .word 24
        .code64
start64: mov rax, 0x123456789abcdef0
        shr rax, 8
        out 0x64, eax
        mov ecx, 0xc0000080
        rdmsr
        mov r8, rax
        mov r9, cr0
        mov r10d, 0x80000001
        and r9, r10
        hlt
        .balign 8
gdt:    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdtr:   .word 31
        .long gdt""",
    ),
    "self-modifying code": (
        "long",
        """
        mov ecx, 3
1:      mov eax, 0x11
        out 0x10, al
        inc byte ptr [rip + 1b + 1]
        dec ecx
        jnz 1b
        hlt""",
    ),
    "calls and the stack": (
        "long",
        """
        mov rcx, 10
        call fib
        out 0x10, eax
        enter 32, 0
        mov qword ptr [rbp - 8], 7
        leave
        push 0x55
        pop rbx
        hlt
fib:    cmp rcx, 2
        jb 1f
        push rcx
        dec rcx
        call fib
        pop rcx
        push rax
        sub rcx, 2
        call fib
        pop rdx
        add rax, rdx
        ret
1:      mov rax, rcx
        ret""",
    ),
    "string compares": (
        "protected",
        """.code32
        cld
        mov edi, 0x2000
        mov ecx, 64
        mov eax, 0x61626364
        rep stosd
        mov byte ptr [0x2020], 0x7a
        mov edi, 0x2000
        mov ecx, 256
        mov al, 0x7a
        repne scasb
        mov ebx, ecx
        mov esi, 0x2000
        mov edi, 0x2040
        mov ecx, 64
        repe cmpsb
        mov edx, ecx
        hlt""",
    ),
}
