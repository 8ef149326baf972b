"""The benchmark guest computes what the same C computes natively, and its machine part counts right; `make bench` itself runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"


@pytest.fixture(scope="module")
def images() -> Path:
    for tool in ("make", "gcc", "ld"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is missing")
    done = subprocess.run(["make", "-s", "guests"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return BUILD


def _sums(output: str) -> dict[str, str]:
    return {words[1]: words[2] for line in output.splitlines() if (words := line.split()) and words[0] == "end"}


@pytest.mark.parametrize(("backend", "words"), [("soft", "scale=5"), ("soft", "scale=5 user"), ("kvm", "scale=5 user")])
def test_checksums(images: Path, backend: str, words: str) -> None:
    from kvmpy.kvm.probe import unavailable
    from kvmpy.machine import Machine
    from kvmpy.verdicts import GuestExit

    if backend == "kvm" and (why := unavailable()):
        pytest.skip(why)
    native = _sums(subprocess.run([images / "bench" / "native", "scale=5"], capture_output=True, text=True, timeout=30, check=True).stdout)
    assert len(native) == 13
    names = " ".join(native)
    with Machine("512M", backend=backend) as machine:
        machine.load(images / "guests" / "bench.elf", append=f"{words} {names}")
        assert machine.run(50) == GuestExit(0), machine.serial.text
        assert _sums(machine.serial.text) == native


def test_machine_part(images: Path) -> None:
    from kvmpy.machine import Machine
    from kvmpy.verdicts import GuestExit

    names = ("remap", "reload", "fault", "syscall", "int80", "timer", "selfipi", "outb", "inb", "mmio", "picport", "lapic")
    with Machine("64M", backend="soft") as machine:
        machine.load(images / "guests" / "bench.elf", append="scale=10 " + " ".join(names))
        assert machine.run(50) == GuestExit(0), machine.serial.text
        sums = _sums(machine.serial.text)
        assert tuple(sums) == names
        assert {name: int(sums[name], 16) for name in ("fault", "syscall", "int80", "timer", "selfipi")} == {
            "fault": 500, "syscall": 3000, "int80": 2000, "timer": 20, "selfipi": 500,
        }  # fmt: skip
        assert machine.statistics["unclaimed_ports"]["0x5ff"] == 1000


def test_command(images: Path) -> None:
    words = "--json --scale 5 --runs 1 --only native --only soft mix outb"
    command = [sys.executable, "-m", "tests.bench", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert set(result["compute"]["mix"]) == {"native", "soft"} and result["machine"]["outb"]["soft"] > 0
    assert not [problem for problem in result["problems"] if "checksum" in problem]


SMAPS = """\
7f0000000000-7f0020000000 rw-s 00000000 00:01 77   /memfd:kvmpy-ram (deleted)
Rss:              102400 kB
Pss:              102400 kB
7f0030000000-7f0032000000 rw-s 00000000 00:01 78   /dev/zero (deleted)
Rss:                2048 kB
Pss:                1024 kB
7f0040000000-7f0042000000 r-xs 00000000 00:01 78   /dev/zero (deleted)
Rss:                2048 kB
Pss:                1024 kB
7f0050000000-7f0050100000 r-xp 00000000 08:01 79   /usr/lib/libpython3.11.so.1.0
Rss:                1024 kB
Pss:                 128 kB
7f0060000000-7f0060400000 rw-p 00000000 00:00 0
Rss:                3072 kB
Pss:                3072 kB
55aa00000000-55aa00100000 rw-p 00000000 00:00 0    [heap]
Rss:                 512 kB
Pss:                 512 kB
"""


def test_memory_by_kind() -> None:
    from tests.bench.memory import by_kind

    assert by_kind(SMAPS) == {"total": 6.5, "anonymous": 3.0, "files": 1.0, "heap": 0.5, "shared": 2.0}
