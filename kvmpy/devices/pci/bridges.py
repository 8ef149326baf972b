"""The two bridges of every PCI machine: host to PCI, and PCI to ISA.

Their identities are ones that drivers leave alone: a host bridge without registers of its own, and the ISA function of the PIIX4
(82371AB), of which the interrupt routing exists.
"""

from __future__ import annotations

from typing import Any

from kvmpy.devices.pci.device import PciDevice
from kvmpy.devices.pci.host import PIRQ_DISABLED, PIRQS, ROUTABLE

INTEL = 0x8086


class HostBridge(PciDevice):
    """00:00.0."""

    name = "PCI host bridge"
    vendor_id = INTEL
    device_id = 0x0D57
    class_code = 0x060000
    interrupt_pin = 0

    def __init__(self) -> None:
        super().__init__(slot=0)


class IsaBridge(PciDevice):
    """00:01.0. PIRQRCA-D (60h-63h, 82371AB §4.1.10): bit 7 off, bits 3:0 the ISA IRQ that PIRQx# drives beside the I/O APIC."""

    name = "PCI-ISA bridge"
    vendor_id = INTEL
    device_id = 0x7110
    class_code = 0x060100
    interrupt_pin = 0
    PIRQRC = 0x60

    def __init__(self) -> None:
        super().__init__(slot=1)
        # I/O, memory and bus mastering are always on (82371AB §4.1.3).
        self.config.define(0x04, 2, 0x0007)
        self.config.define(self.PIRQRC, PIRQS, 0x80808080, writable=0x8F8F8F8F)

    def config_write(self, offset: int, size: int, value: int) -> None:
        super().config_write(offset, size, value)
        if offset < self.PIRQRC + PIRQS and offset + size > self.PIRQRC:
            self._route()

    def _route(self) -> None:
        assert self.host is not None
        for number in range(PIRQS):
            value = self.config.get(self.PIRQRC + number, 1)
            self.host.routing[number] = value if value in ROUTABLE else PIRQ_DISABLED
        self.host.route()

    def leave_as_firmware_does(self) -> None:
        """The routing that the interrupt lines of the functions tell."""
        assert self.host is not None
        self.config.set(self.PIRQRC, PIRQS, int.from_bytes(bytes(self.host.routing), "little"))

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._route()
