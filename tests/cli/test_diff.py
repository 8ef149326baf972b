"""kvmpy diff from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvmpy.native import lib

pytestmark = pytest.mark.skipif(not hasattr(lib, "kp_vm_create"), reason="the software CPU is not built")
GUEST = bytes.fromhex("b90500 b041 e6e9 fec0 e2fa b000 e6f4")  # says ABCDE to port 0xe9, exits with 0
SPIN = bytes.fromhex("ebfe")


def kvmpy(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kvmpy.cli.main", *map(str, words)], capture_output=True, text=True, timeout=60)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "guest.bin"
    path.write_bytes(GUEST)
    return path


@pytest.mark.parametrize("more", [[], ["--by", "instruction"], ["--by", "instruction", "--stride", "8"]])
def test_no_difference(image: Path, more: list[str]) -> None:
    done = kvmpy("diff", "--right", "soft,translate=1", "--boot", "flat16", *more, image)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "no difference in" in done.stderr and "guest exit, status 0" in done.stderr


def test_a_disk_is_booted_by_both(tmp_path: Path) -> None:
    disk = tmp_path / "boot.img"
    disk.write_bytes(GUEST.ljust(510, b"\0") + b"\x55\xaa")
    before = disk.read_bytes()
    done = kvmpy("diff", "--right", "soft,translate=2", "--json", disk, "--timeout", "50")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["end"] == "guest exit, status 0" and disk.read_bytes() == before


def test_the_time_limit(image: Path) -> None:
    image.write_bytes(SPIN)
    done = kvmpy("diff", "--right", "soft", "--boot", "flat16", "--timeout", "0.3", image)
    assert done.returncode == 124 and "no difference" in done.stderr and "timeout" in done.stderr


def test_traces(image: Path, tmp_path: Path) -> None:
    traces = []
    for number, code in enumerate((GUEST, GUEST.replace(b"\x41", b"\x42"))):
        image.write_bytes(code)
        traces.append(tmp_path / f"{number}.trace")
        assert kvmpy("trace", "-q", "--backend", "soft", "--boot", "flat16", "-o", traces[-1], image).returncode == 0
    done = kvmpy("diff", *traces)
    assert done.returncode == 1 and "difference in event 0" in done.stdout and "0x41 against 0x42" in done.stdout
    other = tmp_path / "other.trace"
    image.write_bytes(bytes.fromhex("b90500 0fa2 b000 e6f4"))
    assert kvmpy("trace", "-q", "--backend", "soft", "--boot", "flat16", "-e", "cpuid", "-o", other, image).returncode == 0
    kinds = kvmpy("diff", traces[0], other).stdout
    assert "what: io against cpuid" in kinds and "None" not in kinds and "what came before" not in kinds
    copy = tmp_path / "copy.trace"
    copy.write_bytes(traces[0].read_bytes())
    assert kvmpy("diff", traces[0], copy).returncode == 0


@pytest.mark.parametrize(
    "words",
    [["--left", "qemu"], ["--right", "kvm,translate=3"], ["--stride", "4"], ["--count", "0"], ["--ignore", "xyz"], ["--net", "user"]],
)
def test_wrong_usage(image: Path, words: list[str]) -> None:
    done = kvmpy("diff", "--boot", "flat16", *words, image)
    assert done.returncode == 64 and done.stderr.startswith("kvmpy: error: ") and done.stderr.count("\n") == 1
