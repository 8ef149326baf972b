"""The interrupt chips and timers of the software CPU, driven by the C program beside this file under ASan and UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "kvmpy"
SOURCES = ("pic", "pit", "ioapic", "chips", "lapic", "lapic_message", "lapic_state", "lapic_timer")
TESTS = (
    "pic", "cascade", "pic_modes", "ioapic", "priorities", "ipi", "x2apic", "apic_timer", "clock", "pit_irq", "pit_modes", "state",
    "random",
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("chips") / "harness"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", f"-I{PACKAGE}", f"-I{PACKAGE}/soft/core"]
    files = [str(HERE / "chips_harness.c"), *(str(PACKAGE / "soft" / "core" / f"{name}.c") for name in SOURCES)]
    clean = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    for extra in (SANITIZERS, ()):  # the sanitizers' libraries may be missing
        built = subprocess.run(
            [compiler, *flags, *extra, *files, "-o", str(program), "-lpthread"], capture_output=True, text=True, timeout=120, env=clean
        )
        if built.returncode == 0:
            return program
    pytest.fail(built.stderr)


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=60, env=clean)


@pytest.mark.parametrize("name", TESTS)
def test_chips(harness: Path, name: str) -> None:
    result = _run(harness, name)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_test_runs(harness: Path) -> None:
    assert tuple(_run(harness).stdout.split()) == TESTS
