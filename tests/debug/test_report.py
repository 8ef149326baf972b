"""Reports of crashed guests: the page walk that tells why a triple fault happened."""

import importlib
from pathlib import Path

import pytest

from kvmpy.debug.report import crash_data, crash_lines
from kvmpy.errors import KvmpyError
from kvmpy.machine import Machine
from kvmpy.regs import identity_map, set_long_mode
from kvmpy.verdicts import Crashed
from tests.debug.build import compile_c, needs_gcc


@pytest.fixture(params=["kvm", "soft"])
def crashed(request):
    """A 64-bit guest that reads where nothing is mapped, with an IDT of no gates."""
    if request.param == "soft" and not hasattr(importlib.import_module("kvmpy.soft"), "SoftBackend"):
        pytest.skip("the software CPU is not built")
    try:
        machine = Machine("1M", backend=request.param)
    except KvmpyError as error:
        pytest.skip(str(error))
    with machine:
        machine.memory.write(0x1000, identity_map(0x1000))
        machine.memory.write(0x8000, b"\x48\x8b\x03\xf4")  # mov rax, [rbx]
        vcpu = machine.cpu[0].vcpu
        sregs = vcpu.get_sregs()
        set_long_mode(sregs, 0x1000)
        sregs.idt.limit = 0
        vcpu.set_sregs(sregs)
        registers = machine.cpu[0].registers
        registers.rip, registers.rbx, registers.rsp, registers.rflags = 0x8000, 0x123456789000, 0x9000, 2
        verdict = machine.run(20)
        assert verdict == Crashed(0x8000, "triple fault")
        yield machine, verdict


def test_lines(crashed):
    lines = crash_lines(*crashed)
    assert lines[0].startswith("rip 0000000000008000") and "64-bit, CPL 0, paging 4-level" in lines[0]
    assert any(line.startswith("=> 8000: 48 8b 03") for line in lines)
    assert "page walk of 0x123456789000 (4-level paging)" in lines
    assert "  not mapped: the PML4 entry is not present" in lines


def test_data(crashed):
    data = crash_data(*crashed)
    assert data["registers"]["cr2"] == 0x123456789000 and data["instruction"]["bytes"].startswith("48 8b 03")
    walks = {walk["linear"]: walk for walk in data["page_walks"]}
    assert walks[0x8000]["gpa"] == 0x8000 and walks[0x123456789000]["gpa"] is None


@needs_gcc
def test_the_callers_of_what_crashed(tmp_path: Path) -> None:
    source = tmp_path / "crash.c"
    source.write_text("""
        static volatile int depth;
        __attribute__((noinline)) void fail(void) { depth++; asm volatile("ud2"); depth--; }
        __attribute__((noinline)) void middle(void) { fail(); depth++; }
        void _start(void) { middle(); for (;;) depth++; }
    """)
    with Machine("8M", backend="soft") as machine:
        verdict = machine.load(compile_c(source, tmp_path, 64)).run(10)
        assert isinstance(verdict, Crashed)
        lines = crash_lines(machine, verdict)
        at = lines.index("called from")
        assert " middle+" in lines[at + 1] and " _start+" in lines[at + 2]
        assert crash_data(machine, verdict)["called_from"] == lines[at + 1 : at + 3]
