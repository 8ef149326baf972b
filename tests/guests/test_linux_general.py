"""Debian's general kernel with the drivers of a PC: a root disk on ATA and an e1000 at once, on the software CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmpy import Machine, PowerOff
from tests.guests.linux import CACHE, PASSED, assert_ext4_clean, digest, make_ext4, needs, needs_user_network, web_page


@pytest.mark.slow
def test_ata_disk_and_e1000(tmp_path: Path) -> None:
    needs("ata", "net", files=("vmlinuz-general", "initrd-general.cpio.gz"))
    needs_user_network()
    content = os.urandom(1 << 20)
    disk = make_ext4(tmp_path / "disk.raw", content)
    disks = [f"{disk},bus=ata,format=raw"]
    with web_page(content) as port, Machine("384M", backend="soft", disks=disks, net=["user,model=e1000"]) as machine:
        append = f"console=ttyS0 quiet kvmpy.test=ata,net kvmpy.url=http://10.0.2.2:{port}/from-host"
        machine.load(CACHE / "vmlinuz-general", initrd=CACHE / "initrd-general.cpio.gz", append=append)
        assert isinstance(machine.run(250), PowerOff), machine.serial.text[-2000:]
        text = machine.serial.text
    assert f"from-host {digest(content)}" in text and "driver e1000" in text
    assert f"fetched {len(content)} bytes {digest(content)}" in text and PASSED in text
    assert_ext4_clean(disk)
