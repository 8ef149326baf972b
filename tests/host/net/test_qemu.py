"""QEMU's stream end at the other side of a `socket`: its user-mode network serves our guest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fake_machine import Bench
from guest_stack import Guest, ip

from kvmpy.host.net.socketnet import SocketNet


def test_an_address_from_qemu(tmp_path: Path) -> None:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is missing (package qemu-system-x86)")
    path = tmp_path / "s"
    bench = Bench(SocketNet(str(path)))
    command = [
        qemu, "-machine", "none", "-display", "none", "-monitor", "none", "-serial", "none",
        "-netdev", f"stream,id=s,server=off,addr.type=unix,addr.path={path}", "-netdev", "user,id=u",
        "-netdev", "hubport,id=a,hubid=0,netdev=s", "-netdev", "hubport,id=b,hubid=0,netdev=u",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as other:
        try:
            if not bench.end.wait(10):
                other.kill()
                pytest.skip(f"this QEMU does not connect: {other.stderr.read() if other.stderr else ''}")
            guest = Guest(bench)
            guest.dhcp()
            assert guest.address == ip("10.0.2.15")
        finally:
            other.kill()
            bench.end.close()
    assert not bench.errors
