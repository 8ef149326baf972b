"""Parallel vCPUs that do all at once what must not disturb the host: code that they write and run, mappings that flip under them,
locked operations over lines and pages. Of what the guest sees only its counters are exact; the process must live, and every vCPU must
end when it is told to."""

from __future__ import annotations

import random
import struct
import time

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import TABLES
from tests.soft.test_parallel import Crowd

PATCHED, PAGES = 0x30000, 4
SECONDS = 2

# 512 GiB on: PAGES pages by tables that all vCPUs write to; which always are present.
FLIPPED = 1 << 39
TABLE = 0x43000

WORKER = f"""
cpu{{n}}:
    mov ${PATCHED}, %rbx
    mov ${FLIPPED:#x}, %r12
    mov ${TABLE}, %r13
    mov ${{seed}}, %r14d
1:  imul $1103515245, %r14d, %r14d
    add $12345, %r14d
    mov %r14d, %eax
    shr $16, %eax
    mov %eax, %edx
    and $0xff0, %edx
    mov %eax, %r15d
    and $3, %r15d
    # a function: NOPs and a return, or less NOPs
    movl $0x90909090, (%rbx, %rdx)
    movb $0xc3, 4(%rbx, %rdx)
    testb $1, %ah
    jz 2f
    movl $0x90c3903e, (%rbx, %rdx)
2:  lea (%rbx, %rdx), %rcx
    call *%rcx
    # the mapping of one of the pages: another frame, and A and D gone
    mov %r15d, %r8d
    xor %ebp, %r8d
    and $3, %r8d
    shl $12, %r8
    add $0x50003, %r8
    mov %r8, (%r13, %r15, 8)
    mov %r15, %rcx
    shl $12, %rcx
    add %r12, %rcx
    testb $2, %ah
    jz 3f
    invlpg (%rcx)
3:  incq 8(%rcx)
    lock incq 0xff8(%rcx)
    lock addl $1, 60(%rsi)
    lock addq $1, 0xffc(%rsi)
    incq 0x400(%rsi, %rbp, 8)
    cmpq $0, 0x500(%rsi)
    je 1b
    hlt
"""


@pytest.mark.parametrize("translate", ["off", "1", "on"])
@pytest.mark.parametrize("cpus", [2, 4])
def test_vcpus_that_write_code_and_flip_mappings(cpus: int, translate: str) -> None:
    seeds = random.Random(cpus)
    source = "\n".join(WORKER.format(n=n, seed=seeds.randrange(1 << 31)) for n in range(cpus))
    crowd = Crowd(source, cpus, translate, lib.KP_CODE_CACHE_LEAST)
    guest = crowd.guest
    try:
        for at, to in ((TABLES + 8, TABLE - 0x2000), (TABLE - 0x2000, TABLE - 0x1000), (TABLE - 0x1000, TABLE)):
            guest.put(at, struct.pack("<Q", to | 3))
        guest.put(TABLE, b"".join(struct.pack("<Q", 0x50003 + 0x1000 * n) for n in range(PAGES)))
        guest.put(PATCHED, b"\x90\x90\x90\x90\xc3" + b"\x90\xc3" * 2100)
        reasons = crowd.begin()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:  # what devices do meanwhile
            guest.vm.memory_written(PATCHED, 0x1000)
            guest.vm.dirty_log(0)
            time.sleep(0.01)
        guest.put(0x20500, b"\1")
        for n in range(cpus):
            crowd.wait(n, 20)
        assert reasons == [5] * cpus, (reasons, crowd.where())
        assert all(crowd.qword(0x400 + 8 * n) > 0 for n in range(cpus))
        rounds = sum(crowd.qword(0x400 + 8 * n) for n in range(cpus))
        assert struct.unpack("<I", guest.get(0x20000 + 60, 4))[0] == rounds == crowd.qword(0xFFC)
    finally:
        crowd.stop()
        guest.close()
