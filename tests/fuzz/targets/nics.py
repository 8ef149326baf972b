"""NICs with rings or memory of their own."""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

from kvmpy.devices.net.e1000 import E1000
from kvmpy.devices.net.ne2000 import Ne2000Isa, Ne2000Pci
from tests.devices.conftest import CountingLine
from tests.devices.net.fake_end import MAC
from tests.fuzz.ops import Input
from tests.fuzz.targets.virtio import NicWorld, Wire
from tests.fuzz.world import drive

TX_RING, RX_RING, BUFFERS = 0x1000, 0x2000, 0x4000
DESCRIPTORS = 16


class E1000World(NicWorld):
    def build(self) -> None:
        self.end = Wire(self.outside)
        nic = E1000(self.end, MAC)
        self.plug(nic)
        self.bar = nic.bars[0].mapped

    def special(self, source: Input) -> tuple[Any, ...]:
        what = source.byte()
        if what & 3 == 0:
            return "start", source.byte(), source.byte()
        if what & 3 == 1:
            return "receive_room", source.byte(), source.value(8)
        return "transmit", what, [(source.byte(), source.byte(), source.number(4), source.value(8)) for _ in range(1 + (what >> 2 & 3))]

    def register(self, offset: int, value: int) -> None:
        self.write(False, self.bar + offset, 4, value)

    def start(self, options: int, size: int) -> None:
        """Rings, filters off, interrupts on, as a driver does."""
        for base, length, ring in ((0x2800, 0x2808, RX_RING), (0x3800, 0x3808, TX_RING)):
            self.register(base, ring)
            self.register(base + 4, 0)
            self.register(length, DESCRIPTORS * 16 if options & 1 else size << 7)
            self.register(base + 0x10, 0)
            self.register(base + 0x18, 0)
        self.register(0x400, 0x0002 | options << 2 & 8)  # TCTL
        self.register(0x100, 0x8002 | options << 2 & 0x18 | (size & 3) << 16 | (options & 0x40) << 20)  # RCTL
        self.register(0x5000, 0x300)
        self.register(0xD0, 0xFFFF if options & 0x80 else 0)

    def receive_room(self, tail: int, address: int) -> None:
        """Buffers in every descriptor of the receive ring."""
        where = address if tail & 0x80 else BUFFERS + address % 0x20000
        for slot in range(DESCRIPTORS):
            self.memory.write(RX_RING + 16 * slot, struct.pack("<QQ", (where + 2048 * slot) & (1 << 64) - 1, 0))
        self.register(0x2818, tail & 0x1F)

    def transmit(self, what: int, descriptors: list[tuple[int, int, int, int]]) -> None:
        tail = self.read(False, self.bar + 0x3818, 4)
        for command, kind, options, address in descriptors:
            if kind & 1 and not kind & 2:  # context: offsets of checksums and segments
                low = address
                high = options & 0xFFFFF | 0x20000000 | (command & 0x8F) << 24 | (address & 0xFFFF) << 32 & ~0xFF
            else:
                low = address if kind & 0x80 else BUFFERS + address % 0x10000
                high = options & 0xFFFF | (command & 0xAF) << 24 | (0x00100000 | 0x20000000 if kind & 2 else options & 0xFF0000)
                high |= (kind >> 2 & 3) << 40
            self.memory.write(TX_RING + 16 * (tail % DESCRIPTORS), struct.pack("<QQ", low & (1 << 64) - 1, high & (1 << 64) - 1))
            tail += 1
        self.register(0x3818, tail % DESCRIPTORS if what & 0x40 else tail)


class Ne2000World(NicWorld):
    pci = False

    def build(self) -> None:
        self.end = Wire(self.outside)
        if self.pci:
            nic = Ne2000Pci(self.end, MAC)
            self.plug(nic)
            self.first = nic.bars[0].mapped
        else:
            self.lines = [CountingLine(5)]
            self.place(Ne2000Isa(self.end, MAC, line=self.lines[0]))
            self.first = 0x300

    def special(self, source: Input) -> tuple[Any, ...]:
        what = source.byte()
        if what & 3 == 0:
            return "start", source.byte()
        return "remote", what, source.number(2), source.number(2), source.bytes(80)

    def outs(self, pairs: list[tuple[int, int]]) -> None:
        for offset, value in pairs:
            self.write(True, self.first + offset, 1, value & 0xFF)

    def start(self, options: int) -> None:
        """As a driver does: ring from page 46h to 80h, broadcasts."""
        self.outs([(0, 0x21), (0x0E, 0x48 | options & 3), (0x0C, options & 0x1F), (0x0D, 0), (1, 0x46), (2, 0x80), (3, 0x46), (7, 0xFF),
                   (0x0F, 0xFF), (0, 0x61), (7, 0x47), (0, 0x22)])  # fmt: skip

    def remote(self, what: int, address: int, count: int, data: bytes) -> list[int]:
        """Remote DMA, or a frame that is sent from the chip's memory."""
        if what & 3 == 1:
            self.outs([(4, address >> 8), (5, count), (6, count >> 8), (0, 0x26)])
            return []
        self.outs([(8, address), (9, address >> 8), (0x0A, count), (0x0B, count >> 8), (0, 0x0A if what & 3 == 3 else 0x12)])
        if what & 3 == 3:
            return self.reads(True, self.first + 0x10, (1, 2, 4)[what >> 2 & 3 if what & 12 != 12 else 0], len(data))
        self.burst(True, self.first + 0x10, (1, 2, 4)[what >> 2 & 3 if what & 12 != 12 else 0], data)
        return []


class Ne2000PciWorld(Ne2000World):
    pci = True


RUN = {"e1000": partial(drive, E1000World), "ne2000_isa": partial(drive, Ne2000World), "ne2000_pci": partial(drive, Ne2000PciWorld)}
