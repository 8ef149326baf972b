"""Debian's Linux on KVM, where the host's can run it: the whole guest where CPL 0 and SYSCALL work, else the kernel's first messages.

By hand: kvmpy run vmlinux --backend kvm --initrd initrd.cpio.gz --append console=ttyS0
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from kvmpy import Machine, PowerOff, Stopped
from kvmpy.kvm.probe import ask, unavailable
from tests.guests.linux import CACHE, PASSED, assert_ext4_clean, digest, make_ext4, needs, needs_user_network, web_page

SECONDS = 200
CONTENT = random.Random(6).randbytes(1 << 20)
SAME = re.compile(r"BIOS-e820|ACPI: [A-Z]{4} | +DMA|Initmem|IOAPIC")
"""Messages about what the machine gives the kernel: memory, ACPI tables, interrupt controllers."""

pytestmark = pytest.mark.slow


def needs_kvm(*capabilities: str) -> None:
    if why := unavailable():
        pytest.skip(why)
    for capability in capabilities:
        if not ask(capability):
            pytest.skip(f"this host's KVM lacks {capability}")


@pytest.mark.parametrize("kind", ["pc", "micro"])
@pytest.mark.parametrize("cpus", [1, 4])
def test_disks_and_network(kind: str, cpus: int, tmp_path: Path) -> None:
    needs("together")
    needs_kvm("syscall_from_user")  # where SYSCALL does not enter the kernel, no program of a 64-bit Linux runs
    needs_user_network()
    disk = make_ext4(tmp_path / "one", CONTENT)
    with web_page(CONTENT) as port, Machine(
        "256M", cpus, machine=kind, backend="kvm", net=["user"], disks=[f"{disk},format=raw,bus=virtio"]
    ) as machine:
        append = f"console=ttyS0 quiet kvmpy.test=together kvmpy.url=http://10.0.2.2:{port}/"
        verdict = machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append=append).run(SECONDS)
        text = machine.serial.text
    assert isinstance(verdict, PowerOff) and PASSED in text, f"{verdict}\n{text}"
    assert f"fetched {len(CONTENT)} bytes {digest(CONTENT)}" in text and f"from-host {digest(CONTENT)}" in text
    assert_ext4_clean(disk)


def test_the_kernel_finds_the_same_machine_on_both_backends() -> None:
    """As far as its first page tables, memory map and firmware tables: instructions that KVM's emulator lacks are finished in software."""
    needs(files=("vmlinux",))
    needs_kvm("long_mode")
    found = []
    for backend in ("soft", "kvm"):
        with Machine("128M", backend=backend) as machine:
            machine.load(CACHE / "vmlinux", append="console=ttyS0 earlyprintk=ttyS0 nokaslr")
            assert machine.run(SECONDS, until="Booting paravirtualized kernel") == Stopped("until"), machine.serial.text
            lines = (line.partition("] ")[2] for line in machine.serial.text.splitlines())
            found.append([line for line in lines if SAME.match(line)])
    assert found[0] == found[1] and len(found[0]) > 10
