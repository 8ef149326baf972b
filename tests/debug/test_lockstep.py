"""Machines in lock step: equal where they must be, and a side that was broken on purpose is found where it is broken."""

from __future__ import annotations

import pytest

from kvmpy.debug.lockstep.compare import Lockstep, Result, narrowed
from kvmpy.debug.lockstep.side import Side
from kvmpy.debug.lockstep.traces import compare_traces
from kvmpy.errors import ConfigError, KvmpyError, TraceError
from kvmpy.machine import Machine
from kvmpy.native import lib
from kvmpy.trace.binary import BinaryFile
from kvmpy.verdicts import GuestExit

pytestmark = pytest.mark.skipif(not hasattr(lib, "kp_vm_create"), reason="the software CPU is not built")

START = 0x7C00
# Real mode: 200 rounds of arithmetic, a call, memory, a string instruction; each round says AL to port 0xE9. Then exit 0.
CODE = bytes.fromhex(
    "b9c800"  # mov cx, 200
    "b80100"  # mov ax, 1
    "bb0300"  # loop: mov bx, 3
    "f7e3"  # mul bx
    "05 7b00"  # add ax, 123            0x7c0b
    "d1c0"  # rol ax, 1
    "8ed2"  # mov ss, dx
    "a30006"  # mov [0x600], ax
    "be0006 bf1006 51 b90800 f3a4 59"  # copies 8 bytes from 0x600 to 0x610
    "e6e9"  # out 0xe9, al
    "e460"  # in al, 0x60: a status of the keyboard
    "a11006"  # mov ax, [0x610]
    "e2d9"  # loop                       back to mov bx, 3
    "b000 e6f4 f4"
)
ADD = 0x7C0B


def machine(kind: str, patch: dict[int, int] | None = None) -> Machine:
    """`kind`: "kvm", or the threshold of the translator."""
    if kind == "kvm":
        try:
            made = Machine("1M", backend="kvm")
        except KvmpyError as error:
            pytest.skip(str(error))
    else:
        from kvmpy.soft.backend import SoftBackend

        made = Machine("1M", backend=SoftBackend(clock="virtual", translate=int(kind)), clock="virtual")
    made.memory.write(START, CODE)
    for address, byte in (patch or {}).items():
        made.memory.write(address, bytes([byte]))
    registers = made.cpu[0].registers
    registers.cs = {"base": 0, "selector": 0}
    registers.rip, registers.rsp, registers.rflags, registers.rdx = START, 0x7000, 2, 0
    return made


@pytest.fixture
def compare():
    """compare(left, right, by=..., stride=...) gives the Result."""
    machines: list[Machine] = []

    def run(left: Machine, right: Machine, by: str = "exit", stride: int = 1, count: int | None = None) -> Result:
        machines.extend((left, right))
        stepped = by == "instruction" and left.vm.name != right.vm.name
        sides = [Side(name, one, stepped=stepped) for name, one in (("left", left), ("right", right))]
        return Lockstep(*sides, by=by, stride=stride).run(count, timeout=50)

    yield run
    for one in machines:
        one.close()


@pytest.mark.parametrize("by, stride, records", [("exit", 1, 401), ("instruction", 1, None), ("instruction", 37, None)])
def test_translated_code_does_what_the_interpreter_does(compare, by, stride, records):
    result = compare(machine("0"), machine("2"), by, stride)
    assert result.difference is None and result.end == str(GuestExit(0))
    assert result.records >= 3400 // stride if records is None else result.records == records + 1


@pytest.mark.parametrize("by", ["exit", "instruction"])
def test_kvm_does_what_the_software_cpu_does(compare, by):
    result = compare(machine("0"), machine("kvm"), by)
    assert result.difference is None and result.end == str(GuestExit(0)), str(result.difference)
    assert result.records == 402 if by == "exit" else result.records > 2500


@pytest.mark.parametrize("kind", ["0", "2", "kvm"])
def test_a_patched_instruction_is_found_where_it_is(compare, kind):
    result = compare(machine("0"), machine(kind, {ADD + 1: 0x7C}), "instruction")
    found = result.difference
    assert found is not None and found.number == result.records == 4
    assert found.address == ADD and found.values[0] == ("rax", 126, 127)
    text = str(found)
    assert "what came before (equal on both)" in text and "mul    bx" in text
    assert "left: an instruction ended" in text and f"executed {ADD:#x}: add    ax,0x7b" in text and "add    ax,0x7c" in text


@pytest.mark.parametrize("kind", ["2", "kvm"])
def test_a_patched_instruction_shows_in_the_exits(compare, kind):
    result = compare(machine("0"), machine(kind, {ADD + 1: 0x7C}), "exit")
    found = result.difference
    assert found is not None and found.number == 0 and found.what == "io"
    assert found.values == [("event", "outb 0xe9 <- 0xfc", "outb 0xe9 <- 0xfe")] or "outb 0xe9 <- 0xfc" in found.values[0][1]


def test_a_long_record_is_narrowed_to_the_instruction(compare):
    made: list[Machine] = []

    def make(stride: int) -> Lockstep:
        left, right = machine("0"), machine("2", {ADD + 1: 0x7C})
        made.extend((left, right))
        return Lockstep(Side("left", left), Side("right", right), by="instruction", stride=stride)

    try:
        result = narrowed(make, 512, timeout=50)
        assert result.difference is not None and result.difference.address == ADD
    finally:
        for one in made:
            one.close()


RDMSR = bytes.fromhex("66b978560000 0f32 e6e9 f4")  # mov ecx, 0x5678; rdmsr; out 0xe9, al; hlt


@pytest.mark.parametrize("by, number, address", [("exit", 0, 0x7C06), ("instruction", 1, 0x7C06)])
def test_another_answer_of_an_msr(compare, by, number, address):
    sides = []
    for value in (0x11, 0x12):
        one = machine("0")
        one.memory.write(START, RDMSR)
        one.on_msr(lambda vcpu, index, written, value=value: value)
        sides.append(one)
    found = compare(*sides, by).difference
    assert found is not None and (found.number, found.address) == (number, address)
    if by == "exit":
        assert found.what == "msr" and "0x11" in found.values[0][1] and "0x12" in found.values[0][2]
    else:
        assert found.values == [("rax", 0x11, 0x12)]


def test_memory_that_differs_unread(compare):
    found = compare(machine("0"), machine("0", {0x5432: 0x99})).difference
    assert found is not None and found.values[0][0] == "memory 0x5432" and found.values[0][2].startswith("99")


def test_another_end(compare):
    right = machine("0")
    right.memory.write(START + len(CODE) - 4, b"\x05")  # mov al, 5 before the exit
    found = compare(machine("0"), right).difference
    assert found is not None and "0xf4 <- 0x5" in found.values[0][2]


def test_a_count_and_a_halt(compare):
    assert compare(machine("0"), machine("0"), count=7) == Result(7, None, "7 records")
    sides = [machine("0"), machine("0")]
    for one in sides:
        one.memory.write(START, b"\xfa\xf4")
    result = compare(*sides)
    assert result.difference is None and result.end.startswith("halted")


def test_one_cpu_each():
    with Machine("1M", cpus=2, backend="soft") as two, pytest.raises(ConfigError, match="one CPU each"):
        Side("two", two)


def test_traces(tmp_path):
    paths = []
    for number, patch in enumerate(({}, {}, {ADD + 1: 0x7C})):
        path = tmp_path / f"{number}.trace"
        with machine("0", patch) as one, one.trace_file(path, "io"):
            assert one.run(20) == GuestExit(0)
        paths.append(path)

    def events(index):
        return BinaryFile(open(paths[index], "rb"), str(paths[index]))

    count, lines = compare_traces(events(0), events(1), ("a", "b"))
    assert count > 400 and lines == []
    count, lines = compare_traces(events(0), events(2), ("a", "b"))
    assert count == 0 and lines[0] == "difference in event 0" and lines[1].startswith("a: cpu0") and "value: 0xfc against 0xfe" in lines[3]
    paths[1].write_bytes(paths[1].read_bytes()[:-81])
    with pytest.raises(TraceError):
        compare_traces(events(0), events(1), ("a", "b"))
