"""Base address registers (PCI Local Bus 3.0 §6.2.5.1): ranges of ports or addresses that move when the guest writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmpy.devices.pci import config as pci
from kvmpy.errors import ConfigError

if TYPE_CHECKING:
    from kvmpy.devices.pci.device import PciDevice

IO = 0x1
WIDE = 0x4  # type 10b: 64 bits
PREFETCHABLE = 0x8

SMALLEST_IO, LARGEST_IO = 4, 256
SMALLEST_MEMORY = 16


class Bar:
    """One BAR. On a bus it stands as a device of its own: `read(offset, size)` and `write(offset, size, value)` are the function's."""

    def __init__(
        self, device: PciDevice, index: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None], *,
        io: bool = False, wide: bool = False, prefetchable: bool = False,
    ) -> None:
        self.name = f"{device.name or type(device).__name__} BAR {index}"
        if size & (size - 1) or size < (SMALLEST_IO if io else SMALLEST_MEMORY) or (io and (wide or size > LARGEST_IO)):
            raise ConfigError(f"{self.name}: {size:#x} bytes is no size of a BAR")
        if not 0 <= index <= (4 if wide else 5):
            raise ConfigError(f"{self.name}: a function has BARs 0 to 5")
        self.device = device
        self.index = index
        self.size = size
        self.io = io
        self.wide = wide
        self.read = read
        self.write = write
        self.mapped: int | None = None
        """Where it stands on its bus."""
        self._flags = IO if io else (WIDE if wide else 0) | (PREFETCHABLE if prefetchable else 0)
        self._bytes = 8 if wide else 4
        self._limit = 1 << 16 if io else 1 << 64 if wide else 1 << 32
        device.config.define(self.register, self._bytes, self._flags, writable=(1 << 8 * self._bytes) - size)

    @property
    def register(self) -> int:
        """Offset in configuration space."""
        return pci.BAR0 + 4 * self.index

    @property
    def address(self) -> int:
        """What the register holds, without the flags."""
        return self.device.config.get(self.register, self._bytes) & ~(self.size - 1) & ~0xF | self._low_bits()

    def _low_bits(self) -> int:
        # I/O BARs have two flag bits, so the smallest ones keep address bits 2 and 3.
        return self.device.config.get(self.register, 1) & ~(self.size - 1) & 0xC if self.io else 0

    def place(self, address: int) -> None:
        """Writes the address as firmware does."""
        self.device.config.set(self.register, self._bytes, address | self._flags)

    def wanted(self) -> int | None:
        """Where the function decodes it now; None when decoding is off, or the register holds no usable address."""
        command = self.device.config.get(pci.COMMAND, 2)
        address = self.address
        if not command & (pci.IO_SPACE if self.io else pci.MEMORY_SPACE) or not address or address + self.size > self._limit:
            return None
        return address
