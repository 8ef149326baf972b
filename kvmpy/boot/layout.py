"""Guest physical memory as a boot loader sees it: the memory map for the guest, and what is taken while loading."""

from __future__ import annotations

from bisect import insort
from typing import Any, Protocol

from kvmpy.boot.image import Image
from kvmpy.errors import ImageError
from kvmpy.record import Record
from kvmpy.units import GIB, KIB, MIB, PAGE

EBDA = 0x9FC00
"""Extended BIOS data area: the last KiB below 640 KiB."""
VGA = 0xA0000
BIOS = 0xE0000
"""From here to 1 MiB: ACPI and MP tables, firmware table, BIOS."""
BIOS_END = 0x100000
CHIPS = 0xFEC00000
"""From here to 4 GiB: I/O APIC, local APIC, the host's TSS page, the ROM."""

E820_RAM = 1
E820_RESERVED = 2


class Memory(Protocol):
    """What loading needs of GuestMemory."""

    def ram_ranges(self) -> list[tuple[int, int]]: ...
    def contains(self, gpa: int, size: int = 1, *, write: bool = False) -> bool: ...
    def read(self, gpa: int, size: int) -> bytes: ...
    def write(self, gpa: int, data: Any) -> None: ...
    def fill(self, gpa: int, size: int, value: int = 0) -> None: ...
    def add_bios(self, image: bytes, name: str = "BIOS") -> None: ...


class Range(Record, frozen=True):
    """Entry of the memory map: first address, size in bytes, E820 type."""

    base: int
    size: int
    kind: int

    @property
    def end(self) -> int:
        return self.base + self.size


def memory_map(ranges: list[tuple[int, int]]) -> list[Range]:
    """The map that every protocol shows (INT 15h E820, multiboot, PVH, boot_params), sorted, without overlaps.

    RAM is usable but for the EBDA, the VGA and option ROM window, and the BIOS area.
    """
    result: list[Range] = [Range(CHIPS, 4 * GIB - CHIPS, E820_RESERVED)]
    for base, size in ranges:
        end = base + size
        for low, high in ((base, min(end, EBDA)), (max(base, BIOS_END), end)):
            if low < high:
                result.append(Range(low, high - low, E820_RAM))
        if base <= EBDA < end:
            result.append(Range(EBDA, min(end, VGA) - EBDA, E820_RESERVED))
        # A ROM may have taken a part of the area out of RAM; it is the BIOS's all the same.
        if base <= BIOS < end:
            result.append(Range(BIOS, BIOS_END - BIOS, E820_RESERVED))
    result.sort(key=lambda entry: entry.base)
    return result


def lower_kib(entries: list[Range]) -> int:
    """KiB of usable memory from 0 up to the first hole, at most 640."""
    return min(_run(entries, 0), VGA) // KIB


def upper_kib(entries: list[Range]) -> int:
    """KiB of usable memory from 1 MiB up to the first hole."""
    return _run(entries, MIB) // KIB


def _run(entries: list[Range], start: int) -> int:
    end = start
    for entry in entries:
        if entry.kind == E820_RAM and entry.base <= end < entry.end:
            end = entry.end
    return end - start


class Layout:
    """Which parts of RAM are taken during loading, and by what; finds room for the rest."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.ranges = memory.ram_ranges()
        self.map = memory_map(self.ranges)
        self._taken: list[tuple[int, int, str]] = []

    def in_ram(self, base: int, size: int) -> bool:
        """True when one RAM range holds all of it."""
        return any(start <= base and base + size <= start + length for start, length in self.ranges)

    def usable(self, base: int, size: int) -> bool:
        """True when the memory map calls all of it usable RAM."""
        return any(r.kind == E820_RAM and r.base <= base and base + size <= r.end for r in self.map)

    def overlap(self, base: int, size: int) -> tuple[int, int, str] | None:
        """The first taken range (base, end, what) that meets the given one."""
        for start, end, what in self._taken:
            if base < end and start < base + size:
                return start, end, what
        return None

    def take(self, image: Image, base: int, size: int, what: str, *, shared: bool = False) -> None:
        """Marks a fixed range as taken. ImageError when it is not usable RAM or, unless `shared`, already taken."""
        end = base + size
        if not self.usable(base, size):
            raise image.error(f"{what} ({base:#x}-{end - 1:#x}) {self._trouble(base, end)}")
        other = self.overlap(base, size)
        if other is not None and not shared:
            raise image.error(f"{what} ({base:#x}-{end - 1:#x}) overlaps {other[2]} ({other[0]:#x}-{other[1] - 1:#x})")
        insort(self._taken, (base, end, what))

    def _trouble(self, base: int, end: int) -> str:
        top = max(start + length for start, length in self.ranges)
        if base < BIOS_END and end > EBDA and self.in_ram(base, end - base):
            return f"reaches into the BIOS area {EBDA:#x}-{BIOS_END - 1:#x}"
        if top < end <= 3 * GIB:
            return f"lies outside memory, which ends at {top:#x}: it needs {-(-end // MIB)}M of RAM"
        return f"lies outside memory, which ends at {top:#x}"

    def find(
        self, size: int, *, align: int = PAGE, low: int = 0x1000, high: int = 4 * GIB, top: bool = False
    ) -> int | None:
        """Address of free usable RAM in [low, high): the lowest, or with `top` the highest; None when there is none."""
        best: int | None = None
        for entry in self.map:
            if entry.kind != E820_RAM:
                continue
            start, limit = max(entry.base, low), min(entry.end, high)
            taken = [(a, b) for a, b, _ in self._taken if a < limit and b > start]
            if top:
                at = (limit - size) // align * align
                for first, last in sorted(taken, key=lambda item: item[1], reverse=True):
                    if at < last and first < at + size:
                        at = (first - size) // align * align
                if at >= start and (best is None or at > best):
                    best = at
            else:
                at = -(-start // align) * align
                for first, last in sorted(taken):
                    if at < last and first < at + size:
                        at = -(-last // align) * align
                if at + size <= limit and (best is None or at < best):
                    best = at
        return best

    def put(
        self, data: bytes, what: str, *, align: int = 16, low: int = 0x1000, high: int = 4 * GIB, top: bool = False
    ) -> int:
        """Writes `data` to free RAM, low memory first unless `low` says otherwise, and takes it. Returns the address."""
        base = self.reserve(len(data), what, align=align, low=low, high=high, top=top)
        self.memory.write(base, data)
        return base

    def reserve(
        self, size: int, what: str, *, align: int = PAGE, low: int = 0x1000, high: int = 4 * GIB, top: bool = False
    ) -> int:
        """Takes free RAM without writing it. ImageError when there is not enough."""
        base = self.find(size, align=align, low=low, high=high, top=top)
        if base is None:
            raise ImageError(f"no room in memory for {what} ({size:#x} bytes between {low:#x} and {high:#x})")
        insort(self._taken, (base, base + max(size, 1), what))
        return base
