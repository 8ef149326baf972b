"""Machine types: which devices a machine is made with, and how more are put on its buses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kvmpy.backend import CData
from kvmpy.bus import MmioBus, PortBus
from kvmpy.devices.base import Device
from kvmpy.devices.blockend import BlockEnd
from kvmpy.devices.serial import Serial
from kvmpy.errors import ConfigError
from kvmpy.host.chars import CharEnd
from kvmpy.irq import Line
from kvmpy.memory import GuestMemory
from kvmpy.record import Record

if TYPE_CHECKING:
    from kvmpy.boot import Hardware
    from kvmpy.devices.virtio.device import VirtioDevice

COM_PORTS = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))
"""First port and IRQ of COM1 to COM4."""

SCI = 9
LCR, EIGHT_BITS = 3, 0x03


class Parts(Record, frozen=True):
    """What a machine gives its board."""

    serial: Sequence[CharEnd]
    """Ends of COM1 and on."""
    console: CharEnd
    """Takes the debug console's output."""
    memory: GuestMemory
    buses: tuple[PortBus, MmioBus]


class Board:
    """The devices of one machine. Types: `kvmpy.pc.Pc` and `kvmpy.micro.Micro`."""

    name = ""
    has_bios = False
    devices: list[Device]

    def __init__(self, parts: Parts) -> None:
        self.serial = [
            Serial(port, Line(irq), end, f"Serial COM{number}")
            for number, ((port, irq), end) in enumerate(zip(COM_PORTS, parts.serial, strict=False), 1)
        ]

    def carry(self, device: Device | VirtioDevice) -> Device:
        """Gives a device its place: the Device that stands on the buses. ConfigError where the type has no bus for it."""
        if not isinstance(device, Device):
            return self.carry_virtio(device)
        if device.is_pci:
            raise ConfigError(f"{device.name}: machine type {self.name} has no PCI")
        return device

    def carry_virtio(self, device: VirtioDevice) -> Device:
        """A virtio device on the type's transport."""
        raise ConfigError(f"{device.name}: machine type {self.name} has no transport for virtio")

    def boot_from(self, image: BlockEnd) -> None:
        """The BIOS shall boot from this image. ConfigError where the type has no BIOS."""
        raise ConfigError(f"machine type {self.name} has no BIOS to boot a disk with: use --machine pc")

    def add_bios_disk(self, image: BlockEnd) -> None:
        """A further disk for the BIOS. ConfigError where the type has none."""
        raise ConfigError(f"machine type {self.name} has no BIOS for disks: use bus=virtio or --machine pc")

    def add_ata(self, image: BlockEnd, cdrom: bool, add: Callable[[Any], Any]) -> None:
        """A disk or CD-ROM on ATA; `add` puts a device into the machine. ConfigError where the type has no ATA."""
        raise ConfigError(f"machine type {self.name} has no ATA: use bus=virtio or --machine pc")

    def set_chips(self, chips: Sequence[CData]) -> None:
        """Changes the power-on state of the interrupt chips (two 8259s, I/O APIC) to what firmware leaves."""

    def leave_as_firmware_does(self) -> None:
        """After power-on: serial ports at 8 bits, no parity, one stop bit, for guests that start without a BIOS and write at once."""
        for port in self.serial:
            port.write(LCR, 1, EIGHT_BITS)

    def command_line(self, text: str) -> str:
        """The guest's command line with what the type must tell there."""
        return text

    def hardware(self, cpus: int) -> Hardware:
        """What the ACPI and MP tables shall say."""
        raise AssertionError(self.name)


def make_board(name: str, parts: Parts) -> Board:
    """The board of a machine type. ConfigError for an unknown name."""
    # A type is loaded with its devices, those of the other are not.
    if name == "pc":
        from kvmpy.pc import Pc

        return Pc(parts)
    if name == "micro":
        from kvmpy.micro import Micro

        return Micro(parts)
    raise ConfigError(f"machine {name!r}: one of pc, micro")
