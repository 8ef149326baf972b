"""Message signalled interrupts: the MSI and MSI-X capabilities (PCI Local Bus 3.0 §6.8)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmpy.devices.pci.device import PciDevice

MSI_ID, MSIX_ID = 0x05, 0x11

# MSI message control.
MSI_ENABLE = 0x0001
MSI_WIDE = 0x0080
MSI_MASKABLE = 0x0100

# MSI-X message control.
MSIX_ENABLE = 0x8000
MSIX_FUNCTION_MASK = 0x4000

ENTRY_MASKED = 1  # vector control
ENTRY = 16

Send = Callable[[int, int], None]


class Msi:
    """MSI with 64-bit addresses, a mask and a pending bit per vector; `vectors` is a power of two up to 32."""

    CONTROL, ADDRESS, DATA, MASK, PENDING, SIZE = 2, 4, 12, 16, 20, 24

    def __init__(self, device: PciDevice, vectors: int) -> None:
        assert vectors in (1, 2, 4, 8, 16, 32)
        self._config = device.config
        self._send = device.send_message
        self.at = at = device.add_capability(MSI_ID, self.SIZE)
        count = vectors.bit_length() - 1
        self._config.define(at + self.CONTROL, 2, MSI_WIDE | MSI_MASKABLE | count << 1, writable=MSI_ENABLE | 0x0070)
        self._most = count
        self._config.define(at + self.ADDRESS, 8, 0, writable=(1 << 64) - 4)
        self._config.define(at + self.DATA, 2, 0, writable=0xFFFF)
        self._config.define(at + self.MASK, 4, 0, writable=(1 << vectors) - 1)

    @property
    def enabled(self) -> bool:
        return bool(self._config.get(self.at + self.CONTROL, 2) & MSI_ENABLE)

    def _count(self) -> int:
        """Vectors that software allows, at most those asked for."""
        return 1 << min(self._config.get(self.at + self.CONTROL, 2) >> 4 & 7, self._most)

    def signal(self, vector: int) -> None:
        """Sends a vector's message, or keeps it pending behind its mask. Vectors beyond those allowed share the lower ones."""
        count = self._count()
        vector %= count
        pending = self._config.get(self.at + self.PENDING, 4)
        if self._config.get(self.at + self.MASK, 4) >> vector & 1:
            self._config.set(self.at + self.PENDING, 4, pending | 1 << vector)
        else:
            data = self._config.get(self.at + self.DATA, 2)
            self._send(self._config.get(self.at + self.ADDRESS, 8), data & ~(count - 1) | vector)

    def written(self) -> None:
        """After a write to the capability: what was pending and is unmasked now goes out."""
        pending = self._config.get(self.at + self.PENDING, 4)
        due = pending & ~self._config.get(self.at + self.MASK, 4)
        if due and self.enabled:
            self._config.set(self.at + self.PENDING, 4, pending & ~due)
            for vector in range(32):
                if due >> vector & 1:
                    self.signal(vector)


class Msix:
    """MSI-X: a table of messages and pending bits in a memory BAR, the table first, pending bits behind it."""

    CONTROL, TABLE, PBA, SIZE = 2, 4, 8, 12

    def __init__(self, device: PciDevice, vectors: int, bar: int) -> None:
        assert 1 <= vectors <= 2048
        self.vectors = vectors
        self._config = device.config
        self._send = device.send_message
        self.at = at = device.add_capability(MSIX_ID, self.SIZE)
        self._config.define(at + self.CONTROL, 2, vectors - 1, writable=MSIX_ENABLE | MSIX_FUNCTION_MASK)
        self._pba = -(-vectors * ENTRY // 0x800) * 0x800
        self._config.define(at + self.TABLE, 4, bar)
        self._config.define(at + self.PBA, 4, self._pba | bar)
        size = 1 << (self._pba + -(-vectors // 64) * 8 - 1).bit_length()
        self._table = bytearray()
        self._pending = 0
        self.reset()
        device.add_bar(bar, max(size, 0x1000), self._read, self._write)

    def reset(self) -> None:
        self._table = bytearray(struct.pack("<QII", 0, 0, ENTRY_MASKED) * self.vectors)
        self._pending = 0

    @property
    def enabled(self) -> bool:
        return bool(self._config.get(self.at + self.CONTROL, 2) & MSIX_ENABLE)

    def _masked(self, vector: int) -> bool:
        control = self._config.get(self.at + self.CONTROL, 2)
        return bool(control & MSIX_FUNCTION_MASK or self._table[vector * ENTRY + 12] & ENTRY_MASKED)

    def signal(self, vector: int) -> None:
        """Sends a vector's message, or keeps it pending behind a mask; a vector that does not exist sends nothing."""
        if not 0 <= vector < self.vectors:
            return
        if self._masked(vector):
            self._pending |= 1 << vector
        else:
            address, data = struct.unpack_from("<QI", self._table, vector * ENTRY)
            self._send(address, data)

    def written(self) -> None:
        """After a write to the capability or the table: what was pending and is unmasked now goes out."""
        if not self._pending or not self.enabled:
            return
        for vector in range(self.vectors):
            if self._pending >> vector & 1 and not self._masked(vector):
                self._pending &= ~(1 << vector)
                self.signal(vector)

    # The BAR. Only aligned 4- and 8-byte accesses are defined (§6.8.2); others read as they lie and write nothing.

    def _read(self, offset: int, size: int) -> int:
        if offset < len(self._table):
            return int.from_bytes(self._table[offset : offset + size], "little")
        if offset >= self._pba:
            return self._pending >> 8 * (offset - self._pba) & (1 << 8 * size) - 1
        return 0

    def _write(self, offset: int, size: int, value: int) -> None:
        if size not in (4, 8) or offset % size or offset >= len(self._table):
            return
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        self.written()

    def state(self) -> dict[str, Any]:
        return {"table": bytes(self._table), "pending": self._pending}

    def restore(self, state: dict[str, Any]) -> None:
        self._table = bytearray(state["table"])
        self._pending = state["pending"]
