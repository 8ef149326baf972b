"""The same Linux on the same machine, here and in QEMU: its test scripts say the same.

Run one by hand: python -m tests.guests.test_against_qemu prints both command lines of every case.
"""

from __future__ import annotations

import os
import random
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guests.configuration import QEMU, Configuration, Disk, run, told
from tests.guests.linux import assert_ext4_clean, digest, make_ext4, needs, needs_user_network, web_page

SECONDS = 120
CONTENT = random.Random(3).randbytes(1 << 20)

TWO_DISKS = Disk(Path("one")), Disk(Path("two"), serial="B-2")
ATA_DISKS = Disk(Path("one"), "ata"), Disk(Path("cd"), "cdrom")
CASES = [
    Configuration(),
    *(Configuration(machine, 1, "disk,net", nics=("virtio",), disks=TWO_DISKS) for machine in ("pc", "micro")),
    *(Configuration(machine, 4, "together", nics=("virtio",), disks=TWO_DISKS) for machine in ("pc", "micro")),
    Configuration("pc", 4, "ata,net", kernel="-general", nics=("e1000",), disks=ATA_DISKS, memory=384),
    Configuration("pc", 1, "net", kernel="-general", nics=("ne2000",), memory=384),
]


def with_files(case: Configuration, where: Path, port: int) -> Configuration:
    """The case with disks of its own in `where`, and a page to fetch where it has a NIC."""
    where.mkdir()
    disks = []
    for disk in case.disks:
        path = where / disk.path
        if disk.bus == "cdrom":
            path.write_bytes(CONTENT[: 333 * 2048])
        else:
            make_ext4(path, CONTENT)
        disks.append(replace(disk, path=path))
    page = f"kvmpy.ping=10.0.2.2 kvmpy.url=http://10.0.2.2:{port}/" if case.nics else ""
    return replace(case, disks=tuple(disks), append=f"{case.append} {page}".strip())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_guest_says_the_same_in_qemu(case: Configuration, tmp_path: Path) -> None:
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is missing (package qemu-system-x86)")
    needs(*case.tests.split(",") if case.tests else (), files=(f"vmlinuz{case.kernel}", f"initrd{case.kernel}.cpio.gz"))
    if case.nics:
        needs_user_network()
    with web_page(CONTENT) as port:
        ours, theirs = (with_files(case, tmp_path / name, port) for name in ("kvmpy", "qemu"))
        mine = run(ours.kvmpy("--backend", "soft", "--timeout", str(SECONDS)), SECONDS + 10)
        other = run(theirs.qemu(), SECONDS)
    assert told(mine) == told(other)
    assert len(told(mine)) > 3
    if case.nics:
        assert f"fetched {len(CONTENT)} bytes {digest(CONTENT)}" in mine
    for machine in (ours, theirs):
        for disk in machine.disks:
            if disk.bus != "cdrom":
                assert_ext4_clean(disk.path)


if __name__ == "__main__":
    for each in CASES:
        print(f"# {each}", shlex.join(each.kvmpy()), shlex.join(each.qemu()), sep=os.linesep, end=os.linesep * 2)
