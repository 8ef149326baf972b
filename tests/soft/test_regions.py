"""Regions: a hot block translated together with those of its page that it goes on to, left early, overwritten, cut by the budget."""

from __future__ import annotations

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import CODE, Guest
from tests.soft.system_guest import assemble
from tests.soft.translated import alike, needs_code, state, with_gates

HLT = lib.KVM_EXIT_HLT
THRESHOLD = 4  # runs of a block before it is translated: its successors are known then
DATA, UNMAPPED = 0x5000, 1 << 38
pytestmark = needs_code

# Both ways of a branch, a function that calls another, a jump, and flags that live across them.
PATHS = """mov $200, %ecx
again: test $3, %cl
jz rare
add $1, %ebx
common: call outer
setc %dl
adc $0, %ebx
dec %ecx
jnz again
hlt
rare: add $100, %ebx
jmp common
outer: push %rbx
call inner
pop %rax
cmp %rax, %rbx
ret
inner: lea 3(%rbx), %ebx
cmp $7, %ecx
ret
"""


def joined(guest: Guest) -> int:
    """The most instructions that a translation has of other blocks."""
    return max((one.translated - one.instructions for one in guest.vm.translations() if one.code_size), default=0)


@pytest.mark.parametrize("bits, mode", [(64, "long"), (32, "protected")])
def test_branches_calls_and_returns(bits: int, mode: str) -> None:
    text = PATHS if bits == 64 else PATHS.replace("%rbx", "%ebx").replace("%rax", "%eax")
    with alike(assemble(text, bits, CODE), HLT, mode=mode, threshold=THRESHOLD) as guest:
        assert guest.vcpu.get_regs().rbx & 0xFFFFFFFF > 200
        assert joined(guest) >= 8


def test_every_count_of_instructions_ends_at_the_same_place() -> None:
    """A region is begun only with budget for all of it, and gives back what was not run."""
    code = assemble(PATHS, 64, CODE)
    interpreted, translated = Guest(code, "long", translate=0), Guest(code, "long", translate=THRESHOLD)
    try:
        for guest in (interpreted, translated):
            guest.set(rax=0, rbx=0, rcx=0, rdx=0)
        count = 0
        while interpreted.vcpu.get_regs().rcx != 1:
            count = count % 37 + 1
            for guest in (interpreted, translated):
                guest.vcpu.step(count)
            assert state(interpreted) == state(translated)
        assert joined(translated) and translated.vcpu.statistics()["instructions_translated"] > 300
    finally:
        interpreted.close()
        translated.close()


def test_a_return_that_goes_elsewhere() -> None:
    """The function is part of its caller's region; once it changes its return address, to the instruction behind the next."""
    code = assemble(
        """mov $60, %ecx
        again: call function
        inc %ebx
        dec %ecx
        jnz again
        hlt
        function: cmp $5, %ecx
        jne usual
        addq $2, (%rsp)
        usual: lea 1(%rdx), %edx
        ret""", 64, CODE,
    )  # fmt: skip
    with alike(code, HLT, threshold=THRESHOLD) as guest:
        regs = guest.vcpu.get_regs()
        assert (regs.rbx, regs.rdx) == (59, 60)
        assert joined(guest) >= 3


@pytest.mark.parametrize("load", ["mov (%rax), %rdx; nop", "fldl (%rax); fstp %st(0)"], ids=["of its code", "of a handler"])
def test_a_fault_in_a_later_part(load: str) -> None:
    code = assemble(
        f"""mov $30, %ecx
        again: cmp $9, %ecx
        jb last
        add $1, %ebx
        jmp on
        last: mov %r8, %rax
        add $1, %esi
        on: sub $3, %edi
        load: {load}
        loop again
        hlt""", 64, CODE,
    )  # fmt: skip

    def prepare(guest: Guest) -> None:
        with_gates(guest)
        guest.set(rax=DATA, r8=UNMAPPED, rsi=0, rdi=1 << 20)

    with alike(code, HLT, prepare, threshold=THRESHOLD) as guest:
        regs = guest.vcpu.get_regs()
        assert (regs.rbx, regs.rsi, regs.rcx, guest.vcpu.get_sregs().cr2) == (22, 1, 8, UNMAPPED)
        assert joined(guest) >= 3


SELF_CHANGING = """mov $300, %ecx
again: cmp {when}, %ecx
mov $0x5000, %esi
cmovbe %rdi, %rsi
movb $2, (%rsi)
{between}
add $0x55, %ebx
dec %ecx
jnz again
hlt
never: jmp never
"""
PARTS = ["add $1, %eax; js never", "add $1, %eax; jmp on; nop; on: test %ecx, %ecx; js never"]


@pytest.mark.parametrize("between", PARTS, ids=["the next part", "two parts on"])
@pytest.mark.parametrize("when", [1000, 100], ids=["each time", "from the middle on"])
def test_a_later_part_is_overwritten_while_the_region_runs(when: int, between: str) -> None:
    """What follows runs as it is written now. Where that happens again and again, the blocks are translated one by one."""
    code = assemble(SELF_CHANGING.format(when=f"${when}", between=between), 64, CODE)
    place = CODE + code.index(b"\x83\xc3\x55") + 2
    with alike(code, HLT, lambda guest: guest.set(rdi=place), threshold=THRESHOLD) as guest:
        before = max(0, 300 - when)
        assert guest.vcpu.get_regs().rbx == 0x55 * before + 2 * (300 - before)
        assert guest.vcpu.statistics()["translations_dropped"] >= lib.KP_REGION_SPLITS
        assert not [one for one in guest.vm.translations(CODE + 5) if one.translated > one.instructions]
