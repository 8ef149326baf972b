"""Page tables as ranges, in every paging mode, and tables that point to themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvmpy import x86
from kvmpy.debug.pagetable import MOST_LEAVES, pages, ranges
from kvmpy.memory import GuestMemory

P, RW, US, PS, NX, A, D, G = x86.PTE_P, x86.PTE_RW, x86.PTE_US, x86.PTE_PS, x86.PTE_NX, x86.PTE_A, x86.PTE_D, x86.PTE_G


def sregs(**values: int) -> Any:
    base = {"cr0": x86.CR0_PG | x86.CR0_PE, "cr3": 0x1000, "cr4": x86.CR4_PAE, "efer": x86.EFER_LMA | x86.EFER_LME | x86.EFER_NXE}
    return SimpleNamespace(**{**base, **values})


@pytest.fixture
def memory():
    made = GuestMemory("1M")
    yield made
    made.close()


def test_four_levels(memory: GuestMemory) -> None:
    memory.write_u64(0x1000, 0x2000 | P | RW | US)
    memory.write_u64(0x1000 + 8 * 511, 0x2000 | P | RW)
    memory.write_u64(0x2000, 0x3000 | P | RW | US)
    memory.write_u64(0x2008, 0x40000000 | P | RW | PS | G)
    memory.write_u64(0x3000, 0x4000 | P | RW | US)
    memory.write_u64(0x3008, 0x200000 | P | PS | US | NX)
    for n, flags in enumerate((RW | US | A, RW | US | A, RW | US | A | D, US)):
        memory.write_u64(0x4000 + 8 * n, 0x10000 + 0x1000 * n | P | flags)
    found = ranges(pages(memory, sregs()))
    assert [str(m) for m in found[:5]] == [
        "0000000000000000-0000000000001fff -> 000000010000  urwx --A-- 4 KiB pages, 8 KiB",
        "0000000000002000-0000000000002fff -> 000000012000  urwx -DA-- 4 KiB pages, 4 KiB",
        "0000000000003000-0000000000003fff -> 000000013000  ur-x ----- 4 KiB pages, 4 KiB",
        "0000000000200000-00000000003fffff -> 000000200000  ur-- ----- 2 MiB pages, 2 MiB",
        "0000000040000000-000000007fffffff -> 000040000000  srwx G---- 1 GiB pages, 1 GiB",
    ]
    assert found[5].linear == 0xFFFFFF8000000000 and not found[5].user
    loose = ranges(pages(memory, sregs()), physical=False, flags=False)
    assert (loose[0].size, loose[0].rights) == (0x3000, "urwx")


def test_pae_and_32_bit(memory: GuestMemory) -> None:
    memory.write_u64(0x1000 + 8 * 3, 0x2000 | P)
    memory.write_u64(0x2000 + 8 * 511, 0x3000 | P | RW)
    memory.write_u64(0x3000 + 8 * 511, 0x5000 | P | RW)
    assert [(m.linear, m.gpa) for m in pages(memory, sregs(efer=x86.EFER_NXE))] == [(0xFFFFF000, 0x5000)]
    memory.write_u64(0x1018, 0)
    memory.write_u32(0x1000 + 4 * 768, 0x00400000 | P | RW | PS)
    memory.write_u32(0x1000, 0x6000 | P | RW | US)
    memory.write_u32(0x6000 + 4 * 7, 0x7000 | P | US)
    found = list(pages(memory, sregs(cr4=x86.CR4_PSE, efer=0)))
    assert [(m.linear, m.gpa, m.size, m.rights) for m in found] == [(0x7000, 0x7000, 4096, "ur-x"), (0xC0000000, 0x400000, 4 << 20, "srwx")]


def test_no_paging_and_tables_outside_memory(memory: GuestMemory) -> None:
    assert not list(pages(memory, sregs(cr0=x86.CR0_PE)))
    assert not list(pages(memory, sregs(cr3=0x8000000)))


def test_tables_that_point_to_themselves_end(memory: GuestMemory) -> None:
    for n in range(512):
        memory.write_u64(0x1000 + 8 * n, 0x1000 | P | RW)
    assert sum(1 for _ in pages(memory, sregs())) == MOST_LEAVES
