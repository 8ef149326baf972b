"""An unmodified Linux (`make linux`) uses the virtio devices of both machine types, on the software CPU."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from kvmpy.devices.virtio.balloon import VirtioBalloon
from kvmpy.devices.virtio.blk import VirtioBlk
from kvmpy.devices.virtio.console import VirtioConsole
from kvmpy.devices.virtio.mmio import VirtioMmio
from kvmpy.devices.virtio.pci import VirtioPci
from kvmpy.devices.virtio.rng import VirtioRng
from kvmpy.devices.virtio.vsock import VirtioVsock
from kvmpy.host.capture import Capture
from kvmpy.host.vsock import UnixVsock
from kvmpy.machine import Machine
from kvmpy.verdicts import PowerOff, Stopped
from tests.guests.linux import CACHE, assert_ext4_clean, digest, make_ext4, needs

SECONDS = 120


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pc", "micro"])
def test_random_numbers_console_and_balloon(kind: str) -> None:
    needs("small")
    end, balloon = Capture(), VirtioBalloon(target=2048)
    devices = [VirtioConsole(end, 100, 30), balloon, VirtioRng()]
    with Machine("256M", machine=kind, backend="soft", devices=devices) as machine:
        machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append="console=ttyS0 kvmpy.test=small")
        assert machine.run(SECONDS, until="say something on hvc0") == Stopped("until"), machine.serial.text
        devices[0].resize(132, 43)
        end.send("typed by the host\n")
        assert machine.run(SECONDS, until="kvmpy-guest: all checks passed") == Stopped("until"), machine.serial.text
        assert balloon.given == 2048 and balloon.reported > 1 << 20
        assert isinstance(machine.run(SECONDS), PowerOff) and "output through hvc0" in end.text
        balloon_events = {name for name in machine.device_events if "pages" in name or "reset" in name}
        assert not balloon_events


def _answer(path: Path) -> None:
    """A program of the host that the guest reaches at port 80."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}_80")
        server.listen()
        server.settimeout(SECONDS)
        connection, _ = server.accept()
        with connection:
            if connection.makefile("rb").read() == b"hello host":  # to its end: the guest has shut down its half
                connection.sendall(b"hello guest")


def _send_and_compare(path: Path, result: list[bool]) -> None:
    """A program of the host that sends 1 MB to the guest's port 52 and wants it back."""
    content = os.urandom(1_000_000)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(str(path))
        client.sendall(b"CONNECT 52\n")
        stream = client.makefile("rb")
        assert stream.readline().startswith(b"OK ")
        sender = threading.Thread(target=client.sendall, args=(content,), daemon=True)
        sender.start()
        result.append(stream.read(len(content)) == content)


def _store_and_compare(path: Path, result: list[bool]) -> None:
    """The same to port 53, which answers only after the host's half is shut down: that must leave the other half open."""
    content = os.urandom(700_000)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(str(path))
        client.sendall(b"CONNECT 53\n" + content)
        client.shutdown(socket.SHUT_WR)
        stream = client.makefile("rb")
        assert stream.readline().startswith(b"OK ")
        result.append(stream.read() == content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pc", "micro"])
def test_vsock_both_ways(tmp_path: Path, kind: str) -> None:
    needs("vsock")
    path = tmp_path / "v.sock"
    result: list[bool] = []
    threading.Thread(target=_answer, args=(path,), daemon=True).start()
    with Machine("256M", machine=kind, backend="soft", devices=[VirtioVsock(UnixVsock(str(path)))]) as machine:
        machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append="console=ttyS0 kvmpy.test=vsock")
        assert machine.run(SECONDS, until="kvmpy-guest: listening") == Stopped("until"), machine.serial.text
        threading.Thread(target=_send_and_compare, args=(path, result), daemon=True).start()
        assert machine.run(SECONDS, until="echoed 1000000 bytes\r\nkvmpy-guest: listening") == Stopped("until"), machine.serial.text
        storer = threading.Thread(target=_store_and_compare, args=(path, result), daemon=True)
        storer.start()
        verdict = machine.run(SECONDS)
        assert isinstance(verdict, PowerOff) and "kvmpy-guest: echoed 700000 bytes" in machine.serial.text, machine.serial.text
        storer.join(10)
        assert result == [True, True] and "ok answer hello guest" in machine.serial.text


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "append"), [("pc", ""), ("pc", "acpi=off"), ("pc", "pci=nomsi"), ("micro", "")])
def test_two_virtio_disks_with_ext4(tmp_path: Path, kind: str, append: str) -> None:
    needs("disk")
    content = os.urandom(1 << 20)
    images = [make_ext4(tmp_path / name, content, "24M") for name in ("one.img", "two.img")]
    disks = [f"{image},bus=virtio,format=raw,serial=disk-{number}" for number, image in enumerate(images)]
    with Machine("256M", machine=kind, backend="soft", devices=[VirtioRng()], disks=disks) as machine:
        machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append=f"console=ttyS0 kvmpy.test=disk {append}")
        verdict = machine.run(SECONDS, until="System halted" if append == "acpi=off" else None)
        text = machine.serial.text
        assert "kvmpy-guest: all checks passed" in text, text
        assert isinstance(verdict, PowerOff) or append == "acpi=off", verdict
        assert text.count(f"from-host {digest(content)}") == 2
        assert "vda 49152 sectors, serial disk-0" in text and "vdb 49152 sectors, serial disk-1" in text
        models = [device.device for device in machine.devices if isinstance(device, (VirtioMmio, VirtioPci))]
        counts = [model.requests for model in models if isinstance(model, VirtioBlk)]
        assert len(counts) == 2 and all(count["write"] and count["flush"] and not count["errors"] for count in counts)
        assert all(count["threaded"] >= count["flush"] for count in counts) and machine.statistics["doorbells"] > 100
        assert not machine.device_events, machine.device_events
    for image in images:
        assert_ext4_clean(image)


@pytest.mark.slow
def test_micro_without_acpi_tells_its_devices_on_the_command_line() -> None:
    """Linux without ACPI takes virtio-mmio devices from `virtio_mmio.device=`, where it was built with
    CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES; Debian's kernels are not, and show the words alone."""
    needs("rng")
    devices = [VirtioRng(), VirtioBalloon()]
    with Machine("256M", machine="micro", backend="soft", devices=devices) as machine:
        append = "console=ttyS0 acpi=off ignore_loglevel kvmpy.test=rng"
        machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append=append)
        assert machine.run(SECONDS, until="kvmpy-guest: rng ") == Stopped("until"), machine.serial.text
        machine.run(1)
        text = machine.serial.text
    for device in (0, 1):
        assert f" virtio_mmio.device=512@{0xFEB00000 + 0x1000 * device:#x}:{(5, 6)[device]}" in text, text
    if "virtio_mmio: unknown parameter 'device'" in text:
        pytest.skip("this kernel has no CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES: it got the words and cannot use them")
    assert "kvmpy-guest: rng virtio_rng.0" in text
