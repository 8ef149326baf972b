"""Far transfers of the software CPU: gates, task switches, virtual 8086 mode, IRET, SYSCALL and SYSENTER, debug traps."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from kvmpy.native import ffi, lib
from tests.soft.system_guest import (
    CODE,
    CODE0,
    CODE3,
    CODE64,
    CODE64_3,
    CONFORMING,
    DATA0,
    DATA3,
    DATA3_64,
    DB,
    FREE,
    GDT,
    GP,
    NP,
    STACK,
    STUBS,
    TABLES,
    TSS,
    TSS_SEL,
    UD,
    USER_STACK,
    Guest,
    assemble,
    descriptor,
    gate,
    gate64,
)  # fmt: skip

HANDLER = 0x9000
TASK = 0x3400  # a second TSS
VM, NT, TF = 0x20000, 0x4000, 0x100


# call gates


@pytest.mark.parametrize("parameters", (0, 3))
def test_call_gate_to_inner_privilege(parameters: int) -> None:
    source = f"push $11\npush $22\npush $33\nlcall ${FREE | 3},$0\nmov $5,%ebx\nint $0x80"
    guest = Guest(source, "prot32", cpl=3)
    guest.write(HANDLER, b"\xf4")
    guest.write(GDT + FREE, gate(CODE0, HANDLER, 0xEC, parameters))
    regs = guest.finish()
    assert (regs.rip, regs.rsp, guest.sregs.cs.selector) == (HANDLER + 1, STACK - 16 - 4 * parameters, CODE0)
    assert guest.frame(4 + parameters) == [0x8000 + 2 * 3 + 7, CODE3, *[33, 22, 11][:parameters], USER_STACK - 12, DATA3]

    guest = Guest(source, "prot32", cpl=3)
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.write(HANDLER, assemble(f"lret ${4 * parameters}", 32, HANDLER))
    guest.write(GDT + FREE, gate(CODE0, HANDLER, 0xEC, parameters))
    regs = guest.finish()
    assert guest.vector == 0x80 and regs.rbx == 5
    assert guest.frame(5)[3:] == [USER_STACK - 12 + 4 * parameters, DATA3]


def test_call_gate_64() -> None:
    source = f"lcall *p(%rip)\nmov $5,%ebx\nint $0x80\np:.long 0\n.word {FREE | 3}"
    guest = Guest(source, "long", cpl=3)
    guest.write(HANDLER, b"\xf4")
    guest.write(GDT + FREE, gate64(CODE64, HANDLER, 0xEC))
    assert guest.finish().rip == HANDLER + 1
    assert guest.frame(4) == [0x8006, CODE64_3, USER_STACK, DATA3] and guest.sregs.ss.selector == 0
    guest = Guest(source, "long", cpl=3)
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.write(HANDLER, assemble("lretq", 64, HANDLER))
    guest.write(GDT + FREE, gate64(CODE64, HANDLER, 0xEC))
    assert guest.finish().rbx == 5 and guest.vector == 0x80


@pytest.mark.parametrize(
    ("source", "access", "expected"),
    [
        (f"ljmp ${FREE | 3},$0", 0xEC, (GP, CODE0)),  # JMP does not change privilege
        (f"lcall ${FREE | 3},$0", 0x8C, (GP, FREE)),
        (f"lcall ${FREE | 3},$0", 0x6C, (NP, FREE)),
        (f"lcall ${CODE0},$0x9000", 0xEC, (GP, CODE0)),
        (f"ljmp ${DATA3},$0x9000", 0xEC, (GP, DATA3 & ~3)),
        ("ljmp $0,$0x9000", 0xEC, (GP, 0)),
    ],
)
def test_far_transfer_errors(source: str, access: int, expected: tuple[int, int]) -> None:
    guest = Guest(source, "prot32", cpl=3)
    guest.write(GDT + FREE, gate(CODE0, HANDLER, access))
    assert guest.fault() == expected


def test_conforming_code_keeps_privilege() -> None:
    guest = Guest(f"lcall ${CONFORMING},${HANDLER}\nint $0x80", "prot32", cpl=3)
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.write(HANDLER, assemble("mov %cs,%ebx\nlret", 32, HANDLER))
    assert guest.finish().rbx == CONFORMING | 3
    assert guest.vector == 0x80


def test_far_return_to_outer_privilege_nulls_segments() -> None:
    guest = Guest(f"push ${DATA3}\npush $0x6000\npush ${CODE3}\npush ${HANDLER}\nlret", "prot32")
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.write(HANDLER, assemble("mov %ds,%ebx\nmov %ss,%ecx\nmov %esp,%edx\nint $0x80", 32, HANDLER))
    regs = guest.finish()
    assert (regs.rbx, regs.rcx, regs.rdx) == (0, DATA3, 0x6000)


def test_real_mode_far_calls() -> None:
    guest = Guest("lcall $0x900,$0x10\nmov $5,%bx\nhlt", "real")
    guest.write(0x9010, b"\x8c\xc9\xcb")  # mov cx,cs; retf
    regs = guest.finish()
    assert (regs.rbx, regs.rcx & 0xFFFF) == (5, 0x900)


def test_unreal_mode_keeps_the_limit() -> None:
    source = f"""
        lgdtl table
        mov %cr0,%eax
        or $1,%al
        mov %eax,%cr0
        mov ${DATA0},%bx
        mov %bx,%fs
        and $0xfe,%al
        mov %eax,%cr0
        xor %bx,%bx
        mov %bx,%fs
        mov $0x203000,%ebx
        movl $77,%fs:(%ebx)
        hlt
table:  .word 0xfff
        .long {GDT}"""
    guest = Guest(source, "real")
    guest.finish()
    assert guest.u32(0x203000) == 77


# task switches


def make_task(guest: Guest, wide: bool, eip: int, **values: int) -> None:
    eflags, cs, data, stack = values.get("eflags", 2), values.get("cs", CODE0), values.get("data", DATA0), values.get("stack", 0x6800)
    if wide:
        tss = struct.pack("<28x", *[]) + struct.pack("<III", guest.sregs.cr3, eip, eflags)
        tss += struct.pack("<8I", 1, 2, 3, 4, stack, 6, 7, 8) + struct.pack("<6I", data, cs, data, data, data, data)
        tss += struct.pack("<IHH", 0, values.get("trap", 0), 0x68)
    else:
        tss = struct.pack("<14x2H8H4HH", eip, eflags, 1, 2, 3, 4, stack, 6, 7, 8, data, cs, data, data, 0)
    guest.write(TASK, tss)
    guest.write(GDT + FREE, descriptor(TASK, 0x67 if wide else 0x2B, 0x89 if wide else 0x81, 0))


@pytest.mark.parametrize("mode", ("prot32", "paging32", "pae"))
@pytest.mark.parametrize("wide", (True, False))
@pytest.mark.parametrize("how", ("jmp", "call", "gate", "interrupt"))
def test_task_switch(mode: str, wide: bool, how: str) -> None:
    source = {
        "jmp": f"ljmp ${FREE},$0", "call": f"lcall ${FREE},$0", "gate": "lcall $0x78,$0", "interrupt": "int $0x40",
    }[how] + "\nback: mov $9,%edi\nstr %ebp\nmov %cr0,%edx\nhlt"  # fmt: skip
    guest = Guest("mov $0x11,%eax\n" + source, mode)
    guest.write(GDT + 0x78, gate(FREE, 0, 0x85))
    guest.set_gate(0x40, 0, kind=5, selector=FREE)
    leave = f"ljmp ${TSS_SEL},$0" if how == "jmp" else "iret"
    guest.write(HANDLER, assemble(f"mov %eax,0x9800\nmov %esp,0x9804\npushf\npop 0x9808\nstr 0x980c\n{leave}", 32, HANDLER))
    guest.put32(TSS + 0x1C, TABLES)
    guest.write(GDT + 0x90, descriptor(0, 0xFFFF, 0x93, 0))
    make_task(guest, wide, HANDLER, data=DATA0 if wide else 0x90)
    regs = guest.finish()
    assert (regs.rdi, regs.rbp) == (9, TSS_SEL) and regs.rdx & 8
    upper = 0 if wide else 0xFFFF0000
    assert (guest.u32(0x9800), guest.u32(0x9804), guest.u16(0x980C)) == (1 | upper, 0x6800 | upper, FREE)
    nested = how != "jmp"
    assert bool(guest.u32(0x9808) & NT) == nested
    assert guest.u16(TASK) == (TSS_SEL if nested else 0)
    assert guest.memory[GDT + FREE + 5] == (0x89 if wide else 0x81)
    assert guest.memory[GDT + TSS_SEL + 5] == 0x8B
    assert guest.u32(TSS + 0x28) == 0x11  # EAX of the task that was left


def test_task_switch_to_busy_task_and_short_tss() -> None:
    guest = Guest(f"ljmp ${TSS_SEL},$0", "prot32")
    assert guest.fault() == (GP, TSS_SEL)
    guest = Guest(f"ljmp ${FREE},$0", "prot32")
    make_task(guest, True, HANDLER)
    guest.write(GDT + FREE, descriptor(TASK, 0x66, 0x89, 0))
    assert guest.fault() == (10, FREE)


def test_faults_of_the_new_task_are_its_own() -> None:
    guest = Guest(f"ljmp ${FREE},$0", "prot32")
    make_task(guest, True, HANDLER, cs=DATA0)
    guest.set_gate(10, 0, kind=5, selector=0x80)
    guest.write(GDT + 0x80, descriptor(0x3600, 0x67, 0x89, 0))
    handler = guest.memory[TASK : TASK + 0x68]
    guest.write(0x3600, handler)
    guest.write(0x3600 + 0x20, struct.pack("<I", HANDLER))
    guest.write(0x3600 + 0x4C, struct.pack("<I", CODE0))
    guest.write(HANDLER, b"\x58\xf4")  # pop %eax; hlt
    regs = guest.finish()
    assert regs.rax == DATA0 and guest.u32(TASK + 0x20) == HANDLER and guest.u16(0x3600) == FREE


def test_debug_trap_of_a_task() -> None:
    guest = Guest(f"ljmp ${FREE},$0", "prot32")
    make_task(guest, True, HANDLER, trap=1)
    guest.write(HANDLER, b"\xf4")
    guest.finish()
    assert guest.vector == DB and guest.frame(1) == [HANDLER]


# virtual 8086 mode


def vm86(source: str, iopl: int = 3, cr4: int = 0, flags: int = 0) -> Guest:
    """A guest whose virtual 8086 program stands at 900:0."""
    enter = "".join(f"push ${value}\n" for value in (0, 0, 0, 0, 0x700, 0xE00, VM | iopl << 12 | flags | 2, 0x900, 0)) + "iret"
    guest = Guest(enter, "prot32")
    guest.write(0x9000, assemble(source, 16, 0))
    guest.set_system(cr4=cr4)
    for vector in range(256):
        guest.write(vector * 4, struct.pack("<HH", 0x100, 0x900))
    return guest


def test_vm86_interrupt_pushes_segments() -> None:
    guest = vm86("mov $0x1234,%ax\nmov %ax,%ds\nmov %ax,%gs\nint $0x40")
    guest.set_gate(0x40, STUBS + 0x400, dpl=3)
    guest.finish()
    assert guest.vector == 0x40
    assert guest.frame(9) == [9, 0x900, VM | 0x3002, 0xE00, 0x700, 0, 0x1234, 0, 0x1234]
    assert guest.sregs.ds.unusable and guest.sregs.cs.dpl == 0


def test_vm86_iopl() -> None:
    for source in ("int $0x40", "cli", "sti", "pushf", "popf", "iret"):
        assert vm86(source, iopl=0).fault() == (GP, 0), source
    guest = vm86("hlt")
    assert guest.fault() == (GP, 0)
    for source in ("lar %ax,%ax", "lldt %ax", ".byte 0x63,0xc0"):
        guest = vm86(source)
        guest.finish()
        assert guest.vector == UD, source


def test_vm86_returns_and_stack() -> None:
    guest = vm86("pushf\npush %cs\npush $end\niret\nend: mov %sp,%bx\nint3")
    guest.set_gate(3, STUBS + 0x30, dpl=3)
    guest.finish()
    assert guest.vector == 3 and guest.regs.rbx == 0xE00


def test_vme_redirects_software_interrupts() -> None:
    guest = vm86("sti\nint $0x40\nend: jmp end", iopl=0, cr4=1)
    guest.write(0x9100, assemble("pushf\npop %ax\npop %dx\npop %cx\npop %bx\nint $0x41", 16, 0))
    guest.write(TSS + 0x88 - 32, b"\0" * 8 + b"\x02" + b"\0" * 23)  # 0x41 is not redirected
    assert guest.fault() == (GP, 0)  # and IOPL is below 3
    regs = guest.regs
    assert (regs.rbx, regs.rcx, regs.rdx & 0xFFFF) == (0x3202, 0x900, 3)
    assert regs.rax & 0x3200 == 0x3000  # VIF is cleared in the handler


def test_pvi() -> None:
    guest = Guest("sti\nmov $1,%eax\ncli\nmov $2,%eax\nint3", "prot32", cpl=3)
    guest.set_system(cr4=2)
    guest.set_gate(3, STUBS + 0x30, dpl=3)
    guest.finish()
    assert guest.regs.rax == 2 and guest.frame(3)[2] & 0x80200 == 0
    guest = Guest("sti\nint3", "prot32", cpl=3)
    guest.set_system(cr4=2)
    guest.set_gate(3, STUBS + 0x30, dpl=3)
    guest.finish()
    assert guest.frame(3)[2] & 0x80200 == 0x80000


# IRET


@pytest.mark.parametrize("mode", ("real", "prot32", "long", "compat"))
def test_interrupt_and_return(mode: str) -> None:
    guest = Guest("stc\nint $0x40\nsetc %bl\nmov %esp,%ecx\nhlt", mode)
    code = "clc\niretq" if mode == "long" else "clc\niret"
    if mode == "compat":  # a 64-bit handler returns to compatibility mode
        code = "clc\niretq"
    bits = {"real": 16, "prot32": 32}.get(mode, 64)
    guest.write(HANDLER, assemble(code, bits, HANDLER))
    if mode == "real":
        guest.write(0x100, struct.pack("<HH", HANDLER, 0))
    else:
        guest.set_gate(0x40, HANDLER)
    regs = guest.finish()
    assert regs.rbx & 1 == 1 and regs.rcx == STACK - 0x100


@pytest.mark.parametrize("nt", (0, 1))
def test_iretq_to_user(nt: int) -> None:
    source = f"push ${DATA3}\npush $0x6008\npush ${0x200}\npush ${CODE64_3}\npush ${HANDLER}\n"
    source += "pushf\norl $0x4000,(%rsp)\npopf\n" if nt else ""
    guest = Guest(source + "iretq", "long")
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.write(HANDLER, assemble("mov %cs,%ebx\nmov %ss,%ecx\nmov %rsp,%rdx\npushf\npop %rax\nint $0x80", 64, HANDLER))
    guest.finish()
    if nt:
        assert (guest.vector, guest.frame(1)) == (GP, [0])
        return
    regs = guest.regs
    assert (regs.rbx, regs.rcx, regs.rdx, regs.rax) == (CODE64_3, DATA3, 0x6008, 0x202)
    assert guest.frame(5)[:2] == [guest.frame(1)[0], CODE64_3]


@pytest.mark.parametrize(
    ("ss", "cs", "rip", "expected"),
    [
        (DATA0, CODE64_3, HANDLER, (GP, DATA0)), (0, CODE64_3, HANDLER, (GP, 0)), (0, CODE64, HANDLER, None),
        (DATA3, DATA3, HANDLER, (GP, DATA3 & ~3)),
        (DATA3, CODE64 | 3, HANDLER, (GP, CODE64)), (DATA3, 0, HANDLER, (GP, 0)), (DATA3, CODE64_3, 1 << 47, (GP, 0)),
        (DATA0, CODE64, HANDLER, None),
    ],
)  # fmt: skip
def test_iretq_checks(ss: int, cs: int, rip: int, expected: tuple[int, int] | None) -> None:
    guest = Guest(f"push ${ss}\npush $0x6008\npush $2\npush ${cs}\nmov ${rip:#x},%rax\npush %rax\niretq", "long")
    guest.write(HANDLER, b"\xf4")
    guest.finish()
    if expected:
        assert (guest.vector, guest.frame(1)[0]) == expected
        assert guest.frame(5)[4] == STACK - 0x100 - 40
    else:
        assert (guest.regs.rip, guest.regs.rsp) == (HANDLER + 1, 0x6008)


# SYSCALL, SYSENTER


def test_syscall_and_sysret() -> None:
    guest = Guest("mov $7,%ebx\nstc\nsyscall\nsetc %dl\nint $0x80", "long", cpl=3)
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.set_msr(0xC0000081, (DATA3_64 - 8 - 8) << 48 | CODE64 << 32)
    guest.set_msr(0xC0000082, HANDLER)
    guest.set_msr(0xC0000084, 0x201)
    guest.write(HANDLER, assemble("setc %sil\nmov %rcx,%rdi\nmov %r11,%r8\nmov %cs,%r9d\nmov %ss,%r10d\nsysretq", 64, HANDLER))
    guest.set(rflags=0x2)
    regs = guest.finish()
    assert (regs.rdi, regs.r8 & 0x3, regs.r9, regs.r10, regs.rsi & 1, regs.rdx & 1) == (CODE + 8, 3, CODE64, CODE64 + 8, 0, 1)
    assert guest.frame(5)[1] & 3 == 3
    guest = Guest("syscall", "compat")  # Intel: 64-bit mode alone
    guest.finish()
    assert guest.vector == UD
    guest = Guest("syscall", "long")
    guest.set_system(efer=guest.sregs.efer & ~1)
    guest.finish()
    assert guest.vector == UD


def test_sysret_to_compatibility_mode() -> None:
    guest = Guest(f"mov ${HANDLER},%ecx\nmov $0x202,%r11d\nsysretl", "long")
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.set_msr(0xC0000081, CODE3 << 48 | CODE64 << 32)
    guest.write(HANDLER, assemble("mov %cs,%ebx\nmov %ss,%edx\nint $0x80", 32, HANDLER))
    regs = guest.finish()
    assert (regs.rbx, regs.rdx) == (CODE3, DATA3)


@pytest.mark.parametrize("mode", ("prot32", "long", "compat"))
def test_sysenter(mode: str) -> None:
    guest = Guest("sysenter", mode, cpl=3)
    guest.set(rflags=0x202)
    guest.set_msr(0x174, CODE0)
    guest.set_msr(0x175, 0x6400)
    guest.set_msr(0x176, HANDLER)
    guest.write(HANDLER, b"\xf4")
    regs = guest.finish()
    assert (regs.rip, regs.rsp, regs.rflags) == (HANDLER + 1, 0x6400, 2)
    assert (guest.sregs.cs.selector, guest.sregs.ss.selector, guest.sregs.cs.l) == (CODE0, CODE0 + 8, int(guest.wide))
    guest = Guest("sysenter", mode)
    assert guest.fault() == (GP, 0)


def test_sysexit() -> None:
    guest = Guest(f"mov ${HANDLER},%edx\nmov $0x6200,%ecx\nsysexit", "prot32")
    guest.set_msr(0x174, CODE0)
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.write(HANDLER, assemble("mov %cs,%eax\nmov %ss,%ebx\nint $0x80", 32, HANDLER))
    regs = guest.finish()
    assert (regs.rax, regs.rbx) == (CODE3, DATA3)
    assert guest.frame(5)[3:] == [0x6200, DATA3]


def test_swapgs_and_bases() -> None:
    source = """
        mov $0x5000,%eax
        wrgsbase %rax
        swapgs
        rdgsbase %rbx
        swapgs
        rdgsbase %rcx
        mov $0x123456789000,%rdx
        wrfsbase %rdx
        rdfsbase %rdx
        mov $0x800000000000,%rax
        wrfsbase %rax"""
    guest = Guest(source, "long")
    guest.set_msr(0xC0000102, 0x7777)
    guest.set_system(cr4=guest.sregs.cr4 | 0x10000)
    assert guest.fault() == (GP, 0)
    regs = guest.regs
    assert (regs.rbx, regs.rcx, regs.rdx) == (0x7777, 0x5000, 0x123456789000)


# debug


@pytest.mark.parametrize("mode", ("real", "prot32", "long"))
def test_single_step(mode: str) -> None:
    guest = Guest("pushf\norw $0x100,(%esp)\npopf\nnop\nmov $1,%ebx\nhlt", mode)
    guest.finish()
    assert guest.vector == DB
    ip, _, flags = guest.frame(3)
    assert guest.memory[ip - 1] == 0x90 and flags & TF
    assert not guest.regs.rflags & TF
    debug = _debug(guest)
    assert debug.dr6 & 0x4000


@pytest.mark.parametrize("mode", ("real", "prot32", "long"))
def test_software_interrupt_is_not_trapped(mode: str) -> None:
    guest = Guest("pushf\norw $0x100,(%esp)\npopf\nint $0x40\nhlt", mode)
    guest.finish()
    assert guest.vector == 0x40


def _debug(guest: Guest) -> Any:
    debug = ffi.new("struct kvm_debugregs *")
    assert lib.kp_vcpu_get_debugregs(guest.cpu, debug) == 0
    return debug


def test_instruction_breakpoint_and_resume_flag() -> None:
    source = """
        mov $at,%eax
        mov %eax,%dr0
        mov $0x402,%eax
        mov %eax,%dr7
        mov $1,%ebx
at:     mov $2,%ebx
        mov $3,%ecx
        hlt"""
    guest = Guest(source, "prot32")
    guest.finish()
    assert guest.vector == DB and guest.regs.rbx == 1
    assert guest.memory[guest.frame(1)[0]] == 0xBB
    guest = Guest(source, "prot32")
    guest.write(HANDLER, assemble("incl %esi\norl $0x10000,8(%esp)\niret", 32, HANDLER))
    guest.set_gate(DB, HANDLER)
    guest.set(rsi=0)
    regs = guest.finish()
    assert (regs.rsi, regs.rbx, regs.rcx) == (1, 2, 3)


@pytest.mark.parametrize(("kind", "hits"), ((1, 1), (3, 2)))
def test_data_breakpoint(kind: int, hits: int) -> None:
    source = f"""
        mov $0x9804,%eax
        mov %eax,%dr1
        mov ${0x400 | 8 | kind << 20 | 3 << 22:#x},%eax
        mov %eax,%dr7
        movb $1,0x9807
        mov 0x9804,%ebx
        movb $1,0x9808
        hlt"""
    guest = Guest(source, "long")
    guest.write(HANDLER, assemble("incl %esi\niretq", 64, HANDLER))
    guest.set_gate(DB, HANDLER)
    guest.set(rsi=0)
    assert guest.finish().rsi == hits


def test_general_detect() -> None:
    guest = Guest("mov $0x2400,%eax\nmov %eax,%dr7\nmov %dr0,%eax\nhlt", "prot32")
    guest.finish()
    assert guest.vector == DB and _debug(guest).dr6 & 0x2000 and not _debug(guest).dr7 & 0x2000


def test_debug_register_aliases() -> None:
    guest = Guest("mov %dr4,%eax\nmov %dr7,%ebx\nmov %cr4,%ecx\nor $8,%ecx\nmov %ecx,%cr4\nmov %dr4,%eax\nhlt", "prot32")
    guest.finish()
    assert guest.vector == UD and (guest.regs.rax, guest.regs.rbx) == (0xFFFF0FF0, 0x400)


def test_mov_ss_holds_the_trap_off() -> None:
    guest = Guest(f"mov ${DATA0},%ecx\npushf\norl $0x100,(%esp)\npopf\nmov %ecx,%ss\nmov $1,%ebx\nmov $2,%ebx\nhlt", "prot32")
    guest.finish()
    assert guest.vector == DB and guest.regs.rbx == 1


# user-space MSRs, hypercalls, the rest


def test_msr_exits() -> None:
    guest = Guest("mov $0x12345,%ecx\nrdmsr\nmov %eax,%ebx\nwrmsr\nmov $0x10,%ecx\nrdmsr\nhlt", "long")
    assert lib.kp_vm_set_user_msrs(guest.vm, 2 | 4, ffi.new("uint32_t[]", [0x10, 1, 1]), 1) == 0
    assert guest.run() == 29
    record = guest.record
    assert (record.msr.index, record.msr.reason, guest.regs.rip) == (0x12345, 2, 0x8005)
    record.msr.data = 0xABCDEF
    assert guest.run() == 30
    assert record.msr.data & 0xFFFFFFFF == 0xABCDEF and guest.regs.rbx == 0xABCDEF
    assert guest.run() == 29 and record.msr.reason == 4
    record.msr.error = 1
    assert guest.fault() == (GP, 0)


def test_hypercall_is_refused() -> None:
    guest = Guest("mov $1,%eax\nvmcall\nhlt", "long")
    assert guest.finish().rax == (1 << 64) - 1000


def test_umip() -> None:
    for source in ("sgdt (%esp)", "sidt (%esp)", "sldt %eax", "str %eax", "smsw %eax"):
        guest = Guest(source, "prot32", cpl=3)
        guest.set_system(cr4=0x800)
        assert guest.fault() == (GP, 0), source


def test_xsetbv_and_xgetbv() -> None:
    guest = Guest("xor %ecx,%ecx\nxor %edx,%edx\nmov $7,%eax\nxsetbv\nxgetbv\nmov %eax,%ebx\nmov $5,%eax\nxsetbv\nhlt", "long")
    guest.set_system(cr4=guest.sregs.cr4 | 0x40000)
    assert guest.fault() == (GP, 0)
    assert guest.regs.rbx == 7


def test_time_stamp_counts_instructions_under_virtual_time() -> None:
    guest = Guest("rdtsc\nmov %eax,%ebx\nnop\nnop\nrdtsc\nsub %ebx,%eax\nhlt", "long")
    assert guest.finish().rax == 4


def test_rdtsc_and_cpuid_registers() -> None:
    guest = Guest("mov $0xffffffff00000000,%rax\nmov $-1,%rbx\nxor %ecx,%ecx\ncpuid\nhlt", "long")
    regs = guest.finish()
    assert struct.pack("<III", regs.rbx, regs.rdx, regs.rcx) == b"GenuineIntel" and regs.rax >> 32 == 0
    guest = Guest("rdtsc", "prot32", cpl=3)
    guest.set_system(cr4=4)
    assert guest.fault() == (GP, 0)


def _vendor(guest: Guest, name: bytes) -> None:
    table = ffi.new("struct kvm_cpuid_entry2[256]")
    count = lib.kp_vcpu_get_cpuid(guest.cpu, table, 256)
    table[0].ebx, table[0].edx, table[0].ecx = struct.unpack("<III", name)
    assert lib.kp_vcpu_set_cpuid(guest.cpu, table, count) == 0


def test_amd_syscall_from_compatibility_mode() -> None:
    guest = Guest("syscall", "compat", cpl=3)
    _vendor(guest, b"AuthenticAMD")
    guest.set_msr(0xC0000081, CODE64 << 32)
    guest.set_msr(0xC0000083, HANDLER)
    guest.write(HANDLER, b"\xf4")
    regs = guest.finish()
    assert (regs.rip, regs.rcx, guest.sregs.cs.l) == (HANDLER + 1, CODE + 2, 1)


@pytest.mark.parametrize(("name", "zero"), ((b"GenuineIntel", False), (b"AuthenticAMD", True)))
def test_cpuid_out_of_range(name: bytes, zero: bool) -> None:
    guest = Guest("mov $0x7fff0000,%eax\nxor %ecx,%ecx\ncpuid\nmov %eax,%esi\nmov %ebx,%edi\nmov $0x15,%eax\ncpuid\nhlt", "long")
    _vendor(guest, name)
    regs = guest.finish()
    assert (regs.rsi, regs.rdi) == ((0, 0) if zero else (regs.rax, regs.rbx)) and regs.rax == 1000


def test_random_numbers_repeat_under_virtual_time() -> None:
    values = [Guest("rdrand %rax\nrdseed %rbx\nhlt", "long").finish() for _ in range(2)]
    assert (values[0].rax, values[0].rbx) == (values[1].rax, values[1].rbx) and values[0].rax != values[0].rbx
    assert values[0].rflags & 1
    host = [Guest("rdrand %rax\nhlt", "long", virtual_clock=False).finish().rax for _ in range(2)]
    assert host[0] != host[1]


def test_kvmclock_page() -> None:
    guest = Guest("mov $0x4b564d01,%ecx\nxor %edx,%edx\nmov $0x9801,%eax\nwrmsr\nrdtsc\nhlt", "long")
    regs = guest.finish()
    version, _, tsc, ns, mul, shift, flags = struct.unpack("<IIQQIbBxx", guest.memory[0x9800:0x9820])
    assert version == 2 and flags == 1
    delta = (regs.rax | regs.rdx << 32) - tsc
    assert 0 <= (delta << shift if shift >= 0 else delta >> -shift) * mul >> 32 < 1000 and ns < 10000
    assert mul / 2**32 * 2.0**shift == pytest.approx(1.0)
