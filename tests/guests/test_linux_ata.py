"""Linux with its own ATA drivers: an ext4 on a qcow2 image, written and checked by the host's e2fsck; a CD-ROM."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvmpy import Machine, PowerOff
from tests.guests.linux import CACHE, assert_ext4_clean, digest, make_ext4, needs
from tests.host.images.qemu import assert_clean, needs_qemu_img, qemu_img


@pytest.mark.slow
@needs_qemu_img
def test_linux_on_ata(tmp_path: Path) -> None:
    needs("ata")
    rng = random.Random(12)
    content = rng.randbytes(1 << 20)
    raw, disk, cd = tmp_path / "disk.raw", tmp_path / "disk.qcow2", tmp_path / "cd.iso"
    make_ext4(raw, content)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, disk)
    cd.write_bytes(rng.randbytes(333 * 2048))
    with Machine("256M", backend="soft", disks=[f"{disk},bus=ata,serial=ATA1", f"{cd},bus=cdrom"]) as machine:
        machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append="console=ttyS0 kvmpy.test=ata")
        verdict = machine.run(280)
        text = machine.serial.text
    assert isinstance(verdict, PowerOff), text
    assert "kvmpy-guest: all checks passed" in text and "FAIL" not in text, text
    assert f"from-host {digest(content)}" in text
    assert f"sr0 {digest(cd.read_bytes())}" in text
    assert "ATA-7: kvmpy disk" in text and "UDMA/33" in text and "failed command" not in text, text
    assert_clean(disk)
    raw.unlink()
    qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, raw)
    assert_ext4_clean(raw)
