"""Exceptions of the software CPU: vectors, error codes, pushed images, double faults, privileges of instructions."""

from __future__ import annotations

import struct

import pytest

from tests.soft.system_guest import (
    AC,
    BP,
    CODE0,
    CODE3,
    CODE16,
    CODE64,
    DATA0,
    DATA3,
    DE,
    DF,
    EXIT_SHUTDOWN,
    FREE,
    GDT,
    GP,
    IDT,
    IST_STACK,
    LDT_SEL,
    NM,
    NP,
    OF,
    PF,
    SS,
    STACK,
    TSS,
    TSS_SEL,
    UD,
    Guest,
    descriptor,
    gate,
    gate64,
)  # fmt: skip

PROTECTED = ("prot32", "paging32", "pae", "long", "compat")
ALL = ("real", "prot16", *PROTECTED)
RF = 0x10000


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(
    ("source", "vector", "trap"),
    [
        ("ud2", UD, 0), ("xor %ecx,%ecx\ndiv %ecx", DE, 0), ("int3", BP, 1), ("int $0x77", 0x77, 1), (".byte 0xf1", 1, 1),
        ("mov %cr0,%eax\nor $8,%eax\nmov %eax,%cr0\nfld1", NM, 0), (".byte 0x8e,0xc8", UD, 0), (".byte 0x0f,0xaa", UD, 0),
    ],
)  # fmt: skip
def test_exceptions_without_error_code(mode: str, source: str, vector: int, trap: int) -> None:
    guest = Guest(source + "\nend:hlt", mode)
    guest.finish()
    assert guest.vector == vector
    ip, cs, flags = guest.frame(3)
    assert cs == {"real": 0, "prot16": CODE16, "long": CODE64}.get(mode, CODE0)
    assert bool(flags & RF) == (mode not in ("real", "prot16") and not trap)
    assert (guest.memory[ip] == 0xF4) == bool(trap)


@pytest.mark.parametrize(
    ("source", "vector", "flag"),
    [
        ("nop\nint3", BP, False), ("add $1,%rbx\nmov (%rbx),%rcx\nint $0x77", 0x77, False), ("int3", BP, True),
        ("nop\nud2", UD, True), ("pushf\npop %rcx\nint3", BP, False),
    ],
)  # fmt: skip
def test_the_resume_flag_lasts_for_one_instruction(source: str, vector: int, flag: bool) -> None:
    """SDM 3B 18.3.1.1: RF is 0 behind the instruction that IRET leads to; faults push 1, traps what is there."""
    frame = (
        "mov %ss,%eax\npush %rax\nlea 8(%rsp),%rdx\npush %rdx\npushf\norl $0x10000,(%rsp)\nmov %cs,%eax\npush %rax\n"
        "lea next(%rip),%rax\npush %rax\nmov $0x5000,%ebx\niretq\nnext: "
    )
    guest = Guest(frame + source + "\nhlt", "long")
    guest.finish()
    assert guest.vector == vector
    assert bool(guest.frame(3)[2] & RF) == flag


@pytest.mark.parametrize("mode", ("prot16", "prot32", "compat"))
def test_into_and_bound(mode: str) -> None:
    guest = Guest("mov $0x7f,%al\nadd $1,%al\n.byte 0xce\nhlt", mode)
    guest.finish()
    assert guest.vector == OF


@pytest.mark.parametrize("mode", PROTECTED)
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"mov ${TSS_SEL},%eax\nmov %eax,%ds", (GP, TSS_SEL)),
        ("mov $0x1008,%eax\nmov %eax,%es", (GP, 0x1008)),
        (f"mov ${FREE},%eax\nmov %eax,%fs", (NP, FREE)),
        (f"mov ${FREE},%eax\nmov %eax,%ss", (SS, FREE)),
        (f"mov ${CODE0},%eax\nmov %eax,%ss", (GP, CODE0)),
        (f"mov ${DATA3},%eax\nmov %eax,%ss", (GP, DATA3 & ~3)),
        ("mov $0x4c,%eax\nlldt %ax", (GP, 0x4C)),
        (f"mov ${DATA0},%eax\nltr %ax", (GP, DATA0)),
        (f"mov ${TSS_SEL},%eax\nltr %ax", (GP, TSS_SEL)),
        ("xor %eax,%eax\nltr %ax", (GP, 0)),
        ("int $0x31", (NP, 0x31 * 8 + 2)),
        ("int $0x32", (GP, 0x32 * 8 + 2)),
        ("int $0x33", (GP, 0)),
        ("int $0x34", (NP, FREE)),
        ("int $0x35", (GP, DATA0)),
        ("mov %cr0,%eax\nand $0xfffffffe,%eax\nor $0x80000000,%eax\nmov %eax,%cr0", (GP, 0)),
        ("mov $0x80000000,%eax\nmov %eax,%cr4", (GP, 0)),
        ("mov $0xdeadbeef,%ecx\nrdmsr", (GP, 0)),
    ],
)
def test_selector_errors(mode: str, source: str, expected: tuple[int, int]) -> None:
    guest = Guest(source + "\nhlt", mode)
    guest.write(GDT + FREE, descriptor(access=0x1B if "$0x34" in source else 0x13, flags=0xA if guest.wide and "$0x34" in source else 0xC))
    size = 16 if guest.wide else 8

    def put(vector: int, access: int, selector: int) -> None:
        guest.write(IDT + size * vector, (gate64 if guest.wide else gate)(selector, 0x4000, access))

    put(0x31, 0x0E, CODE64 if guest.wide else CODE0)
    put(0x32, 0x92, CODE64 if guest.wide else CODE0)
    put(0x33, 0x8E, 0)
    put(0x34, 0x8E, FREE)
    put(0x35, 0x8E, DATA0)
    assert guest.fault() == expected


def test_null_selectors() -> None:
    guest = Guest("xor %eax,%eax\nmov %eax,%ds\nmov %ds:0x1000,%eax\nhlt", "prot32")
    assert guest.fault() == (GP, 0)
    guest = Guest("xor %eax,%eax\nmov %eax,%ss\nhlt", "prot32")
    assert guest.fault() == (GP, 0)
    guest = Guest("xor %eax,%eax\nmov %eax,%ss\nmov %eax,%ds\nmov 0x1000,%eax\nhlt", "long")
    guest.finish()
    assert guest.regs.rip == 0x8000 + 2 + 2 + 2 + 7 + 1


@pytest.mark.parametrize(
    ("base", "limit", "access", "flags", "offset", "expected"),
    [
        (0, 0xFFF, 0x93, 4, 0xFFC, None), (0, 0xFFF, 0x93, 4, 0xFFD, GP), (0, 0xFFF, 0x97, 4, 0xFFF, GP), (0, 0xFFF, 0x97, 4, 0x1000, None),
        (0, 0xFFF, 0x97, 0, 0xFFFD, GP), (0, 0xFFF, 0x91, 4, 0, None), (0, 0xFFF, 0x9B, 4, 0, None), (0x100000, 0xFFFF, 0x93, 4, 8, None),
    ],
)  # fmt: skip
def test_segment_limits(base: int, limit: int, access: int, flags: int, offset: int, expected: int | None) -> None:
    guest = Guest(f"mov ${FREE},%eax\nmov %eax,%fs\nmov %fs:{offset:#x},%ebx\nmov $7,%ecx\nhlt", "prot32")
    guest.write(GDT + FREE, descriptor(base, limit, access, flags))
    guest.put32(base + offset, 0x1234)
    guest.finish()
    if expected is None:
        assert (guest.regs.rbx, guest.regs.rcx) == (0x1234, 7)
    else:
        assert (guest.vector, guest.frame(1)) == (expected, [0])


def test_accessed_bit_is_set() -> None:
    guest = Guest(f"mov ${FREE},%eax\nmov %eax,%fs\nhlt", "prot32")
    guest.write(GDT + FREE, descriptor(access=0x92))
    guest.finish()
    assert guest.memory[GDT + FREE + 5] == 0x93


@pytest.mark.parametrize("mode", ("prot32", "paging32", "pae", "long", "compat"))
@pytest.mark.parametrize(
    "source",
    [
        "hlt", "cli", "sti", "clts", "lgdt (%esp)", "lidt (%esp)", "invd", "wbinvd", "rdmsr", "wrmsr", "invlpg (%esp)", "lmsw %ax",
        "ltr %ax", "lldt %ax", "mov %cr0,%eax", "mov %eax,%dr0", "rdpmc",
    ],
)  # fmt: skip
def test_privileged_instructions(mode: str, source: str) -> None:
    guest = Guest(source, mode, cpl=3)
    assert guest.fault() == (GP, 0)
    frame = guest.frame(6)
    assert frame[1] == 0x8000 and frame[2] & 3 == 3 and frame[4] == 0x6F00 and frame[5] == DATA3
    assert guest.sregs.cs.dpl == 0 and guest.regs.rsp == (STACK - 48 if guest.wide else STACK - 24)


@pytest.mark.parametrize("mode", ("prot32", "long", "compat"))
def test_interrupt_from_user(mode: str) -> None:
    guest = Guest("int $0x80", mode, cpl=3)
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.finish()
    assert guest.vector == 0x80
    assert guest.frame(2) == [0x8002, guest.frame(2)[1]]
    guest = Guest("int $0x80", mode, cpl=3)
    assert guest.fault() == (GP, 0x80 * 8 + 2)
    guest = Guest("int3", mode, cpl=3)
    assert guest.fault() == (GP, 3 * 8 + 2)
    guest = Guest(".byte 0xf1", mode, cpl=3)  # ICEBP asks no privilege
    guest.finish()
    assert guest.vector == 1


def test_task_segment_errors() -> None:
    guest = Guest("ud2", "prot32", cpl=3)
    guest.write(TSS + 8, struct.pack("<H", DATA3))  # every delivery is #TS: #UD, #TS, #DF, shutdown
    assert guest.run() == EXIT_SHUTDOWN
    guest = Guest("ud2", "prot32", cpl=3)
    sregs = guest.sregs
    sregs.tr.limit = 4
    guest.set_system(tr=sregs.tr)
    assert guest.run() == EXIT_SHUTDOWN


@pytest.mark.parametrize("mode", ("prot32", "pae", "long", "compat"))
def test_double_and_triple_fault(mode: str) -> None:
    guest = Guest("xor %ecx,%ecx\ndiv %ecx\nhlt", mode)
    size = 16 if guest.wide else 8
    guest.write(IDT + DE * size, bytes(size))  # #DE -> #GP for the gate: contributory, #DF
    assert guest.fault() == (DF, 0)
    assert guest.frame(2)[1] == 0x8002
    guest = Guest("ud2", mode)
    guest.write(IDT + UD * size, bytes(size))  # #UD is benign: the #GP is delivered
    assert guest.fault() == (GP, UD * 8 + 2 + 1)
    guest = Guest("xor %ecx,%ecx\ndiv %ecx\nhlt", mode)
    for vector in (DE, DF):
        guest.write(IDT + vector * size, bytes(size))
    before = guest.regs.rsp
    assert guest.run() == EXIT_SHUTDOWN
    assert guest.regs.rsp == before and guest.regs.rip == 0x8002


def test_fault_in_delivery_of_software_interrupt() -> None:
    guest = Guest("int $0x40\nhlt", "long")
    guest.write(IDT + 16 * 0x40, bytes(16))
    assert guest.fault() == (GP, 0x40 * 8 + 2)
    assert guest.frame(2)[1] == 0x8000


def test_interrupt_stack_table() -> None:
    guest = Guest("ud2", "long")
    guest.set_gate(UD, 0x4060, ist=3)
    guest.set(rsp=0x7013)
    guest.finish()
    assert guest.regs.rsp == IST_STACK - 40
    assert guest.frame(5)[3:] == [0x7013, DATA0]
    guest = Guest("ud2", "long")
    guest.set(rsp=0x7013)
    guest.finish()
    assert guest.regs.rsp == 0x7010 - 40


def test_stack_fault_codes() -> None:
    guest = Guest("mov $0x8000000000000000,%rsp\nmov $0x7000,%eax\npush %rax\nhlt", "long")
    guest.set_gate(SS, 0x4000 + SS * 16, ist=1)
    assert guest.fault() == (SS, 0)
    guest = Guest("mov $0x8000000000000000,%rax\nmov (%rax),%rax\nhlt", "long")
    assert guest.fault() == (GP, 0)
    guest = Guest("mov $0x8000000000000000,%rbp\nmov (%rbp),%rax\nhlt", "long")
    assert guest.fault() == (SS, 0)


@pytest.mark.parametrize("mode", ("prot32", "long"))
def test_alignment_check(mode: str) -> None:
    source = "movl $1,0x9001\nmov $7,%ebx\nint $0x80"
    guest = Guest(source, mode, cpl=3)
    guest.set_system(cr0=guest.sregs.cr0 | 0x40000)
    guest.set(rflags=0x40002)
    assert guest.fault() == (AC, 0)
    guest = Guest(source, mode, cpl=3)
    guest.set_system(cr0=guest.sregs.cr0 | 0x40000)
    guest.set_gate(0x80, 0x4800, dpl=3)
    guest.finish()
    assert guest.vector == 0x80 and guest.regs.rbx == 7


def test_ldt_segments() -> None:
    source = f"mov ${LDT_SEL},%eax\nlldt %ax\nsldt %ebx\nmov $0xc,%eax\nmov %eax,%fs\nmov %fs:4,%ecx\nlar %eax,%edx\nlsl %eax,%esi\nhlt"
    guest = Guest(source, "prot32")
    guest.write(0x3800 + 8, descriptor(0x9000, 0xFF, 0x93, 4))
    guest.put32(0x9004, 77)
    regs = guest.finish()
    assert (regs.rbx, regs.rcx, regs.rdx, regs.rsi) == (LDT_SEL, 77, 0x409300, 0xFF)


@pytest.mark.parametrize(
    ("selector", "rights", "limit", "readable", "writable"),
    [
        (DATA0, 0xCF9300, 0xFFFFFFFF, 1, 1), (CODE0, 0xCF9B00, 0xFFFFFFFF, 1, 0), (TSS_SEL, 0x8B00, 0x7FF, 0, 0), (0, None, None, 0, 0),
        (0x1008, None, None, 0, 0), (DATA0 | 3, None, None, 0, 0), (CODE3, 0xCFFB00, 0xFFFFFFFF, 1, 0),
    ],
)  # fmt: skip
def test_descriptor_questions(selector: int, rights: int | None, limit: int | None, readable: int, writable: int) -> None:
    source = f"mov ${selector},%esi\nlar %esi,%ebx\nsetz %dl\nlsl %esi,%ecx\nsetz %dh\nverr %si\nsetz %al\nverw %si\nsetz %ah\nhlt"
    guest = Guest(source, "prot32")
    regs = guest.finish()
    assert regs.rdx & 0xFFFF == (0x101 if rights is not None else 0)
    assert regs.rax == (readable | writable << 8)
    if rights is not None:
        assert (regs.rbx, regs.rcx) == (rights, limit)


def test_real_mode_idt_limit() -> None:
    guest = Guest("int $0x40\nhlt", "real")
    sregs = guest.sregs
    sregs.idt.limit = 0xFF
    guest.set_system(idt=sregs.idt)
    guest.finish()
    assert guest.vector == GP and guest.frame(3)[0] == 0x8000


def test_page_fault_then_page_fault_is_double() -> None:
    guest = Guest("mov 0x200000,%eax\nhlt", "long")
    guest.put64(guest.pte(0x200000), 0)
    guest.put64(guest.pte(STACK - 0x200), 0)
    guest.set(rsp=STACK - 0xE00)
    guest.set_gate(DF, 0x4000 + DF * 16, ist=1)
    guest.finish()
    assert guest.vector == DF
    assert PF not in (guest.vector,)
