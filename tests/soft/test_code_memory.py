"""Memory of decoded and translated code is bounded and used again, part by part: nothing is dropped all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import CODE, Guest
from tests.soft.system_guest import assemble
from tests.soft.test_translator import needs_code

HLT = lib.KVM_EXIT_HLT
MIB = 1 << 20
Make = Callable[..., Guest]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Guest] = []

    def build(code: bytes, **options: object) -> Guest:
        guest = Guest(code, "long", **options)  # type: ignore[arg-type]
        made.append(guest)
        return guest

    yield build
    for guest in made:
        guest.close()


def resident() -> int:
    """Bytes of this process's memory that are there."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def chain(blocks: int, passes: int) -> bytes:
    """So many blocks of two instructions, one after the other, each of which adds 1 to EAX; all of it some times over."""
    code = b"\xb9" + passes.to_bytes(4, "little") + bytes.fromhex("ffc0 eb00") * blocks  # inc eax; jmp to the next
    back = 5 - (len(code) + 2 + 6)
    return code + b"\xff\xc9\x0f\x85" + back.to_bytes(4, "little", signed=True) + b"\xf4"


def counted(guest: Guest, blocks: int, passes: int) -> dict[str, int]:
    assert guest.vcpu.run() == HLT and guest.vcpu.get_regs().rax == blocks * passes
    found = guest.vcpu.statistics()
    assert found["instructions"] == 1 + blocks * passes * 2 + passes * 2 + 1
    return found


@pytest.mark.parametrize("translate", ["off", 24])
def test_a_million_patches(make: Make, translate: str | int) -> None:
    if translate != "off" and needs_code.args[0]:
        pytest.skip("this host lets no program make code")
    patches = 1_000_000
    code = assemble(
        f"""mov ${patches}, %ecx
        xor %ebx, %ebx
        again: mov %ecx, function + 1(%rip)
        call function
        add %rax, %rbx
        dec %ecx
        jnz again
        hlt
        function: mov $0, %eax
        ret""", 64, CODE,
    )  # fmt: skip
    guest = make(code, translate=translate)
    before = resident()
    assert guest.vcpu.run() == HLT and guest.vcpu.get_regs().rbx == patches * (patches + 1) // 2
    found = guest.vcpu.statistics()
    assert found["blocks_dropped"] >= patches - 1 and found["code_evictions"] > 4
    assert found["blocks_built"] < patches * 1.01  # what is not patched stays
    limit = 8 if translate != "off" else 36
    assert resident() - before < limit * MIB


@needs_code
def test_blocks_that_are_not_hot_share_little_memory(make: Make) -> None:
    blocks, passes = 30000, 3
    guest = make(chain(blocks, passes), translate=1000)
    before = resident()
    found = counted(guest, blocks, passes)
    assert found["code_evictions"] > 8 and found["blocks_built"] > blocks * (passes - 1)
    assert resident() - before < 7 * MIB


@needs_code
def test_a_loop_over_more_blocks_than_fit_gets_translated(make: Make) -> None:
    """What a block ran before it was decoded last is not forgotten."""
    blocks, passes = 12000, 120
    found = counted(make(chain(blocks, passes), translate=24), blocks, passes)
    assert found["code_evictions"] > 24 and found["blocks_built"] < 0.9 * blocks * passes
    assert found["instructions_translated"] > 0.1 * found["instructions"]


@needs_code
@pytest.mark.parametrize("cache", [lib.KP_CODE_CACHE_LEAST, 2 * lib.KP_CODE_CACHE_LEAST, MIB])
def test_the_code_cache_is_emptied_part_by_part(make: Make, cache: int) -> None:
    blocks, passes = 1500 * cache // lib.KP_CODE_CACHE_LEAST, 3
    found = counted(make(chain(blocks, passes), translate=1, code_cache=cache), blocks, passes)
    assert found["code_cache_evictions"] > passes
    assert found["blocks_built"] <= blocks * 1.01  # a block whose translation is gone stays
    whole = counted(make(chain(blocks, passes), translate=1), blocks, passes)
    assert whole["code_cache_evictions"] == 0


@needs_code
def test_kept_blocks_are_replaced_by_later_ones(make: Make) -> None:
    """More translated blocks than there is memory for: the oldest go, with their translations."""
    blocks, passes = 110000, 2
    found = counted(make(chain(blocks, passes), translate=1), blocks, passes)
    assert found["code_evictions"] > 0 and found["blocks_built"] > blocks * 1.5
