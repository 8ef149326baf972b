"""Linux on several CPUs: timers and interrupts between CPUs, memory that changes under all TLBs, a CPU that goes off and comes back;
alone, and together with disks and a network."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvmpy import Machine, PowerOff
from tests.guests.linux import CACHE, PASSED, assert_ext4_clean, digest, make_ext4, needs, needs_user_network, web_page

SECONDS = 200
CONTENT = random.Random(5).randbytes(3 << 20)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "cpus", "clock", "parallel"),
    [
        ("pc", 2, "host", False), ("micro", 2, "virtual", False), ("pc", 8, "host", False),
        ("pc", 2, "host", True), ("micro", 4, "host", True),
    ],
)
def test_all_cpus_work_and_see_memory_change(kind: str, cpus: int, clock: str, parallel: bool) -> None:
    needs("smp")
    with Machine("256M", cpus, machine=kind, backend="soft", clock=clock, parallel=parallel) as machine:
        machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append="console=ttyS0 quiet kvmpy.test=smp")
        verdict = machine.run(SECONDS)
        text = machine.serial.text
    assert isinstance(verdict, PowerOff) and PASSED in text and "FAIL" not in text, f"{verdict}\n{text}"
    assert f"online 0-{cpus - 1}" in text and f"ok timers {cpus}" in text and f"ok shootdowns {cpus}" in text
    assert f"{100 * cpus} faults, 0 stale" in text


@pytest.mark.parametrize(("kind", "parallel"), [("pc", False), ("micro", False), ("pc", True)])
def test_disks_network_and_four_cpus_at_once(kind: str, parallel: bool, tmp_path: Path) -> None:
    needs("together")
    needs_user_network()
    disks = [make_ext4(tmp_path / name, CONTENT, "24M") for name in ("one", "two")]
    with web_page(CONTENT) as port, Machine(
        "256M", 4, machine=kind, backend="soft", net=["user"], disks=[f"{disk},format=raw,bus=virtio" for disk in disks],
        parallel=parallel,
    ) as machine:
        append = f"console=ttyS0 quiet kvmpy.test=together kvmpy.ping=10.0.2.2 kvmpy.url=http://10.0.2.2:{port}/"
        verdict = machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append=append).run(SECONDS)
        text = machine.serial.text
    assert isinstance(verdict, PowerOff) and PASSED in text and "FAIL" not in text, f"{verdict}\n{text}"
    assert text.count(f"from-host {digest(CONTENT)}") == 2 and f"fetched {len(CONTENT)} bytes {digest(CONTENT)}" in text
    assert "ok shootdowns 4" in text and "ok on 4" in text
    for disk in disks:
        assert_ext4_clean(disk)
