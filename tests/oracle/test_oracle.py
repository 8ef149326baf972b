"""Instructions of the software CPU against the host's processor, by the C program beside this file (see main.c, docs/oracle.md)."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "build/oracle/oracle"

# Lines that no native run can be compared with (descriptor tables, privilege, time, identity): the files that test them, by words of
# theirs. A line that is neither compared nor named here fails test_every_line.
SYSTEM_LINES = {
    "tests/soft/test_system_lines.py": """
        lds les lss lfs lgs lsl verr verw retf_Iw int1 into clac stac xgetbv xsetbv rdtscp rdpid rdrand rdseed
        monitor mwait vmcall vmmcall sysret sysexit smsw sldt str sgdt sidt rdfsbase wrfsbase rdpmc""",
    "tests/soft/test_system_transfers.py": """mov_SwEw pop_ES pop_SS pop_DS pop_FS pop_GS lar jmp_Ap jmp_Mp call_Ap call_Mp retf int3
        int_Ib iret syscall sysenter rdtsc""",
    "tests/soft/test_system_paging.py": "invpcid",
    "tests/soft/test_models.py": "cpuid",
}


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


def _summary(text: str) -> tuple[int, int, int]:
    """Lines compared, lines of the table, cases."""
    match = re.search(r"^(\d+) of (\d+) lines, (\d+) cases compared, 0 failures", text, re.MULTILINE)
    assert match, text
    return int(match[1]), int(match[2]), int(match[3])


@pytest.mark.slow
def test_random_instructions(oracle: Path) -> None:
    lines, table, cases = _summary(_compare(oracle, "-n", "28", "-q", "12000"))
    assert cases >= 50_000 and lines > table - 80, (lines, table, cases)


@pytest.mark.slow
def test_translated_instructions(oracle: Path) -> None:
    lines, table, cases = _summary(_compare(oracle, "-t", "-n", "20", "-q", "12000"))
    assert cases >= 40_000 and lines > table - 80, (lines, table, cases)


@pytest.mark.slow
def test_recorded_cases(oracle: Path) -> None:
    assert " 0 failures" in _compare(oracle, "-r", str(Path(__file__).with_name("cases.txt")))


@pytest.mark.slow
def test_portable_fma(oracle: Path) -> None:
    _compare(oracle, "-f", "-n", "100", "vf")


def test_every_line(oracle: Path) -> None:
    left = {line.split()[1] for line in _compare(oracle, "-l").splitlines() if line.startswith("system")}
    tested = {name for names in SYSTEM_LINES.values() for name in names.split()}
    assert left <= tested, f"neither compared nor tested: {sorted(left - tested)}"
    assert tested <= left, f"compared now: {sorted(tested - left)}"
    for file, names in SYSTEM_LINES.items():
        text = (ROOT / file).read_text()
        for name in names.split():
            mnemonic = name.lower().partition("_")[0]
            assert mnemonic in text.lower(), f"{file} has no {mnemonic}"
