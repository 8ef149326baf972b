"""Configuration space of a PCI function (PCI Local Bus 3.0 chapter 6): bytes, of which the guest may change some bits."""

from __future__ import annotations

SIZE = 256

VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION = 0x08  # then the class code, three bytes
CACHE_LINE_SIZE = 0x0C
LATENCY_TIMER = 0x0D
HEADER_TYPE = 0x0E
BAR0 = 0x10
SUBSYSTEM_VENDOR_ID = 0x2C
SUBSYSTEM_ID = 0x2E
EXPANSION_ROM = 0x30
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
FIRST_CAPABILITY = 0x40

# Command register.
IO_SPACE = 0x0001
MEMORY_SPACE = 0x0002
BUS_MASTER = 0x0004
PARITY_RESPONSE = 0x0040
SERR_ENABLE = 0x0100
INTX_DISABLE = 0x0400

# Status register.
INTERRUPT_STATUS = 0x0008
CAPABILITIES_LIST = 0x0010
ERRORS = 0xF900  # cleared by writing ones

MULTIFUNCTION = 0x80  # header type


class ConfigSpace:
    """Values, the mask of bits that a write changes, and the mask of bits that a written one clears."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._clearing = bytearray(SIZE)

    def define(self, offset: int, size: int, value: int, *, writable: int = 0, clearing: int = 0) -> None:
        """Sets a register's value and which of its bits the guest may write or clear."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")
        self._writable[offset : offset + size] = writable.to_bytes(size, "little")
        self._clearing[offset : offset + size] = clearing.to_bytes(size, "little")

    def allow(self, offset: int, mask: int) -> None:
        """Makes further bits of a 16-bit register writable."""
        for at in (offset, offset + 1):
            self._writable[at] |= mask >> 8 * (at - offset) & 0xFF

    def get(self, offset: int, size: int) -> int:
        """A register's value; bytes past the end are 0."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """The device's own change of a register, masks or not."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write."""
        for at in range(offset, min(offset + size, SIZE)):
            byte = value >> 8 * (at - offset) & 0xFF
            mask = self._writable[at]
            self.data[at] = (self.data[at] & ~mask | byte & mask) & ~(byte & self._clearing[at])
