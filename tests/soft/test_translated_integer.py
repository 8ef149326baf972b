"""Integer instructions whose translation has ways of its own that random operands hardly find."""

from __future__ import annotations

import itertools

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import CODE, Guest
from tests.soft.system_guest import assemble
from tests.soft.translated import HANDLER, alike, needs_code, with_gates

pytestmark = needs_code

OPERANDS, RESULTS, SKIPPED = 0x20000, 0x60000, 0x1DE


def words(bits: int) -> list[int]:
    """Numbers around the ends of the range and around powers of two."""
    top = 1 << bits - 1
    some = 0x123456789ABCDEF % (2 * top)
    return [0, 1, 2, 3, 7, 1 << bits // 2, top // 3, top - 1, top, top + 1, 2 * top - 7, 2 * top - 2, 2 * top - 1, some]


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def quotient(high: int, low: int, divisor: int, bits: int) -> tuple[int, int] | None:
    """What IDIV leaves in RAX and RDX; None: #DE."""
    dividend, by = signed(high << bits | low, 2 * bits), signed(divisor, bits)
    if by == 0:
        return None
    whole = abs(dividend) // abs(by) * (1 if (dividend < 0) == (by < 0) else -1)
    if not -(1 << bits - 1) <= whole < 1 << bits - 1:
        return None
    mask = (1 << bits) - 1
    return whole & mask, (dividend - whole * by) & mask


@pytest.mark.parametrize("bits", [32, 64])
def test_signed_division_of_twice_the_width(bits: int) -> None:
    cases = list(itertools.product(words(bits), repeat=3))
    for divisor in (3, 1000, (1 << bits) - 1000, (1 << bits - 1) - 1):  # quotients at the ends of the range
        for whole in ((1 << bits - 1) - 1, 1 << bits - 1, -(1 << bits - 1), -(1 << bits - 1) - 1, 0, -1):
            for rest in (-2, 0, 2):
                dividend = (whole * signed(divisor, bits) + rest) & (1 << 2 * bits) - 1
                cases.append((dividend >> bits, dividend & (1 << bits) - 1, divisor))
    instruction = "idiv %r8" if bits == 64 else "idiv %r8d"
    code = assemble(
        f"""again: mov (%rsi), %rdx
        mov 8(%rsi), %rax
        mov 16(%rsi), %r8
        add $24, %rsi
        {instruction}
        mov %rax, (%rdi)
        mov %rdx, 8(%rdi)
        add $16, %rdi
        dec %ecx
        jnz again
        hlt""", 64, CODE,
    )  # fmt: skip
    skip = assemble(f"mov ${SKIPPED}, %eax\n mov %eax, %edx\n addq $3, (%rsp)\n iretq", 64, HANDLER)

    def prepare(guest: Guest) -> None:
        with_gates(guest)
        guest.put(HANDLER, skip)
        guest.put(OPERANDS, b"".join(word.to_bytes(8, "little") for case in cases for word in case))
        guest.set(rsi=OPERANDS, rdi=RESULTS, rcx=len(cases))

    with alike(code, lib.KVM_EXIT_HLT, prepare) as guest:
        found = 0
        for n, case in enumerate(cases):
            low, high = (int.from_bytes(guest.get(RESULTS + 16 * n + 8 * k, 8), "little") for k in range(2))
            expected = quotient(*case, bits)
            found += expected is not None
            assert (low, high) == (expected or (SKIPPED, SKIPPED)), [hex(word) for word in case]
        statistics = guest.vcpu.statistics()
        # a division that faults is a handler's, and so is the IRET behind it
        assert found > 300 and statistics["handler_calls"] < 2 * (len(cases) - found) + 100
