"""The C fuzz targets without a fuzzer: the stored inputs, and some of a generator. `make fuzz` searches with coverage and sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).resolve().parent / "corpus"
TARGETS = ("blocks", "chips", "decode", "fpu", "msr", "paging", "program")
INPUTS = 800


@pytest.fixture(scope="module")
def programs() -> Path:
    if shutil.which("make") is None or shutil.which(os.environ.get("CC", "gcc")) is None:
        pytest.skip("no make, or no C compiler")
    clean = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    built = subprocess.run(["make", "-s", "fuzz-core"], cwd=ROOT, capture_output=True, text=True, timeout=200, env=clean)
    assert built.returncode == 0, built.stdout + built.stderr
    return ROOT / "build" / "fuzz" / "replay"


def test_these_are_all(programs: Path) -> None:
    assert tuple(sorted(path.name for path in programs.iterdir())) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_stored_and_generated_inputs(programs: Path, target: str) -> None:
    stored = sorted(str(path) for path in (CORPUS / target).iterdir())
    assert stored
    clean = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run([programs / target, *stored, f"-r{INPUTS},1"], capture_output=True, text=True, timeout=60, env=clean)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{len(stored) + INPUTS} inputs\n"
