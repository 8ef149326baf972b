"""Disks of a machine: where they go, and what is said about those that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpy import GuestExit, Machine
from kvmpy.devices.ata.disk import AtaDisk
from kvmpy.devices.virtio.blk import VirtioBlk
from kvmpy.errors import ConfigError, ImageError
from kvmpy.host.images import DiskSpec, create_qcow2, open_image

EXIT_7 = bytes.fromhex("b007e6f4f4")  # mov $7, %al; out %al, $0xF4; hlt


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(EXIT_7.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    return path


def virtio_images(machine: Machine) -> list[str]:
    carried = [getattr(device, "device", None) for device in machine.devices]
    return [device.image.path for device in carried if isinstance(device, VirtioBlk)]


def test_a_disk_without_a_bus_goes_by_the_boot_protocol(tmp_path: Path, disk: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(EXIT_7)
    for boot, image, by_bios in (("flat64", kernel, False), ("flat16", kernel, True), (None, None, True)):
        with Machine("4M", backend="soft", disks=[disk]) as machine:
            machine.load(image, boot)
            assert [drive.image.path for drive in machine.board.bios_disk.drives] == ([str(disk)] if by_bios else [])
            assert virtio_images(machine) == ([] if by_bios else [str(disk)])
            assert machine.run(20) == GuestExit(7)
    with Machine("4M", backend="soft", machine="micro", disks=[disk]) as machine:
        machine.load(kernel, "flat64")
        assert virtio_images(machine) == [str(disk)]


def test_named_buses(tmp_path: Path, disk: Path) -> None:
    second = tmp_path / "second"
    second.write_bytes(bytes(4096))
    with Machine("4M", backend="soft", disks=[f"{disk},bus=ata", DiskSpec(str(second), bus="cdrom", readonly=True)]) as machine:
        first, other = machine.board.ide.channels[0].drives
        assert isinstance(first, AtaDisk) and other.image.readonly
        machine.load(None)
        assert machine.run(20) == GuestExit(7)
        machine.reset()
        assert machine.run(20) == GuestExit(7)
    for bus in ("ata", "bios", "cdrom"):
        with pytest.raises(ConfigError, match="micro"):
            Machine("4M", backend="soft", machine="micro", disks=[f"{disk},bus={bus}"])
    open_image(disk).close()  # nothing holds it any more


def test_a_qcow2_image_boots(tmp_path: Path, disk: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_qcow2(str(path), 1 << 20)
    image = open_image(path)
    image.write_from(0, [memoryview(disk.read_bytes()[:512])])
    image.close()
    with Machine("4M", backend="soft") as machine:
        machine.load(path)
        assert machine.run(20) == GuestExit(7)
        machine.load(path)
        assert machine.run(20) == GuestExit(7)


def test_refusals(tmp_path: Path, disk: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        Machine("4M", backend="soft", disks=[tmp_path / "none"])
    with pytest.raises(ImageError, match="in use"):
        Machine("4M", backend="soft", disks=[disk, disk])
    with pytest.raises(ConfigError, match="unknown option"):
        Machine("4M", backend="soft", disks=[f"{disk},speed=9"])
    with pytest.raises(ConfigError, match="room for four"):
        Machine("4M", backend="soft", disks=[f"{disk},bus=ata,readonly=on"] * 5)
    open_image(disk).close()
