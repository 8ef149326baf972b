"""The bus master of one IDE channel (Programming Interface for Bus Master IDE Controller 1.0; 82371AB data sheet, 5.3)."""

from __future__ import annotations

import struct
from typing import Any, Protocol

from kvmpy.devices.ata.drive import Drive
from kvmpy.devices.ata.registers import SECTOR
from kvmpy.errors import MemoryAccessError
from kvmpy.memory import GuestMemory

COMMAND, STATUS, TABLE = 0, 2, 4

# Command
START, TO_MEMORY = 0x01, 0x08
# Status
ACTIVE, ERROR, INTERRUPT, CAPABLE = 0x01, 0x02, 0x04, 0x60

LAST = 0x80000000
MOST_ENTRIES = 8192
"""A table lies in 64 KiB."""
_ENTRY = struct.Struct("<II")


class Bus(Protocol):
    """What the bus master works with."""

    @property
    def memory(self) -> GuestMemory | None:
        """Guest memory, None while the function may not master the bus."""

    def drive(self) -> Drive | None:
        """The selected drive."""


class BusMaster:
    """Eight registers. A transfer runs in whole as soon as the guest has started it and the drive wants it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.reset()

    def reset(self) -> None:
        """Power-on state."""
        self.command = 0
        self.status = 0
        self.table = 0
        self._next = 0  # address of the next table entry

    def read(self, offset: int, size: int) -> int:
        """A register, or several."""
        raw = bytes((self.command, 0, self.status, 0)) + self.table.to_bytes(4, "little")
        return int.from_bytes(raw[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Likewise, byte by byte."""
        for each in range(offset, min(offset + size, 8)):
            byte = value >> 8 * (each - offset) & 0xFF
            if each == COMMAND:
                self._write_command(byte)
            elif each == STATUS:
                self.status = self.status & ~(byte & (ERROR | INTERRUPT)) & ~CAPABLE | byte & CAPABLE
            elif each >= TABLE:
                shift = 8 * (each - TABLE)
                self.table = (self.table & ~(0xFF << shift) | byte << shift) & 0xFFFFFFFC

    def _write_command(self, value: int) -> None:
        before = self.command
        self.command = value & (START | TO_MEMORY)
        if not value & START:
            self.status &= ~ACTIVE
        elif not before & START:
            self.status |= ACTIVE
            self._next = self.table
            self.run()

    def run(self) -> None:
        """Moves what the drive wants and the table has room for."""
        drive, memory = self._bus.drive(), self._bus.memory
        if not self.status & ACTIVE or drive is None or memory is None or not drive.dma_wanted:
            return
        to_memory = drive.dma_to_memory
        if to_memory != bool(self.command & TO_MEMORY):
            return self._stop(drive)
        wanted = drive.dma_wanted
        views: list[memoryview] = []
        ranges: list[tuple[int, int]] = []
        covered, last = 0, False
        try:
            for _ in range(MOST_ENTRIES):
                address, word = _ENTRY.unpack(memory.read(self._next, 8))
                self._next = self._next & ~0xFFFF | self._next + 8 & 0xFFFF
                room = word & 0xFFFE or 0x10000
                size = min(room, wanted - covered)
                views += memory.views(address & ~1, size, writable=to_memory)
                ranges.append((address & ~1, size))
                covered += size
                # The end of the table is reached only with its last byte (chapter 3.1: a longer table leaves ACTIVE).
                last = bool(word & LAST) and size == room
                if word & LAST or covered == wanted:
                    break
            else:
                return self._stop(drive)
        except MemoryAccessError:
            return self._stop(drive)
        if covered % SECTOR and covered < wanted and drive.whole_sectors:
            return self._stop(drive)  # images move whole sectors only; a table that ends within one cannot be honoured
        drive.dma(views, covered)
        for view in views:
            view.release()
        if to_memory:
            for address, size in ranges:
                memory.written(address, size)
        if last:
            self.status &= ~ACTIVE

    def _stop(self, drive: Drive) -> None:
        """The guest sent the transfer where there is no memory, or in the wrong direction."""
        self.status = self.status & ~ACTIVE | ERROR
        drive.event("bus master error", table=self.table)
        drive.dma_failed()

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return {"command": self.command, "status": self.status, "table": self.table, "next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave."""
        self.command, self.status, self.table, self._next = state["command"], state["status"], state["table"], state["next"]
