"""The port and MMIO buses: from an address to a device and an offset.

Insertion refuses overlaps. An access that no device claims reads all ones, is ignored when written, and is counted by address.
An access that lies only partly in a device's range is split in halves until each part has one owner, down to bytes,
as a PC's bus does with accesses wider than their target.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from kvmpy.errors import ConfigError

Read = Callable[[int, int], int]
Write = Callable[[int, int, int], None]
Ranges = tuple[int, int] | Sequence[tuple[int, int]]

PORTS = 1 << 16


def ranges_of(ranges: Ranges) -> list[tuple[int, int]]:
    """A device's `ports` or `mmio` as a list: one (first, size) pair, a sequence of such, or nothing."""
    if not ranges:
        return []
    if isinstance(ranges[0], int):
        ranges = [ranges]  # type: ignore[list-item]
    out = []
    for pair in ranges:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(number, int) for number in pair)):
            raise ConfigError(f"{pair!r} is not a (first, size) pair")
        out.append((int(pair[0]), int(pair[1])))
    return out


class Entry:
    """One range on a bus."""

    __slots__ = ("base", "device", "end", "first", "name", "read", "write")

    def __init__(self, first: int, size: int, base: int, name: str, device: Any) -> None:
        self.first = first
        self.end = first + size
        self.base = base
        self.name = name
        self.device = device
        self.read: Read = device.read
        self.write: Write = device.write

    def __str__(self) -> str:
        return f"{self.first:#x}-{self.end - 1:#x} ({self.name})"


class Bus:
    """Ranges in order of address, each with the device that answers there."""

    kind = "address"
    limit = 1 << 64

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._firsts: list[int] = []
        self.unclaimed: Counter[int] = Counter()
        self.listener: Callable[[int, int, bool], None] | None = None
        """Called with (address, size, is_write) of every unclaimed access."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All ranges in order."""
        return tuple(self._entries)

    def insert(self, first: int, size: int, device: Any, *, base: int = 0, name: str = "") -> Entry:
        """Places a range; the device sees offsets from `base` on. ConfigError names both sides of an overlap."""
        entry = Entry(first, size, base, name or getattr(device, "name", "") or type(device).__name__, device)
        if size < 1 or first < 0 or entry.end > self.limit:
            raise ConfigError(f"{entry.name}: {self.kind} {first:#x}, size {size:#x} is no range of the bus")
        at = bisect_right(self._firsts, first)
        for other in self._entries[max(at - 1, 0) : at + 1]:
            if first < other.end and other.first < entry.end:
                raise ConfigError(f"{self.kind} {entry} overlaps {other}")
        self._entries.insert(at, entry)
        self._firsts.insert(at, first)
        return entry

    def remove(self, device: Any) -> None:
        """Takes all ranges of a device off the bus."""
        self._entries = [entry for entry in self._entries if entry.device is not device]
        self._firsts = [entry.first for entry in self._entries]

    def redirect(self, device: Any, read: Read, write: Write) -> None:
        """Accesses to a device's ranges go to these functions from now on."""
        for entry in self._entries:
            if entry.device is device:
                entry.read, entry.write = read, write

    def find(self, address: int) -> Entry | None:
        """The range that holds `address`."""
        at = bisect_right(self._firsts, address) - 1
        if at >= 0:
            entry = self._entries[at]
            if address < entry.end:
                return entry
        return None

    def _untouched(self, address: int, size: int) -> bool:
        """True where no device claims any byte of the access."""
        at = bisect_right(self._firsts, address + size - 1) - 1
        return at < 0 or self._entries[at].end <= address

    def _miss(self, address: int, size: int, is_write: bool) -> None:
        self.unclaimed[address] += 1
        if self.listener is not None:
            self.listener(address, size, is_write)

    def read(self, address: int, size: int) -> int:
        """Value of a read of `size` bytes."""
        entry = self.find(address)
        if entry is not None and address + size <= entry.end:
            return entry.read(address - entry.first + entry.base, size) & ((1 << (8 * size)) - 1)
        if self._untouched(address, size):
            self._miss(address, size, False)
            return (1 << (8 * size)) - 1
        half = 1 << ((size - 1).bit_length() - 1)
        low = self.read(address, half)
        return low | self.read((address + half) % self.limit, size - half) << (8 * half)

    def write(self, address: int, size: int, value: int) -> None:
        """A write of `size` bytes."""
        entry = self.find(address)
        if entry is not None and address + size <= entry.end:
            entry.write(address - entry.first + entry.base, size, value)
            return
        if self._untouched(address, size):
            self._miss(address, size, True)
            return
        half = 1 << ((size - 1).bit_length() - 1)
        self.write(address, half, value & ((1 << (8 * half)) - 1))
        self.write((address + half) % self.limit, size - half, value >> (8 * half))


class PortBus(Bus):
    """The 65536 I/O ports, looked up in a dictionary."""

    kind = "port"
    limit = PORTS

    def __init__(self) -> None:
        super().__init__()
        self._by_port: dict[int, Entry] = {}
        self.caches: list[dict[int, Any]] = []
        """What others derived from the ranges; emptied when they change."""

    def insert(self, first: int, size: int, device: Any, *, base: int = 0, name: str = "") -> Entry:
        entry = super().insert(first, size, device, base=base, name=name)
        self._by_port.update(dict.fromkeys(range(entry.first, entry.end), entry))
        self._changed()
        return entry

    def remove(self, device: Any) -> None:
        super().remove(device)
        self._by_port = {port: entry for port, entry in self._by_port.items() if entry.device is not device}
        self._changed()

    def redirect(self, device: Any, read: Read, write: Write) -> None:
        super().redirect(device, read, write)
        self._changed()

    def _changed(self) -> None:
        for cache in self.caches:
            cache.clear()

    def find(self, address: int) -> Entry | None:
        return self._by_port.get(address)

    def read(self, address: int, size: int) -> int:
        entry = self._by_port.get(address)
        if entry is not None and address + size <= entry.end:
            return entry.read(address - entry.first + entry.base, size) & ((1 << (8 * size)) - 1)
        return super().read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        entry = self._by_port.get(address)
        if entry is not None and address + size <= entry.end:
            entry.write(address - entry.first + entry.base, size, value)
            return
        super().write(address, size, value)


class MmioBus(Bus):
    """Guest physical addresses that are not memory; the range hit last is tried first."""

    kind = "address"

    def __init__(self) -> None:
        super().__init__()
        self._last: Entry | None = None

    def remove(self, device: Any) -> None:
        super().remove(device)
        self._last = None

    def find(self, address: int) -> Entry | None:
        last = self._last
        if last is not None and last.first <= address < last.end:
            return last
        entry = super().find(address)
        if entry is not None:
            self._last = entry
        return entry

    def read(self, address: int, size: int) -> int:
        last = self._last
        if last is not None and last.first <= address and address + size <= last.end:
            return last.read(address - last.first + last.base, size) & ((1 << (8 * size)) - 1)
        return super().read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        last = self._last
        if last is not None and last.first <= address and address + size <= last.end:
            last.write(address - last.first + last.base, size, value)
            return
        super().write(address, size, value)


def place(device: Any, ports: PortBus, mmio: MmioBus) -> None:
    """Puts all ranges of a device on the buses, offsets counting through them, ports first. All or nothing."""
    base = 0
    try:
        for bus, ranges in ((ports, device.ports), (mmio, device.mmio)):
            for first, size in ranges_of(ranges):
                bus.insert(first, size, device, base=base)
                base += size
    except ConfigError:
        ports.remove(device)
        mmio.remove(device)
        raise
