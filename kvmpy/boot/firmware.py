"""Starting the BIOS: its ROM, the firmware table that tells it about the machine, and what it shall boot.

The firmware table, little endian, at EF000h (see docs/firmware.md):
    00  8 bytes  "KVMPYFW1"
    08  u8       what INT 19h starts: 0 disks, 1 the sector that is at 0000:7C00 already, 2 the far entry below
    09  u8       drive handed over in DL for 1, FFh: the first that boots for 0
    0A  u16      KiB of base memory
    0C  u16      KiB between 1 MiB and 16 MiB
    0E  u16      64 KiB blocks from 16 MiB up to the first hole
    10  4 x u16  far entry: IP, CS, data segments, SP
    18  u16      number of memory map entries
    1A  u16      offset of the first, 20 bytes each as INT 15h E820 gives them
"""

from __future__ import annotations

import os
import struct

from kvmpy.boot.bios_area import FIRMWARE, FIRMWARE_TABLE
from kvmpy.boot.bootparams import is_bzimage
from kvmpy.boot.elf import is_elf
from kvmpy.boot.flat import SECTOR, has_signature
from kvmpy.boot.image import Image
from kvmpy.boot.job import Job
from kvmpy.boot.layout import BIOS, lower_kib, upper_kib
from kvmpy.boot.state import BootState, real_mode
from kvmpy.errors import ConfigError
from kvmpy.record import Record
from kvmpy.units import KIB

ROM_BASE = 0xFFFF0000
ROM_SIZE = 0x10000
MAGIC = b"KVMPYFW1"
FROM_DISK, FROM_MEMORY, FROM_ENTRY = 0, 1, 2
FIRST_BOOTABLE = 0xFF
ENTRIES_AT = 0x40
MOST_ENTRIES = 128

BLOB = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "blobs", "bios.bin")


class FarEntry(Record, frozen=True):
    """Real-mode code that the BIOS starts instead of a boot sector: DS = ES = FS = GS = SS = data."""

    cs: int
    ip: int
    data: int
    sp: int


def read_rom(path: str | os.PathLike[str] = BLOB) -> bytes:
    """The BIOS image. ConfigError when it was not built."""
    try:
        with open(path, "rb") as file:
            rom = file.read()
    except OSError as error:
        raise ConfigError(f"the BIOS image {path} cannot be read ({error.strerror}): run make") from None
    if len(rom) != ROM_SIZE:
        raise ConfigError(f"the BIOS image {path} has {len(rom)} bytes instead of {ROM_SIZE}")
    return rom


def table(job: Job, method: int, drive: int, entry: FarEntry | None) -> bytes:
    """The firmware table."""
    entries = job.layout.map[:MOST_ENTRIES]
    upper = upper_kib(entries)
    below16 = min(upper, 15 * KIB)
    above16 = min((upper - below16) // 64, 0xFFFF) if below16 == 15 * KIB else 0
    far = entry or FarEntry(0, 0, 0, 0)
    head = struct.pack(
        "<8sBBHHHHHHHHH", MAGIC, method, drive, lower_kib(entries), below16, above16,
        far.ip, far.cs, far.data, far.sp, len(entries), ENTRIES_AT,
    )
    return head.ljust(ENTRIES_AT, b"\0") + b"".join(struct.pack("<QQI", r.base, r.size, r.kind) for r in entries)


def start(
    job: Job, protocol: str, *, method: int | None = None, drive: int = FIRST_BOOTABLE, entry: FarEntry | None = None,
    disk: str = "", summary: str = "",
) -> BootState:
    """A machine that starts at the reset vector. The ROM ends at 4 GiB, and is seen at F0000h too."""
    memory = job.layout.memory
    if not job.layout.in_ram(BIOS, FIRMWARE - BIOS):
        raise job.image.error("needs the BIOS, which needs 1M of RAM")
    # A machine that is loaded again after a reset has its ROM still.
    if not memory.contains(ROM_BASE, ROM_SIZE):
        memory.add_bios(read_rom(), "BIOS")
    kind = method if method is not None else FROM_DISK if entry is None else FROM_ENTRY
    memory.write(FIRMWARE_TABLE, table(job, kind, drive, entry))
    return real_mode(
        protocol, 0xF000, 0xFFF0, cs_base=ROM_BASE, firmware=True, disk=disk, summary=summary,
    )


def recognises(image: Image) -> bool:
    """A boot sector: the image is a disk. ELF files and Linux kernels may have the signature too."""
    return has_signature(image.data) and not is_elf(image) and not is_bzimage(image)


def load(job: Job) -> BootState:
    """Boots the image as the first disk of the machine, through the BIOS."""
    job.no_modules("a boot sector")
    return start(job, "bios", disk=job.image.name, summary=f"boots {job.image.name} as a disk")


def load_memory_sector(job: Job) -> BootState:
    """Puts the sector at 0000:7C00 and lets the BIOS jump there; no disk is attached for it."""
    job.no_modules("a boot sector")
    if not has_signature(job.image.data):
        raise job.image.error("no boot sector: the bytes 55 AA are not at offset 510")
    job.layout.take(job.image, SECTOR, len(job.image), "the boot sector")
    job.layout.memory.write(SECTOR, job.image.data)
    return start(job, "bios-memory", method=FROM_MEMORY, drive=0x80, summary=f"boot sector at {SECTOR:#x}")
