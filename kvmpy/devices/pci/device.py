"""The base of every PCI function: identity, command register, BARs, capabilities, interrupts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmpy.devices.base import Device
from kvmpy.devices.pci import config as pci
from kvmpy.devices.pci.bar import Bar
from kvmpy.devices.pci.config import ConfigSpace
from kvmpy.devices.pci.msi import Msi, Msix
from kvmpy.errors import ConfigError, MemoryAccessError

if TYPE_CHECKING:
    from kvmpy.devices.pci.host import PciHost

MSI_WINDOW = range(0xFEE00000, 0xFEF00000)
"""Writes there are messages to local APICs (SDM 3A 11.11.1)."""


class PciDevice(Device):
    """A PCI function with a type 0 header.

    A subclass sets the identity, adds BARs and capabilities in its constructor, and calls `set_interrupt` or `signal`.
    `ports` and `mmio` of a Device are fixed ranges beside the BARs (legacy ports of an IDE controller, say).
    `slot` and `function` choose the place on bus 0; by default the machine takes the next free slot.
    """

    is_pci = True
    vendor_id = 0xFFFF
    device_id = 0xFFFF
    revision = 0
    class_code = 0xFF0000
    """Base class, subclass, programming interface."""
    subsystem_vendor_id = 0
    subsystem_id = 0
    interrupt_pin = 1
    """1 to 4: INTA# to INTD#; 0: the function has none."""

    def __init__(self, slot: int | None = None, function: int = 0) -> None:
        self.slot = slot
        self.function = function
        self.host: PciHost | None = None
        self.config = ConfigSpace()
        self.bars: list[Bar] = []
        self.msi: Msi | None = None
        self.msix: Msix | None = None
        self._next_capability = pci.FIRST_CAPABILITY
        self._last_pointer = pci.CAPABILITIES
        self._interrupt = 0
        self._power_on = b""
        define = self.config.define
        define(pci.VENDOR_ID, 2, self.vendor_id)
        define(pci.DEVICE_ID, 2, self.device_id)
        define(pci.COMMAND, 2, 0, writable=pci.BUS_MASTER | pci.PARITY_RESPONSE | pci.SERR_ENABLE | pci.INTX_DISABLE)
        define(pci.STATUS, 2, 0, clearing=pci.ERRORS)
        define(pci.REVISION, 4, self.revision | self.class_code << 8)
        define(pci.CACHE_LINE_SIZE, 2, 0, writable=0xFFFF)
        define(pci.SUBSYSTEM_VENDOR_ID, 4, self.subsystem_vendor_id | self.subsystem_id << 16)
        define(pci.INTERRUPT_LINE, 2, self.interrupt_pin << 8, writable=0xFF if self.interrupt_pin else 0)

    # For constructors.

    def add_bar(
        self, index: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None], *,
        io: bool = False, wide: bool = False, prefetchable: bool = False,
    ) -> Bar:
        """A range of `size` bytes (a power of two), of ports (`io`) or addresses (`wide`: 64 bits, takes two registers)."""
        taken = {n for bar in self.bars for n in range(bar.index, bar.index + 1 + bar.wide)}
        bar = Bar(self, index, size, read, write, io=io, wide=wide, prefetchable=prefetchable)
        if taken & {index, index + wide}:
            raise ConfigError(f"{bar.name} exists already")
        self.bars.append(bar)
        enable = pci.COMMAND, pci.IO_SPACE if io else pci.MEMORY_SPACE
        self.config.allow(*enable)
        return bar

    def add_capability(self, identity: int, size: int) -> int:
        """Room for a capability of `size` bytes, header included, at the end of the list; gives its offset."""
        at = self._next_capability
        if at + size > pci.SIZE:
            raise ConfigError(f"{self.name}: capabilities do not fit into configuration space")
        self._next_capability = -(-(at + size) // 4) * 4
        self.config.set(self._last_pointer, 1, at)
        self._last_pointer = at + 1
        self.config.define(at, 2, identity)
        self.config.set(pci.STATUS, 2, self.config.get(pci.STATUS, 2) | pci.CAPABILITIES_LIST)
        return at

    def add_msi(self, vectors: int = 1) -> None:
        self.msi = Msi(self, vectors)

    def add_msix(self, vectors: int, bar: int) -> None:
        """The MSI-X capability with its table in a BAR of its own."""
        self.msix = Msix(self, vectors, bar)

    # What the host bridge asks.

    def plugged(self, host: PciHost) -> None:
        """Called once, when the function has its place."""
        self.host = host
        self._power_on = bytes(self.config.data)

    def leave_as_firmware_does(self) -> None:
        """After the BARs have been assigned: what else firmware would set."""

    def bars_moved(self) -> None:
        """BARs may stand elsewhere now, or be decoded no more, or the command register has changed."""

    def config_read(self, offset: int, size: int) -> int:
        """A guest's read of configuration space; subclasses may look first."""
        return self.config.get(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write of configuration space; subclasses may look after it."""
        before = self.config.get(pci.COMMAND, 2)
        self.config.write(offset, size, value)
        if (offset < pci.COMMAND + 2 and offset + size > pci.COMMAND) or (offset < pci.SUBSYSTEM_VENDOR_ID and offset + size > pci.BAR0):
            self._moved()
            self.bars_moved()
        if self.config.get(pci.COMMAND, 2) != before or offset >= pci.FIRST_CAPABILITY:
            self._interrupts_changed()

    def _moved(self) -> None:
        if self.host is not None:
            self.host.remap(self)

    def _interrupts_changed(self) -> None:
        for capability in (self.msi, self.msix):
            if capability is not None and capability.enabled:
                capability.written()
        self._drive()

    # What the function does on the bus.

    @property
    def bus_master(self) -> bool:
        """The guest lets the function reach memory."""
        return bool(self.config.get(pci.COMMAND, 2) & pci.BUS_MASTER)

    @property
    def messages_enabled(self) -> bool:
        """MSI or MSI-X is on: INTx is silent."""
        return bool((self.msix is not None and self.msix.enabled) or (self.msi is not None and self.msi.enabled))

    def set_interrupt(self, level: int) -> None:
        """The function's interrupt condition, for INTx. With MSI a rising edge is message 0; with MSI-X use `signal`."""
        level = 1 if level else 0
        if level == self._interrupt:
            return
        self._interrupt = level
        status = self.config.get(pci.STATUS, 2)
        self.config.set(pci.STATUS, 2, status | pci.INTERRUPT_STATUS if level else status & ~pci.INTERRUPT_STATUS)
        if level and self.msi is not None and self.msi.enabled and not (self.msix is not None and self.msix.enabled):
            self.msi.signal(0)
        self._drive()

    def signal(self, vector: int) -> None:
        """One message of MSI-X or MSI, whichever is on."""
        if self.msix is not None and self.msix.enabled:
            self.msix.signal(vector)
        elif self.msi is not None and self.msi.enabled:
            self.msi.signal(vector)

    def _drive(self) -> None:
        if self.host is not None and self.interrupt_pin:
            silent = self.messages_enabled or self.config.get(pci.COMMAND, 2) & pci.INTX_DISABLE
            self.host.set_intx(self, 0 if silent else self._interrupt)

    def send_message(self, address: int, data: int) -> None:
        """A message is a 32-bit write by the function: to a local APIC, or to memory if the guest has set it so."""
        if not self.bus_master:
            return
        if address in MSI_WINDOW:
            self.platform.signal_msi(address, data)
            return
        try:
            self.platform.memory.write_u32(address, data)
        except MemoryAccessError:
            self.platform.event(self, "message to nowhere", address=address, data=data)

    # State.

    def reset(self) -> None:
        """Power-on state: no BAR is decoded, no interrupt enabled. Subclasses call it first."""
        self.config.data[:] = self._power_on
        self._interrupt = 0
        if self.msix is not None:
            self.msix.reset()
        self._moved()
        self._drive()

    def state(self) -> dict[str, Any]:
        """Subclasses add to it."""
        state: dict[str, Any] = {"config": bytes(self.config.data), "interrupt": self._interrupt}
        if self.msix is not None:
            state["msix"] = self.msix.state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        self.config.data[:] = state["config"]
        self._interrupt = state["interrupt"]
        if self.msix is not None:
            self.msix.restore(state["msix"])
        self._moved()
        self._drive()
