"""Memory by linear address, page tables, listings and registers of a machine at rest, as its user asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy import ConfigError, GuestMemory, Halted, Machine, MemoryAccessError
from kvmpy.errors import NotMappedError
from kvmpy.regs import set_long_mode
from tests.debug.build import HERE, compile_c, needs_gcc

PRESENT, WRITE, USER, LARGE = 1, 2, 4, 0x80
TABLES = 0x10000
HIGH = 0xFFFF800000000000


@pytest.fixture
def machine() -> Iterator[Machine]:
    """64-bit code at 1 MiB; at HIGH: pages 0x300000, a hole, 0x301000, 0x302000, and one that has no memory."""
    with Machine(memory="8M", backend="soft") as machine:
        machine.memory.write(0x100000, b"\xf4")
        pages = [0x300000 | PRESENT | WRITE, 0, 0x301000 | PRESENT | WRITE, 0x302000 | PRESENT, 0x40000000 | PRESENT]
        for at, entry in (
            (TABLES, TABLES + 0x1000 | 7), (TABLES + 8 * 256, TABLES + 0x3000 | 7), (TABLES + 0x1000, TABLES + 0x2000 | 7),
            (TABLES + 0x2000, LARGE | 7), (TABLES + 0x3000, TABLES + 0x4000 | 7), (TABLES + 0x4000, TABLES + 0x5000 | 7),
            *((TABLES + 0x5000 + 8 * n, entry) for n, entry in enumerate(pages)),
        ):  # fmt: skip
            machine.memory.write_u64(at, entry)
        sregs = machine.cpu[0].vcpu.get_sregs()
        set_long_mode(sregs, TABLES)
        machine.cpu[0].vcpu.set_sregs(sregs)
        machine.cpu[0].registers.rip = 0x100000
        yield machine


def test_memory_by_linear_address(machine: Machine) -> None:
    memory = machine.memory
    memory.write_virtual(HIGH + 0xFFC, b"abcd")
    assert memory.read(0x300FFC, 4) == b"abcd" == memory.virtual(HIGH + 0xFFC, 4)
    memory.write_virtual(HIGH + 0x2FFE, b"1234")
    assert memory.read(0x301FFE, 4) == b"1234" == memory.virtual(HIGH + 0x2FFE, 4)
    for address, size in ((HIGH + 0xFFE, 4), (HIGH + 0x1000, 1), (HIGH + 0x4000, 1), (1 << 50, 1), (HIGH - 1, 1)):
        with pytest.raises(NotMappedError, match="is not mapped to RAM"):
            memory.virtual(address, size)
        with pytest.raises(MemoryAccessError):
            memory.write_virtual(address, bytes(size))
    assert memory.virtual(HIGH + 0xFFC, 4) == b"abcd", "a write that does not fit changes nothing"
    lonely = GuestMemory("1M")
    with pytest.raises(ConfigError):
        lonely.virtual(0, 1)
    lonely.close()


def test_searches(machine: Machine) -> None:
    memory = machine.memory
    memory.write(0x300FFD, b"needle")  # across what is no border in linear memory
    memory.write(0x301FFD, b"needle")
    memory.write(0x302800, b"needleneedle")
    memory.write(0x302FFA, b"needle")
    assert list(memory.search(b"needle", 0x300000, 0x303000)) == [0x300FFD, 0x301FFD, 0x302800, 0x302806, 0x302FFA]
    found = list(memory.search_virtual(b"needle", HIGH))
    assert found == [HIGH + 0x2FFD, HIGH + 0x3800, HIGH + 0x3806, HIGH + 0x3FFA]
    assert list(memory.search_virtual(b"needle", HIGH + 0x3000, HIGH + 0x3806)) == [HIGH + 0x3800]
    assert list(memory.search_virtual(b"")) == []
    machine.memory.write_u64(TABLES + 8 * 511, TABLES | 7)  # tables that point to themselves: the search comes to an end
    assert next(memory.search_virtual(b"needle", HIGH)) == HIGH + 0x2FFD


def test_page_tables_as_a_table(machine: Machine) -> None:
    table = machine.page_table()
    assert [(one.linear, one.gpa, one.size, one.rights) for one in table] == [
        (0, 0, 2 << 20, "urwx"), (HIGH, 0x300000, 0x1000, "srwx"), (HIGH + 0x2000, 0x301000, 0x1000, "srwx"),
        (HIGH + 0x3000, 0x302000, 0x1000, "sr-x"), (HIGH + 0x4000, 0x40000000, 0x1000, "sr-x"),
    ]  # fmt: skip
    lines = str(table).split("\n")
    assert lines[0].split() == ["LINEAR", "PHYSICAL", "RIGHTS", "FLAGS", "PAGES", "SIZE"] and len(lines) == 6
    assert lines[2].startswith("ffff800000000000-ffff800000000fff  000000300000  srwx")
    walk = machine.page_walk(HIGH + 0x1234)
    assert walk.gpa is None and "PT entry is not present" in str(walk)
    with Machine(memory="1M", backend="soft") as other:
        assert other.page_table() == [] and str(other.page_table()) == "paging is off: linear addresses are physical"


def test_registers_as_text_and_by_name(machine: Machine) -> None:
    registers = machine.cpu[0].registers
    registers.rax, registers.cr2 = 0x1234, 77
    text = str(registers)
    assert text == repr(registers) and "rax 0000000000001234" in text and "64-bit, CPL 0, paging 4-level" in text
    assert {"rax", "cs", "cr3", "gdt"} <= set(dir(registers)) and registers.cr2 == 77


@needs_gcc
def test_listings(tmp_path, machine: Machine) -> None:
    machine.load(compile_c(HERE / "inspected.c", tmp_path, 64))
    assert isinstance(machine.run(timeout=10), Halted)
    at = machine.where().address
    listing = machine.disassemble(before=2, count=3)
    assert [one.here for one in listing] == [False, False, True, False, False]
    assert [one.text.split()[0] for one in listing[:2]] == ["cli", "hlt"] and listing[2].address == at
    assert str(listing).split("\n")[2].startswith(f"=> {at:#x} <stop_here+")
    assert machine.disassemble(machine.symbol("trap"), 1)[0].symbol == "trap"
    calls = [one for one in machine.disassemble(machine.symbol("_start"), 200) if one.text.startswith("call")]
    assert calls and all(one.target and str(one).endswith(f" <{one.target}>") for one in calls)
    nowhere = machine.disassemble(1 << 50, 5)
    assert len(nowhere) == 1 and "no memory there" in str(nowhere)
    machine.memory.write_virtual(at, b"\x06")  # no instruction in 64-bit mode
    assert len(machine.disassemble(count=5)) == 1 and "not an instruction" in str(machine.disassemble())
