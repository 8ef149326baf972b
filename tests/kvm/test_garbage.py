"""Machines that nobody closes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvmpy.kvm.probe import unavailable

CODE = """
import gc, sys
from kvmpy import Machine
for _ in range(12):
    machine = Machine("1M", backend="kvm").load(sys.argv[1], boot="flat16")
    machine.run(10)
gc.collect()
"""


@pytest.mark.skipif(bool(unavailable()), reason=f"no KVM: {unavailable()}")
def test_a_machine_that_is_forgotten_goes_in_any_order(tmp_path: Path) -> None:
    image = tmp_path / "exit.bin"
    image.write_bytes(b"\xe4\x60\xe6\xf4")  # in al, 60h; out 0f4h, al
    done = subprocess.run([sys.executable, "-c", CODE, str(image)], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
