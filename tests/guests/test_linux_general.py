"""Debian's general kernel with the drivers of a PC: a root disk on ATA and an e1000 at once, on the software CPU."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from kvmpy import Machine, PowerOff
from kvmpy.errors import MissingCapability

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guests"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MKE2FS, E2FSCK = shutil.which("mke2fs", path=PATH), shutil.which("e2fsck", path=PATH)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.slow
def test_ata_disk_and_e1000(tmp_path: Path) -> None:
    if not (CACHE / "vmlinuz-general").exists():
        pytest.skip("the general kernel of `make linux` is not there")
    if not MKE2FS or not E2FSCK:
        pytest.skip("mke2fs is missing (package e2fsprogs)")
    files = tmp_path / "files"
    files.mkdir()
    content = os.urandom(1 << 20)
    (files / "from-host").write_bytes(content)
    disk = tmp_path / "disk.raw"
    subprocess.run([MKE2FS, "-q", "-t", "ext4", "-d", files, disk, "16M"], check=True, timeout=30)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(files)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        append = f"console=ttyS0 quiet kvmpy.test=ata,net kvmpy.url=http://10.0.2.2:{server.server_port}/from-host"
        try:
            machine = Machine("384M", backend="soft", disks=[f"{disk},bus=ata,format=raw"], net=["user,model=e1000"])
        except MissingCapability as error:
            pytest.skip(str(error))
        with machine:
            machine.load(CACHE / "vmlinuz-general", initrd=CACHE / "initrd-general.cpio.gz", append=append)
            assert isinstance(machine.run(250), PowerOff), machine.serial.text[-2000:]
            text = machine.serial.text
    finally:
        server.shutdown()
        server.server_close()
    digest = hashlib.sha256(content).hexdigest()
    assert f"from-host {digest}" in text and "driver e1000" in text
    assert f"fetched {len(content)} bytes {digest}" in text and "all checks passed" in text
    check = subprocess.run([E2FSCK, "-fn", disk], capture_output=True, text=True, timeout=60, check=False)
    assert check.returncode == 0, check.stdout
