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
    "timer": "no tick came: is the gate set",
    "walk": "nothing is walked yet",
    "virtio": "was 0 written to QUEUE_NOTIFY",
    "smp": "was INIT sent before SIPI",
    "hypercall": "bit 31 of ECX",
}

WRONG = [
    ("ports", 'outb %0, %1', 'outb %1, %0', r"Error: operand type mismatch for `out'"),
    ("ports", "while (!(in8(LINE_STATUS) & CAN_SEND)) ;", "", "Hint: put must read the line status"),
    ("ports", "while (!(in8(LINE_STATUS) & RECEIVED)) ;", "", "Hint: get must read the line status"),
    ("timer", "outb(0x20, 0x20);", "", "there was one tick and no more"),
    ("timer", "ticks++;", "", "does on_timer count"),
    ("timer", "0x8E", "0x0E", "is gate 0x20 present"),
    ("timer", "u32 divisor", "u8 divisor", "ten periods took 2.6 ms"),
    ("walk", "(entry & ADDRESS & ~inside)", "(entry & ~0xFFFull)", "(got 0x8000000012345abc, wanted 0x12345abc)"),
    ("smp", "0xC4500", "0x84500", "A crash at 0xfff0"),
    ("virtio", "available.index % SIZE", "available.index", "sector 8: the kernel says 'no answer'"),
    ("virtio", "return status;", "return 0;", "sector 2: the kernel says 'this is no. 0001', wanted is 'error'"),
    ("hypercall", '"0"(number), "b"(argument)', '"0"(argument), "b"(number)', "the calls had the numbers 1, 0, 0, 0"),
    ("hypercall", "&part[0], &part[1], &part[2]", "&part[0], &part[2], &part[1]", "name_of gave 'KVMKM"),
]
"""Mistakes that students make: what in the solution becomes what, and a part of what the grader says."""


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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "right", "wrong", "words"), WRONG)
def test_a_mistake_is_told_in_words(tmp_path: Path, name: str, right: str, wrong: str, words: str) -> None:
    solution = Path(__file__).with_name(f"{name}.c").read_text()
    assert right in solution
    (tmp_path / "mine.c").write_text(solution.replace(right, wrong))
    done = grade(name, f"--exercise={tmp_path / 'mine.c'}", "--kvmpy-backends", "soft")
    assert done.returncode == 1 and words in done.stdout, done.stdout
    assert "During handling" not in done.stdout


@pytest.mark.slow
def test_the_debugger_stands_at_the_machine() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "examples/timer", "--kvmpy-backends", "soft", "-x", "--pdb"]
    words = "p 'at', str(machine.where())\np len(machine.memory.read(0x1000, 16))\nq\n"
    done = subprocess.run(command, cwd=ROOT, input=words, capture_output=True, text=True, timeout=55, check=False)
    assert re.search(r"\('at', 'main\+0x\w+ \(exercise\.c:\d+\)'\)", done.stdout) and "(Pdb) 16" in done.stdout, done.stdout


def test_what_is_to_be_graded_must_be_clear() -> None:
    done = grade("ports", "--exercise=absent.c")
    assert done.returncode == 4 and "--exercise absent.c: no such file" in done.stderr + done.stdout
    done = grade("ports", "examples/walk", "--exercise=tests/examples/walk.c")
    assert done.returncode == 4 and "--exercise grades one exercise" in done.stderr + done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_starter_and_solution_differ_in_the_gaps_alone(name: str) -> None:
    """What stands around the gaps is the same, so that the solution fits the task."""
    starter = (EXAMPLES / name / "exercise.c").read_text()
    solution = Path(__file__).with_name(f"{name}.c").read_text()
    assert "GAP" in starter and "GAP" not in solution
    start = starter.index("int main(void)")
    assert starter[start:] == solution[solution.index("int main(void)") :]
