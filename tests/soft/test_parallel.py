"""vCPUs in parallel: locked instructions are atomic, memory keeps x86's order, code that another vCPU changes is seen, page tables
that others change are walked whole. Each test runs until its vCPUs halt; what they found stands in memory."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import CODE, TABLES, Guest
from tests.soft.system_guest import assemble

EXIT_HLT, EXIT_INTR = 5, 10
DATA = 0x20000
SECONDS = 15


@pytest.fixture(params=["off", "1", "on"])
def translate(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Crowd:
    """A guest in long mode whose vCPUs begin at the labels `cpu0`, `cpu1`, ... of one source; RSI is DATA, RBP the vCPU's number."""

    def __init__(self, source: str, cpus: int, translate: str, code_cache: int = lib.KP_CODE_CACHE) -> None:
        entries = "\n".join(f"jmp cpu{n}\n.balign 16" for n in range(cpus))
        code = assemble(f"{entries}\n{source}", 64, CODE)
        self._threads: list[threading.Thread] = []
        self.guest = Guest(b"\xf4", "long", clock="host", cpus=cpus, translate=translate, parallel=True, code_cache=code_cache)
        self.guest.put(CODE, code)
        sregs = self.guest.vcpu.get_sregs()
        for n, vcpu in enumerate(self.guest.vcpus):
            vcpu.set_sregs(sregs)
            self.guest.set(vcpu, rip=CODE + 16 * n, rsp=0x7000 - 0x400 * n, rsi=DATA, rbp=n, rflags=2)

    def begin(self) -> list[int]:
        """Runs all; gives what their runs give, -1 where one goes on."""
        reasons = [-1] * len(self.guest.vcpus)

        def run(n: int) -> None:
            reasons[n] = self.guest.vcpus[n].run()

        self._threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(reasons))]
        for thread in self._threads:
            thread.start()
        return reasons

    def wait(self, n: int, seconds: float = SECONDS) -> None:
        self._threads[n].join(seconds)

    def run(self, seconds: float = SECONDS) -> None:
        """Until all vCPUs have halted."""
        reasons = self.begin()
        for n in range(len(reasons)):
            self.wait(n, seconds)
        assert reasons == [EXIT_HLT] * len(reasons), self.where()

    def where(self) -> list[str]:
        self.stop()
        return [hex(vcpu.get_regs().rip) for vcpu in self.guest.vcpus]

    def stop(self) -> None:
        for vcpu, thread in zip(self.guest.vcpus, self._threads, strict=False):
            while thread.is_alive():
                vcpu.kick()
                thread.join(0.1)

    def qword(self, offset: int) -> int:
        return int(struct.unpack("<Q", self.guest.get(DATA + offset, 8))[0])


@pytest.fixture
def crowds() -> Iterator[list[Crowd]]:
    made: list[Crowd] = []
    yield made
    for crowd in made:
        crowd.stop()
        crowd.guest.close()


ROUNDS = 20000
WAYS = {
    "add": "lock addl $1, (%rsi)",
    "inc": "lock incq (%rsi)",
    "sub": "lock subw $-1, (%rsi)\n jnc 9f\n 9:",
    "adc": "stc\n lock adcl $0, (%rsi)",
    "xadd": "mov $1, %eax\n lock xaddl %eax, (%rsi)",
    "cmpxchg": "mov (%rsi), %rax\n 8: lea 1(%rax), %rdx\n lock cmpxchg %rdx, (%rsi)\n jne 8b",
    "cmpxchg high registers": "mov (%rsi), %rax\n 8: lea 1(%rax), %r14\n lock cmpxchg %r14, (%rsi)\n jne 8b",
    "cmpxchg8b": "mov (%rsi), %eax\n mov 4(%rsi), %edx\n 8: lea 1(%rax), %ebx\n mov %edx, %ecx\n lock cmpxchg8b (%rsi)\n jne 8b",
    "cmpxchg16b": "mov (%rsi), %rax\n mov 8(%rsi), %rdx\n 8: lea 1(%rax), %rbx\n mov %rdx, %rcx\n lock cmpxchg16b (%rsi)\n jne 8b",
    "xchg": "8: mov $1, %eax\n xchg %al, 64(%rsi)\n test %al, %al\n jz 7f\n pause\n jmp 8b\n 7: incq (%rsi)\n movb $0, 64(%rsi)",
    "bts": "8: lock btsl $5, 64(%rsi)\n jnc 7f\n pause\n jmp 8b\n 7: incq (%rsi)\n lock btrl $5, 64(%rsi)",
    "bit string": "8: mov $1029, %eax\n lock btsl %eax, (%rsi)\n jnc 7f\n pause\n jmp 8b\n 7: incq (%rsi)\n lock btrl %eax, (%rsi)",
    "over a line": "lock addq $1, 60(%rsi)",
    "over a page": "lock addq $1, 0xffc(%rsi)",
}
PLACES = {"over a line": 60, "over a page": 0xFFC}


@pytest.mark.parametrize("way", WAYS)
def test_locked_instructions_lose_nothing(crowds: list[Crowd], way: str, translate: str) -> None:
    cpus = 3
    rounds = 2000 if way == "over a page" else ROUNDS  # these stop all vCPUs each time
    body = f"mov ${rounds}, %edi\n 1:\n {WAYS[way]}\n dec %edi\n jnz 1b\n hlt"
    crowd = Crowd("\n".join(f"cpu{n}: {body}" for n in range(cpus)), cpus, translate)
    crowds.append(crowd)
    crowd.run()
    total = crowd.qword(PLACES.get(way, 0))
    assert total & (0xFFFF if way == "sub" else ~0) == cpus * rounds & (0xFFFF if way == "sub" else ~0)


# Registers: R8 the present round, which both have to reach (the other's number stands in 0x800(%rsi) beyond its own). Without PAUSE,
# which would let two threads go through many rounds on one processor of the host.
MEET = """
    incq %r8
    mov %r8, 0x800(%rsi, %rbp, 8)
    mov %rbp, %rax
    xor $1, %eax
8:  cmp %r8, 0x800(%rsi, %rax, 8)
    jb 8b
"""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two vCPUs run at once only on two processors")
def test_stores_wait_in_the_buffer_while_loads_go_ahead(crowds: list[Crowd]) -> None:
    """Store buffering: both loads may see the old values (SDM 3A 8.2.3.4), and on a processor they do once in a while."""
    side = f"""
    xor %r8d, %r8d
    mov $2000, %edi
1:  {MEET}
    movl $0, {{mine}}(%rsi)
    mov %edi, %ecx
    and ${{spread}}, %ecx
    add ${{delay}}, %ecx
    {MEET}
6:  dec %ecx
    jnz 6b
    movl $1, {{mine}}(%rsi)
    mov {{other}}(%rsi), %edx
    mov %edx, {{result}}(%rsi)
    {MEET}
    mov 0x200(%rsi), %eax
    or 0x240(%rsi), %eax
    jnz 2f
    incq 0x400(%rsi, %rbp, 8)
2:  dec %edi
    jnz 1b
    hlt
    """
    zero = side.format(mine=0, other=64, result=0x200, spread=127, delay=1)
    source = f"cpu0: {zero} cpu1: {side.format(mine=64, other=0, result=0x240, spread=0, delay=64)}"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        crowd = Crowd(source, 2, "1")
        crowds.append(crowd)
        crowd.run(120)
        assert crowd.qword(0x400) == crowd.qword(0x408)
        if crowd.qword(0x400):
            return
    pytest.fail("no load went ahead of a store in 120 s")


def test_messages_pass_in_order(crowds: list[Crowd], translate: str) -> None:
    """Who sees the flag sees the data that was stored before it; with a fence no load goes ahead of a store."""
    source = """
cpu0:
    mov $1, %eax
1:  mov %rax, 0x40(%rsi)
    mov %rax, 0x1040(%rsi)
    mov %rax, (%rsi)
    inc %eax
    cmp $60000, %eax
    jbe 1b
    hlt
cpu1:
    mov (%rsi), %rax
    mov 0x1040(%rsi), %rbx
    mov 0x40(%rsi), %rcx
    cmp %rax, %rbx
    jb 2f
    cmp %rbx, %rcx
    jae 3f
2:  incq 0x400(%rsi)
3:  cmp $60000, %rax
    jb cpu1
    hlt
    """
    crowd = Crowd(source, 2, translate)
    crowds.append(crowd)
    crowd.run()
    assert crowd.qword(0x400) == 0 and crowd.qword(0) == 60000


PATCHED = 0x4000


@pytest.mark.parametrize("stores", [1, 100])
def test_code_that_another_changes_is_seen_changed(crowds: list[Crowd], translate: str, stores: int) -> None:
    """With 100 stores the page is ordinary memory again each time, and becomes code while the other vCPU writes to it."""
    source = f"""
cpu0:
    mov ${PATCHED}, %rbx
    movb $0xc3, 5(%rbx)
    movb $0xb8, (%rbx)
    mov $1, %eax
1:  mov ${stores}, %ecx
2:  mov %eax, 1(%rbx)
    dec %ecx
    jnz 2b
    mov %rax, (%rsi)
3:  pause
    cmp %rax, 8(%rsi)
    jne 3b
    inc %eax
    cmp $1000, %eax
    jbe 1b
    hlt
cpu1:
    mov ${PATCHED}, %rbx
    mov $1, %r8d
1:  pause
    cmp %r8, (%rsi)
    jb 1b
    xor %eax, %eax
    cpuid
    mov ${PATCHED}, %rbx
    call *%rbx
    cmp %r8d, %eax
    je 2f
    incq 16(%rsi)
2:  call *%rbx
    mov %r8, 8(%rsi)
    call *%rbx
    inc %r8d
    cmp $1000, %r8d
    jbe 1b
    hlt
cpu2:
    mov ${PATCHED}, %rbx
    movl $0x90909090, 0x100(%rbx)
    movb $0xc3, 0x104(%rbx)
1:  lea 0x100(%rbx), %rax
    call *%rax
    pause
    cmpq $1000, 8(%rsi)
    jb 1b
    hlt
    """
    crowd = Crowd(source, 3, translate)
    crowds.append(crowd)
    crowd.run()
    assert crowd.qword(16) == 0 and crowd.qword(8) == 1000


def test_a_full_code_cache_is_begun_anew_under_all(crowds: list[Crowd]) -> None:
    """Each vCPU walks over code that does not fit into the cache of translations, and counts."""
    piece = "incq (%rsi, %rbp, 8)\n" * 40
    walk = "".join(f".balign 0x400\n {piece} test %edi, %edi\n js 9f\n" for _ in range(64))
    source = "\n".join(f"cpu{n}: mov $150, %edi\n jmp walk" for n in range(3))
    crowd = Crowd(f"{source}\n walk:\n {walk}\n dec %edi\n jnz walk\n 9: hlt", 3, "1", lib.KP_CODE_CACHE_LEAST)
    crowds.append(crowd)
    crowd.run()
    assert [crowd.qword(8 * n) for n in range(3)] == [150 * 64 * 40] * 3
    assert sum(vcpu.statistics()["code_cache_evictions"] for vcpu in crowd.guest.vcpus) > 0


def test_accessed_and_dirty_bits_are_set_by_a_locked_operation(crowds: list[Crowd], translate: str) -> None:
    """One vCPU counts in the ignored bits of a page-table entry, the other has its walks set A and D there: no count is lost."""
    tables = 0x40000  # PDPT, PD, PT of a page at 512 GiB
    entry = tables + 0x2000
    source = f"""
cpu0:
    mov ${entry}, %rbx
    mov $1 << 52, %rdx
    mov $-64, %rcx
    shl $52, %rcx
    mov $2000, %edi
1:  mov $64, %r9d
2:  lock add %rdx, (%rbx)
    dec %r9d
    jnz 2b
    mov (%rbx), %rax
    shr $52, %rax
    and $0x7f, %eax
    cmp $64, %eax
    je 3f
    incq (%rsi)
3:  lock add %rcx, (%rbx)
    dec %edi
    jnz 1b
    movq $1, 8(%rsi)
    hlt
cpu1:
    mov ${entry}, %rbx
    mov $1 << 39, %rdx
1:  lock andb $0x9f, (%rbx)
    invlpg (%rdx)
    incq (%rdx)
    incq 16(%rsi)
    cmpq $0, 8(%rsi)
    je 1b
    hlt
    """
    crowd = Crowd(source, 2, translate)
    crowds.append(crowd)
    guest = crowd.guest
    for at, to in ((TABLES + 8, tables | 3), (tables, tables + 0x1000 | 3), (tables + 0x1000, entry | 3)):
        guest.put(at, struct.pack("<Q", to))
    guest.put(entry, struct.pack("<Q", 0x50000 | 3))
    crowd.run()
    assert crowd.qword(0) == 0 and crowd.qword(16) > 0


def test_a_kick_reaches_one_vcpu_and_no_other(crowds: list[Crowd]) -> None:
    crowd = Crowd("cpu0: cmpq $0, (%rsi)\n je cpu0\n hlt\n cpu1: cmpq $0, (%rsi)\n je cpu1\n hlt", 2, "on")
    crowds.append(crowd)
    reasons = crowd.begin()
    crowd.guest.vcpus[1].kick()
    crowd.wait(1)
    assert reasons == [-1, EXIT_INTR]
    crowd.guest.put(DATA, b"\1")
    crowd.wait(0)
    assert reasons == [EXIT_HLT, EXIT_INTR]
