"""What translations the software CPU keeps, and what leads to code by them: interpreted and translated from the first run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.soft.soft_guest import Guest
from tests.soft.translated import forbidden
from tests.soft.window_guest import FRAMES, PS, WINDOW, P, U, W, WindowGuest, frame, run, window_table

FAR = 16 << 20  # pages so far apart share an index of the TLB
Make = Callable[..., Guest]


@pytest.fixture(params=[0, 1], ids=["interpreted", "translated"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Guest] = []
    if request.param and forbidden():
        pytest.skip("this host lets no program make code")

    def build(source: str, frames: dict[int, str], *, cr4: int = 0) -> Guest:
        made.append(WindowGuest(source, frames, cr4=cr4, translate=request.param))
        return made[-1]

    yield build
    for guest in made:
        guest.close()


def test_code_in_a_page_that_is_mapped_anew(make: Make) -> None:
    """The second page of the window is now frame 1, now frame 2; a direct jump of the first leads there."""
    source = f"""
        mov $100,%ecx
        xor %edx,%edx
        mov ${WINDOW:#x},%rbx
again:  call *%rbx
        xorq ${frame(1) ^ frame(2):#x},{window_table(0) + 8:#x}
        invlpg 0x1000(%rbx)
        dec %ecx
        jnz again
        hlt"""
    guest = make(source, {0: "jmp .+0x1000", 1: "add $1,%edx\nret", 2: "add $16,%edx\nret"})
    run(guest)
    assert guest.vcpu.get_regs().rdx == 50 + 50 * 16


def test_code_in_a_large_page_that_is_mapped_anew(make: Make) -> None:
    """Another address of the page is invalidated than code ran at; all of RAM is one page of 2 MiB, seen also at the window."""
    source = f"""
        mov $10,%ecx
        xor %edx,%edx
        mov ${WINDOW + FRAMES:#x},%rbx
        movq ${P | W | PS:#x},0x21000
again:  call *%rbx
        movq ${0x22000 | P | W:#x},0x21000
        invlpg 0x3000(%rbx)
        call *%rbx
        movq ${P | W | PS:#x},0x21000
        invlpg (%rbx)
        dec %ecx
        jnz again
        hlt"""
    guest = make(source, {0: "add $1,%edx\nret", 2: "add $16,%edx\nret"})
    guest.put(window_table(0) + 8 * (FRAMES >> 12), (frame(2) | P | W).to_bytes(8, "little"))
    run(guest)
    assert guest.vcpu.get_regs().rdx == 10 + 10 * 16


def test_a_data_page_that_is_mapped_anew_costs_no_link(make: Make) -> None:
    source = f"""
        mov $1000,%ecx
        xor %edx,%edx
        mov ${WINDOW:#x},%rbx
again:  xorq ${frame(1) ^ frame(2):#x},{window_table(0) + 8:#x}
        invlpg 0x1000(%rbx)
        add 0x1000(%rbx),%edx
        call *%rbx
        dec %ecx
        jnz again
        hlt"""
    guest = make(source, {0: "ret", 1: ".int 1", 2: ".int 16"})
    run(guest)
    assert guest.vcpu.get_regs().rdx == 500 + 500 * 16
    found = guest.vcpu.statistics()
    assert found["exits_unlinked"] + found["exits_to_handler"] + found["exits_to_loop"] < 50
    assert found["tlb_fills"] >= 1000


def far_table(guest: Guest) -> None:
    """The window's pages once more FAR behind it, as frames 4 and on."""
    guest.put(0x21000 + 8 * (FAR >> 21), (0x23000 | P | W | U).to_bytes(8, "little"))
    for page in range(4):
        guest.put(0x23000 + 8 * page, (frame(4 + page) | P | W | U).to_bytes(8, "little"))


def test_buffers_that_share_an_index_of_the_tlb(make: Make) -> None:
    """Between two such pages words are copied; a third one comes and goes; then one of the two is mapped anew."""
    source = f"""
        mov ${WINDOW:#x},%rbx
        lea {FAR:#x}(%rbx),%rdi
        mov $512,%ecx
copy:   mov -8(%rbx,%rcx,8),%rax
        add %rcx,%rax
        mov %rax,-8(%rdi,%rcx,8)
        dec %ecx
        jnz copy
        mov (%rdi),%r8
        movq ${frame(2) | P | W | U:#x},{window_table(0):#x}
        mov (%rbx),%r9
        mov (%rdi),%r10
        invlpg (%rbx)
        mov (%rdi),%r11
        mov (%rbx),%r12
        movq ${frame(3) | P | W | U:#x},0x23000
        invlpg (%rdi)
        mov (%rbx),%r13
        mov (%rdi),%r14
        hlt"""
    guest = make(source, {0: ".fill 512,8,7", 2: ".quad 22", 3: ".quad 33"})
    far_table(guest)
    run(guest)
    regs = guest.vcpu.get_regs()
    assert guest.get(frame(4), 4096) == b"".join((7 + n).to_bytes(8, "little") for n in range(1, 513))
    assert (regs.r8, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14) == (8, 8, 8, 22, 22, 33) and regs.r9 in (7, 22)
    found = guest.vcpu.statistics()
    assert found["tlb_fills"] < 30 and found["handler_calls"] < 30


def test_code_appears_in_a_page_of_the_second_way(make: Make) -> None:
    """What is stored into it from then on is noticed, though the page was written before."""
    source = f"""
        mov ${WINDOW:#x},%rbx
        lea {FAR:#x}(%rbx),%rdi
        movl $0x9001c283,(%rbx)      # add $1,%edx; nop
        movb $0xc3,4(%rbx)           # ret
        mov %al,(%rdi)
        mov $10,%ecx
        xor %edx,%edx
again:  call *%rbx
        mov %al,(%rdi)
        incb 2(%rbx)
        dec %ecx
        jnz again
        hlt"""
    guest = make(source, {})
    far_table(guest)
    run(guest)
    assert guest.vcpu.get_regs().rdx == sum(range(1, 11))
