"""Whole machines whose vCPUs run in parallel: the guest programs, how runs end, and what is refused."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from kvmpy import ConfigError, Crashed, GuestExit, Halted, Machine, MissingCapability, Stopped
from kvmpy.cli.main import main
from kvmpy.soft import SoftBackend
from kvmpy.trace.binary import BinaryFile
from tests.guests.test_guests import built
from tests.soft.system_guest import assemble, timer_ticks

GUESTS = Path(__file__).parents[2] / "build/guests"
SECONDS = 30


@pytest.fixture
def smp_guest() -> Path:
    if why := built():
        pytest.skip(why)
    return GUESTS / "smp.elf"


def machine_of(code: str, cpus: int = 1, **options: object) -> Machine:
    """A flat 16-bit program at 0x7c00 on the first vCPU; the others wait."""
    made = Machine("16M", cpus, backend="soft", parallel=True, **options)  # type: ignore[arg-type]
    try:
        made.memory.write(0x7C00, assemble(code, 16, 0x7C00))
        cpu = made.cpu[0]
        sregs = cpu.vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        cpu.vcpu.set_sregs(sregs)
        regs = cpu.vcpu.get_regs()
        regs.rip = 0x7C00
        regs.rflags = 2
        cpu.vcpu.set_regs(regs)
    except BaseException:
        made.close()
        raise
    return made


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("translate", ["1", "on", "off"])
def test_the_smp_guest(smp_guest: Path, cpus: int, translate: str) -> None:
    with Machine("64M", cpus, backend="soft", parallel=True, translate=translate) as machine:
        verdict = machine.load(smp_guest).run(SECONDS)
        assert verdict == GuestExit(0) and f"{cpus} processors" in machine.serial.text, machine.serial.text


def test_a_limit_of_time_and_going_on() -> None:
    with machine_of("1: jmp 1b") as machine:
        assert machine.run(0.2) == Stopped("timeout")
        assert machine.run(0.2) == Stopped("timeout")


def test_ctrl_c_ends_the_run() -> None:
    with machine_of("1: jmp 1b", cpus=2) as machine:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            machine.run(SECONDS)
        timer.join()
        assert machine.run(0.1) == Stopped("timeout")


def test_all_halted_without_interrupts() -> None:
    with machine_of("cli\n hlt", cpus=2) as machine:
        assert machine.run(SECONDS) == Halted()


def test_a_triple_fault_of_one_ends_all() -> None:
    with machine_of("lidt 0x7d00\n ud2\n .org 0x100\n .zero 16", cpus=3) as machine:
        assert isinstance(machine.run(SECONDS), Crashed)


def test_a_timer_wakes_a_halted_vcpu() -> None:
    """The 8254's channel 0 at 1 kHz, 20 ticks through the 8259."""
    code = f"""
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7000, %sp
    movw $tick, 0x80
    movw $0, 0x82
    {timer_ticks(1193)}
    xor %cx, %cx
    sti
1:  hlt
    cmp $20, %cx
    jb 1b
    mov $0x2000, %ax
    cli
    hlt
tick:
    inc %cx
    mov $0x20, %al
    out %al, $0x20
    iret
    """
    with machine_of(code, cpus=2) as machine:
        assert machine.run(SECONDS) == Halted()
        assert machine.cpu[0].vcpu.get_regs().rcx & 0xFFFF >= 20  # one may come before CLI


def test_what_needs_turns_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="virtual time counts instructions of vCPUs in turns"):
        Machine("1M", backend="soft", clock="virtual", parallel=True)
    with Machine("1M", 2, backend="soft", parallel=True) as machine:
        with pytest.raises(ConfigError, match="coverage is recorded of vCPUs in turns: leave parallel out"):
            machine.coverage.start()
        with pytest.raises(MissingCapability, match="instruction: vCPUs in parallel take no answer to it"):
            machine.trace("instruction", print)
        with pytest.raises(MissingCapability, match="cpuid: vCPUs in parallel take no answer to it"):
            next(machine.events("cpuid"))
    with pytest.raises(ConfigError, match="parallel: the backend is made already"):
        Machine("1M", backend=SoftBackend(), parallel=True)
    assert main(["run", "--smp", "2,sideways", str(tmp_path)]) != 0
    assert "N or N,parallel is wanted" in capsys.readouterr().err


def test_the_command_line(smp_guest: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-q", "--backend", "soft", "--smp", "2,parallel", "--timeout", "30", str(smp_guest)]) == 0
    assert "2 processors" in capfd.readouterr().out


def test_msrs_are_traced(smp_guest: Path) -> None:
    with Machine("64M", 2, backend="soft", parallel=True) as machine:
        machine.load(smp_guest)
        with machine.trace("msr") as trace:
            assert machine.run(SECONDS) == GuestExit(0)
        assert any(event.what == "msr" for event in trace)


def test_what_the_core_alone_sees_is_told(smp_guest: Path, tmp_path: Path) -> None:
    """To a listener and into a file, which is all that both saw, each vCPU's in order."""
    with Machine("64M", 2, backend="soft", parallel=True) as machine:
        machine.load(smp_guest)
        chosen = "irq,block,memory[write],io,mmio"
        with machine.trace(chosen) as events, machine.trace_file(tmp_path / "t", chosen):
            assert machine.run(SECONDS) == GuestExit(0)
    with open(tmp_path / "t", "rb") as file:
        saved = list(BinaryFile(file))
    for vcpu in (0, 1):
        for kinds in (("irq", "block", "memory"), ("io", "mmio")):
            told, kept = ([(e.what, e.data, e.rip) for e in some if e.vcpu == vcpu and e.what in kinds] for some in (events, saved))
            assert told == kept
    assert {(event.what, event.vcpu) for event in events} >= {("block", 0), ("block", 1), ("memory", 0), ("memory", 1), ("irq", 0)}
    assert any(event.data.get("device") == "local APIC" for event in events if event.what == "mmio")


def test_traces_come_and_go_while_it_runs(smp_guest: Path) -> None:
    for _ in range(3):
        with Machine("64M", 2, backend="soft", parallel=True) as machine:
            machine.load(smp_guest)
            found: list[object] = []
            runner = threading.Thread(target=lambda machine=machine, found=found: found.append(machine.run(SECONDS)))
            runner.start()
            seen = 0
            while runner.is_alive():
                for chosen in ("instruction", "memory", "block,irq,exception"):
                    with machine.trace(chosen) as events:
                        runner.join(0.002)
                    seen += len(events)
            assert found == [GuestExit(0)] and seen > 100
