"""A device that a user wrote in ten lines, under an unmodified Linux: the example of docs/devices.md, by its own command line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests.linux import CACHE, PASSED, ROOT, needs

SECONDS = 100

pytestmark = pytest.mark.slow


def module(where: Path) -> Path:
    """The page's module for Linux, as a file."""
    page = (ROOT / "docs" / "devices.md").read_text()
    code = re.search(r"## Under Linux\n.*?```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    (where / "linuxdev.py").write_text(code[1])
    return where / "linuxdev.py"


def run(device: str, append: str, *options: str) -> str:
    needs("own")
    command = [
        sys.executable, "-m", "kvmpy.cli.main", "run", str(CACHE / "vmlinuz"), "--initrd", str(CACHE / "initrd.cpio.gz"), "--quiet",
        "--append", f"console=ttyS0 quiet kvmpy.test=own {append}", "--memory", "256M", "--backend", "soft",
        "--device", device, "--timeout", str(SECONDS), *options,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS + 20, check=False)
    assert done.returncode == 0 and PASSED in done.stdout, done.stdout + done.stderr
    return done.stdout


def test_a_pci_function(tmp_path: Path) -> None:
    text = run(f"{module(tmp_path)}:CounterFunction", "kvmpy.pci=0x1234:0x0099")
    assert "is 0x1234:0x0099, class 0xff0000" in text
    assert "function reads 0x00000001 0x00000002" in text and "function after a write 0x00000101" in text


@pytest.mark.parametrize("kind", ["pc", "micro"])
def test_registers_at_an_address(kind: str, tmp_path: Path) -> None:
    text = run(f"{module(tmp_path)}:CounterRegisters", "kvmpy.mmio=0xfd000000", "--machine", kind)
    assert "registers reads 0x00000001 0x00000002" in text and "registers after a write 0x00000101" in text
