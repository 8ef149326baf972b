"""docs/tutorial.md by its word: files are written, commands run in order, their output compared.

```LANGUAGE file=NAME is a file. ```console has commands after "$ " with what they print below; "..." alone stands for any number of lines,
within a line for anything. needs=PROGRAM leaves a block out where the program is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)
SECONDS = 60


class Block:
    """One fenced block."""

    def __init__(self, language: str, words: str, text: str) -> None:
        self.language = language
        self.options = dict(word.split("=", 1) for word in words.split())
        self.text = text


def blocks() -> list[Block]:
    return [Block(*found.groups()) for found in BLOCK.finditer(TUTORIAL.read_text())]


def commands(text: str) -> list[tuple[str, str]]:
    """(command, expected output) of a console block."""
    parts = re.split(r"^\$ ", text, flags=re.M)
    assert not parts[0].strip(), "a console block begins with a command"
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts[1:]]


def pattern(expected: str) -> re.Pattern[str]:
    lines = []
    for line in expected.splitlines():
        if line == "...":
            lines.append(r"(?:[^\n]*\n)*?")
        else:
            lines.append(".*?".join(re.escape(part) for part in line.split("...")) + r"[ \t]*\n")
    return re.compile("".join(lines))


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}  # of `make test`
    return ours | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C"}


def run(command: str, directory: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        timeout=SECONDS, env=environment(), check=False,
    )
    return done.stdout


def test_the_comparison() -> None:
    assert pattern("a\n...\nlast ... word\n").fullmatch("a\nb\nc\nlast long word\n")
    assert not pattern("a\n").fullmatch("a\nb\n") and not pattern("a...\n").fullmatch("a\nb\n")
    assert commands("$ one\n1\n2\n$ two\n") == [("one", "1\n2\n"), ("two", "")]


@pytest.fixture(scope="module")
def tools() -> None:
    for name in ("gcc", "make", "ld"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.mark.slow
def test_every_command_does_as_told(tmp_path: Path, tools: None) -> None:
    wrong = []
    count = 0
    for block in blocks():
        if name := block.options.get("file"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(block.text)
        needs = block.options.get("needs")
        if block.language != "console" or (needs and shutil.which(needs) is None):
            continue
        for command, expected in commands(block.text):
            count += 1
            out = run(command, tmp_path)
            if not pattern(expected).fullmatch(out):
                wrong.append(f"$ {command}\n--- the tutorial says\n{expected}--- but it is\n{out}")
    assert not wrong, "\n".join(wrong)
    assert count >= 12


@pytest.mark.slow
def test_the_workflows_run(tmp_path: Path, tools: None) -> None:
    """Files that a YAML reader takes; their steps, but for the installation, work here as they stand."""
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("xdist")
    for block in blocks():
        if name := block.options.get("file"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(block.text)
    github = yaml.safe_load((tmp_path / ".github/workflows/kernel.yml").read_text())
    gitlab = yaml.safe_load((tmp_path / ".gitlab-ci.yml").read_text())
    steps = [step["run"] for step in github["jobs"]["test"]["steps"] if "run" in step]
    assert any("/dev/kvm" in step for step in steps) and all("uses" in step or "run" in step for step in github["jobs"]["test"]["steps"])
    script = [line for step in steps for line in step.strip().splitlines()]
    for lines in (script, gitlab["kernel"]["script"]):
        todo = [line for line in lines if not line.startswith("pip install") and "sudo" not in line]
        assert len(todo) == 3
        (tmp_path / "report.xml").unlink(missing_ok=True)
        out = run("set -e\n" + "\n".join(todo).replace("-n auto", "-n 2"), tmp_path)
        assert re.search(r"\d passed", out) and "failed" not in out, out
        assert "hello from the kernel" in (tmp_path / "report.xml").read_text()
