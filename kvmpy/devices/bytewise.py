"""Byte-wide ISA chips: a wider access becomes byte accesses to consecutive ports, lowest first, as the ISA bus does it."""

from __future__ import annotations

from kvmpy.devices.base import Device


class ByteDevice(Device):
    """A device whose registers are bytes: subclasses give `read_byte` and `write_byte`.

    `size` in bytes is the number of registers; bytes of a wide access that lie past it read as 0xFF and ignore writes.
    """

    size: int = 1

    def read_byte(self, offset: int) -> int:
        return 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        pass

    def read(self, offset: int, size: int) -> int:
        if size == 1:
            return self.read_byte(offset)
        value = 0
        for index in range(size):
            byte = self.read_byte(offset + index) if offset + index < self.size else 0xFF
            value |= byte << 8 * index
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 1:
            self.write_byte(offset, value & 0xFF)
            return
        for index in range(min(size, self.size - offset)):
            self.write_byte(offset + index, value >> 8 * index & 0xFF)
