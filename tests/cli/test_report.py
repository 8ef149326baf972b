"""kvmpy report in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LINES = '{"kvmpy_trace":1,"image":"boot.elf"}\n' + "".join(
    f'{{"what":"io","vcpu":0,"time":{time},"rip":1048576,"data":{{"port":{port},"size":1,"count":1,"write":true,"value":65}}}}\n'
    for time, port in ((10, 0x3F8), (20, 0x3F8), (30, 0x80))
)


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvmpy.cli.main", "report", *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "boot.jsonl"
    path.write_text(LINES)
    return path


def test_a_page_beside_the_trace(trace: Path) -> None:
    done = report(trace)
    assert done.returncode == 0 and done.stdout == ""
    page = trace.with_suffix(".html")
    assert done.stderr == f"kvmpy: {page}: 3 events\n"
    assert "boot.elf" in page.read_text() and "out 0x3f8 (com1)" in page.read_text()


def test_a_page_of_what_is_whole(trace: Path) -> None:
    trace.write_text(LINES + "garbage\n")
    done = report(trace)
    assert done.returncode == 65 and "line 5" in done.stderr and "3 events" in done.stderr and trace.with_suffix(".html").exists()


def test_expressions_and_symbols(trace: Path, tmp_path: Path) -> None:
    table, page = tmp_path / "System.map", tmp_path / "p.html"
    table.write_text("0000000000100000 T say\n")
    done = report(trace, "-o", page, "-e", "io:0x80", "--symbols", table)
    assert done.returncode == 0 and ": 1 events" in done.stderr
    assert '"say"' in page.read_text() and "0x3f8" not in page.read_text().partition('id="data"')[2].partition("</script>")[0]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [(["{trace}", "-o", "{trace}"], 64, "itself"), (["{trace}", "-e", "x:"], 64, "x:"),
     (["{none}"], 65, "No such file"), (["{elf}"], 65, "not a trace"),
     (["{trace}", "-o", "/dev/full"], 69, "/dev/full"), (["{trace}", "-o", "{none}/x"], 69, "No such file"), ([], 64, "FILE")],
)  # fmt: skip
def test_wrong_usage(arguments: list[str], status: int, text: str, trace: Path, tmp_path: Path) -> None:
    elf = tmp_path / "elf"
    elf.write_bytes(b"\x7fELF")
    done = report(*(word.format(trace=trace, none=tmp_path / "none", elf=elf) for word in arguments))
    assert done.returncode == status and text in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert trace.read_text() == LINES
