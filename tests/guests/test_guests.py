"""Every guest of guests/ on every backend of this host: it states its own verdict, and its serial output is looked at."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kvmpy.errors import KvmpyError
from kvmpy.kvm.probe import ask, unavailable
from kvmpy.machine import Machine
from kvmpy.verdicts import GuestExit

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "guests"
SECONDS = 50
SKIPPED = 77  # a guest's own word that there is nothing for it to test here


@dataclass(frozen=True)
class Guest:
    """A guest file, how to start it, what it must print, and what it needs of a KVM (names of kvmpy.kvm.probe)."""

    file: str
    lines: tuple[str, ...]
    needs: tuple[str, ...] = ()
    name: str = ""
    boot: str | None = None
    append: str = ""
    memory: str = "64M"
    cpus: int = 1
    cpu: str = "max"
    disk: bool = False
    input: Callable[[Machine], None] | None = None
    backends: tuple[str, ...] = ("soft", "kvm")
    clock: str = "host"
    optional: tuple[tuple[str, str], ...] = ()
    """What KVM may lack, and the word that tells the guest."""

    def __str__(self) -> str:
        return self.name or self.file.partition(".")[0]


def _all_good(name: str) -> str:
    return f"{name}: all "


def _type(machine: Machine) -> None:
    """Input at once and, when the guest listens, more."""
    serial: Any = machine.serial
    serial.watch("ready\n", lambda: serial.send("the quick brown fox, 0123456789; longer than one FIFO!"))


WATCH, RING3, SPLIT = ("watchpoint_kernel", "no-watch"), ("int_n_from_user", "no-ring3"), ("cpl0_on_hardware", "no-split")
BOTH = (WATCH, RING3)
WAYS = ("int_n_from_user", "no-int"), ("syscall_from_user", "no-syscall"), ("cpl0_on_hardware", "no-flags")

GUESTS = [
    Guest("hello64.elf", ("Hello from 64-bit mode!", "2262 primes below 20000", "Goodbye: all is well."), append="one two=2"),
    Guest("hello64.elf", ("Hello from 64-bit mode!", "Goodbye: all is well."), name="hello64-elf", boot="elf"),
    Guest("hello64.elf", ("Hello from 64-bit mode!", "Goodbye: all is well."), name="hello64-virtual", clock="virtual", backends=("soft",)),
    Guest("hello32.elf", ("Hello from 32-bit protected mode", _all_good("hello32"))),
    Guest("hello32.elf", ("Hello from 32-bit protected mode", _all_good("hello32")), name="hello32-elf", boot="elf"),
    Guest("hello16.bin", ("Hello from real mode", "hello16: all checks good")),
    Guest("hello16.bin", ("Hello from real mode", "hello16: all checks good"), name="hello16-sector", boot="sector"),
    Guest("multiboot1.elf", ("Hello from multiboot 1", "one=1", _all_good("multiboot1")), append="one=1"),
    Guest("multiboot2.elf", ("Hello from multiboot 2", 'command line "one=1"', _all_good("multiboot2")), append="one=1"),
    Guest("traps64.elf", ("64-bit mode", _all_good("traps")), optional=(WATCH,)),
    Guest("traps32.elf", ("32-bit mode, no paging", _all_good("traps")), optional=BOTH),
    Guest("traps32.elf", ("two-level paging", _all_good("traps")), ("paging32",), "traps32-legacy", append="legacy", optional=BOTH),
    Guest("traps32.elf", ("32-bit mode, PAE", _all_good("traps")), ("paging_pae",), "traps32-pae", append="pae", optional=BOTH),
    Guest("paging64.elf", ("64-bit mode", _all_good("paging")), optional=(SPLIT,)),
    Guest("paging32.elf", ("two-level paging", _all_good("paging")), ("paging32",), optional=(SPLIT, RING3)),
    Guest("paging32.elf", ("PAE", _all_good("paging")), ("paging_pae",), "paging32-pae", append="pae", optional=(SPLIT, RING3)),
    Guest("user64.elf", ("CPL 3 and back", _all_good("user")), optional=WAYS),
    Guest("user32.elf", ("CPL 3 and back", _all_good("user")), ("int_n_from_user",), optional=WAYS),
    Guest("smp.elf", ("1 processors", _all_good("smp")), name="smp1"),
    Guest("smp.elf", ("2 processors", _all_good("smp")), name="smp2", cpus=2),
    Guest("smp.elf", ("4 processors", _all_good("smp")), name="smp4", cpus=4, backends=("soft",)),
    Guest("smp.elf", ("3 processors", _all_good("smp")), name="smp-virtual", cpus=3, clock="virtual", backends=("soft",)),
    Guest("segments.elf", ("call gate", _all_good("segments")), optional=(RING3,)),
    Guest("tasks.elf", ("task gate", _all_good("tasks"))),
    Guest("vm86.elf", ("PUSHF traps", _all_good("vm86")), ("int_n_from_user",)),
    Guest("fpu64.elf", ("square root of 2", "SQRTPD", _all_good("fpu"))),
    Guest("fpu32.elf", ("square root of 2", "SQRTPD", _all_good("fpu"))),
    Guest("fpu64.elf", ("SQRTPD", "no AVX here", _all_good("fpu")), name="fpu-v1", cpu="x86-64-v1", backends=("soft",)),
    Guest("ports.elf", ("REP OUTSB to COM1", _all_good("ports")), optional=(("hypercall", "no-hypercall"),)),
    Guest("disk16.bin", ("Hello from a boot sector by the BIOS", "disk16: all checks good")),
    Guest("disk16.bin", ("Hello from a boot sector by the BIOS", "disk16: all checks good"), name="disk16-disk", disk=True),
    Guest("segments16.bin", ("segments16: all checks good",)),
    Guest("smc64.elf", (_all_good("smc"),)),
    Guest("smc32.elf", (_all_good("smc"),)),
    Guest("echo.elf", ("ready", "THE QUICK BROWN FOX, 0123456789; LONGER THAN ONE FIFO!", _all_good("echo")), input=_type),
    Guest("timers.elf", ("RTC: 102 ticks", "20 periods", _all_good("timers"))),
    Guest("timers.elf", ("20 periods", _all_good("timers")), name="timers-virtual", append="exact", clock="virtual", backends=("soft",)),
]


@cache
def built() -> str:
    """Builds the guests; why not, if not."""
    for tool in ("make", "gcc", "ld"):
        if not shutil.which(tool):
            return f"{tool} is missing"
    done = subprocess.run(["make", "-s", "guests"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return ""


def _cases() -> list[Any]:
    return [pytest.param(guest, backend, id=f"{guest}-{backend}") for guest in GUESTS for backend in guest.backends]


@pytest.mark.parametrize(("guest", "backend"), _cases())
def test_guest(guest: Guest, backend: str) -> None:
    if why := built():
        pytest.skip(why)
    if backend == "kvm":
        if why := unavailable():
            pytest.skip(why)
        for need in guest.needs:
            if not ask(need):
                pytest.skip(f"this host's KVM lacks {need}")
    image = BUILD / guest.file
    try:
        machine = Machine(guest.memory, guest.cpus, guest.cpu, backend=backend, clock=guest.clock, disks=[image] if guest.disk else [])
    except KvmpyError as error:
        pytest.skip(str(error))
    lacking = [word for capability, word in guest.optional if backend == "kvm" and not ask(capability)]
    with machine:
        machine.load(None if guest.disk else image, guest.boot, append=" ".join([guest.append, *lacking]).strip())
        if guest.input is not None:
            guest.input(machine)
        verdict = machine.run(SECONDS)
        output = machine.serial.text
        if verdict == GuestExit(SKIPPED):
            pytest.skip(output.splitlines()[-1])
        assert verdict == GuestExit(0), f"{verdict}\n{output}\n{machine.statistics}"
        for line in guest.lines:
            assert line in output, output
