"""Machine type micro: serial ports and virtio-mmio, for guests that shall start fast.

What it has beside them is what a guest needs to end (ACPI power management, reset register, debug exit). There is no BIOS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpy.board import COM_PORTS, SCI, Board, Parts
from kvmpy.devices.acpi_pm import AcpiPm
from kvmpy.devices.base import Device
from kvmpy.devices.debug_console import DebugConsole
from kvmpy.devices.debug_exit import DebugExit
from kvmpy.devices.reset_port import ResetPort
from kvmpy.errors import ConfigError
from kvmpy.irq import Line

if TYPE_CHECKING:
    from kvmpy.boot import Hardware
    from kvmpy.devices.virtio.device import VirtioDevice
    from kvmpy.devices.virtio.mmio import VirtioMmio

VIRTIO_BASE = 0xFEB00000
VIRTIO_STEP = 0x1000
"""A page each, so that a guest may map them apart."""
VIRTIO_IRQS = (5, 6, 7, 10, 11, 12, 14, 15)
"""ISA interrupts that nothing else has here: a Linux without ACPI knows only those. Beyond eight devices they are shared."""
MOST_VIRTIO = 64


class Micro(Board):
    """Virtio devices stand at VIRTIO_BASE in the order they are added."""

    name = "micro"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.pm = AcpiPm(Line(SCI))
        self.virtio: list[VirtioMmio] = []
        self.devices: list[Device] = [*self.serial, self.pm, ResetPort(), DebugConsole(parts.console), DebugExit()]

    def carry_virtio(self, device: VirtioDevice) -> Device:
        number = len(self.virtio)
        if number == MOST_VIRTIO:
            raise ConfigError(f"{device.name}: machine type micro has room for {MOST_VIRTIO} virtio devices")
        from kvmpy.devices.virtio.mmio import VirtioMmio  # a machine without virtio devices needs none of it

        carrier = VirtioMmio(device, VIRTIO_BASE + number * VIRTIO_STEP, Line(VIRTIO_IRQS[number % len(VIRTIO_IRQS)]))
        self.virtio.append(carrier)
        return carrier

    def command_line(self, text: str) -> str:
        """A Linux that is told not to look at ACPI finds its devices here; told by both it would see each of them twice."""
        if "acpi=off" not in text.split():
            return text
        return " ".join([text, *(f"virtio_mmio.device={each.mmio[1]}@{each.base:#x}:{each.line.gsi}" for each in self.virtio)])

    def hardware(self, cpus: int) -> Hardware:
        from kvmpy.boot import Hardware

        return Hardware(
            cpus=cpus, com_ports=COM_PORTS[: len(self.serial)], rtc=False, i8042=False, isa_chips=False, sci=SCI,
            virtio_mmio=tuple((*each.mmio, each.line.gsi) for each in self.virtio),
        )
