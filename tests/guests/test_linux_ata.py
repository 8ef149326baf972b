"""Linux with its own ATA drivers: an ext4 on a qcow2 image, written and checked by the host's e2fsck; a CD-ROM."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from kvmpy import Machine, PowerOff
from tests.host.images.qemu import assert_clean, needs_qemu_img, qemu_img

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guests"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MKE2FS, E2FSCK = shutil.which("mke2fs", path=PATH), shutil.which("e2fsck", path=PATH)


@pytest.mark.slow
@needs_qemu_img
def test_linux_on_ata(tmp_path: Path) -> None:
    if not (CACHE / "vmlinuz").exists():
        pytest.skip("the guests of `make linux` are not there")
    if not MKE2FS or not E2FSCK:
        pytest.skip("mke2fs is missing (package e2fsprogs)")
    rng = random.Random(12)
    files = tmp_path / "files"
    files.mkdir()
    content = rng.randbytes(1 << 20)
    (files / "from-host").write_bytes(content)
    raw, disk, cd = tmp_path / "disk.raw", tmp_path / "disk.qcow2", tmp_path / "cd.iso"
    subprocess.run([MKE2FS, "-q", "-t", "ext4", "-d", files, raw, "16M"], check=True, timeout=30)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, disk)
    cd.write_bytes(rng.randbytes(333 * 2048))
    with Machine("256M", backend="soft", disks=[f"{disk},bus=ata,serial=ATA1", f"{cd},bus=cdrom"]) as machine:
        machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append="console=ttyS0 kvmpy.test=ata")
        verdict = machine.run(280)
        text = machine.serial.text
    assert isinstance(verdict, PowerOff), text
    assert "kvmpy-guest: all checks passed" in text and "FAIL" not in text, text
    assert f"from-host {hashlib.sha256(content).hexdigest()}" in text
    assert f"sr0 {hashlib.sha256(cd.read_bytes()).hexdigest()}" in text
    assert "ATA-7: kvmpy disk" in text and "UDMA/33" in text and "failed command" not in text, text
    assert_clean(disk)
    raw.unlink()
    qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, raw)
    done = subprocess.run([E2FSCK, "-fn", raw], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
