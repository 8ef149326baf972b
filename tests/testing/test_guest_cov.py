"""pytest --guest-cov in runs of pytest of its own, with and without xdist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmpy.coverage.tracefile import Tracefile
from kvmpy.testing.assemble import build, missing_tools
from tests.coverage.sources import PROGRAM
from tests.testing.test_plugin import run

pytestmark = pytest.mark.skipif(bool(missing_tools(c=True)), reason="gcc and binutils build the guests")
TESTS = """
@pytest.mark.guest("program.elf", boot="elf")
def test_closed_by_the_plugin(soft_machine):
    assert soft_machine.exit_code == 5

@pytest.mark.guest("program.elf", boot="elf")
def test_closed_by_itself(soft_machine):
    with soft_machine:
        assert soft_machine.exit_code == 5

def test_two_images(soft_machine, assemble):
    for code in (0, 1):
        jump = "jmp 1f\\nnop\\n1: nop" if code else "nop"
        assert soft_machine.load(assemble(f"mov ${code}, %al\\nout %al, $0xf4\\n{jump}\\n")).exit_code == code
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    source = tmp_path / "src" / "program.c"
    source.write_text(PROGRAM)
    Path(build(source, tmp_path / "src", name="program").path).rename(tmp_path / "program.elf")
    return tmp_path


@pytest.mark.parametrize("workers", ["0", "2"])
def test_reports(project: Path, workers: str) -> None:
    pytest.importorskip("xdist")
    done = run(
        project, TESTS, "-q", "-n", workers, "--guest-cov", "--guest-cov-report=term", "--guest-cov-report=html:html",
        "--guest-cov-report=lcov:all.info",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    trace = Tracefile.load(project / "all.info")
    names = {Path(path).name: file for path, file in trace.files.items()}
    assert set(names) == {"program.c", "guest.S", "guest2.S"}
    assert names["program.c"].lines[3] == 0 and names["program.c"].lines[17] >= 1
    assert names["guest.S"].totals.numbers[:2] == (3, 2) and names["guest2.S"].totals.numbers[:2] == (5, 2)
    assert re.search(r"program\.c .* 2/3 ", done.stdout) and (project / "html" / "index.html").exists()


@pytest.mark.parametrize("which", ["src", "program.elf"])
def test_only_some(project: Path, which: str) -> None:
    done = run(project, TESTS, "-q", f"--guest-cov={which}")
    assert done.returncode == 0 and "program.c" in done.stdout and "guest.S" not in done.stdout


def test_what_is_not_in_it_is_said(project: Path) -> None:
    (project / "bare.bin").write_bytes(bytes.fromhex("b000 e6f4"))
    done = run(project, """
@pytest.mark.guest("bare.bin", boot="flat32@0x100000")
def test_bare(soft_machine):
    assert soft_machine.exit_code == 0
""", "-q", "--guest-cov")
    assert "guests without debug information are not in it: 1" in done.stdout and "need debug information" in done.stdout
    done = run(project, "", "-q", "--guest-cov-report=pdf")
    assert done.returncode == 4 and "one of term, html:DIR, lcov:FILE" in done.stderr
