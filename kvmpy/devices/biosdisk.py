"""The BIOS disk: sectors of disk images moved straight into guest memory, for the BIOS's INT 13h (docs/firmware.md).

One block of 32 ports. A command is done when the write to its port returns; the status is INT 13h's own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from kvmpy.devices.base import Device
from kvmpy.devices.blockend import BlockEnd
from kvmpy.errors import ConfigError, MemoryAccessError
from kvmpy.record import Record

BASE = 0x0D00
SIZE = 0x20
SECTOR = 512

# Registers
COMMAND = 0x00  # write: command; read: status of the last one
DRIVE = 0x01  # as in DL
COUNT = 0x02  # u16: sectors wanted, then sectors done
LBA = 0x04  # u64: first sector
BUFFER = 0x0C  # u32: guest physical address
TOTAL = 0x10  # u64: sectors of the drive, from here on filled by IDENTIFY
CYLINDERS = 0x18  # u16
HEADS = 0x1A  # 0 stands for 256
SECTORS = 0x1B  # per track
KIND = 0x1C  # 0 no such drive, 1 floppy, 2 fixed disk
FLAGS = 0x1D  # bit 0: read-only
FLOPPIES = 0x1E  # number of drives, always valid
DISKS = 0x1F
WRITABLE = 0x10  # registers below are the guest's

READ, WRITE, VERIFY, IDENTIFY = 1, 2, 3, 4

# Status (INT 13h, AH)
OK = 0x00
BAD_COMMAND = 0x01
WRITE_PROTECTED = 0x03
NOT_FOUND = 0x04
DMA_ERROR = 0x09
FAILED = 0x20
NO_DRIVE = 0x80

# Size in KiB: cylinders, heads, sectors per track
FLOPPY_FORMATS = {
    160: (40, 1, 8), 180: (40, 1, 9), 320: (40, 2, 8), 360: (40, 2, 9), 720: (80, 2, 9), 1200: (80, 2, 15),
    1440: (80, 2, 18), 1680: (80, 2, 21), 1722: (82, 2, 21), 2880: (80, 2, 36),
}
MOST = {1: 2, 2: 8}


class Drive(Record):
    """An image and the geometry it is shown with."""

    image: BlockEnd
    kind: int
    geometry: tuple[int, int, int]

    @property
    def sectors(self) -> int:
        """Of 512 bytes."""
        return self.image.size // SECTOR


def geometry(size: int) -> tuple[int, tuple[int, int, int]]:
    """Kind and (cylinders, heads, sectors per track) for an image: a floppy's exact size makes a floppy."""
    if size % 1024 == 0 and size // 1024 in FLOPPY_FORMATS:
        return 1, FLOPPY_FORMATS[size // 1024]
    sectors = -(-size // SECTOR)
    for heads in (16, 32, 64, 128):
        if sectors <= 1024 * heads * 63:
            return 2, (max(1, -(-sectors // (heads * 63))), heads, 63)
    return 2, (min(1024, -(-sectors // (255 * 63))), 255, 63)


class BiosDisk(Device):
    """The drives that the BIOS boots from. They are closed with the device."""

    name = "BIOS disk"
    ports = BASE, SIZE

    def __init__(self, images: Sequence[BlockEnd] = ()) -> None:
        self._registers = bytearray(SIZE)
        self.drives: list[Drive] = []
        self._boot: Drive | None = None
        for image in images:
            self.attach(image)

    def attach(self, image: BlockEnd, *, first: bool = False) -> Drive:
        """Adds an image as the last drive of its kind, or as the first. ConfigError when it is one too many."""
        kind, shape = geometry(image.size)
        if sum(other.kind == kind for other in self.drives) >= MOST[kind]:
            raise ConfigError(f"too many {'floppies' if kind == 1 else 'disks'}: the BIOS knows {MOST[kind]}")
        drive = Drive(image, kind, shape)
        self.drives.insert(0 if first else len(self.drives), drive)
        return drive

    def boot_from(self, image: BlockEnd) -> None:
        """Makes an image the first drive of its kind, instead of the one that an earlier call made so."""
        if self._boot is not None:
            self.drives.remove(self._boot)
            self._boot.image.close()
            self._boot = None
        self._boot = self.attach(image, first=True)

    def reset(self) -> None:
        self._registers[:] = bytes(SIZE)

    def close(self) -> None:
        while self.drives:
            self.drives.pop().image.close()

    def read(self, offset: int, size: int) -> int:
        self._registers[FLOPPIES] = sum(drive.kind == 1 for drive in self.drives)
        self._registers[DISKS] = sum(drive.kind == 2 for drive in self.drives)
        raw = self._registers[offset : offset + size]
        return int.from_bytes(raw + b"\xff" * (size - len(raw)), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        for index in range(size):
            at, byte = offset + index, value >> 8 * index & 0xFF
            if at == COMMAND:
                self._registers[COMMAND] = self._command(byte)
            elif at < WRITABLE:
                self._registers[at] = byte

    def _selected(self) -> Drive | None:
        number = self._registers[DRIVE]
        kind = 2 if number & 0x80 else 1
        same = [drive for drive in self.drives if drive.kind == kind]
        index = number & 0x7F
        return same[index] if index < len(same) else None

    def _command(self, command: int) -> int:
        drive = self._selected()
        if command == IDENTIFY:
            return self._identify(drive)
        wanted, lba, address = struct.unpack_from("<HQI", self._registers, COUNT)
        self._put_count(0)
        if drive is None:
            return NO_DRIVE
        if command not in (READ, WRITE, VERIFY):
            return BAD_COMMAND
        if command == WRITE and drive.image.readonly:
            return WRITE_PROTECTED
        count = min(wanted, max(drive.sectors - lba, 0))
        status = self._transfer(drive, command, lba * SECTOR, count * SECTOR, address) if count and command != VERIFY else OK
        if status == OK:
            self._put_count(count)
            return OK if count == wanted else NOT_FOUND
        return status

    def _put_count(self, count: int) -> None:
        struct.pack_into("<H", self._registers, COUNT, count)

    def _identify(self, drive: Drive | None) -> int:
        if drive is None:
            self._registers[TOTAL:FLOPPIES] = bytes(FLOPPIES - TOTAL)
            return NO_DRIVE
        cylinders, heads, sectors = drive.geometry
        readonly = drive.image.readonly
        struct.pack_into("<QHBBBB", self._registers, TOTAL, drive.sectors, cylinders, heads & 0xFF, sectors, drive.kind, readonly)
        return OK

    def _transfer(self, drive: Drive, command: int, offset: int, size: int, address: int) -> int:
        memory = self.platform.memory
        try:
            views = memory.views(address, size, writable=command == READ)
        except MemoryAccessError:
            self.platform.event(self, "transfer outside RAM", address=address, size=size)
            return DMA_ERROR
        try:
            if command == WRITE:
                drive.image.write_from(offset, views)
            else:
                drive.image.read_into(offset, views)
        except OSError as error:
            what = "write" if command == WRITE else "read"
            self.platform.event(self, "host error", request=what, error=str(error))
            self.platform.warn(self, f"{what}: {error}")
            return FAILED
        finally:
            for view in views:
                view.release()
        if command == READ:
            memory.written(address, size)
        return OK

    def state(self) -> dict[str, Any]:
        return {"registers": bytes(self._registers)}

    def restore(self, state: dict[str, Any]) -> None:
        self._registers[:] = state["registers"]
