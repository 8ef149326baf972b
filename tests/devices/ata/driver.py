"""A driver of the IDE controller: registers by their legacy ports, as a guest would use them."""

from __future__ import annotations

from collections import Counter

from kvmpy.bus import MmioBus, PortBus, place
from kvmpy.devices.ata.controller import IdeController
from kvmpy.devices.pci.host import PciHost
from kvmpy.memory import GuestMemory

PRIMARY, SECONDARY = 0x1F0, 0x170
PRD, DATA = 0x10000, 0x20000


class Board:
    """What the controller asks of its machine, with the buses it stands on."""

    def __init__(self) -> None:
        self.memory = GuestMemory("4M")
        self.events: Counter[str] = Counter()
        self.warnings: list[str] = []
        self.ports, self.mmio = PortBus(), MmioBus()
        self.host = PciHost((self.ports, self.mmio))
        self.ide = IdeController(slot=1)
        self.host.plug(self.ide)
        for device in (self.host, self.ide):
            place(device, self.ports, self.mmio)
            device.connect(self)
        self.host.leave_as_firmware_does()
        self.bus_master(True)

    def bus_master(self, on: bool) -> None:
        self.host.config_write(1 << 3, 4, 2, 0x0005 if on else 0x0001)

    def event(self, device: object, what: str, **payload: object) -> None:
        self.events[what] += 1

    def warn(self, device: object, text: str) -> None:
        self.warnings.append(text)


class Ide:
    """One channel of it."""

    def __init__(self, board: Board, base: int = PRIMARY, drive: int = 0) -> None:
        self.board = board
        self.base = base
        self.line = board.ide.lines[0 if base == PRIMARY else 1]
        self.master = board.ide.bars[0].mapped + (0 if base == PRIMARY else 8)
        self.device = 0xE0 | drive << 4

    def inb(self, offset: int) -> int:
        return self.board.ports.read(self.base + offset, 1)

    def outb(self, offset: int, value: int) -> None:
        self.board.ports.write(self.base + offset, 1, value)

    @property
    def status(self) -> int:
        """Reads the status register, which acknowledges the interrupt."""
        return self.inb(7)

    @property
    def alternate(self) -> int:
        return self.board.ports.read(self.base + 0x206, 1)

    def control(self, value: int) -> None:
        self.board.ports.write(self.base + 0x206, 1, value)

    def command(self, code: int, lba: int = 0, count: int = 0, features: int = 0, *, wide: bool = False) -> int:
        """Fills the registers and gives the command; returns the alternate status."""
        self.outb(6, self.device if wide else self.device | lba >> 24 & 0xF)
        if wide:
            for offset, value in ((1, features >> 8), (2, count >> 8), (3, lba >> 24), (4, lba >> 32), (5, lba >> 40)):
                self.outb(offset, value & 0xFF)
        for offset, value in ((1, features), (2, count), (3, lba), (4, lba >> 8), (5, lba >> 16)):
            self.outb(offset, value & 0xFF)
        self.outb(7, code)
        return self.alternate

    def read_words(self, count: int, size: int = 2) -> bytes:
        return b"".join(self.board.ports.read(self.base, size).to_bytes(size, "little") for _ in range(count * 2 // size))

    def write_words(self, data: bytes, size: int = 2) -> None:
        for at in range(0, len(data), size):
            self.board.ports.write(self.base, size, int.from_bytes(data[at : at + size], "little"))

    def pio_read(self, code: int, lba: int, count: int, block: int = 1, *, wide: bool = False) -> bytes:
        self.command(code, lba, count, wide=wide)
        data = b""
        left = count or (65536 if wide else 256)
        while left:
            assert self.line.level == 1
            assert self.status == 0x58
            assert self.line.level == 0
            part = min(block, left)
            data += self.read_words(256 * part)
            left -= part
        assert self.line.level == 0 and self.status == 0x50
        return data

    def pio_write(self, code: int, lba: int, data: bytes, block: int = 1, *, wide: bool = False) -> None:
        count = len(data) // 512
        assert self.command(code, lba, count, wide=wide) == 0x58 and not self.line.level
        for at in range(0, len(data), block * 512):
            assert self.status == 0x58
            self.write_words(data[at : at + block * 512])
            assert self.line.level == 1
        assert self.status == 0x50

    def set_table(self, *entries: tuple[int, int]) -> None:
        for number, (address, size) in enumerate(entries):
            last = 0x80000000 if number == len(entries) - 1 else 0
            self.board.memory.write_u32(PRD + 8 * number, address)
            self.board.memory.write_u32(PRD + 8 * number + 4, size & 0xFFFF | last)
        self.board.ports.write(self.master + 4, 4, PRD)

    def start(self, to_memory: bool) -> None:
        self.board.ports.write(self.master, 1, 8 if to_memory else 0)
        self.board.ports.write(self.master + 2, 1, 6)
        self.board.ports.write(self.master, 1, 9 if to_memory else 1)

    def stop(self) -> int:
        """Stops the bus master, acknowledges and returns its status."""
        status = self.board.ports.read(self.master + 2, 1)
        self.board.ports.write(self.master, 1, 0)
        self.board.ports.write(self.master + 2, 1, 6)
        return status

    def packet(self, *values: int, limit: int = 0xFFFE, dma: bool = False) -> int:
        self.command(0xA0, limit << 8, 0, 1 if dma else 0)
        assert self.inb(2) & 3 == 1 and self.alternate & 0x88 == 0x08
        self.write_words(bytes(values).ljust(12, b"\0"))
        return self.alternate

    def reply(self) -> bytes:
        """Everything that a packet gives by PIO; b"" after CHECK CONDITION."""
        data = b""
        while True:
            assert self.line.level == 1
            status = self.status
            reason = self.inb(2) & 3
            if not status & 8:
                assert reason == 3
                return data
            assert reason == 2
            size = self.inb(4) | self.inb(5) << 8
            data += self.read_words((size + 1) // 2)[:size]
