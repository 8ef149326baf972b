"""Network boot: iPXE on our BIOS finds a NIC, gets an address and a file's name by DHCP and the file by TFTP, and starts it.

By hand: kvmpy run ipxe.lkrn --boot linux16 --net user,tftp=DIR,bootfile=NAME
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvmpy.machine import Machine
from kvmpy.verdicts import GuestExit, PowerOff
from tests.guests.linux import CACHE, PASSED, ROOT, needs, needs_user_network
from tests.guests.test_guests import built

SECONDS = 150

pytestmark = pytest.mark.slow


def boot(served: Path, bootfile: str, model: str, memory: str = "64M") -> Machine:
    needs(files=("ipxe.lkrn",))
    needs_user_network()
    machine = Machine(memory, backend="soft", net=[f"user,model={model},tftp={served},bootfile={bootfile}"])
    return machine.load(CACHE / "ipxe.lkrn", "linux16")


@pytest.mark.parametrize("model", ["virtio", "e1000", "ne2000"])
def test_a_boot_sector_of_ours(model: str, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "kvmpy" / "blobs" / "hello16.bin", tmp_path / "hello.0")
    with boot(tmp_path, "hello.0", model) as machine:
        verdict = machine.run(SECONDS)
        assert verdict == GuestExit(0), f"{verdict}\n{machine.serial.text}"
        assert "tftp://10.0.2.2/hello.0... ok" in machine.serial.text and "hello16: all checks good" in machine.serial.text


def test_a_multiboot_kernel_by_a_script(tmp_path: Path) -> None:
    if why := built():
        pytest.skip(why)
    shutil.copyfile(ROOT / "build" / "guests" / "multiboot1.elf", tmp_path / "kernel")
    (tmp_path / "boot.ipxe").write_text("#!ipxe\nkernel kernel one=1\nboot\n")
    with boot(tmp_path, "boot.ipxe", "virtio") as machine:
        verdict = machine.run(SECONDS)
        assert verdict == GuestExit(0), f"{verdict}\n{machine.serial.text}"
        assert "Hello from multiboot 1" in machine.serial.text


def test_linux_with_its_initrd_by_a_script(tmp_path: Path) -> None:
    needs("net")
    for name in ("vmlinuz", "initrd.cpio.gz"):
        shutil.copyfile(CACHE / name, tmp_path / name)
    (tmp_path / "boot.ipxe").write_text(
        "#!ipxe\nkernel vmlinuz console=ttyS0 initrd=initrd.cpio.gz kvmpy.test=net kvmpy.ping=10.0.2.2\ninitrd initrd.cpio.gz\nboot\n"
    )
    with boot(tmp_path, "boot.ipxe", "virtio", "384M") as machine:
        verdict = machine.run(SECONDS)
        assert verdict == PowerOff(), f"{verdict}\n{machine.serial.text}"
        assert "boot.ipxe... ok" in machine.serial.text and PASSED in machine.serial.text
