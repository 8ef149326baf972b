"""Interrupts of the devices as a guest takes them, on every backend of this host."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from kvmpy.errors import KvmpyError
from kvmpy.verdicts import GuestExit

SOURCE = Path(__file__).with_name("interrupts.S")


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    if not shutil.which("gcc") or not shutil.which("objcopy"):
        pytest.skip("no gcc and objcopy")
    at = tmp_path_factory.mktemp("guest")
    subprocess.run(["gcc", "-m32", "-c", SOURCE, "-o", at / "x.o"], check=True, timeout=60)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", at / "x.o", "-o", at / "x"], check=True, timeout=60)
    subprocess.run(["objcopy", "-O", "binary", at / "x", at / "x.bin"], check=True, timeout=60)
    return (at / "x.bin").read_bytes()


@pytest.mark.parametrize("backend", ["kvm", "soft"])
def test_serial_keyboard_and_clock_by_interrupt(backend, code):
    from kvmpy.machine import Machine

    if backend == "soft" and importlib.util.find_spec("kvmpy.soft.backend") is None:
        pytest.skip("the software CPU is not built")
    try:
        machine = Machine("1M", backend=backend)
    except KvmpyError as error:
        pytest.skip(str(error))
    with machine:
        machine.memory.write(0x7C00, code)
        registers = machine.cpu[0].registers
        registers.cs = {"selector": 0, "base": 0}
        registers.rip, registers.rsp, registers.rflags = 0x7C00, 0x7000, 2

        def go():
            machine.serial.send("one character time-out, then more than one FIFO holds!")
            machine.board.keyboard_controller.type("Ab\n")

        machine.serial.watch("ready\n", go)
        assert machine.run(20) == GuestExit(42), machine.statistics
        assert machine.serial.text == "ready\none character time-out, then more than one FIFO holds!"
