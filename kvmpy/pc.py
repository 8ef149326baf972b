"""Machine type pc: PCI, and the devices of a PC at their usual ports and interrupts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kvmpy.backend import CData
from kvmpy.board import COM_PORTS, SCI, Board, Parts
from kvmpy.devices.acpi_pm import AcpiPm
from kvmpy.devices.base import Device
from kvmpy.devices.biosdisk import BiosDisk
from kvmpy.devices.blockend import BlockEnd
from kvmpy.devices.debug_console import DebugConsole
from kvmpy.devices.debug_exit import DebugExit
from kvmpy.devices.hpet import BASE as HPET_BASE
from kvmpy.devices.hpet import Hpet
from kvmpy.devices.i8042 import I8042
from kvmpy.devices.pci import host as pci
from kvmpy.devices.pci.bridges import HostBridge, IsaBridge
from kvmpy.devices.pci.device import PciDevice
from kvmpy.devices.port92 import A20Gate, Port92
from kvmpy.devices.post import Post
from kvmpy.devices.reset_port import ResetPort
from kvmpy.devices.rtc import Rtc
from kvmpy.irq import Line
from kvmpy.memory import FOUR_GIB

if TYPE_CHECKING:
    from kvmpy.boot import Hardware
    from kvmpy.devices.ata.controller import IdeController
    from kvmpy.devices.virtio.device import VirtioDevice

KEYBOARD, MOUSE, CLOCK = 1, 12, 8
LEVEL_IRQS_HIGH = 1 << (10 - 8) | 1 << (11 - 8)
"""ELCR of the second 8259: the PIRQs' interrupts are levels."""


class Pc(Board):
    """Device 0 of PCI is the host bridge, device 1 the ISA bridge; further functions take slots in the order they are added."""

    name = "pc"
    has_bios = True

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        gate = A20Gate()
        memory = parts.memory.ram_ranges()
        low = max((start + size for start, size in memory if start < FOUR_GIB), default=0)
        high = sum(size for start, size in memory if start >= FOUR_GIB)
        self.rtc = Rtc(Line(CLOCK), low, high)
        self.keyboard_controller = I8042(Line(KEYBOARD), Line(MOUSE), gate)
        self.pm = AcpiPm(Line(SCI))
        self.post = Post()
        self.bios_disk = BiosDisk()
        self.ide: IdeController | None = None
        reset = ResetPort()
        reset.ports = []  # 0xCF9 lies inside the PCI host's ports, which passes it on
        self.pci = pci.PciHost(parts.buses, reset)
        self.devices: list[Device] = [
            *self.serial, self.rtc, self.keyboard_controller, Port92(gate), self.pm, reset, self.pci, HostBridge(), IsaBridge(),
            Hpet(), self.post, DebugConsole(parts.console), DebugExit(), self.bios_disk,
        ]

    def carry(self, device: Device | VirtioDevice) -> Device:
        if isinstance(device, PciDevice):
            self.pci.plug(device)
            return device
        return super().carry(device)

    def carry_virtio(self, device: VirtioDevice) -> Device:
        from kvmpy.devices.virtio.pci import VirtioPci  # a machine without virtio devices needs none of it

        return self.carry(VirtioPci(device))

    def boot_from(self, image: BlockEnd) -> None:
        self.bios_disk.boot_from(image)

    def add_ata(self, image: BlockEnd, cdrom: bool, add: Callable[[Any], Any]) -> None:
        if self.ide is None:
            from kvmpy.devices.ata.controller import IdeController  # comes with its first drive

            self.ide = IdeController(slot=1, function=1)
            add(self.ide)
        self.ide.attach(image, cdrom)

    def add_bios_disk(self, image: BlockEnd) -> None:
        self.bios_disk.attach(image)

    def set_chips(self, chips: Sequence[CData]) -> None:
        chips[1].chip.pic.elcr |= LEVEL_IRQS_HIGH

    def leave_as_firmware_does(self) -> None:
        super().leave_as_firmware_does()
        self.pci.leave_as_firmware_does()

    def hardware(self, cpus: int) -> Hardware:
        from kvmpy.boot import Hardware
        from kvmpy.boot.hardware import Pci

        return Hardware(
            cpus=cpus, com_ports=COM_PORTS[: len(self.serial)], mouse=True, sci=SCI, hpet=HPET_BASE,
            pci=Pci(
                ecam=pci.ECAM_BASE, memory=pci.MEMORY_WINDOW, pirq_gsis=tuple(range(pci.FIRST_GSI, pci.FIRST_GSI + pci.GSIS)),
                isa_bridge=1,
            ),
        )
