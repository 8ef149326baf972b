"""Real gdb in batch mode: one session from the reset vector through every mode to user mode; points, steps, threads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmpy import GuestExit, Machine
from tests.debug.gdb.stub import BLOBS, answers, gdb, needs_binutils, needs_gdb

pytestmark = [needs_gdb, needs_binutils]


@pytest.fixture
def machine(modes: tuple[Path, Path]):
    with Machine(memory="16M", backend="soft", disks=[f"{modes[1]},readonly"]) as machine:
        machine.load(None)
        yield machine


def test_one_session_from_the_reset_vector_to_user_mode(machine: Machine, modes: tuple[Path, Path]) -> None:
    output, verdict = gdb(machine, [
        "info registers rip cs cs_base", "monitor disas 1",
        "break *0x7c00", "continue", "break far_code", "break protected_start", "break long_start", "break user_start",
        "continue", "info registers rip cs cs_base ip", "continue", "info registers cr0", "continue", "info registers efer cr4 cs",
        "continue", "print/x $cs", "stepi", "x/i $pc", "print/x $xmm0", "monitor info tlb",
        "break finish", "continue", "print *(int*)&counter", "continue",
    ], modes[0])  # fmt: skip
    said = answers(output)
    assert "0xfffffff0" in said["info registers rip cs cs_base"] and "jmp    0xf000:" in said["monitor disas 1"]
    stops = said["continue"]
    for place in ("real_start ()", "far_code ()", "protected_start ()", "long_start ()", "user_start ()", "finish ()"):
        assert place in stops, output
    assert re.search(r"rip +0x7c14 .*\ncs +0x7c0 .*\ncs_base +0x7c00 .*\nip +0x14 ", said["info registers rip cs cs_base ip"])
    assert "[ PE ET ]" in said["info registers cr0"]
    assert "[ LME LMA ]" in said["info registers efer cr4 cs"]
    assert "0x2b" in said["print/x $cs"]
    assert "pxor" in said["x/i $pc"]
    assert "000000000000  urwx" in said["monitor info tlb"]
    assert "= 3" in said["print *(int*)&counter"]
    assert "exited with code 025" in stops
    assert verdict == GuestExit(21)
    assert "reply is too long" not in output and "Cannot" not in output


def test_watchpoints_and_steps_over_timer_interrupts(machine: Machine, modes: tuple[Path, Path]) -> None:
    output, verdict = gdb(machine, [
        "break user_loop", "continue", "delete", "watch *(int*)&counter", "continue", "delete",
        "set var *(int*)&counter = -1000", "rwatch *(int*)&shared", "continue", "delete", "awatch *(int*)&shared", "continue", "delete",
        *["stepi"] * 40, "print *(int*)&counter", "break system_call", "continue", "continue", "print *(int*)&ticks > 0",
        "delete", "set var *(int*)&counter = 2", "continue",
    ], modes[0])  # fmt: skip
    said = answers(output)
    assert "Old value = 0" in said["continue"] and "New value = 1" in said["continue"]
    assert "Hardware read watchpoint" in said["continue"] and "Hardware access (read/write) watchpoint" in said["continue"], output
    assert "timer" not in said["stepi"], "a step ended in the timer's handler"
    assert said["stepi"].count("\n") >= 40
    assert "= -99" in said["print *(int*)&counter"]
    assert "= 1" in said["print *(int*)&ticks > 0"]
    assert verdict == GuestExit(21)


def test_partial_reads_end_at_unmapped_pages(machine: Machine, modes: tuple[Path, Path]) -> None:
    output, _ = gdb(machine, ["break user_start", "continue", "x/4xb 0x1ffffe", "kill"], modes[0])
    assert "0x1ffffe:\t0x00\t0x00" in output and "Cannot access memory at address 0x200000" in output


def test_a_32_bit_image_gets_a_32_bit_description() -> None:
    with Machine(memory="32M", backend="soft") as machine:
        machine.load(BLOBS / "hello32.elf")
        output, verdict = gdb(machine, ["info registers eip", "stepi", "break *$pc", "continue"], BLOBS / "hello32.elf")
    assert "eip            0x" in output, output
    assert "reply is too long" not in output
    assert verdict == GuestExit(0)
