"""Other debuggers and backends: lldb, KVM, descriptions changed in the middle of a session, the command line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmpy import ConfigError, GuestExit, Machine
from kvmpy.backends import probe_kvm
from kvmpy.debug.gdb.registers import Registers
from kvmpy.errors import MissingCapability
from tests.debug.gdb.stub import BLOBS, ROOT, answers, gdb, needs_binutils, needs_gdb

pytestmark = needs_binutils


@needs_gdb
def test_the_description_follows_in_the_middle_of_a_session(machine: Machine) -> None:
    at = {name: machine.symbol(name) for name in ("real_start", "protected_start", "long_start")}
    output, verdict = gdb(machine, [
        "monitor arch i8086", "unset tdesc filename", "show architecture", "x/1i $pc",
        f"break *{at['protected_start']}", "continue", "monitor arch i386", "unset tdesc filename", "x/2i $pc", "info registers eip",
        f"break *{at['long_start']}", "continue", "monitor arch x86-64", "unset tdesc filename", "info registers rip r8 efer",
        "stepi", "continue",
    ])  # fmt: skip
    said = answers(output)
    assert "i8086" in said["show architecture"]
    assert "ljmp   $0xf000," in said["x/1i $pc"]
    assert "mov    %eax,%ds" in said["x/2i $pc"] and f"{at['protected_start']:#x}" in said["info registers eip"]
    assert "[ LME LMA ]" in said["info registers rip r8 efer"]
    assert "too long" not in output
    assert verdict == GuestExit(21)


@pytest.mark.skipif(shutil.which("lldb") is None, reason="lldb is not installed (apt-get install lldb)")
def test_lldb(machine: Machine, modes: tuple[Path, Path]) -> None:
    server = machine.debug("127.0.0.1:0")
    commands = [
        f"gdb-remote {server.address}", "register read rip cr0", "breakpoint set -n user_loop", "continue", "register read cs xmm0",
        "stepi", "memory read 0x7c00", "register write rax 5", "register read rax", "thread list", "breakpoint delete -f", "continue",
    ]  # fmt: skip
    words = ["lldb", "--no-lldbinit", "-b"]
    for command in commands:
        words += ["-o", command]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*words, str(modes[0])], stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    try:
        verdict = machine.run(timeout=45)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert "rip = 0x00000000fffffff0" in output, output
    assert "stop reason = breakpoint 1.1" in output and "cs = 0x0000002b" in output
    assert "rax = 0x0000000000000005" in output
    assert "exited with status = 21" in output
    assert verdict == GuestExit(21)


@needs_gdb
@pytest.mark.skipif(not probe_kvm().available or not probe_kvm().breakpoint_kernel, reason="no KVM with hardware breakpoints here")
def test_kvm_from_the_reset_vector_to_64_bit_mode(modes: tuple[Path, Path]) -> None:
    user = probe_kvm().breakpoint_user and probe_kvm().int_n_from_user
    with Machine(memory="16M", backend="kvm", disks=[f"{modes[1]},readonly"]) as machine:
        machine.load(None)
        output, _ = gdb(machine, [
            "info registers rip", "hbreak *0x7c00", "continue", "stepi", "delete", "break far_code", "break protected_start",
            "break long_start", "continue", "info registers rip cs cs_base ip", "stepi", "continue", "x/1i $pc", "continue", "stepi",
            "info registers cr0 efer cs", "monitor info mode", "monitor info lapic", "monitor info exits", "delete",
            *(["break user_start", "continue", "info registers cs rip"] if user else []), "kill",
        ], modes[0])  # fmt: skip
    said = answers(output)
    assert "0xfffffff0" in said["info registers rip"]
    for place in ("real_start ()", "far_code ()", "protected_start ()", "long_start ()"):
        assert place in said["continue"], output
    assert "flat ()" in said["stepi"]
    assert "[ LME LMA ]" in said["info registers cr0 efer cs"]
    assert "64-bit, paging 4-level" in said["monitor info mode"]
    if user:
        assert "0x2b" in said["info registers cs rip"]


@needs_gdb
def test_the_command_line(modes: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "gdb.socket"
    command = [
        sys.executable, "-m", "kvmpy.cli.main", "run", "--backend", "soft", "--disk", f"{modes[1]},readonly", "--gdb", f"unix:{path}",
        "--symbols", str(modes[0]), "--timeout", "40", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        for _ in range(200):
            if path.exists():
                break
            time.sleep(0.05)
        words = ["gdb", "-nx", "-batch", "-ex", f"target remote {path}", "-ex", "break user_start", "-ex", "continue"]
        words += ["-ex", "monitor symbol user_start", "-ex", "detach", str(modes[0])]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        output, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "Breakpoint 1, user_start ()" in done.stdout, done.stdout + done.stderr
    assert "waiting for target remote" in log
    assert json.loads(output)["status"] == 21
    assert process.returncode == 21
    assert not path.exists()


def test_addresses_that_make_no_sense(machine: Machine) -> None:
    for where in ("", "unix:", "nonsense", ":99999", "no host:1"):
        with pytest.raises(ConfigError):
            machine.debug(where)
    with machine.debug(":0") as server:
        assert server.address.startswith("127.0.0.1:")
    machine.debug("localhost:0").close()
    with pytest.raises(ConfigError, match="one of auto, x86-64"):
        machine.debug(":0", arch="vax")


def test_what_stands_in_the_way_stays_there(machine: Machine, tmp_path: Path) -> None:
    file, pipe, stale = tmp_path / "file", tmp_path / "pipe", tmp_path / "stale"
    file.write_text("kept")
    os.mkfifo(pipe)
    for path in (file, pipe):
        with pytest.raises(MissingCapability, match="something else than a socket"):
            machine.debug(f"unix:{path}")
        assert path.exists()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(stale))
    with machine.debug(f"unix:{stale}") as server, Machine(memory="16M", backend="soft") as other:
        assert server.address == str(stale)
        with pytest.raises(MissingCapability, match="somebody listens there"):
            other.debug(f"unix:{stale}")
        assert stale.exists()
    assert not stale.exists()
    with Machine(memory="16M", backend="soft") as other, machine.debug(":0") as held, pytest.raises(MissingCapability, match="taken"):
        other.debug(held.address)


@needs_gdb
@pytest.mark.skipif(not probe_kvm().available, reason="no KVM here")
def test_masks_and_the_widest_vectors() -> None:
    with Machine(memory="32M", backend="kvm", cpu="max") as machine:
        machine.load(BLOBS / "hello64.elf")
        if Registers(machine.cpu[0].vcpu).vectors != "avx512":
            pytest.skip("KVM's guests have no AVX-512 here")
        output, _ = gdb(machine, [
            "set var $k1 = 0x1122334455667788", "set var $zmm1.v8_int64 = {1, 2, 3, 4, 5, 6, 7, 8}",
            "set var $zmm20.v8_int64 = {9, 2, 3, 4, 5, 6, 7, 8}", "stepi", "print/x $k1", "print $zmm1.v8_int64", "print $ymm1.v4_int64",
            "print $zmm20.v8_int64", "print $xmm20.v2_int64", "print $k7", "kill",
        ])  # fmt: skip
    said = answers(output)
    assert "= 0x1122334455667788" in said["print/x $k1"] and "= 0" in said["print $k7"], output
    assert "{1, 2, 3, 4, 5, 6, 7, 8}" in said["print $zmm1.v8_int64"] and "{1, 2, 3, 4}" in said["print $ymm1.v4_int64"]
    assert "{9, 2, 3, 4, 5, 6, 7, 8}" in said["print $zmm20.v8_int64"] and "{9, 2}" in said["print $xmm20.v2_int64"]
