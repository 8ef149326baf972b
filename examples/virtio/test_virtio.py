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


def compare(machine, wanted):
    """The kernel logs a line for each sector."""
    assert machine.exit_code == 0
    for sector, (line, want) in enumerate(zip(machine.guest_log, wanted, strict=False)):
        assert line == want, f"sector {sector}: the kernel says {line!r}, wanted is {want!r}"
    assert len(machine.guest_log) == len(wanted), "main was changed"


def test_all_sectors(machine, hint):
    with hint(
        "'no answer' to all: did available.index go up, and was 0 written to QUEUE_NOTIFY? Are the descriptors linked (flag NEXT)? "
        "'no answer' from sector 8 on: the ring begins anew after eight requests (index % SIZE). "
        "'' or 'error': header, buffer and status are three descriptors, and the device writes the last two (flag WRITE). "
        "The same sector again: the header says which."
    ):
        compare(machine, NAMES)


def test_an_error_is_noticed(machine, hint):
    machine.faults.disk(0).fail(at=3, op="read", errno=errno.EIO)
    with hint("here the third request fails: read_sector must give the status that the device wrote (make test_all_sectors pass first)"):
        compare(machine, [*NAMES[:2], "error", *NAMES[3:]])


def test_a_dead_disk_does_not_hang_the_kernel(machine, hint):
    machine.run_until(exit=lambda event: event.what == "mmio" and event.data["address"] == 0xFEB00070 and event.data.get("value") == 15)
    machine.faults.device("virtio").stick()
    with hint("here the disk hangs: read_sector must give up after a while, with 255"):
        compare(machine, ["no answer"] * 12)
