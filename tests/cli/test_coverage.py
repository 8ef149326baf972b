"""kvmpy run --coverage and kvmpy coverage, as commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvmpy.coverage import Coverage
from kvmpy.testing.assemble import build, missing_tools
from tests.coverage.sources import PROGRAM

pytestmark = pytest.mark.skipif(bool(missing_tools(c=True)), reason="gcc and binutils build the guests")
EXIT = bytes.fromhex("b000 e6f4")


def kvmpy(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvmpy.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture
def program(tmp_path: Path) -> str:
    source = tmp_path / "program.c"
    source.write_text(PROGRAM)
    return build(source, tmp_path, name="program").path


def test_a_run_writes_what_its_files_name_tells(program: str, tmp_path: Path) -> None:
    info, cov, drcov = tmp_path / "a.info", tmp_path / "a.cov", tmp_path / "a.drcov"
    said = kvmpy("run", program, "--coverage", info, status=5).stderr
    assert "coverage is recorded by the software CPU" in said and "3 functions" in said and "SF:" in info.read_text()
    kvmpy("run", program, "--coverage", cov, "--backend", "soft", status=5)
    recorded = Coverage.load(cov)
    assert recorded.images == [(program, 0)] and recorded.branches
    kvmpy("run", program, "--coverage", drcov, "-q", status=5)
    assert drcov.read_bytes().startswith(b"DRCOV VERSION: 2\n")


def test_runs_are_added_and_shown(program: str, tmp_path: Path) -> None:
    info, cov = tmp_path / "a.info", tmp_path / "a.cov"
    for path in (info, cov):
        kvmpy("run", program, "--coverage", path, "-q", status=5)
    done = kvmpy("coverage", info, cov, "--html", tmp_path / "html", "--lcov", tmp_path / "sum.info")
    assert "program.c" in done.stdout and "2/3" in done.stdout and "index.html" in done.stderr
    assert "FNDA:2,main" in (tmp_path / "sum.info").read_text() and (tmp_path / "html" / "index.html").exists()
    done = kvmpy("coverage", cov, cov, "--functions", "--drcov", tmp_path / "x.drcov", "--save", tmp_path / "x.cov")
    assert " main\n" in done.stdout and " never\n" not in done.stdout and "66.7%" in done.stdout
    assert Coverage.load(tmp_path / "x.cov").addresses() == Coverage.load(cov).addresses()
    assert kvmpy("coverage", info, "--source", "/elsewhere").stdout == ""


def test_a_guest_without_lines(tmp_path: Path) -> None:
    image, info, cov = tmp_path / "image", tmp_path / "a.info", tmp_path / "a.cov"
    image.write_bytes(EXIT)
    done = kvmpy("run", image, "--boot", "flat32@0x100000", "--coverage", info)
    assert "no line information" in done.stderr and info.read_text() == "TN:\n"
    kvmpy("run", image, "--boot", "flat32@0x100000", "--coverage", cov)
    assert len(Coverage.load(cov)) == 2 and not Coverage.load(cov).branches
    assert "has no source lines" in kvmpy("coverage", cov, "--html", tmp_path / "html", status=65).stderr


def test_what_cannot_be_done_is_said(program: str, tmp_path: Path) -> None:
    said = kvmpy("run", program, "--coverage", tmp_path / "missing" / "a.info", status=69).stderr
    assert "missing/a.info" in said and "Traceback" not in said
    assert "a.info" in kvmpy("coverage", tmp_path / "a.info", status=65).stderr
    (tmp_path / "a.info").write_text("hello\n")
    assert "a.info:1: no line of an lcov tracefile" in kvmpy("coverage", tmp_path / "a.info", status=65).stderr
    (tmp_path / "a.info").write_text("TN:\n")
    assert "kvmpy run --coverage" in kvmpy("coverage", tmp_path / "a.info", "--functions", status=64).stderr


def test_kernels_that_lie_elsewhere_are_not_added(program: str, tmp_path: Path) -> None:
    for number in range(2):
        one = Coverage()
        one.images = [(program, number << 21)]
        one.save(tmp_path / f"{number}.cov")
    assert "KASLR" in kvmpy("coverage", tmp_path / "0.cov", tmp_path / "1.cov", "--functions", status=64).stderr
