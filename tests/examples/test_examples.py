"""The course kit: every solution passes, every starter fails with advice and not with an accident."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/exercise.c"))
ADVICE = {
    "ports": "nothing came out of COM1",
    "timer": "no interrupt came: is the gate set",
    "walk": "nothing is walked yet",
    "virtio": "was 0 written to QUEUE_NOTIFY",
    "smp": "was INIT sent before SIPI",
    "hypercall": "bit 31 of ECX",
}


def grade(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-q", "--tb=short", f"examples/{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)


def test_all_are_here() -> None:
    assert set(NAMES) == set(ADVICE) == {path.stem for path in Path(__file__).parent.glob("*.c")}
    for name in NAMES:
        assert (EXAMPLES / name / "README.md").is_file() and f"({name}/README.md)" in (EXAMPLES / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes(name: str) -> None:
    done = grade(name, "--exercise", f"tests/examples/{name}.c")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_starter_fails_with_advice(name: str) -> None:
    done = grade(name, "--kvmpy-backends", "soft")
    assert done.returncode == 1, done.stdout
    assert re.search(r"\d failed", done.stdout) and "error" not in done.stdout.splitlines()[-1]
    assert ADVICE[name] in done.stdout.split("Hint: ", 1)[1], done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_starter_and_solution_differ_in_the_gaps_alone(name: str) -> None:
    """What stands around the gaps is the same, so that the solution fits the task."""
    starter = (EXAMPLES / name / "exercise.c").read_text()
    solution = Path(__file__).with_name(f"{name}.c").read_text()
    assert "GAP" in starter and "GAP" not in solution
    start = starter.index("int main(void)")
    assert starter[start:] == solution[solution.index("int main(void)") :]
