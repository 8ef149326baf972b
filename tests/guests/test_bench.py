"""The benchmark guest computes what the same C computes natively, and its machine part counts right; `make bench` itself runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.figures import Series, figure, ratio
from tests.bench.memory import by_kind
from tests.bench.rounds import Results, runs_32_bits
from tests.bench.runners import COMPUTE, MACHINE, NARROW, PAIR
from tests.bench.targets import Row, Rows

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
    assert tuple(native) == COMPUTE
    names = " ".join(native)
    with Machine("512M", backend=backend) as machine:
        machine.load(images / "guests" / "bench.elf", append=f"{words} {names}")
        assert machine.run(50) == GuestExit(0), machine.serial.text
        assert _sums(machine.serial.text) == native


def test_32_bit_code_computes_the_same(images: Path) -> None:
    from kvmpy.machine import Machine
    from kvmpy.verdicts import GuestExit

    native = _sums(subprocess.run([images / "bench" / "native", "scale=5"], capture_output=True, text=True, timeout=30, check=True).stdout)
    with Machine("64M", backend="soft") as machine:
        machine.load(images / "guests" / "bench32.elf", append="scale=5")
        assert machine.run(50) == GuestExit(0), machine.serial.text
        found = _sums(machine.serial.text)
    assert found == {name: native[name] for name in (narrow.removeprefix("32-") for narrow in NARROW)}
    if runs_32_bits():
        narrow = subprocess.run([images / "bench" / "native32", "scale=5"], capture_output=True, text=True, timeout=30, check=True)
        assert _sums(narrow.stdout) == found


def test_two_processors_do_what_one_does_twice(images: Path) -> None:
    from kvmpy.machine import Machine
    from kvmpy.verdicts import GuestExit

    with Machine("64M", backend="soft", cpus=2) as machine:
        machine.load(images / "guests" / "bench.elf", append="scale=10 repeat=2 " + " ".join(PAIR))
        assert machine.run(50) == GuestExit(0), machine.serial.text
        sums = _sums(machine.serial.text)
        assert int(sums["pair"], 16) == 2 * int(sums["alone"], 16)


def test_machine_part(images: Path) -> None:
    from kvmpy.machine import Machine
    from kvmpy.verdicts import GuestExit

    with Machine("64M", backend="soft") as machine:
        machine.load(images / "guests" / "bench.elf", append="scale=10 " + " ".join(MACHINE))
        assert machine.run(50) == GuestExit(0), machine.serial.text
        sums = _sums(machine.serial.text)
        assert tuple(sums) == MACHINE
        assert {name: int(sums[name], 16) for name in ("fault", "syscall", "int80", "timer", "selfipi")} == {
            "fault": 500, "syscall": 3000, "int80": 2000, "timer": 20, "selfipi": 500,
        }  # fmt: skip
        assert machine.statistics["unclaimed_ports"]["0x5ff"] == 1000


def test_command(images: Path) -> None:
    words = "--json --scale 5 --rounds 2 --repeat 1 --only native --only soft mix 32-mix outb"
    command = [sys.executable, "-m", "tests.bench", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert set(result["compute"]["mix"]) == {"native", "soft"} and result["machine"]["outb"]["soft"] > 0
    assert "soft" in result["compute"]["32-mix"] and len(result["series"]["mix"]["soft"]["rounds"]) == 2
    rows = {row["what"]: row for row in result["targets"]}
    assert rows["compute, geometric mean over native"]["value"]["median"] > 0
    assert rows["syscall, sysret"]["verdict"] == "not measured"
    assert not [problem for problem in result["problems"] if "checksum" in problem]


def test_figures() -> None:
    found = figure([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found and (found.median, found.low, found.high, found.best, found.count) == (3, 2, 4, 1, 5)
    # A round compares its own runs: the host was twice as slow in the second.
    above, below = Series({0: [20.0], 1: [40.0, 44.0]}), Series({0: [10.0], 1: [21.0], 2: [9.0]})
    both = ratio([above], [below])
    assert both and (both.median, both.best) == (2.0, 20 / 9)
    assert figure([]) is None and ratio([], []) is None and ratio([above], [Series({7: [1.0]})]) is None


def test_verdicts() -> None:
    def verdict(values: list[float], target: float, least: bool = False) -> str:
        return Row("it", "ns", figure(values, max(values) if least else None), target, least).verdict

    assert verdict([50, 55, 59], 60) == "met" and verdict([59, 70, 80], 60) == "met by the best runs" and verdict([61, 70], 60) == "missed"
    assert verdict([8, 9, 10], 8, least=True) == "met" and verdict([5, 6, 7], 8, least=True) == "missed"
    assert Row("it", "ns", None, 60).verdict == "not measured" and Row("it", "ns", figure([1.0])).verdict == ""


def test_who_is_slower_than_tcg_is_named() -> None:
    results = Results()
    for name, soft, qemu in (("mix", 10.0, 20.0), ("sieve", 10.0, 9.0), ("wide64", 1.0, 50.0)):
        for n in range(3):
            results.add(name, "soft", n, [soft])
            results.add(name, "qemu", n, [qemu])
    row = Rows(results).all(True)[1]
    assert row.verdict == "missed" and row.note == "slower: sieve 0.90" and row.value and row.value.median == 0.9


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
    assert by_kind(SMAPS, 512 << 20) == {"total": 6.5, "anonymous": 3.0, "files": 1.0, "heap": 0.5, "shared": 2.0}
