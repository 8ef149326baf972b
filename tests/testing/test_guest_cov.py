"""pytest --guest-cov in runs of pytest of its own, with and without xdist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmpy.coverage.tracefile import Tracefile
from kvmpy.testing.assemble import build, missing_tools
from kvmpy.testing.include_dir import include_dir
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


def test_counts_are_the_same_with_and_without_workers(project: Path) -> None:
    """A line is executed or not; how many workers did so says nothing."""
    pytest.importorskip("xdist")
    twice = TESTS[: TESTS.index("def test_two_images")]
    for name, workers in (("one", "0"), ("two", "2")):
        done = run(project, twice, "-q", "-n", workers, "--guest-cov", f"--guest-cov-report=lcov:{name}.info")
        assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "one.info").read_text() == (project / "two.info").read_text()


def test_the_header_is_left_out_unless_it_is_asked_for(project: Path) -> None:
    tests = """
def test_it(soft_machine, assemble):
    source = '#include <kvmpy.h>\\nint main(void) { kvmpy_log("x"); return 0; }'
    assert soft_machine.load(assemble(source)).exit_code == 0
"""
    done = run(project, tests, "-q", "--guest-cov")
    assert "guest.c" in done.stdout and "kvmpy.h" not in done.stdout
    assert "kvmpy.h" in run(project, tests, "-q", f"--guest-cov={include_dir()}").stdout


def test_a_place_without_sources_is_said(project: Path) -> None:
    done = run(project, TESTS, "-q", "--guest-cov=nowhere")
    assert "no source of a guest lies at or below nowhere; there are " in done.stdout and "src/program.c" in done.stdout
    assert "need debug information" not in done.stdout
