"""One IDE channel: two drives behind one set of ports and one interrupt."""

from __future__ import annotations

from typing import Any

from kvmpy.devices.ata import registers as ata
from kvmpy.devices.ata.busmaster import INTERRUPT, BusMaster
from kvmpy.devices.ata.drive import Drive
from kvmpy.irq import Line
from kvmpy.memory import GuestMemory


class Channel:
    """The command block at offsets 0-7, the control register at 8."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.drives: list[Drive | None] = [None, None]
        self.memory: GuestMemory | None = None
        """Guest memory, while the controller may master the bus."""
        self.master = BusMaster(self)
        self.selected = 0
        self.control = 0

    def attach(self, drive: Drive, number: int) -> None:
        """Puts a drive at 0 or 1."""
        self.drives[number] = drive
        drive.changed = self._changed

    def drive(self) -> Drive | None:
        """The selected drive."""
        return self.drives[self.selected]

    def _changed(self) -> None:
        self._drive_line()
        self.master.run()

    def _drive_line(self) -> None:
        drive = self.drive()
        level = drive is not None and drive.intrq and not self.control & ata.NIEN
        if level and not self.line.level:
            self.master.status |= INTERRUPT
        self.line.set(level)

    # Ports.

    def read(self, offset: int, size: int) -> int:
        """A read of a register; only the data port is wider than a byte."""
        drive = self.drive()
        if drive is None:
            # Device 0 answers in place of a device 1 that is not there, its status being zero.
            other = self.drives[1 - self.selected]
            if other is None:
                return (1 << 8 * size) - 1
            if offset == ata.DEVICE:
                return self._device(other)
            return 0 if offset in (ata.DATA, ata.STATUS, ata.ALTERNATE_STATUS) else other.get(offset, False)
        if offset == ata.DATA:
            return drive.read_data(size)
        if offset == ata.STATUS:
            if drive.intrq:
                drive.intrq = False
                self._drive_line()
            return drive.status
        if offset == ata.ALTERNATE_STATUS:
            return drive.status
        if offset == ata.DEVICE:
            return self._device(drive)
        return drive.get(offset, bool(self.control & ata.HOB))

    def _device(self, drive: Drive) -> int:
        return drive.device | ata.OBSOLETE | (ata.SELECT if self.selected else 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """A write of a register. Both drives take what is written; the selected one does commands."""
        drive = self.drive()
        if offset == ata.DATA:
            if drive is not None:
                drive.write_data(size, value)
            return
        value &= 0xFF
        if offset == ata.CONTROL:
            self._write_control(value)
            return
        self.control &= ~ata.HOB
        if offset == ata.COMMAND:
            self._command(value)
        elif offset == ata.DEVICE:
            self.selected = 1 if value & ata.SELECT else 0
            for each in self.drives:
                if each is not None:
                    each.device = value & ~(ata.SELECT | ata.OBSOLETE)
            self._changed()
        else:
            for each in self.drives:
                if each is not None:
                    each.put(offset, value)

    def _write_control(self, value: int) -> None:
        before, self.control = self.control, value & (ata.HOB | ata.SRST | ata.NIEN)
        if value & ata.SRST and not before & ata.SRST:
            for drive in self.drives:
                if drive is not None:
                    drive.reset()
                    drive.status = ata.BSY
        elif before & ata.SRST and not value & ata.SRST:
            self._all_reset()
        self._drive_line()

    def _all_reset(self) -> None:
        self.selected = 0
        for drive in self.drives:
            if drive is not None:
                drive.reset()

    def _command(self, code: int) -> None:
        if self.control & ata.SRST:
            return
        if code == ata.DIAGNOSTIC:
            self._all_reset()
            if self.drives[0] is not None:
                self.drives[0].interrupt()
            return
        drive = self.drive()
        if drive is None:
            return
        if drive.dma_wanted and self.master.status & 1:
            # A drive in the middle of DMA takes no command; only resets reach it.
            return
        drive.command(code)

    # The machine's.

    def reset(self) -> None:
        """Power-on state."""
        self.selected = 0
        self.control = 0
        self.master.reset()
        for drive in self.drives:
            if drive is not None:
                drive.power_on()
        self._drive_line()

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "selected": self.selected, "control": self.control, "master": self.master.state(), "line": self.line.level,
            "drives": [None if drive is None else drive.state() for drive in self.drives],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave."""
        self.selected, self.control = state["selected"], state["control"]
        for drive, saved in zip(self.drives, state["drives"], strict=True):
            if drive is not None:
                drive.restore(saved)
        self._drive_line()
        self.master.restore(state["master"])
