"""NE2000: the DP8390 as an ISA card, and as the RTL8029 on PCI."""

from __future__ import annotations

from typing import Any

from kvmpy.devices.base import Device, Platform
from kvmpy.devices.net.dp8390 import SIZE, Dp8390
from kvmpy.devices.netend import NetEnd
from kvmpy.devices.pci.device import PciDevice
from kvmpy.frames import Offload
from kvmpy.irq import Line

ISA_PORT, ISA_IRQ = 0x300, 5
"""One of the card's factory choices that no other device of the machine uses."""
REALTEK, RTL8029 = 0x10EC, 0x8029


class Ne2000Isa(Device):
    """The card at `port` with the interrupt `line` (by default 0x300 and IRQ 5)."""

    name = "NE2000"

    def __init__(self, end: NetEnd, mac: bytes, port: int = ISA_PORT, line: Line | None = None) -> None:
        self.ports = port, SIZE
        self.line = line or Line(ISA_IRQ)
        self.end = end
        self.chip = Dp8390(end, mac, self.line.set)

    def connect(self, platform: Platform) -> None:
        super().connect(platform)
        self.end.attach(self._receive, platform.call)

    def _receive(self, frame: bytes | memoryview, offload: Offload | None) -> None:
        self.chip.receive(frame)

    def read(self, offset: int, size: int) -> int:
        return self.chip.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.chip.write(offset, size, value)

    def reset(self) -> None:
        self.chip.power_on()

    def state(self) -> dict[str, Any]:
        return self.chip.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.chip.restore(state)

    def close(self) -> None:
        self.end.close()


class Ne2000Pci(PciDevice):
    """The registers are in BAR 0, by ports."""

    name = "NE2000 (RTL8029)"
    vendor_id = REALTEK
    device_id = RTL8029
    class_code = 0x020000
    subsystem_vendor_id = REALTEK
    subsystem_id = RTL8029

    def __init__(self, end: NetEnd, mac: bytes, slot: int | None = None, function: int = 0) -> None:
        super().__init__(slot, function)
        self.end = end
        self.chip = Dp8390(end, mac, self.set_interrupt, b"PC")
        self.add_bar(0, SIZE, self.chip.read, self.chip.write, io=True)

    def connect(self, platform: Platform) -> None:
        super().connect(platform)
        self.end.attach(self._receive, platform.call)

    def _receive(self, frame: bytes | memoryview, offload: Offload | None) -> None:
        self.chip.receive(frame)

    def reset(self) -> None:
        super().reset()
        self.chip.power_on()

    def state(self) -> dict[str, Any]:
        return {**super().state(), "chip": self.chip.state()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.chip.restore(state["chip"])

    def close(self) -> None:
        self.end.close()
