"""The BIOS disk: sectors of raw image files moved straight into guest memory, for the BIOS's INT 13h (docs/firmware.md).

One block of 32 ports. A command is done when the write to its port returns; the status is INT 13h's own.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvmpy.devices.base import Device
from kvmpy.errors import ImageError, MemoryAccessError

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


@dataclass
class Drive:
    """An open image and the geometry it is shown with."""

    path: str
    fd: int
    size: int
    readonly: bool
    kind: int
    geometry: tuple[int, int, int]

    @property
    def sectors(self) -> int:
        """A last piece of a sector counts as one; it reads as zeros behind its end."""
        return -(-self.size // SECTOR)


def geometry(size: int) -> tuple[int, tuple[int, int, int]]:
    """Kind and (cylinders, heads, sectors per track) for an image: a floppy's exact size makes a floppy."""
    if size % 1024 == 0 and size // 1024 in FLOPPY_FORMATS:
        return 1, FLOPPY_FORMATS[size // 1024]
    sectors = -(-size // SECTOR)
    for heads in (16, 32, 64, 128):
        if sectors <= 1024 * heads * 63:
            return 2, (max(1, -(-sectors // (heads * 63))), heads, 63)
    return 2, (min(1024, -(-sectors // (255 * 63))), 255, 63)


def open_drive(path: str, readonly: bool = False) -> Drive:
    """Opens an image; one that may not be written is read-only. ImageError when it cannot be used."""
    try:
        fd = -1
        if not readonly:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            except PermissionError:
                readonly = True
            except OSError as error:
                if error.errno != 30:  # EROFS
                    raise
                readonly = True
        if fd < 0:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        mode = os.fstat(fd).st_mode
        size = os.lseek(fd, 0, os.SEEK_END) if stat.S_ISREG(mode) or stat.S_ISBLK(mode) else -1
    except IsADirectoryError:
        raise ImageError(f"{path}: is a directory, not a disk image") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if size <= 0:
        os.close(fd)
        raise ImageError(f"{path}: the file is empty" if size == 0 else f"{path}: not a file that can be a disk")
    kind, shape = geometry(size)
    return Drive(path, fd, size, readonly, kind, shape)


class BiosDisk(Device):
    """The drives that the BIOS boots from. Each of `disks` is a path, with ",readonly" behind it for one that is never written."""

    name = "BIOS disk"
    ports = BASE, SIZE

    def __init__(self, disks: Sequence[str | os.PathLike[str]] = ()) -> None:
        self._registers = bytearray(SIZE)
        self.drives: list[Drive] = []
        self._boot: Drive | None = None
        try:
            for spec in disks:
                path = os.fspath(spec)
                base, comma, option = path.rpartition(",")
                readonly = bool(comma) and option in ("readonly", "ro")
                self.attach(base if readonly else path, readonly)
        except BaseException:
            self.close()
            raise

    def attach(self, path: str, readonly: bool = False, *, first: bool = False) -> Drive:
        """Adds an image as the last drive of its kind, or as the first. ImageError when it cannot be used or is one too many."""
        drive = open_drive(path, readonly)
        same = sum(other.kind == drive.kind for other in self.drives)
        if same >= MOST[drive.kind]:
            os.close(drive.fd)
            raise ImageError(f"{path}: too many {'floppies' if drive.kind == 1 else 'disks'}, the BIOS knows {MOST[drive.kind]}")
        self.drives.insert(0 if first else len(self.drives), drive)
        return drive

    def boot_from(self, path: str) -> None:
        """Makes an image the first drive of its kind, instead of the one that an earlier call made so."""
        if self._boot is not None:
            if self._boot.path == path:
                return
            self.drives.remove(self._boot)
            os.close(self._boot.fd)
            self._boot = None
        self._boot = self.attach(path, first=True)

    def reset(self) -> None:
        self._registers[:] = bytes(SIZE)

    def close(self) -> None:
        for drive in self.drives:
            os.close(drive.fd)
        self.drives.clear()

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
        if command == WRITE and drive.readonly:
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
        struct.pack_into("<QHBBBB", self._registers, TOTAL, drive.sectors, cylinders, heads & 0xFF, sectors, drive.kind, drive.readonly)
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
                done = os.pwritev(drive.fd, views, offset)
                drive.size = max(drive.size, offset + done)
                return OK if done == size else FAILED
            done = os.preadv(drive.fd, views, offset)
        except OSError as error:
            self.platform.event(self, "host error", path=drive.path, error=str(error))
            return FAILED
        finally:
            for view in views:
                view.release()
        if done < size:
            # Only the last sector may be short; a file that shrank meanwhile is a failed disk.
            if size - done >= SECTOR:
                return FAILED
            memory.write(address + done, bytes(size - done))
        memory.written(address, size)
        return OK

    def state(self) -> dict[str, Any]:
        return {"registers": bytes(self._registers)}

    def restore(self, state: dict[str, Any]) -> None:
        self._registers[:] = state["registers"]
