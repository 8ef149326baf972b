"""The start of `kvmpy run` imports nothing that it does not use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXIT = bytes.fromhex("b000 e6f4")  # mov al, 0; out 0xf4, al
CODE = """
import sys
from kvmpy.cli.main import main
assert main(sys.argv[1:]) == 0
print(*sorted(sys.modules))
"""

LIBRARY = (
    "asyncio", "bz2", "cffi", "ctypes", "dataclasses", "datetime", "difflib", "dis", "elftools", "hashlib", "importlib.metadata",
    "importlib.util", "inspect", "ipaddress", "json", "logging", "lzma", "random", "selectors", "shutil", "socket", "subprocess",
    "tempfile", "traceback", "tty", "urllib",
)  # fmt: skip
UNUSED = (
    "kvmpy.cli.info", "kvmpy.cli.image", "kvmpy.cli.device_spec", "kvmpy.debug", "kvmpy.exits", "kvmpy.kvm", "kvmpy.regs", "kvmpy.trace",
    "kvmpy.boot.elf", "kvmpy.boot.firmware", "kvmpy.boot.linux", "kvmpy.boot.multiboot", "kvmpy.boot.multiboot1", "kvmpy.boot.multiboot2",
    "kvmpy.boot.paging", "kvmpy.boot.plain", "kvmpy.boot.pvh", "kvmpy.devices.ata", "kvmpy.devices.net", "kvmpy.devices.virtio",
    "kvmpy.host.capture", "kvmpy.host.images.opening", "kvmpy.host.images.qcow2", "kvmpy.host.net", "kvmpy.nics", "kvmpy.soft.assist",
)  # fmt: skip
PC_ONLY = ("kvmpy.pc", "kvmpy.devices.pci", "kvmpy.devices.rtc", "kvmpy.devices.i8042", "kvmpy.devices.hpet", "kvmpy.devices.biosdisk")


@pytest.mark.parametrize("machine, absent", [("pc", ("kvmpy.micro",)), ("micro", PC_ONLY)])
def test_a_flat_run_imports_what_it_uses(tmp_path: Path, machine: str, absent: tuple[str, ...]) -> None:
    image = tmp_path / "exit.bin"
    image.write_bytes(EXIT)
    # -S: what the environment's own .pth files import is not this program's.
    path = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", path + CODE, "run", "-q", "--backend", "soft", "--machine", machine, "--boot", "flat16", str(image)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "kvmpy.machine" in loaded
    wrong = [name for name in loaded if any(name == one or name.startswith(one + ".") for one in (*LIBRARY, *UNUSED, *absent))]
    assert not wrong
