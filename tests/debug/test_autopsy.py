"""Autopsies: why a guest crashed, hangs or does not end, said of guests whose trouble is known."""

import importlib
import json
from pathlib import Path

import pytest

from kvmpy.debug.autopsy.page import read
from kvmpy.errors import KvmpyError, TraceError
from kvmpy.machine import Machine
from kvmpy.native import lib
from kvmpy.regs import identity_map, set_long_mode
from kvmpy.trace.answers import Fault
from kvmpy.verdicts import Crashed, Halted, Stopped
from tests.debug.build import compile_c, needs_gcc

TABLES, CODE, STACK, GDT, IDT, TSS = 0x1000, 0x8000, 0x9000, 0xA000, 0xB000, 0xC000
CODE64 = 0x00AF9B000000FFFF
needs_core = pytest.mark.skipif(not hasattr(lib, "kp_vm_create"), reason="the software CPU is not built")


@pytest.fixture(params=["kvm", "soft"])
def machine(request):
    if request.param == "soft" and not hasattr(importlib.import_module("kvmpy.soft"), "SoftBackend"):
        pytest.skip("the software CPU is not built")
    try:
        machine = Machine("1M", backend=request.param)
    except KvmpyError as error:
        pytest.skip(str(error))
    with machine:
        yield machine


def long_mode(machine, code, *, idt_limit=0xFFF, tr_limit=0x67, **registers):
    """64-bit code at CODE with its own GDT; IDT and TSS as the test writes them."""
    machine.memory.write(TABLES, identity_map(TABLES))
    machine.memory.write(CODE, code)
    machine.memory.write(GDT, bytes(8) + CODE64.to_bytes(8, "little") + (0x00CF93000000FFFF).to_bytes(8, "little"))
    vcpu = machine.cpu[0].vcpu
    sregs = vcpu.get_sregs()
    set_long_mode(sregs, TABLES)
    sregs.gdt.base, sregs.gdt.limit = GDT, 0x17
    sregs.idt.base, sregs.idt.limit = IDT, idt_limit
    sregs.tr.base, sregs.tr.limit = TSS, tr_limit
    vcpu.set_sregs(sregs)
    own = machine.cpu[0].registers
    for name, value in {"rip": CODE, "rsp": STACK, "rflags": 2, **registers}.items():
        setattr(own, name, value)


def gate(machine, vector, target, selector=8, ist=0, kind=0x8E):
    low = target & 0xFFFF | selector << 16 | ist << 32 | kind << 40 | (target >> 16 & 0xFFFF) << 48
    machine.memory.write(IDT + 16 * vector, low.to_bytes(8, "little") + (target >> 32).to_bytes(8, "little"))


def section(page, title):
    """The lines below the first title that begins so."""
    lines = page.lines()
    at = next(number for number, line in enumerate(lines) if line.startswith(title))
    end = next((number for number in range(at + 1, len(lines)) if not lines[number].startswith(" ")), len(lines))
    return [line.strip() for line in lines[at + 1 : end]]


READ = b"\x48\x8b\x03\xf4"  # mov rax, [rbx]
FAR = 0x123456789000


@needs_core
def test_a_page_fault_without_an_idt(machine):
    long_mode(machine, READ, idt_limit=0, rbx=FAR)
    assert machine.run(20) == Crashed(CODE, "triple fault")
    page = machine.autopsy()
    assert page.heading == f"triple fault: #PF at {FAR:#x} (read, not mapped) at {CODE:#x}, then no IDT (limit 0x0)"
    chain = "\n".join(section(page, "exceptions that led to it"))
    assert "#PF" in chain and "met #GP" in chain and "#DF" in chain and chain.endswith("shutdown")
    assert any(line.startswith("=> 0x8000: 488b03") for line in section(page, "instructions"))
    walk = section(page, f"page walk of {FAR:#x} (4-level paging): CR2")
    assert walk[-1] == "not mapped: the PML4 entry is not present"
    data = json.loads(json.dumps(page.as_dict()))
    main = data["vcpus"][0]
    assert main["registers"]["cr2"] == FAR and main["instruction"]["bytes"].startswith("48 8b 03")
    assert {one["linear"]: one["gpa"] for one in main["page_walks"]}[FAR] is None
    assert main["exits"][-1]["reason"] == "shutdown" and main["exits"][-1]["rip"] == CODE
    assert str(read(json.dumps(data), "kept")) == str(page)
    assert machine.cpu[0].registers.rip == CODE


@needs_core
@pytest.mark.parametrize(
    "wrong, said",
    [
        ("absent", "gate 14 is not present"),
        ("data", "gate 14: selector 0x10 is not code"),
        ("stack", "the stack IST1 cannot be written"),
        ("empty", "gate 14 is empty"),
        ("beyond", "gate 14: selector 0x50 is beyond the GDT"),
    ],
)
def test_what_is_wrong_with_the_gate(machine, wrong, said):
    if wrong == "data" and machine.vm.name == "kvm":
        pytest.skip("a KVM whose instruction emulator delivers events need not check the gate's segment")
    long_mode(machine, READ, rbx=FAR)
    if wrong == "absent":
        gate(machine, 14, CODE, kind=0x0E)
    elif wrong == "data":
        gate(machine, 14, CODE, selector=0x10)
    elif wrong == "beyond":
        gate(machine, 14, CODE, selector=0x50)
    elif wrong == "stack":
        gate(machine, 14, CODE, ist=1)
        machine.memory.write_u64(TSS + 36, FAR + 0x10000)
    assert isinstance(machine.run(20), Crashed)
    page = machine.autopsy()
    assert f"#PF at {FAR:#x} (read, not mapped)" in page.heading and said in page.heading
    tables = "\n".join(section(page, "descriptor tables"))
    assert "room for 256 gates, 0 of 18 exceptions" in tables or wrong not in ("empty",)


def test_a_triple_fault_that_does_not_come_again(machine):
    long_mode(machine, b"\xe4\x99\xf4", idt_limit=0)  # in al, 99h
    machine.trace("io", lambda event: Fault(6))
    assert machine.run(20) == Crashed(CODE, "triple fault")
    page = machine.autopsy()
    if machine.vm.name == "kvm":
        assert page.heading == f"crashed: triple fault, at {CODE:#x}"
        assert section(page, "exceptions that led to it") == [
            "not known: kvm tells nothing of them, and the software CPU goes on from the same state"
        ]
    else:
        assert page.heading == f"triple fault: #UD at {CODE:#x}, then no IDT (limit 0x0)"
    assert str(read(json.dumps(page.as_dict()), "kept")) == str(page)


@needs_core
def test_a_handler_that_is_not_mapped(machine):
    long_mode(machine, READ, rbx=FAR)
    gate(machine, 14, FAR + 0x1000)
    tables = section(machine.autopsy(), "descriptor tables")
    assert f"gate 14: its handler at {FAR + 0x1000:#x} is not mapped" in tables
    assert "TSS at 0xc000: RSP0 0x0" in tables


def flat16(machine, code):
    machine.memory.write(0x7C00, code)
    own = machine.cpu[0].registers
    own.cs = {"base": 0, "selector": 0}
    own.rip, own.rsp, own.rflags = 0x7C00, 0x7C00, 2


@needs_core
def test_where_it_spins(machine):
    flat16(machine, bytes.fromhex("fa ba0002 ec a801 75fb ebf9"))  # reads port 0x200 until bit 0 is clear: nobody is there
    assert machine.run(0.4) == Stopped("timeout")
    page = machine.autopsy()
    assert "spins in 0x7c04-0x7c07 (100 % of" in page.heading
    assert "reading the same over and over: inb 0x200 -> 0xff" in page.heading
    hot = section(page, "the hottest place")
    assert any("in     al,dx" in line for line in hot) and all(line.split()[0].isdigit() for line in hot)
    assert any("0x200 (" in line for line in section(page, "counters"))
    before = machine.cpu[0].registers.as_dict()
    assert machine.autopsy().as_dict()["vcpus"][0]["registers"] == before  # looking changes nothing


def test_halted_with_interrupts_off(machine):
    flat16(machine, b"\xfa\xf4")
    assert machine.run(20) == Halted()
    heading = machine.autopsy().heading
    assert heading.startswith("halted for good: waits in HLT with interrupts off: only an NMI, INIT or a reset wakes it")


def test_halted_with_every_source_masked(machine):
    flat16(machine, bytes.fromhex("b0ff e621 fb f4 ebfd"))  # masks the 8259, then waits
    assert machine.run(0.4) == Stopped("timeout")
    page = machine.autopsy()
    assert "every source of interrupts is masked or off" in page.heading
    assert "unmasked: nothing" in section(page, "interrupts")


@needs_core
def test_an_unknown_msr_and_the_exits(machine):
    code = bytes.fromhex("b041 e6e9 66b978560000 0f32 f4")  # out 0xe9, 'A'; rdmsr 0x5678: #GP, whose handler is the HLT
    flat16(machine, code)
    machine.memory.write(4 * 13, (0x7C00 + len(code) - 1).to_bytes(4, "little"))
    machine.run(0.4)
    exits = machine.autopsy().as_dict()["vcpus"][0]["exits"]
    assert exits[0]["text"].startswith("outb 0xe9 <- 0x41 'A'") and exits[0]["reason"] == "io"


def test_nothing_has_run(machine):
    assert "the guest has not run" in str(machine.autopsy())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "vcpu": 0, "vcpus": [{}]}'])
def test_broken_files(text):
    with pytest.raises(TraceError, match=r"^kept: (not an autopsy|an autopsy of format 99)"):
        read(text, "kept")


@needs_core
def test_taken_exceptions_are_noted():
    with Machine("1M", backend="soft") as machine:
        flat16(machine, bytes.fromhex("cd21 0f0b"))  # int 0x21: handler at 0:0x500 returns; ud2: handler halts
        machine.memory.write(0x21 * 4, b"\x00\x05\x00\x00")
        machine.memory.write(6 * 4, b"\x01\x05\x00\x00")
        machine.memory.write(0x500, b"\xcf\xf4")
        assert machine.run(20) == Halted()
        first, second = machine.cpu[0].vcpu.deliveries()
        assert (first.vector, first.source, first.outcome, first.rip) == (0x21, "software", "taken", 0x7C02)
        assert (second.vector, second.source, second.outcome, second.rip) == (6, "exception", "taken", 0x7C02)
        assert section(machine.autopsy(), "last exceptions") == ["INT 0x21 at 0x7c02", "#UD at 0x7c02"]


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
        page = machine.autopsy(verdict)
        stack = section(page, "call stack")
        assert " fail+" in stack[0] and " middle+" in stack[1] and " _start+" in stack[2]
        assert page.as_dict()["vcpus"][0]["stack"] == stack
        assert "<fail+" in page.heading and page.heading.startswith("triple fault: #UD")


@needs_gcc
def test_two_cpus(tmp_path: Path) -> None:
    source = tmp_path / "wait.c"
    source.write_text("volatile int never; void wait(void) { while (!never) asm volatile(\"pause\"); } void _start(void) { wait(); }")
    with Machine("8M", cpus=2, backend="soft") as machine:
        assert machine.load(compile_c(source, tmp_path, 64)).run(0.4) == Stopped("timeout")
        page = machine.autopsy()
        assert "vCPU 0 spins in wait (100 %" in page.heading and ", called from _start+0x" in page.heading
        assert section(page, "vCPU 1")[0] == "was not started: waits for a SIPI of another CPU"
