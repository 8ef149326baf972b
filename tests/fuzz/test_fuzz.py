"""A short run of the fuzz target; `make fuzz` runs it for long, under the sanitizers."""

import subprocess
import sys
from pathlib import Path

from tests.fuzz.core_fuzz import Fuzzer

ROOT = Path(__file__).resolve().parents[2]


def test_random_programs():
    fuzzer = Fuzzer()
    try:
        for seed in range(1500):
            fuzzer.case(seed)
    finally:
        fuzzer.close()
    # The programs get somewhere: every kind of exit is among them.
    assert {"MMIO", "IN", "OUT", "SHUTDOWN", "DEBUG", "HLT"} <= set(fuzzer.exits)


def test_a_case_is_repeated_by_its_number(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.core_fuzz", "--first", "40", "--count", "40", "--note", tmp_path / "note"]
    first, second = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True) for _ in range(2))
    assert first.stdout == second.stdout and first.stdout.startswith("40 cases: ")
    assert (tmp_path / "note").read_text().split() == ["79"]
