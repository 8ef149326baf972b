"""Programs of others on our BIOS: boot loaders and network boot code from Debian, where `make linux` has fetched them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from kvmpy.boot import firmware
from kvmpy.machine import Machine
from kvmpy.verdicts import GuestExit, Stopped
from tests.firmware.bios_guest import assemble

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guests"

# They go through 32-bit protected mode with interrupts, which not every KVM can do; the software CPU can.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(firmware.BLOB).exists(), reason="the BIOS is not built: make firmware"),
    pytest.mark.skipif(not hasattr(importlib.import_module("kvmpy.soft"), "SoftBackend"), reason="the software CPU is not built"),
]


def fetched(name: str) -> Path:
    path = CACHE / name
    if not path.exists():
        pytest.skip(f"{path} is not there: make linux fetches it")
    return path


def test_memdisk_boots_a_sector_from_memory(tmp_path):
    sector = assemble(tmp_path, """
        movw    $0x0201, %ax
        movw    $0x0001, %cx
        xorw    %dx, %dx
        movw    $0x8000, %bx
        int     $0x13
        jc      1f
        cmpw    $0xAA55, 0x81FE
        jne     1f
        exit 5
1:      exit 6
    """, size=1440 << 10)
    with Machine("64M", backend="soft") as machine:
        machine.load(fetched("memdisk"), "linux16", sector)
        assert machine.run(60) == GuestExit(5)
        assert b"MEMDISK" in machine.serial.data and b"Loading boot sector... booting..." in machine.serial.data


def test_ipxe_starts(tmp_path):
    with Machine("64M", backend="soft") as machine:
        machine.load(fetched("ipxe.lkrn"), "linux16")
        assert machine.run(120, "Press Ctrl-B for the iPXE command line") == Stopped("until")
        assert b"Open Source Network Boot Firmware" in machine.serial.data


def test_linux_by_its_16_bit_entry():
    kernel, initrd = fetched("vmlinuz"), fetched("initrd.cpio.gz")
    with Machine("256M", backend="soft") as machine:
        machine.load(kernel, "linux16", initrd, "console=ttyS0 earlyprintk=ttyS0")
        assert machine.run(120, "Linux version 6") == Stopped("until")
