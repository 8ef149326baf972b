"""Instructions on RFLAGS, the interrupt flag and segment bases that translated code does by itself: the same as interpreted, with every
interrupt behind the same instruction."""

from __future__ import annotations

import random

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import CODE, Guest
from tests.soft.system_guest import assemble, timer_ticks
from tests.soft.translated import alike, needs_code, with_gates

pytestmark = needs_code

HLT, IO, SHUTDOWN = lib.KVM_EXIT_HLT, lib.KVM_EXIT_IO, lib.KVM_EXIT_SHUTDOWN
VALUES, RESULTS, HANDLER = 0x30000, 0x38000, 0x9000
OSZAPC, TF, IF, DF, IOPL, NT, AC, ID = 0x8D5, 0x100, 0x200, 0x400, 0x3000, 0x4000, 0x40000, 0x200000
COUNT = 300


def rflags(seed: int, rare: int) -> bytes:
    """Values for POPF: mostly of the arithmetic flags, DF and IF; now and then with what changes more."""
    choose = random.Random(seed)
    values = []
    for _ in range(COUNT):
        value = choose.getrandbits(22) & (OSZAPC | DF | IF)
        if choose.random() < 0.1:
            value |= choose.getrandbits(22) & rare
        values.append(value.to_bytes(8, "little"))
    return b"".join(values)


@pytest.mark.parametrize("chips", [False, True], ids=["", "chips"])
@pytest.mark.parametrize("user", [False, True], ids=["kernel", "user"])
def test_pushf_and_popf(user: bool, chips: bool) -> None:
    code = assemble(
        f"""mov ${COUNT}, %ecx
        mov ${VALUES}, %esi
        mov ${RESULTS}, %edi
        again: push (%rsi)
        popf
        setc %al
        pushf
        add $1, %rbx
        pushf
        cmp %rax, %rbx
        lea 8(%rsi), %rsi
        pop %r9
        mov %r9, (%rdi)
        pop %r14
        mov %r14, 8(%rdi)
        pushf
        pop %rdx
        mov %rdx, 16(%rdi)
        mov %al, 24(%rdi)
        lea 32(%rdi), %rdi
        dec %ecx
        jnz again
        cld
        {"ud2" if user else "out %al, $0xf4"}""", 64, CODE,
    )  # fmt: skip

    values = rflags(1, NT | ID if user else NT | AC | ID | IOPL)

    def prepare(guest: Guest) -> None:
        guest.put(VALUES, values)
        if user:
            sregs = guest.vcpu.get_sregs()
            sregs.cs.selector, sregs.cs.dpl, sregs.ss.selector, sregs.ss.dpl = 0x33, 3, 0x2B, 3
            guest.vcpu.set_sregs(sregs)
            guest.set(rflags=0x202)

    with alike(code, SHUTDOWN if user else IO, prepare, chips=chips) as guest:
        mask = DF | ID | NT | (OSZAPC if user else OSZAPC | IF | AC | IOPL)
        for n in range(COUNT):
            given = int.from_bytes(values[8 * n : 8 * n + 8], "little")
            seen, byte = int.from_bytes(guest.get(RESULTS + 32 * n + 8, 8), "little"), guest.get(RESULTS + 32 * n + 24, 1)
            assert seen & mask == given & mask and byte == bytes([given & 1]), n
        if user or chips:
            found = guest.vcpu.statistics()
            assert found["handler_calls"] + found["exits_to_handler"] < COUNT


INTERRUPTS = timer_ticks(240) + "mov $0x30000, %r15d\n"
HANDLER_CODE = """
    push %rax
    mov 8(%rsp), %rax
    mov %rax, (%r15)
    mov 24(%rsp), %rax
    mov %rax, 8(%r15)
    mov %rdx, 16(%r15)
    add $24, %r15
    mov $0x20, %al
    out %al, $0x20
    pop %rax
    iretq
"""


def with_timer(guest: Guest) -> None:
    with_gates(guest)
    guest.put(HANDLER, assemble(HANDLER_CODE, 64, HANDLER))


@pytest.mark.parametrize("seed", range(4))
def test_interrupts_come_behind_the_same_instruction(seed: int) -> None:
    """The timer fires every 200 us, as long as 200000 instructions take, into code that shuts interrupts out and lets them in again."""
    choose = random.Random(seed)
    pieces = (
        "cli", "sti", "sti", "cli\n sti", "pushf\n cli\n inc %edx\n popf", "pushf\n pop %rbx", "inc %edx", "sti\n inc %edx\n cli",
        "jmp 1f\n 1:", "push $0x202\n popf", "push $2\n popf", "push $0x246\n popf\n inc %edx", "sti\n jmp 1f\n 1: cli",
    )  # fmt: skip
    loop = "\n".join(choose.choice(pieces) for _ in range(40))
    code = assemble(INTERRUPTS + f"mov $100000, %ecx\n again: {loop}\n sti\n dec %ecx\n jnz again\n out %al, $0xf4", 64, CODE)
    with alike(code, IO, with_timer, chips=True) as guest:
        assert guest.vcpu.get_regs().r15 >= VALUES + 24 * 10
        found = guest.vcpu.statistics()
        assert found["exits_to_handler"] < 400 * found["interrupts"], found


def test_an_interrupt_waits_for_the_instruction_behind_sti() -> None:
    """It has come while interrupts were shut out: HLT behind STI is over at once, and the return address is behind it."""
    code = assemble(
        INTERRUPTS + """
        mov $50, %edx
        again: cli
        mov $2000, %ecx
        1: dec %ecx
        jnz 1b
        sti
        hlt
        dec %edx
        jnz again
        out %al, $0xf4""", 64, CODE,
    )  # fmt: skip
    with alike(code, IO, with_timer, chips=True) as guest:
        end = guest.vcpu.get_regs().r15
        places = {int.from_bytes(guest.get(at, 8), "little") for at in range(VALUES, end, 24)}
        assert (end - VALUES) // 24 >= 50 and CODE + code.index(b"\xfb\xf4") + 2 in places


@pytest.mark.parametrize("enabled", [True, False])
def test_bases_of_fs_and_gs(enabled: bool) -> None:
    code = assemble(
        """mov $20, %ecx
        again: lea 0x5000(,%rcx,8), %rax
        wrfsbase %rax
        wrgsbase %rcx
        rdfsbase %r8
        rdgsbase %r14
        mov %fs:8, %rbx
        add %rbx, %rdx
        lea -1(%rax), %rsi
        cmp $10, %ecx
        swapgs
        rdgsbase %ebx
        je 1f
        wrfsbase %esi
        rdfsbase %edi
        1: add %rbx, %rdx
        dec %ecx
        jnz again
        mov $1, %rax
        shl $47, %rax
        wrgsbase %rax
        ud2""", 64, CODE,
    )  # fmt: skip

    def prepare(guest: Guest) -> None:
        with_gates(guest)
        guest.put(0x5000, bytes(range(256)))
        sregs = guest.vcpu.get_sregs()
        sregs.cr4 |= enabled << 16
        guest.vcpu.set_sregs(sregs)

    with alike(code, HLT, prepare) as guest:
        assert guest.vcpu.get_regs().rcx == (0 if enabled else 20)
        if enabled:
            assert guest.vcpu.statistics()["handler_calls"] < 20
