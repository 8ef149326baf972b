"""The PCI host: configuration mechanism 1 (PCI Local Bus 3.0 §3.2.2.3.2), ECAM (PCI Express 3.0 §7.2.2), bus 0, INTx routing.

    0xCF8        CONFIG_ADDRESS, double words only; a byte at 0xCF9 is the reset control register, as in Intel's chip sets
    0xCFC-0xCFF  CONFIG_DATA, 1, 2 or 4 bytes
    ECAM         4 KiB for each function of bus 0, of which 256 bytes exist
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvmpy.bus import MmioBus, PortBus
from kvmpy.devices.base import Device
from kvmpy.devices.pci import config as pci
from kvmpy.devices.pci.bar import Bar
from kvmpy.devices.pci.device import PciDevice
from kvmpy.errors import ConfigError
from kvmpy.irq import Line

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
ENABLE = 1 << 31
SLOTS, FUNCTIONS = 32, 8

ECAM_BASE = 0xE0000000
ECAM_SIZE = 1 << 20
"""One bus."""

MEMORY_WINDOW = 0xC0000000, 0x20000000
IO_WINDOW = 0xC000, 0x4000
"""(first, size): where firmware puts BARs."""

FIRST_GSI, GSIS = 16, 8
PIRQS = 4
FIRMWARE_IRQS = (10, 11, 10, 11)
"""ISA IRQs of PIRQA# to PIRQD# as firmware leaves them."""
PIRQ_DISABLED = 0x80
ROUTABLE = frozenset({3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15})


def gsi_of(slot: int, pin: int) -> int:
    """I/O APIC input of INTA# (pin 1) to INTD# (4) of a slot; ACPI's _PRT says the same."""
    return FIRST_GSI + (slot + pin - 1) % GSIS


class PciHost(Device):
    """Bus 0 and all that is on it. `buses` are the machine's port and MMIO bus, on which BARs come and go."""

    name = "PCI host"
    ports = CONFIG_ADDRESS, 8
    mmio = ECAM_BASE, ECAM_SIZE

    def __init__(self, buses: tuple[PortBus, MmioBus], reset_port: Device | None = None) -> None:
        """`reset_port` answers at 0xCF9."""
        self._buses = buses
        self._reset_port = reset_port
        self.functions: dict[tuple[int, int], PciDevice] = {}
        self._address = 0
        self._hidden: list[Bar] = []
        self.gsi_lines = [Line(FIRST_GSI + n) for n in range(GSIS)]
        self.isa_lines = [Line(irq) for irq in range(16)]
        self._asserting: list[set[PciDevice]] = [set() for _ in range(GSIS)]
        self.routing = [PIRQ_DISABLED] * PIRQS
        """ISA IRQ of each PIRQ, or PIRQ_DISABLED; the ISA bridge's registers set it."""

    # Places.

    def plug(self, device: PciDevice) -> None:
        """Gives a function its place: its own choice, or the lowest free slot. ConfigError when there is none."""
        if device.slot is None:
            taken = {slot for slot, _ in self.functions}
            device.slot = next((slot for slot in range(SLOTS) if slot not in taken), None)
            if device.slot is None:
                raise ConfigError(f"{device.name}: all {SLOTS} PCI slots are taken")
        place = device.slot, device.function
        if not (0 <= device.slot < SLOTS and 0 <= device.function < FUNCTIONS):
            raise ConfigError(f"{device.name}: PCI slot {device.slot}, function {device.function} does not exist")
        if place in self.functions:
            raise ConfigError(f"{device.name}: PCI slot {place[0]}, function {place[1]} is taken by {self.functions[place].name}")
        self.functions[place] = device
        device.plugged(self)

    def _ordered(self) -> Iterator[PciDevice]:
        return (self.functions[place] for place in sorted(self.functions))

    # Configuration accesses.

    def read(self, offset: int, size: int) -> int:
        if offset >= 8:
            return self._ecam_read(offset - 8, size)
        if offset >= 4:
            if not self._address & ENABLE:
                return (1 << 8 * size) - 1
            return self.config_read(self._address >> 8 & 0xFFFF, (self._address & 0xFC) + (offset & 3), size)
        if offset == 0 and size == 4:
            return self._address
        if self._reset_port is not None and offset == 1 and size == 1:
            return self._reset_port.read(0, 1)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= 8:
            self._ecam_write(offset - 8, size, value)
        elif offset >= 4:
            if self._address & ENABLE:
                self.config_write(self._address >> 8 & 0xFFFF, (self._address & 0xFC) + (offset & 3), size, value)
        elif offset == 0 and size == 4:
            self._address = value & 0x80FFFFFC
        elif self._reset_port is not None and offset == 1 and size == 1:
            self._reset_port.write(0, 1, value)

    def _ecam_read(self, offset: int, size: int) -> int:
        if (offset & 3) + size > 4:  # a cycle on the bus has one double word
            half = size // 2
            return self._ecam_read(offset, half) | self._ecam_read(offset + half, half) << 8 * half
        return self.config_read(offset >> 12, offset & 0xFFF, size)

    def _ecam_write(self, offset: int, size: int, value: int) -> None:
        if (offset & 3) + size > 4:
            half = size // 2
            self._ecam_write(offset, half, value & (1 << 8 * half) - 1)
            self._ecam_write(offset + half, half, value >> 8 * half)
        else:
            self.config_write(offset >> 12, offset & 0xFFF, size, value)

    def _function(self, where: int, offset: int, size: int) -> PciDevice | None:
        """The function at bus << 8 | slot << 3 | function, if it has that register."""
        if where > 0xFF or offset + size > pci.SIZE:
            return None
        return self.functions.get((where >> 3, where & 7))

    def config_read(self, where: int, offset: int, size: int) -> int:
        """All ones where there is no function (or no such register)."""
        device = self._function(where, offset, size)
        if device is None:
            return (1 << 8 * size) - 1
        value = device.config_read(offset, size)
        if offset <= pci.HEADER_TYPE < offset + size and not device.function and self._many(device):
            value |= pci.MULTIFUNCTION << 8 * (pci.HEADER_TYPE - offset)
        return value

    def config_write(self, where: int, offset: int, size: int, value: int) -> None:
        device = self._function(where, offset, size)
        if device is not None:
            device.config_write(offset, size, value)

    def _many(self, device: PciDevice) -> bool:
        return any((device.slot, function) in self.functions for function in range(1, FUNCTIONS))

    # BARs.

    def remap(self, device: PciDevice) -> None:
        """Puts a function's BARs where its registers say now. A BAR over another range stays hidden until that one moves."""
        freed = False
        for bar in device.bars:
            if bar.mapped is not None and bar.mapped != bar.wanted():
                self._buses[not bar.io].remove(bar)
                bar.mapped = None
                device.bars_moved()
                freed = True
        for bar in device.bars:
            if bar.mapped is None:
                self._show(bar)
        if freed:
            for bar in tuple(self._hidden):
                self._show(bar)

    def _show(self, bar: Bar) -> None:
        if bar in self._hidden:
            self._hidden.remove(bar)
        address = bar.wanted()
        if address is None:
            return
        try:
            self._buses[not bar.io].insert(address, bar.size, bar, name=bar.name)
            bar.mapped = address
            bar.device.bars_moved()
        except ConfigError as error:
            self._hidden.append(bar)
            self.platform.event(self, "BAR hidden", reason=str(error))

    def leave_as_firmware_does(self) -> None:
        """Assigns every BAR, turns decoding on and tells the interrupt line, in the order of slots: the same at each start."""
        self.routing[:] = FIRMWARE_IRQS
        free = {False: MEMORY_WINDOW[0], True: IO_WINDOW[0]}
        for device in self._ordered():
            command = 0
            for bar in device.bars:
                at = -(-free[bar.io] // bar.size) * bar.size
                window = IO_WINDOW if bar.io else MEMORY_WINDOW
                if at + bar.size > sum(window):
                    raise ConfigError(f"{bar.name}: {bar.size:#x} bytes do not fit into the PCI window")
                bar.place(at)
                free[bar.io] = at + bar.size
                command |= pci.IO_SPACE if bar.io else pci.MEMORY_SPACE
            device.config.set(pci.COMMAND, 2, device.config.get(pci.COMMAND, 2) | command)
            if device.interrupt_pin:
                device.config.set(pci.INTERRUPT_LINE, 1, FIRMWARE_IRQS[self._pirq(device) % PIRQS])
            self.remap(device)
            device.leave_as_firmware_does()

    # Interrupts.

    @staticmethod
    def _pirq(device: PciDevice) -> int:
        assert device.slot is not None
        return gsi_of(device.slot, device.interrupt_pin) - FIRST_GSI

    def set_intx(self, device: PciDevice, level: int) -> None:
        """A function's INTx pin: drives the I/O APIC's input, and the ISA IRQ that the PIRQ is routed to."""
        number = self._pirq(device)
        asserting = self._asserting[number]
        (asserting.add if level else asserting.discard)(device)
        self.gsi_lines[number].set(bool(asserting))
        self.route()

    def route(self) -> None:
        """Drives the ISA IRQs after a change of a PIRQ or of the routing."""
        high = {
            self.routing[number % PIRQS] for number, asserting in enumerate(self._asserting) if asserting
        } & ROUTABLE
        for line in self.isa_lines:
            if line.level != (line.gsi in high):
                line.set(line.gsi in high)

    # State. Functions are devices of the machine and have their own.

    def reset(self) -> None:
        self._address = 0
        self.routing[:] = [PIRQ_DISABLED] * PIRQS
        self.route()

    def state(self) -> dict[str, Any]:
        return {"address": self._address}

    def restore(self, state: dict[str, Any]) -> None:
        self._address = state["address"]
