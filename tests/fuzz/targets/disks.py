"""The IDE controller with disks and a CD-ROM."""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

from kvmpy.devices.ata.controller import IdeController
from tests.fuzz.ops import Input
from tests.fuzz.world import Disk, World, drive

PRIMARY, SECONDARY = 0x1F0, 0x170
TABLE, BUFFER = 0x1000, 0x8000
COMMANDS = bytes.fromhex(
    "ec a1 20 21 24 29 30 31 34 39 c4 c5 c6 c8 ca 25 35 3d ce 40 42 e7 ea ef 06 b0 e0 e1 e3 e5 e6 90 91 70 08 f8 27 a0 00"
)
PACKETS = bytes.fromhex("00 03 12 25 28 a8 2b 43 1a 5a 1b 1e 46 4a 51 bd be 35 ff")


class AtaWorld(World):
    cdrom = False

    def build(self) -> None:
        ide = IdeController(slot=1)
        self.disks = [Disk(400), Disk(400, readonly=True)]
        for disk in self.disks:
            ide.attach(disk, cdrom=self.cdrom)
        self.plug(ide)
        self.lines += ide.lines
        self.master = ide.bars[0].mapped

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "fail", source.byte()

    def special(self, source: Input) -> tuple[Any, ...]:
        what = source.byte()
        if what & 3 == 0:
            return "dma", what, [(source.value(4), source.byte()) for _ in range(1 + (what >> 2 & 3))]
        if what & 3 == 1 and self.cdrom:
            packet = bytes((PACKETS[source.byte() % len(PACKETS)],)) + bytes(source.value(1) for _ in range(11))
            return "packet", what, source.number(2), packet
        return "command", what, [source.value(1) for _ in range(4)], COMMANDS[source.byte() % len(COMMANDS)]

    def command(self, what: int, registers: list[int], command: int) -> int:
        self.write(True, PRIMARY + 6, 1, 0xA0 | (what & 0x50))
        for offset, value in enumerate(registers, 2):
            if what & 0x80:
                self.write(True, PRIMARY + offset, 1, 0)
            self.write(True, PRIMARY + offset, 1, value)
        self.write(True, PRIMARY + 7, 1, command)
        return self.read(True, PRIMARY + 7, 1)

    def packet(self, what: int, limit: int, packet: bytes) -> list[int]:
        self.write(True, PRIMARY + 6, 1, 0xA0 | (what & 0x10))
        for offset, value in ((1, what >> 7), (4, limit & 0xFF), (5, limit >> 8), (7, 0xA0)):
            self.write(True, PRIMARY + offset, 1, value)
        self.burst(True, PRIMARY, 2, packet)
        return [self.read(True, PRIMARY + offset, 1) for offset in (1, 2, 4, 5, 7)]

    def dma(self, what: int, regions: list[tuple[int, int]]) -> int:
        """A table of regions, then start or stop."""
        for number, (address, size) in enumerate(regions):
            where = address if size & 0x80 and what & 0x80 else BUFFER + address % 0x20000
            last = 0x8000 if number == len(regions) - 1 else 0
            self.memory.write(TABLE + 8 * number, struct.pack("<IHH", where & ~1, (size & 0x7F) << 9, last))
        self.write(True, self.master + 4, 4, TABLE)
        self.write(True, self.master, 1, what >> 4 & 9)
        return self.read(True, self.master + 2, 1)


class AtapiWorld(AtaWorld):
    cdrom = True


RUN = {"ata": partial(drive, AtaWorld), "atapi": partial(drive, AtapiWorld)}
