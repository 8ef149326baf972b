"""A machine under test: expectations, places to run to, exit codes, the limit of time."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from kvmpy import ConfigError, GuestExit, Stopped
from kvmpy.testing.console import Console, compiled
from kvmpy.testing.machine import GuestError, GuestMachine

from .sources import COUNTING, TALK

LOOP = "1: jmp 1b"
LINUX = Path(__file__).resolve().parents[2] / ".cache" / "guests" / "vmlinuz"


def test_a_conversation(machine: Any, assemble: Any) -> None:
    machine.load(assemble(TALK))
    version = machine.expect(r"version (?P<major>\d+)\.(\d)")
    assert version["major"] == "12" and version[2] == "5" and version.before == "kernel " and str(version) == "version 12.5"
    machine.expect("login: ")
    machine.send("root\n")
    machine.run_until("shell")
    assert str(machine.where()).startswith("shell")
    machine.expect("# ")
    machine.send("ls\nq")
    machine.expect("ls\n# q")
    assert machine.exit_code == 0 and machine.verdict == GuestExit(0)


def test_what_was_written_before_counts(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble(TALK))
    soft_machine.expect("login: ")
    with pytest.raises(GuestError, match="no match for 'kernel'"):  # it is behind us
        soft_machine.expect("kernel", timeout=0.1)
    soft_machine.send("a\nxyz\nq")
    assert soft_machine.run() == GuestExit(0)
    soft_machine.expect("xyz")
    with pytest.raises(GuestError, match=r"the guest ended \(guest exit, status 0\)"):
        soft_machine.expect("never")


def test_an_expectation_stops_the_guest_at_once(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble(TALK))
    soft_machine.expect("ver")
    assert soft_machine.output.text == "kernel ver"


def test_a_failed_expectation_shows_the_output(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble(TALK))
    with pytest.raises(GuestError) as caught:
        soft_machine.expect("passwd:", timeout=0.2)
    assert "stopped: timeout after 0.2 s" in str(caught.value) and "login: " in str(caught.value)


def test_all_calls_share_the_time(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble(LOOP))
    soft_machine.timeout = 0.4
    began = time.monotonic()
    assert soft_machine.run(timeout=0.1) == Stopped("timeout")
    with pytest.raises(GuestError, match=r"the guest gave no exit code: stopped: timeout after 0\.4 s"):
        _ = soft_machine.exit_code
    assert soft_machine.left == 0
    with pytest.raises(GuestError):
        soft_machine.expect("x")
    assert time.monotonic() - began < 5


def test_exit_codes(machine: Any, assemble: Any) -> None:
    machine.load(assemble("mov $0x12345678, %eax\nmov $0xf4, %dx\nout %eax, %dx"))
    assert machine.exit_code == 0x12345678
    machine.load(assemble("mov $0x3400, %ax\nmov $0x604, %dx\nout %ax, %dx"))
    assert machine.exit_code == 0  # powered off
    machine.load(assemble("cli\nhlt"))
    with pytest.raises(GuestError, match="no exit code: halted"):
        _ = machine.exit_code


def test_places(machine: Any, assemble: Any) -> None:
    machine.load(assemble(COUNTING, "flat32", flags=("-DLAST=100",)))
    again = machine.symbol("again")
    machine.run_until("_start")
    assert machine.cpu[0].registers.rip == machine.symbol("_start")
    for turn in range(1, 4):
        machine.run_until(again)
        assert machine.cpu[0].registers.rip == again and machine.cpu[0].registers.rcx == turn - 1
    machine.run_until("done")
    assert machine.cpu[0].registers.rcx == 100
    with pytest.raises(GuestError, match=r"again not reached: guest exit, status 0; the guest is at done\+"):
        machine.run_until("again")


def test_a_number_of_instructions(machine: Any, assemble: Any) -> None:
    machine.load(assemble(COUNTING, "flat32", flags=("-DLAST=500",)))
    machine.run_until(instructions=1)
    assert machine.cpu[0].registers.rip == machine.symbol("again")
    machine.run_until(instructions=4 * 100)
    assert machine.cpu[0].registers.rip == machine.symbol("again") and machine.cpu[0].registers.rcx == 100
    machine.run_until(instructions=3)
    assert str(machine.where()).startswith("again+")
    assert machine.exit_code == 0
    with pytest.raises(GuestError, match="5 instructions not reached"):
        machine.load(assemble("out %al, $0xf4\nnop\nnop\nnop\nnop\nnop"))
        machine.run_until(instructions=5, timeout=1)


def test_counting_goes_on_over_exits(machine: Any, assemble: Any) -> None:
    machine.load(assemble("mov $200, %ecx\n1: in $0x80, %al\nloop 1b\nout %al, $0xf4", "flat32"))
    machine.run_until(instructions=1 + 2 * 50)
    assert machine.cpu[0].registers.rcx == 150


def test_exits(machine: Any, assemble: Any) -> None:
    machine.load(assemble(TALK))
    machine.run_until(exit="io")
    assert machine.output.text == "k"
    machine.run_until(exit="io:0x3f8")
    assert machine.output.text == "ke"
    machine.run_until(exit="io:0x3fd")  # it waits for input
    assert machine.output.text.endswith("login: ")
    machine.load(assemble(TALK))
    machine.run_until(exit=lambda event: event.what == "io" and event.data["value"] == ord("v"))
    assert machine.output.text.endswith("kernel v")
    machine.load(assemble("mov $0xfed00000, %eax\nmov (%eax), %ebx\nout %al, $0xf4", "flat32"))
    machine.run_until(exit="mmio")
    assert machine.verdict is None
    with pytest.raises(GuestError, match="exit msr not reached"):
        machine.run_until(exit="msr")


def test_exceptions_are_exits_of_the_software_cpu(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble("nop\nfault: ud2", "flat32"))
    soft_machine.run_until(exit="exception:6")
    assert str(soft_machine.where()).startswith("fault")


@pytest.mark.slow
@pytest.mark.skipif(not LINUX.is_file(), reason="the real guests are not here: make linux")
def test_linux(make_machine: Any) -> None:
    machine = make_machine(timeout=120, memory="256M")
    machine.load(LINUX, initrd=LINUX.with_name("initrd.cpio.gz"), append="console=ttyS0")
    assert (machine.expect(r"Linux version (\d+)\.")[1] or "0") >= "5"
    assert machine.expect(r"\[ +(\d+\.\d+)\] Command line: (.*?)\r\n")[2].endswith("console=ttyS0")
    machine.run_until(exit="io:0x3f8[write]")
    assert machine.verdict is None and machine.used < machine.timeout


def test_words_that_are_wrong(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble("hlt"))
    for wrong in ({}, {"place": 1, "exit": "io"}):
        with pytest.raises(ConfigError, match="one of a place, exit=, instructions="):
            soft_machine.run_until(**wrong)
    with pytest.raises(ConfigError, match="no symbol 'nowhere'"):
        soft_machine.run_until("nowhere")
    with pytest.raises(ConfigError, match="0 instructions"):
        soft_machine.run_until(instructions=0)
    with pytest.raises(ConfigError, match="expect: None is no regular expression"):
        soft_machine.expect(None)
    with pytest.raises(ConfigError, match="send: 5: text or bytes"):
        soft_machine.send(5)
    with pytest.raises(GuestError, match="named no moment 'boot'; it named none"):
        soft_machine.elapsed("boot", "shell")
    for option in ("disks", "net", "devices"):
        with pytest.raises(ConfigError, match=rf"{option}='one': a list is wanted: {option}=\['one'\]"):
            GuestMachine(**{option: "one"})
    with pytest.raises(ConfigError, match="serial: a machine under test has its own"):
        GuestMachine(serial="stdio")
    with pytest.raises(ConfigError, match="timeout 0"):
        GuestMachine(timeout=0)


def test_counting_and_places_end_in_time(machine: Any, assemble: Any) -> None:
    machine.load(assemble(LOOP + "\nnever: nop"))
    for wanted in ({"instructions": 10**12}, {"place": "never"}, {"exit": "io"}):
        began = time.monotonic()
        with pytest.raises(GuestError, match=r"not reached: stopped: timeout after 0\.2 s; the guest is at "):
            machine.run_until(**wanted, timeout=0.2)
        assert time.monotonic() - began < 5


def test_a_reset_begins_anew(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble("mov $'!', %al\nmov $0x3f8, %dx\nout %al, %dx\nout %al, $0xf4"))
    assert soft_machine.exit_code == ord("!")
    soft_machine.reset()
    assert soft_machine.verdict is None and soft_machine.exit_code == ord("!") and soft_machine.output.text == "!!"


def test_a_new_image_begins_anew(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble(TALK))
    soft_machine.expect("kernel")
    soft_machine.load(assemble("mov $'!', %al\nmov $0x3f8, %dx\nout %al, %dx\nout %al, $0xf4"))
    assert soft_machine.verdict is None and soft_machine.expect(".")[0] == "!"


SUM = """\
        mov     $0x3f8, %dx
        mov     $text, %si
next:   lodsb
        test    %al, %al
        jz      done
        out     %al, %dx
        mov     $300, %cx
wait:   loop    wait
        jmp     next
done:   in      $0x80, %al
        jmp     done
text:   .asciz  "sum 4200"
"""


@pytest.mark.parametrize("clock", ["host", "virtual"])
def test_a_match_that_could_be_longer_waits(make_machine: Any, assemble: Any, clock: str) -> None:
    machine = make_machine(clock=clock)
    machine.load(assemble(SUM))
    assert machine.expect(r"sum (\d+)")[1] == "4200"
    again = make_machine(clock=clock)
    again.load(assemble(SUM))
    again.expect("sum 4")
    assert again.output.text == "sum 4"
    assert again.expect(r"\d*")[0] == "200"
    if clock == "virtual":  # silence is the machine's, and ends at the same instruction
        assert again.cpu[0].vcpu.statistics()["instructions"] == machine.cpu[0].vcpu.statistics()["instructions"]


@pytest.mark.parametrize("pattern", ["b+c", b"b+c", re.compile("B+C", re.I), re.compile(rb"b+c")])
def test_kinds_of_patterns(pattern: Any) -> None:
    console = Console()
    console.write(b"aabbc\r\n")
    found = console.find(compiled(pattern))
    assert found is not None and found[0] == "bbc" and found.before == "aa" and console.position == 5


def test_long_output_is_searched_in_linear_time() -> None:
    console = Console()
    hits: list[int] = []
    console.watch_for(compiled("never comes"), lambda: hits.append(1))
    began = time.monotonic()
    for _ in range(20000):
        console.write(b"." * 10)  # 200 kB
    assert time.monotonic() - began < 5 and not hits
    # A match much longer than what is searched at each write.
    console.watch_for(compiled(re.compile(rb"<.*>", re.DOTALL)), open=lambda: hits.append(1))
    console.write(b"<" + b"x" * 10000)
    for _ in range(300000):
        console.write(b">")
        if hits:
            break
    assert hits and console.find(compiled(re.compile(rb"<.*>", re.DOTALL)))
