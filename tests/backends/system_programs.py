"""System instructions at CPL 0 in long mode: what they leave in registers and memory, and the faults they raise, through a real IDT."""

from __future__ import annotations

from tests.backends.programs import LONG_IDT

HALT = "\nhlt"


def fault(instruction: str) -> str:
    """Executes an instruction that may fault; the handler reports vector, error code and CR2, and goes on after it. Clobbers RAX."""
    return f"lea rax, [rip + 9f]\n mov [resume], rax\n {instruction}\n9:\n"


# Page tables of PML4 entry 1, in memory above the harness's own: linear 80_0000_0000h is one of the pages below.
PAGES = """
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x800
    wrmsr
    mov rax, cr0
    or eax, 0x10000
    mov cr0, rax
    mov eax, 0x110003
    mov [0x100008], rax
    mov eax, 0x111003
    mov [0x110000], rax
    mov eax, 0x112003
    mov [0x111000], rax
    mov eax, 0x113003
    mov [0x112008], rax
    mov eax, 0x113001
    mov [0x112010], rax
    mov rax, 0x8000000000113003
    mov [0x112018], rax
    mov byte ptr [0x113000], 0xc3
    mov rbx, 0x8000000000
"""

SYSTEM_PROGRAMS: dict[str, str] = {
    "page faults": PAGES
    + fault("mov rcx, [rbx]")
    + fault("mov [rbx + 8], rcx")
    + fault("mov rcx, [rbx + 0x1000]")
    + fault("mov [rbx + 0x1000], cl")
    + fault("mov rcx, [rbx + 0x2000]")
    + fault("mov [rbx + 0x2004], ecx")
    + fault("mov rcx, [rbx + 0x3000]")
    + fault("mov [rbx + 0x1ffe], ecx")
    + fault("add [rbx + 0x2ffe], ecx")
    + "mov r8, [0x112008]\n mov r9, [0x112010]\n mov r10, [0x112018]\n mov r11, [0x111000]"
    + HALT,
    "write protection off": PAGES
    + "mov rax, cr0\n and eax, 0xfffeffff\n mov cr0, rax\n"
    + fault("mov [rbx + 0x2004], ecx")
    + "mov r9, [0x112010]"
    + HALT,
    "invlpg and a changed mapping": PAGES
    + """mov byte ptr [rbx + 0x1010], 0x11
    mov byte ptr [0x114010], 0x22
    mov eax, 0x114003
    mov [0x112008], rax
    invlpg [rbx + 0x1000]
    movzx r8d, byte ptr [rbx + 0x1010]
    mov eax, 0x113003
    mov [0x112008], rax
    mov rax, cr3
    mov cr3, rax
    movzx r9d, byte ptr [rbx + 0x1010]"""
    + HALT,
    "control registers": """
    mov rax, cr0
    or eax, 8
    mov cr0, rax
    mov r8, cr0
    and r8d, 0x8001000f
    clts
    mov r9, cr0
    and r9d, 0x8001000f
    smsw ecx
    and ecx, 15
    mov ax, 0xb
    lmsw ax
    mov r10, cr0
    and r10d, 15
    clts
    mov rax, 0x123456789a
    mov cr2, rax
    mov r11, cr2
    mov rax, cr4
    or eax, 0x80
    mov cr4, rax
    mov r12, cr4
    and r12d, 0xa0
    """
    + fault("mov rax, cr0; and eax, 0x7fffffff; mov cr0, rax")
    + fault("mov rax, cr4; and eax, 0xffffffdf; mov cr4, rax")
    + fault(".byte 0x0f, 0x20, 0xc8")
    + "xor eax, eax\nxor ecx, ecx"
    + HALT,
    "debug registers": """
    mov rax, 0x1122334455667788
    mov dr0, rax
    mov eax, 0x1000
    mov dr1, rax
    mov eax, 0x2000
    mov dr2, rax
    mov eax, 0x3000
    mov dr3, rax
    mov r8, dr0
    mov r9, dr1
    mov r10, dr2
    mov r11, dr3
    mov r12, dr6
    mov r13, dr7
    """
    + fault("mov ecx, 1; shl rcx, 32; mov dr7, rcx")
    + fault("mov ecx, 1; shl rcx, 32; mov dr6, rcx")
    + "xor ecx, ecx"
    + HALT,
    "descriptor tables": """
    sgdt [0x2100]
    sidt [0x2110]
    mov word ptr [0x2120], 0x1ff
    mov qword ptr [0x2122], 0x3000
    lidt [0x2120]
    sidt [0x2130]
    xor eax, eax
    lldt ax
    sldt ecx
    mov rdi, 0x2200
    mov qword ptr [rdi], 0
    mov rax, 0x00af9b000000ffff
    mov [rdi + 8], rax
    mov rax, 0x00cf93000000ffff
    mov [rdi + 16], rax
    mov rax, 0x0000890030000067
    mov [rdi + 24], rax
    mov qword ptr [rdi + 32], 0
    mov rax, 0x0000820031000027
    mov [rdi + 40], rax
    mov qword ptr [rdi + 48], 0
    mov word ptr [0x2140], 55
    mov [0x2142], rdi
    lgdt [0x2140]
    mov ax, 0x18
    ltr ax
    str edx
    mov ax, 0x28
    lldt ax
    sldt esi
    mov r8, [0x2218]
    """
    + fault("mov cx, 0x18; ltr cx")
    + fault("mov cx, 0x10; ltr cx")
    + fault("mov cx, 0x100; lldt cx")
    + fault("mov cx, 0x1c; lldt cx")
    + fault("xor ecx, ecx; ltr cx")
    + "mov eax, 0"
    + HALT,
    "model-specific registers": """
    .macro try index, low, high
    mov ecx, \\index
    mov eax, \\low
    mov edx, \\high
    wrmsr
    xor eax, eax
    xor edx, edx
    rdmsr
    add r8, rax
    rol r8, 7
    add r8, rdx
    rol r8, 7
    .endm
    try 0xc0000081, 0x12345678, 0x00100008
    try 0xc0000082, 0x89abcdef, 0xffff8000
    try 0xc0000083, 0x11111111, 0x00001234
    try 0xc0000084, 0x00047700, 0
    try 0xc0000102, 0x22222222, 0x00002222
    try 0xc0000100, 0x33333333, 0x00003333
    try 0x174, 8, 0
    try 0x175, 0x7000, 0
    try 0x176, 0x44444444, 0xffffffff
    try 0x277, 0x00070406, 0x00070406
    mov r9, r8
    """
    + fault("mov ecx, 0xc0000082; mov eax, 0; mov edx, 0x00800000; wrmsr")
    + fault("mov ecx, 0xc0000101; mov eax, 0; mov edx, 0x00800000; wrmsr")
    + fault("mov ecx, 0xc0000080; mov eax, 0x501; mov edx, 1; wrmsr")
    + fault("mov ecx, 0x12345678; rdmsr")
    + "xor eax, eax\nxor edx, edx"
    + HALT,
    "swapgs": """
    mov ecx, 0xc0000101
    mov eax, 0x2000
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000102
    mov eax, 0x2800
    wrmsr
    mov dword ptr gs:[0x10], 0x1111
    swapgs
    mov dword ptr gs:[0x10], 0x2222
    swapgs
    mov r8d, gs:[0x10]
    mov r9d, [0x2810]
    mov ecx, 0xc0000102
    rdmsr"""
    + HALT,
    "FSGSBASE": """
    mov rax, cr4
    or eax, 0x10000
    mov cr4, rax
    mov rax, 0x123456789abc
    wrfsbase rax
    rdfsbase r8
    mov eax, 0x2000
    wrgsbase rax
    rdgsbase r9
    """
    + fault("mov rcx, 0x8000000000000000; wrfsbase rcx")
    + "xor eax, eax"
    + HALT,
    "interrupt returns": """
    mov rbx, rsp
    mov rcx, ss
    push 16
    push rbx
    push 0x2
    push 8
    lea rax, [rip + 1f]
    push rax
    iretq
    hlt
1:  mov r8, rsp
    sub r8, rbx
    push 8
    lea rax, [rip + 2f]
    push rax
    retfq
    hlt
2:  mov r9, rsp
    sub r9, rbx
    push 8
    lea rax, [rip + 3f]
    push rax
    rex.w jmp fword ptr [rsp]
    hlt
3:  add rsp, 16
    xor eax, eax
    """
    + fault("push 16; push rbx; push 2; push 0x40; push rax; iretq")
    + "mov rsp, rbx\n"
    + fault("push 0x10; push rax; retfq")
    + "mov rsp, rbx\nxor eax, eax"
    + HALT,
    "segment loads": """
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov r8, fs
    mov r9, ss
    mov r10, gs
    push 16
    pop fs
    mov r11, fs
    """
    + fault("mov ecx, 8; mov ss, ecx")
    + fault("mov ecx, 0x18; mov es, ecx")
    + fault("mov ecx, 0x14; mov fs, ecx")
    + fault("mov ecx, 0x13; mov ss, ecx")
    + fault(".byte 0x8e, 0xc8")
    + "xor eax, eax"
    + HALT,
    "faults of every kind": fault("ud2")
    + fault("xor ecx, ecx; div rcx")
    + fault("mov rcx, -1; mov edx, 5; mov eax, 1; div cl")
    + fault("mov rbx, 0x8000000000000000; mov rcx, [rbx]")
    + fault("mov rbx, 0x8000000000000000; mov rcx, [rbx + rbp]")
    + fault("mov rbp, 0x8000000000000000; mov rcx, [rbp]")
    + fault("mov rbx, 0x8000000000000000; push rbx; pop rcx; jmp rbx")
    + fault(".byte 0xf0; nop")
    + fault(".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90, 0x90")
    + "xor eax, eax\nxor ebp, ebp"
    + HALT,
}

PROGRAMS = {name: ("long", LONG_IDT + text) for name, text in SYSTEM_PROGRAMS.items()}
