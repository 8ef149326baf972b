"""The devices that every machine has: those of a small PC without PCI, at their usual ports and interrupts."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

from kvmpy.devices.acpi_pm import AcpiPm
from kvmpy.devices.base import Device
from kvmpy.devices.biosdisk import BiosDisk
from kvmpy.devices.debug_console import DebugConsole
from kvmpy.devices.debug_exit import DebugExit
from kvmpy.devices.i8042 import I8042
from kvmpy.devices.port92 import A20Gate, Port92
from kvmpy.devices.post import Post
from kvmpy.devices.reset_port import ResetPort
from kvmpy.devices.rtc import Rtc
from kvmpy.devices.serial import Serial
from kvmpy.host.chars import CharEnd
from kvmpy.irq import Line
from kvmpy.memory import FOUR_GIB

if TYPE_CHECKING:
    from kvmpy.boot import Hardware

COM_PORTS = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))
"""First port and IRQ of COM1 to COM4."""

LCR, EIGHT_BITS = 3, 0x03
SCI = 9
KEYBOARD, MOUSE, CLOCK = 1, 12, 8


class Pc:
    """The default devices of one machine."""

    def __init__(
        self, serial: Sequence[CharEnd], console: CharEnd, memory: Sequence[tuple[int, int]],
        disks: Sequence[str | PathLike[str]] = (),
    ) -> None:
        """`serial` are the ends of COM1 and on; `console` takes the debug console's output; `memory` are the RAM ranges;
        `disks` are images for the BIOS."""
        gate = A20Gate()
        self.serial = [
            Serial(port, Line(irq), end, f"Serial COM{number}")
            for number, ((port, irq), end) in enumerate(zip(COM_PORTS, serial, strict=False), 1)
        ]
        low = max((start + size for start, size in memory if start < FOUR_GIB), default=0)
        high = sum(size for start, size in memory if start >= FOUR_GIB)
        self.rtc = Rtc(Line(CLOCK), low, high)
        self.keyboard_controller = I8042(Line(KEYBOARD), Line(MOUSE), gate)
        self.pm = AcpiPm(Line(SCI))
        self.post = Post()
        self.bios_disk = BiosDisk(disks)
        self.devices: list[Device] = [
            *self.serial, self.rtc, self.keyboard_controller, Port92(gate), self.pm, ResetPort(),
            self.post, DebugConsole(console), DebugExit(), self.bios_disk,
        ]

    def leave_as_firmware_does(self) -> None:
        """After power-on: serial ports at 8 bits, no parity, one stop bit, for guests that start without a BIOS and write at once."""
        for port in self.serial:
            port.write(LCR, 1, EIGHT_BITS)

    def hardware(self, cpus: int) -> Hardware:
        """What the ACPI and MP tables shall say."""
        from kvmpy.boot import Hardware

        return Hardware(cpus=cpus, com_ports=COM_PORTS[: len(self.serial)], mouse=True, sci=SCI)
