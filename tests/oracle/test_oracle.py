"""Instructions of the software CPU against the host's processor, by the C program beside this file (see main.c)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "build/oracle/oracle"


@pytest.fixture(scope="session")
def oracle() -> Path:
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("the host is no x86-64 Linux")
    for tool in ("make", os.environ.get("CC", "gcc")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "LD_PRELOAD")}
    built = subprocess.run(["make", "-s", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment)
    assert built.returncode == 0, built.stdout + built.stderr
    return ROOT / PROGRAM


def _compare(oracle: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    result = subprocess.run([str(oracle), *arguments], capture_output=True, text=True, timeout=50, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_vector_instructions(oracle: Path) -> None:
    summary = _compare(oracle, "-n", "60").splitlines()[-1]
    lines, cases = int(summary.split()[0]), int(summary.split()[2])
    assert lines > 300 and cases == 60 * lines, summary


@pytest.mark.slow
def test_portable_fma(oracle: Path) -> None:
    _compare(oracle, "-f", "-n", "100", "vf")
