"""Programs of others, unmodified: Debian's Linux to its shell and off again, memtest86+ to its screen.

`make linux` fetches them; without them the tests are skipped, with the reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvmpy.machine import Machine
from kvmpy.verdicts import PowerOff, Stopped

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "guests"
SECONDS = 150
CHECKS = ("userspace up", "ok sha256", "ok sort", "ok gzip", "ok awk", "all checks passed", "reboot: Power down")

pytestmark = pytest.mark.slow


def cached(*names: str) -> list[str]:
    missing = [name for name in names if not (CACHE / name).exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not fetched (make linux)")
    return [str(CACHE / name) for name in names]


def linux(cpus: int, *options: str) -> dict[str, Any]:
    """The whole command, as a user gives it; its JSON."""
    kernel, initrd = cached("vmlinuz", "initrd.cpio.gz")
    command = [
        sys.executable, "-m", "kvmpy.cli.main", "run", kernel, "--initrd", initrd, "--append", "console=ttyS0", "--cpus", str(cpus),
        "--backend", "soft", "--timeout", str(SECONDS), "--json", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 30, stdin=subprocess.DEVNULL, check=False)
    result: dict[str, Any] = json.loads(done.stdout or "{}")
    assert done.returncode == 0, (done.stderr[-2000:], result.get("serial", "")[-2000:])
    return result


def check(result: dict[str, Any], cpus: int) -> None:
    assert result["verdict"] == "PowerOff"
    for line in CHECKS:
        assert line in result["serial"], result["serial"][-3000:]
    assert f", {cpus} CPUs" in result["serial"]


@pytest.mark.parametrize("cpus", [1, 2])
def test_linux_on_the_hosts_clock(cpus):
    check(linux(cpus), cpus)


@pytest.mark.parametrize("cpus", [1, 2])
def test_linux_under_virtual_time_repeats_to_the_byte(cpus):
    first, second = (linux(cpus, "--clock", "virtual") for _ in range(2))
    check(first, cpus)
    assert first["serial"] == second["serial"]
    assert first["statistics"]["vcpus"] == second["statistics"]["vcpus"]
    assert first["statistics"]["exits"] == second["statistics"]["exits"]


def test_vmlinux_without_the_decompressor():
    kernel, initrd = cached("vmlinux", "initrd.cpio.gz")
    with Machine("256M", backend="soft") as machine:
        verdict = machine.load(kernel, initrd=initrd, append="console=ttyS0").run(SECONDS)
        assert verdict == PowerOff(), machine.serial.text[-2000:]
        assert "all checks passed" in machine.serial.text


def test_memtest_starts_on_serial():
    (image,) = cached("memtest64.bin")
    with Machine("64M", backend="soft") as machine:
        machine.load(image, append="console=ttyS0,115200")
        verdict = machine.run(SECONDS, until="Pass")
        assert verdict == Stopped("until"), machine.serial.text[-2000:]
        assert "Memtest86+" in machine.serial.text


def test_memtest_tests_memory_on_two_cpus():
    """By hand: kvmpy run memtest64.bin --cpus 2 -m 64M --append console=ttyS0,115200"""
    (image,) = cached("memtest64.bin")
    with Machine("64M", 2, backend="soft") as machine:
        machine.load(image, append="console=ttyS0,115200")
        verdict = machine.run(SECONDS, until="#5 ")
        screen = machine.serial.text
        places = [cpu.registers.rip for cpu in machine.cpu]
        if "Using: All Cores" not in screen:  # drawn every second: test 5 may be reached before
            assert machine.run(SECONDS, until="Using: All Cores") == Stopped("until"), machine.serial.text[-2000:]
    assert verdict == Stopped("until"), screen[-2000:]
    assert "2 Cores 2 Threads" in screen and "SMP: 2T (PAR)" in screen
    # Test after test (the screen is drawn every second: short ones may not show), without an error so far.
    tests = [int(number) for number in re.findall(r"#(\d+) ", screen)]
    assert tests == sorted(tests) and len(set(tests)) > 1 and tests[-1] == 5
    assert max(int(percent) for percent in re.findall(r"\x1b\[2;35H\D*?(\d+)%", screen.replace("\x1b[0m", ""))) >= 10
    assert set(re.findall(r"Errors: *(\d+)", screen)) == {"0"}
    assert all(0x1000 < place < 64 << 20 for place in places)  # both CPUs are in the program, none still waits for its start
