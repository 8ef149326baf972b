"""Page walks in every paging mode, and what a walk says of broken tables."""

import pytest

from kvmpy import x86
from kvmpy.debug.pagewalk import entry_text, walk
from kvmpy.memory import GuestMemory

P, RW, US, PS, NX = x86.PTE_P, x86.PTE_RW, x86.PTE_US, x86.PTE_PS, x86.PTE_NX
LONG = {"cr0": x86.CR0_PG | x86.CR0_PE, "cr3": 0x1000, "cr4": x86.CR4_PAE, "efer": x86.EFER_LMA | x86.EFER_LME | x86.EFER_NXE}
PAE = {**LONG, "efer": x86.EFER_NXE}
LEGACY = {**LONG, "cr4": x86.CR4_PSE, "efer": 0}


@pytest.fixture
def memory():
    made = GuestMemory("1M")
    yield made
    made.close()


def test_paging_off():
    assert walk(None, 0x1_0000_1234, cr0=x86.CR0_PE, cr3=0, cr4=0, efer=0).gpa == 0x1234


def test_four_levels(memory):
    memory.write_u64(0x1000 + 8 * 0x1FF, 0x2000 | P | RW | US)
    memory.write_u64(0x2000 + 8 * 0x1FE, 0x3000 | P | RW)
    memory.write_u64(0x3000 + 8 * 1, 0x4000 | P | RW)
    memory.write_u64(0x4000 + 8 * 2, 0x9000 | P | NX)
    found = walk(memory, 0xFFFFFFFF80202345, **LONG)
    assert (found.gpa, found.page_size) == (0x9345, 4096)
    assert (found.writable, found.user, found.executable) == (False, False, False)
    assert [step.table for step in found.steps] == ["PML4", "PDPT", "PD", "PT"]
    assert found.lines()[-1] == "  -> 0x9345 (r--, supervisor, 4 KiB page)"


@pytest.mark.parametrize(("level", "size"), [(3, 1 << 30), (2, 1 << 21)])
def test_large_pages(memory, level, size):
    memory.write_u64(0x1000, 0x2000 | P | RW | US)
    memory.write_u64(0x2000 + 8, 0x3000 | P | RW | US if level == 2 else 0x40000000 | P | RW | US | PS)
    memory.write_u64(0x3000, 0x40000000 | P | RW | US | PS)
    found = walk(memory, 0x40012345, **LONG)
    assert (found.gpa, found.page_size, found.user) == (0x40012345, size, True)
    memory.write_u64(0x3000 if level == 2 else 0x2008, 0x40002000 | P | PS)
    assert "reserved address bits" in walk(memory, 0x40012345, **LONG).problem


def test_five_levels(memory):
    five = {**LONG, "cr4": x86.CR4_PAE | x86.CR4_LA57}
    for table in (0x1000, 0x2000, 0x3000, 0x4000, 0x5000):
        memory.write_u64(table, table + 0x1000 | P | RW)
    found = walk(memory, 0x123, **five)
    assert found.gpa == 0x6123 and len(found.steps) == 5
    assert walk(memory, 1 << 56, **five).problem == "the address is not canonical"
    assert walk(memory, 1 << 47, **five).problem != "the address is not canonical"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (0x8000_0000_0000, "the address is not canonical"),
        (0xFFFF_0000_0000_0000, "the address is not canonical"),
        (1 << 39, "the PML4 entry is not present"),
        (0x0, "the PDPT entry would lie at 0x80000000, where no memory is"),
        (2 << 39, "the PML4 entry has bit 7 set (reserved bit)"),
    ],
)
def test_what_stands_in_the_way(memory, address, problem):
    memory.write_u64(0x1000, 0x80000000 | P)
    memory.write_u64(0x1000 + 16, 0x2000 | P | PS)
    found = walk(memory, address, **LONG)
    assert found.gpa is None and found.problem == problem
    assert found.lines()[-1] == f"  not mapped: {problem}"


def test_nx_without_nxe_is_reserved(memory):
    memory.write_u64(0x1000, 0x2000 | P | NX)
    assert "EFER.NXE" in walk(memory, 0, **{**LONG, "efer": x86.EFER_LMA}).problem


def test_pae(memory):
    memory.write_u64(0x1020 + 8 * 3, 0x2000 | P)
    memory.write_u64(0x2000 + 8 * 1, 0x3000 | P | RW | US)
    memory.write_u64(0x3000 + 8 * 5, 0x7000 | P | RW | US | NX)
    memory.write_u64(0x2000 + 8 * 2, 0x200000 | P | RW | PS)
    pae = {**PAE, "cr3": 0x1020}
    found = walk(memory, 0xC0205678, **pae)
    assert (found.gpa, found.executable, found.user, found.writable) == (0x7678, False, True, True)
    assert walk(memory, 0xC0412345, **pae).gpa == 0x212345
    assert walk(memory, 0, **pae).problem == "the PDPT entry is not present"
    memory.write_u64(0x1020, 0x2000 | P | RW)
    assert "reserved bits" in walk(memory, 0, **pae).problem


def test_32_bit(memory):
    memory.write_u32(0x1000 + 4 * 0x300, 0x2000 | P | RW)
    memory.write_u32(0x2000 + 4 * 0x12, 0x8000 | P | RW | US)
    memory.write_u32(0x1000 + 4 * 2, 0x00400000 | 1 << 13 | P | RW | PS)
    found = walk(memory, 0xC0012345, **LEGACY)
    assert (found.gpa, found.user, found.writable) == (0x8345, False, True)
    large = walk(memory, 0x00812345, **LEGACY)
    assert (large.gpa, large.page_size) == (0x1_0041_2345, 4 << 20)
    no_pse = walk(memory, 0x00812345, **{**LEGACY, "cr4": 0})
    assert no_pse.gpa is None and len(no_pse.steps) == 1


def test_entries_by_name():
    assert entry_text(0) == "not present"
    assert entry_text(P | RW | US | x86.PTE_A | x86.PTE_D | NX | PS, "PD") == "P RW US A D PS NX"
