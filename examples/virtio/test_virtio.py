"""Grades the disk driver."""

import errno

import pytest

pytestmark = pytest.mark.guest(machine="micro", clock="virtual", timeout=20)
NAMES = [f"this is no. {number:04}" for number in range(12)]


@pytest.fixture
def machine(make_machine, tmp_path, boot):
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"".join(name.encode().ljust(512, b".") for name in NAMES))
    return boot(make_machine(disks=[f"{disk},format=raw,bus=virtio"]))


def test_all_sectors(machine, hint):
    with hint(
        "'no answer': did available.index go up, and was 0 written to QUEUE_NOTIFY? Errors: header, buffer and status are three "
        "descriptors, and the device writes the last two (flag WRITE). After eight requests the rings begin anew: index % SIZE."
    ):
        assert machine.exit_code == 0
        assert machine.guest_log == NAMES


def test_an_error_is_noticed(machine, hint):
    machine.faults.disk(0).fail(at=3, op="read", errno=errno.EIO)
    with hint("the third request failed on the disk; read_sector must give the status that the device wrote"):
        assert machine.exit_code == 0
        assert machine.guest_log == [*NAMES[:2], "error", *NAMES[3:]]


def test_a_dead_disk_does_not_hang_the_kernel(machine, hint):
    machine.run_until(exit=lambda event: event.what == "mmio" and event.data["address"] == 0xFEB00070 and event.data.get("value") == 15)
    machine.faults.device("virtio").stick()
    with hint("the disk hangs: read_sector must give up after a while"):
        assert machine.exit_code == 0
        assert machine.guest_log == ["no answer"] * 12
