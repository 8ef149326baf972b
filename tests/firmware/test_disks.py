"""The BIOS's disk services and what it boots from, on every backend: called by boot sectors, results read from guest memory and images."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvmpy.machine import Machine
from kvmpy.verdicts import GuestExit, Halted
from tests.firmware.bios_guest import Kept, assemble


def disk_image(path: Path, sectors: int) -> Path:
    path.write_bytes(b"".join(struct.pack("<I", number) * 128 for number in range(sectors)))
    return path


BUSES = pytest.mark.parametrize("bus", ["bios", "ata"])


@BUSES
def test_fixed_disk(boot, tmp_path, bus):
    disk = disk_image(tmp_path / "disk", 20000)
    machine = boot("""
        movb    $0x08, %ah
        movb    $0x81, %dl
        int     $0x13
        keep 0
        movw    $0x0202, %ax            # 2 sectors: cylinder 3, head 2, sector 63
        movw    $0x033F, %cx
        movw    $0x0281, %dx
        movw    $0xA000, %bx
        int     $0x13
        keep 1
        movw    $0x0201, %ax            # a head that is not there
        movw    $0x0001, %cx
        movw    $0x1081, %dx
        int     $0x13
        keep 2
        movb    $0x15, %ah
        movb    $0x81, %dl
        int     $0x13
        keep 3
        movb    $0x02, %ah
        movb    $0x85, %dl
        int     $0x13
        keep 4
        exit 0
    """, disks=[f"{disk},bus={bus}"])
    kept = [Kept(machine.memory, n) for n in range(5)]
    assert not kept[0].carry and kept[0].dl == 2 and kept[0].dh == 15 and kept[0].cl & 0x3F == 63
    number = (3 * 16 + 2) * 63 + 62
    assert not kept[1].carry and kept[1].ax == 2
    assert machine.memory.read_u32(0xA000) == number and machine.memory.read_u32(0xA200) == number + 1
    assert kept[2].carry and kept[2].ah == 0x04
    assert not kept[3].carry and kept[3].ah == 3
    assert kept[4].carry and kept[4].ah == 0x80


@BUSES
def test_disk_extensions(boot, tmp_path, bus):
    disk = disk_image(tmp_path / "disk", 20000)
    machine = boot("""
        movb    $0x41, %ah
        movw    $0x55AA, %bx
        movb    $0x81, %dl
        int     $0x13
        keep 0
        movb    $0x42, %ah
        movw    $packet, %si
        int     $0x13
        keep 1
        movb    $0x48, %ah
        movw    $0xB800, %si
        movw    $30, (%si)
        int     $0x13
        keep 2
        exit 0
packet: .byte   16, 0
        .short  3, 0xB000, 0
        .quad   19998
    """, disks=[f"{disk},bus={bus}"])
    kept = [Kept(machine.memory, n) for n in range(3)]
    assert not kept[0].carry and kept[0].bx == 0xAA55 and kept[0].cx & 1
    # The third sector is beyond the end: the call fails, and says that two came.
    assert kept[1].carry and kept[1].ah == 0x04
    assert struct.unpack_from("<H", machine.memory.read(0x7C00, 512), machine.memory.read(0x7C00, 512).index(b"\x10\0\2\0") + 2) == (2,)
    assert machine.memory.read_u32(0xB000) == 19998 and machine.memory.read_u32(0xB200) == 19999
    assert not kept[2].carry
    assert struct.unpack("<HHIIIQH", machine.memory.read(0xB800, 26)) == (26, 2, 20, 16, 63, 20000, 512)


def test_floppy_boots_and_is_written(boot, tmp_path):
    code = """
        keep 0
        movb    $0x08, %ah
        int     $0x13
        keep 1
        movw    $0x0301, %ax            # write: cylinder 79, head 1, sector 18
        movw    $0x4F12, %cx
        movw    $0x0100, %dx
        movw    $0x7C00, %bx
        pushw   %cs
        popw    %es
        int     $0x13
        keep 2
        movb    $0x41, %ah
        movw    $0x55AA, %bx
        movb    $0, %dl
        int     $0x13
        keep 3
        exit 0
    """
    machine = boot(code, size=1440 * 1024)
    kept = [Kept(machine.memory, n) for n in range(4)]
    assert kept[0].dl == 0 and kept[1].cx == 0x4F12 and kept[1].dh == 1 and kept[1].bl == 4 and kept[1].dl == 1
    assert not kept[2].carry
    image = (tmp_path / "boot.img").read_bytes()
    assert image[-512:] == image[:512]
    assert kept[3].carry


def test_writes_to_ata(boot, tmp_path):
    """Write, verify, read back; across the border of 1 MiB; a read-only disk; one beyond what real mode reaches."""
    disk, fixed = disk_image(tmp_path / "disk", 2000), disk_image(tmp_path / "fixed", 8)
    machine = boot("""
        movw    $0x4300, %ax
        movb    $0x81, %dl
        movw    $packet, %si
        int     $0x13
        keep 0
        movb    $0x44, %ah
        int     $0x13
        keep 1
        movw    $0xFFFF, packet + 6     # FFFF:F010 and a sector before it
        movw    $0x0010, packet + 4
        movb    $0x42, %ah
        int     $0x13
        keep 2
        movw    $0xFF00, packet + 4
        movb    $0x42, %ah
        int     $0x13
        keep 3
        movw    $0x0301, %ax
        movw    $0x0001, %cx
        movw    $0x0082, %dx
        movw    $0x7C00, %bx
        int     $0x13
        keep 4
        exit 0
packet: .byte   16, 0
        .short  5, 0x7C00, 0
        .quad   1001
    """, disks=[f"{disk},bus=ata", f"{fixed},bus=ata,readonly=on"])
    kept = [Kept(machine.memory, n) for n in range(5)]
    assert [each.ah for each in kept] == [0, 0, 0, 0x09, 0x03] and kept[3].carry and kept[4].carry
    written = disk.read_bytes()[1001 * 512 : 1006 * 512]
    assert written[510:512] == b"\x55\xaa" and machine.memory.read(0x100000, 2560) == written
    assert disk.read_bytes()[1006 * 512 :][:4] == struct.pack("<I", 1006)


def test_boots_from_ata(boot, tmp_path):
    image = assemble(tmp_path, "keep 0\nexit 0", size=1 << 20)
    other = tmp_path / "boot.ata"
    other.write_bytes(image.read_bytes())
    with Machine("4M", disks=[f"{other},bus=ata"]) as machine:
        machine.load(None)
        assert machine.run(20) == GuestExit(0)
        assert Kept(machine.memory, 0).dl == 0x80


def test_readonly_disk(boot, tmp_path):
    disk = disk_image(tmp_path / "disk", 8)
    before = disk.read_bytes()
    machine = boot("""
        movw    $0x0301, %ax
        movw    $0x0001, %cx
        movw    $0x0081, %dx
        movw    $0x7C00, %bx
        int     $0x13
        keep 0
        movb    $0x01, %ah
        int     $0x13
        keep 1
        exit 0
    """, disks=[f"{disk},readonly"])
    assert Kept(machine.memory, 0).carry and Kept(machine.memory, 0).ah == 0x03
    assert Kept(machine.memory, 1).ah == 0x03
    assert disk.read_bytes() == before


def test_transfer_outside_memory(boot):
    machine = boot("""
        movb    $0x42, %ah
        movw    $packet, %si
        movb    $0x80, %dl
        int     $0x13
        keep 0
        exit 0
packet: .byte   24, 0
        .short  1, 0xFFFF, 0xFFFF
        .quad   0, 0xF0000000
    """)
    assert Kept(machine.memory, 0).carry and Kept(machine.memory, 0).ah == 0x09
    assert machine.device_events["BIOS disk: transfer outside RAM"] == 1


def test_nothing_to_boot(boot, tmp_path):
    disk = disk_image(tmp_path / "disk", 8)
    machine = boot(image=disk, boot="bios", want=Halted())
    assert machine.serial.data == b"No bootable disk\r\n"
