"""The IDE function of the PIIX4 (82371AB, chapter 5): two channels at the legacy ports, bus masters in BAR 4."""

from __future__ import annotations

from typing import Any

from kvmpy.devices.ata import registers as ata
from kvmpy.devices.ata.cdrom import AtapiCdrom
from kvmpy.devices.ata.channel import Channel
from kvmpy.devices.ata.disk import AtaDisk
from kvmpy.devices.ata.drive import Drive
from kvmpy.devices.base import Platform
from kvmpy.devices.blockend import BlockEnd
from kvmpy.devices.pci import config as pci
from kvmpy.devices.pci.device import PciDevice
from kvmpy.errors import ConfigError
from kvmpy.irq import Line

PORTS = ((0x1F0, 8), (0x3F6, 1), (0x170, 8), (0x376, 1))
IRQS = (14, 15)
CHANNEL_PORTS = 9
"""Offsets of a channel: eight of the command block, one of the control block."""

# Configuration space
TIMING = 0x40  # a word for each channel
SLAVE_TIMING, UDMA, UDMA_TIMING = 0x44, 0x48, 0x4A
DECODE = 0x8000

MASTER_SIZE = 8
NAMES = ("primary master", "primary slave", "secondary master", "secondary slave")


class IdeController(PciDevice):
    """Up to four drives, in the order they are added."""

    name = "IDE"
    vendor_id = 0x8086
    device_id = 0x7111
    revision = 1
    class_code = 0x010180  # both channels in legacy mode, bus master
    interrupt_pin = 0
    ports = PORTS

    def __init__(self, slot: int | None = None, function: int = 0) -> None:
        super().__init__(slot, function)
        self.lines = [Line(irq) for irq in IRQS]
        self.channels = [Channel(line) for line in self.lines]
        self.add_bar(4, 16, self._read_master, self._write_master, io=True)
        self.config.define(TIMING, 4, 0, writable=0xFFFFFFFF)
        self.config.define(SLAVE_TIMING, 1, 0, writable=0xFF)
        self.config.define(UDMA, 1, 0, writable=0x0F)
        self.config.define(UDMA_TIMING, 2, 0, writable=0x3333)

    def attach(self, image: BlockEnd, cdrom: bool = False) -> Drive:
        """The next drive. ConfigError for a fifth one."""
        number = sum(drive is not None for channel in self.channels for drive in channel.drives)
        if number == len(NAMES):
            raise ConfigError("too many ATA drives: there is room for four")
        drive: Drive = AtapiCdrom(image) if cdrom else AtaDisk(image)
        self.channels[number >> 1].attach(drive, number & 1)
        name = f"{'CD-ROM' if cdrom else 'disk'}, {NAMES[number]}"
        drive.warn = lambda what, error: self._warn(name, what, error)
        drive.event = lambda what, **payload: self.platform.event(self, what, drive=name, **payload)
        return drive

    def _warn(self, name: str, what: str, error: OSError) -> None:
        self.platform.event(self, "host error", drive=name, request=what, error=str(error))
        self.platform.warn(self, f"{name}: {what}: {error}")

    def connect(self, platform: Platform) -> None:
        super().connect(platform)
        self._bus_master_changed()

    def leave_as_firmware_does(self) -> None:
        """Both channels decode their ports."""
        self.config.set(TIMING, 4, DECODE | DECODE << 16)

    # Ports.

    def _decodes(self, channel: int) -> bool:
        return bool(self.config.get(TIMING + 2 * channel, 2) & DECODE and self.config.get(pci.COMMAND, 2) & pci.IO_SPACE)

    def read(self, offset: int, size: int) -> int:
        channel, offset = divmod(offset, CHANNEL_PORTS)
        if not self._decodes(channel):
            return (1 << 8 * size) - 1
        if offset == ata.DATA or size == 1:
            return self.channels[channel].read(offset, size)
        low = self.channels[channel].read(offset, 1)
        rest = self.read(channel * CHANNEL_PORTS + offset + 1, size - 1) if offset + 1 < ata.CONTROL else (1 << 8 * (size - 1)) - 1
        return low | rest << 8

    def write(self, offset: int, size: int, value: int) -> None:
        channel, offset = divmod(offset, CHANNEL_PORTS)
        if not self._decodes(channel):
            return
        if offset == ata.DATA:
            self.channels[channel].write(offset, size, value)
            return
        for each in range(size):
            if offset + each < ata.CONTROL or (each == 0 and offset == ata.CONTROL):
                self.channels[channel].write(offset + each, 1, value >> 8 * each & 0xFF)

    def _read_master(self, offset: int, size: int) -> int:
        channel, at = divmod(offset, MASTER_SIZE)
        return self.channels[channel].master.read(at, size)

    def _write_master(self, offset: int, size: int, value: int) -> None:
        channel, at = divmod(offset, MASTER_SIZE)
        self.channels[channel].master.write(at, size, value)

    def config_write(self, offset: int, size: int, value: int) -> None:
        super().config_write(offset, size, value)
        self._bus_master_changed()

    def _bus_master_changed(self) -> None:
        for channel in self.channels:
            channel.memory = self.platform.memory if self.bus_master else None
            channel.master.run()

    # The machine's.

    def reset(self) -> None:
        super().reset()
        for channel in self.channels:
            channel.memory = None
            channel.reset()

    def state(self) -> dict[str, Any]:
        return super().state() | {"channels": [channel.state() for channel in self.channels]}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        for channel, saved in zip(self.channels, state["channels"], strict=True):
            channel.memory = self.platform.memory if self.bus_master else None
            channel.restore(saved)

    def close(self) -> None:
        for channel in self.channels:
            for drive in channel.drives:
                if drive is not None:
                    drive.image.close()
