"""What kvmpy run says of a guest that does not come to an end, and kvmpy autopsy of one that was kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvmpy.native import lib

SPIN = bytes.fromhex("ebfe")
HALT = bytes.fromhex("faf4")
pytestmark = pytest.mark.skipif(not hasattr(lib, "kp_vm_create"), reason="the software CPU is not built")


def kvmpy(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kvmpy.cli.main", *map(str, words)], capture_output=True, text=True, timeout=60)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "guest.bin"
    path.write_bytes(SPIN)
    return path


def test_a_timeout_is_explained_and_kept(image: Path, tmp_path: Path) -> None:
    kept = tmp_path / "autopsy.json"
    done = kvmpy("run", "--boot", "flat16", "--backend", "soft", "--timeout", "0.3", "--autopsy", kept, image)
    assert done.returncode == 124
    heading = "stopped: timeout: spins in 0x7c00 (100 % of 400 samples)"
    assert heading in done.stderr.splitlines()
    data = json.loads(kept.read_text())
    assert data["heading"] == heading and data["verdict"] == "Stopped"
    shown = kvmpy("autopsy", kept)
    assert shown.returncode == 0 and shown.stdout.splitlines()[0] == heading and shown.stdout.strip() in done.stderr
    assert json.loads(kvmpy("autopsy", "--json", kept).stdout) == data


def test_a_hang_is_explained(image: Path) -> None:
    image.write_bytes(HALT)
    done = kvmpy("run", "--boot", "flat16", "--backend", "soft", "--timeout", "20", image)
    assert done.returncode == 71 and "halted for good: waits in HLT with interrupts off" in done.stderr


@pytest.mark.parametrize("option", ["--no-autopsy", "--quiet"])
def test_without_it(image: Path, option: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    done = kvmpy("run", "--boot", "flat16", "--backend", "soft", "--timeout", "0.2", option, "--autopsy", kept, image)
    assert done.returncode == 124 and "spins in" not in done.stderr
    assert "spins in" in json.loads(kept.read_text())["heading"]


def test_the_guests_own_end_has_none(image: Path, tmp_path: Path) -> None:
    image.write_bytes(bytes.fromhex("b000 e6f4"))
    kept = tmp_path / "kept.json"
    done = kvmpy("run", "--boot", "flat16", "--backend", "soft", "--autopsy", kept, image)
    assert done.returncode == 0 and not kept.exists() and "registers" not in done.stderr


def test_files_that_are_none(image: Path, tmp_path: Path) -> None:
    done = kvmpy("autopsy", image)
    assert done.returncode == 65 and done.stderr == f"kvmpy: error: {image}: not an autopsy that kvmpy wrote\n"
    assert kvmpy("autopsy", tmp_path / "nothing").returncode == 65
    done = kvmpy("run", "--boot", "flat16", "--backend", "soft", "--timeout", "0.2", "--autopsy", tmp_path / "no" / "where", image)
    assert done.returncode == 124 and "error: write" in done.stderr
