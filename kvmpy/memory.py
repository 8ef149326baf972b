"""Guest physical memory: RAM on a memfd, ROMs as read-only regions, and one checked door to both.

Every access is checked: one that is not wholly inside RAM (or ROM, for reads) raises MemoryAccessError and never touches the host.
RAM lies below the hole for 32-bit devices (0xC0000000 to 4 GiB by default) and goes on at 4 GiB.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from kvmpy.backend import Vm
from kvmpy.errors import ConfigError, HostError, MemoryAccessError, NotMappedError
from kvmpy.iovector import HostMap
from kvmpy.native import CData, ffi
from kvmpy.record import Record
from kvmpy.units import PAGE, format_size, parse_size

FOUR_GIB = 1 << 32
DEFAULT_HOLE = (0xC0000000, FOUR_GIB)
SMALLEST = 64 << 10
LARGEST = 1 << 46

# mmap.MAP_NORESERVE has no name in Python before 3.13; the number is that of x86 and arm64 Linux.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class Backing:
    """An anonymous file (memfd) and its shared mapping."""

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        try:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        except OSError as error:
            raise HostError("memfd_create", error.errno or 0) from None
        try:
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size, mmap.MAP_SHARED | _MAP_NORESERVE)
        except (OSError, OverflowError) as error:
            os.close(self.fd)
            number = getattr(error, "errno", None) or 12
            raise HostError(f"mapping {format_size(size)} of guest memory", number, "ask for less memory") from None
        with ffi.from_buffer(self.map) as start:  # kept, it would pin the mapping
            self.address = int(ffi.cast("uintptr_t", start))

    def close(self) -> None:
        """Closes the file; the mapping goes now, or with the last view into it."""
        os.close(self.fd)
        try:
            self.map.close()
        except BufferError:
            pass


class Region(Record, eq=False):
    """A run of guest physical pages with host pages behind them; one memory slot of the backend."""

    gpa: int
    size: int
    backing: Backing
    offset: int
    readonly: bool
    name: str
    slot: int
    view: memoryview

    @property
    def end(self) -> int:
        """First address after the region."""
        return self.gpa + self.size

    @property
    def host(self) -> int:
        """Address of the first byte in this process."""
        return self.backing.address + self.offset


class LinearSpace(Protocol):
    """Memory by linear address. `read` gives less where an address is not mapped, `write` all or nothing."""

    def read(self, address: int, size: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> bool: ...
    def search(self, pattern: bytes, start: int, end: int) -> Iterator[int]: ...


class GuestMemory:
    """RAM and ROM of a machine, by guest physical address (GPA)."""

    def __init__(self, size: int | str, *, hole: tuple[int, int] = DEFAULT_HOLE) -> None:
        self.size = parse_size(size)
        self.hole = hole
        if self.size < SMALLEST:
            raise ConfigError(f"memory of {self.size} bytes is too small: at least {format_size(SMALLEST)}")
        if self.size % PAGE:
            raise ConfigError(f"memory of {self.size} bytes is not a multiple of the page size, {PAGE}")
        if self.size > LARGEST:
            raise ConfigError(f"memory of {format_size(self.size)} is more than an x86 guest can address ({format_size(LARGEST)})")
        self._vm: Vm | None = None
        self._closed = False
        self._slots = 0
        self._free_slots: list[int] = []
        self._regions: list[Region] = []
        self._starts: list[int] = []
        self._extra: list[Backing] = []
        self._map: HostMap | None = None
        self.spaces: Callable[[int], LinearSpace] | None = None
        """Memory by linear address, as the vCPU of that index sees it; the machine sets it."""
        self.ram = Backing("kvmpy-ram", self.size)
        low = min(self.size, hole[0])
        self._insert(0, low, self.ram, 0, False, "RAM")
        if self.size > low:
            self._insert(hole[1], self.size - low, self.ram, low, False, "RAM above 4 GiB")

    def _insert(self, gpa: int, size: int, backing: Backing, offset: int, readonly: bool, name: str) -> Region:
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot, self._slots = self._slots, self._slots + 1
        view = memoryview(backing.map)[offset : offset + size]
        region = Region(gpa, size, backing, offset, readonly, name, slot, view)
        at = bisect_right(self._starts, gpa)
        self._regions.insert(at, region)
        self._starts.insert(at, gpa)
        self._map = None
        if self._vm is not None:
            self._vm.set_memory(slot, gpa, region.host, size, readonly=readonly)
        return region

    def _remove(self, region: Region) -> None:
        at = self._regions.index(region)
        del self._regions[at], self._starts[at]
        self._map = None
        self._free_slots.append(region.slot)
        if self._vm is not None:
            self._vm.set_memory(region.slot, region.gpa, 0, 0)
        region.view.release()

    @property
    def regions(self) -> tuple[Region, ...]:
        """All regions in order of address."""
        return tuple(self._regions)

    def ram_ranges(self) -> list[tuple[int, int]]:
        """(first address, size) of every range of RAM, in order, for memory maps shown to guests."""
        ranges: list[tuple[int, int]] = []
        for region in self._regions:
            if region.readonly:
                continue
            if ranges and sum(ranges[-1]) == region.gpa:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + region.size)
            else:
                ranges.append((region.gpa, region.size))
        return ranges

    def carve(self, gpa: int, size: int) -> None:
        """Takes [gpa, gpa+size) out of RAM and ROM: accesses there become MMIO exits. Page aligned."""
        if gpa % PAGE or size % PAGE:
            raise ConfigError(f"{gpa:#x}-{gpa + size - 1:#x} is not aligned to pages")
        end = gpa + size
        for region in self.regions:
            if region.end <= gpa or region.gpa >= end:
                continue
            start, stop, backing, offset = region.gpa, region.end, region.backing, region.offset
            self._remove(region)
            if start < gpa:
                self._insert(start, gpa - start, backing, offset, region.readonly, region.name)
            if stop > end:
                self._insert(end, stop - end, backing, offset + end - start, region.readonly, region.name)

    def add_rom(self, gpa: int, image: bytes, name: str = "ROM") -> Region:
        """Places a read-only region, over RAM if there is some; its size is the image's, rounded up to pages (filled with 0xFF)."""
        size = -(-len(image) // PAGE) * PAGE
        if not size:
            raise ConfigError(f"{name}: the image is empty")
        if gpa % PAGE:
            raise ConfigError(f"{name}: {gpa:#x} is not aligned to pages")
        self.carve(gpa, size)
        backing = Backing("kvmpy-rom", size)
        self._extra.append(backing)
        backing.map[:] = bytes(image) + b"\xff" * (size - len(image))
        return self._insert(gpa, size, backing, 0, True, name)

    def add_alias(self, gpa: int, target: Region, offset: int, size: int, name: str = "") -> Region:
        """Shows `size` bytes of a region, from `offset`, at a second address: the BIOS below 1 MiB and below 4 GiB."""
        if gpa % PAGE or offset % PAGE or size % PAGE or not 0 < size <= target.size - offset or offset < 0:
            raise ConfigError(f"alias of {target.name} at {gpa:#x} does not lie in it by whole pages")
        self.carve(gpa, size)
        return self._insert(gpa, size, target.backing, target.offset + offset, target.readonly, name or f"{target.name} (alias)")

    def add_bios(self, image: bytes, name: str = "BIOS") -> None:
        """Firmware that ends at 4 GiB, with its last 128 KiB (or all of it, if smaller) also ending at 1 MiB."""
        size = -(-len(image) // PAGE) * PAGE
        if size > FOUR_GIB - self.hole[0]:
            raise ConfigError(f"{name}: {format_size(size)} does not fit below 4 GiB")
        rom = self.add_rom(FOUR_GIB - size, b"\xff" * (size - len(image)) + bytes(image), name)
        seen = min(size, 128 << 10)
        self.add_alias(0x100000 - seen, rom, size - seen, seen)

    # The door.

    def _find(self, gpa: int, size: int) -> Region:
        at = bisect_right(self._starts, gpa) - 1
        if at >= 0 and size >= 0:
            region = self._regions[at]
            if gpa + size <= region.gpa + region.size:
                return region
        raise MemoryAccessError(gpa, size)

    def _spans(self, gpa: int, size: int, write: bool) -> Iterator[tuple[Region, int, int]]:
        """(region, offset in it, bytes) of a range that may run through adjoining regions; checked to the end first."""
        found: list[tuple[Region, int, int]] = []
        at, left = gpa, size
        while True:
            region = self._lookup(at, gpa, size)
            if write and region.readonly:
                raise MemoryAccessError(gpa, size)
            part = min(left, region.end - at)
            found.append((region, at - region.gpa, part))
            at += part
            left -= part
            if not left:
                return iter(found)

    def _lookup(self, at: int, gpa: int, size: int) -> Region:
        index = bisect_right(self._starts, at) - 1
        if index >= 0 and size >= 0 and at < self._regions[index].end:
            return self._regions[index]
        raise MemoryAccessError(gpa, size)

    def contains(self, gpa: int, size: int = 1, *, write: bool = False) -> bool:
        """True where `read` (or `write`) of that range would not raise."""
        try:
            self._spans(gpa, size, write)
        except MemoryAccessError:
            return False
        return True

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes of RAM or ROM."""
        index = bisect_right(self._starts, gpa) - 1
        if index >= 0 and size >= 0:
            region = self._regions[index]
            at = gpa - region.gpa
            if at + size <= region.size:
                return region.view[at : at + size].tobytes()
        return b"".join(bytes(region.view[at : at + part]) for region, at, part in self._spans(gpa, size, False))

    def write(self, gpa: int, data: Any) -> None:
        """Writes a bytes-like object into RAM."""
        source = data if isinstance(data, bytes) else memoryview(data).cast("B")
        size = len(source)
        done = 0
        for region, at, part in self._spans(gpa, size, True):
            region.view[at : at + part] = source[done : done + part]
            done += part
        if self._vm is not None and size:
            self._vm.memory_written(gpa, size)

    def fill(self, gpa: int, size: int, value: int = 0) -> None:
        """Sets every byte of a range of RAM to `value`."""
        chunk = bytes([value]) * min(size, 1 << 20)
        for region, at, part in self._spans(gpa, size, True):
            for start in range(at, at + part, len(chunk) or 1):
                count = min(len(chunk), at + part - start)
                region.view[start : start + count] = chunk[:count]
        self.written(gpa, size)

    def view(self, gpa: int, size: int, *, writable: bool = False) -> memoryview:
        """A view without copying; the range must lie in one region. Call `written` after writing through it."""
        region = self._find(gpa, size)
        if region.readonly and writable:
            raise MemoryAccessError(gpa, size)
        at = gpa - region.gpa
        view = region.view[at : at + size]
        return view if writable else view.toreadonly()

    def views(self, gpa: int, size: int, *, writable: bool = False) -> list[memoryview]:
        """Views that cover a range in order, for preadv, pwritev and sendmsg. Call `written` after writing through them."""
        parts = [region.view[at : at + part] for region, at, part in self._spans(gpa, size, writable)]
        return parts if writable else [part.toreadonly() for part in parts]

    def written(self, gpa: int, size: int) -> None:
        """Tells the backend of a write through a view: decoded code there is dropped, the dirty log marked."""
        if self._vm is not None and size > 0:
            self._vm.memory_written(gpa, size)

    def ranges_written(self, ranges: CData, count: int, size: int) -> None:
        """`written` for the first `size` bytes of `count` ranges (`struct kp_range`), one behind the other."""
        if self._vm is not None and size > 0:
            self._vm.ranges_written(ranges, count, size)

    @property
    def map(self) -> HostMap:
        """The regions as they stand now, for functions in C."""
        if self._map is None:
            self._map = HostMap(self._regions)
        return self._map

    def read_u8(self, gpa: int) -> int:
        """The byte at `gpa`."""
        region = self._find(gpa, 1)
        return region.view[gpa - region.gpa]

    def read_u16(self, gpa: int) -> int:
        """The little-endian 16-bit number at `gpa`, aligned or not; likewise the other widths."""
        return int.from_bytes(self.read(gpa, 2), "little")

    def read_u32(self, gpa: int) -> int:
        """The 32-bit number at `gpa`."""
        return int.from_bytes(self.read(gpa, 4), "little")

    def read_u64(self, gpa: int) -> int:
        """The 64-bit number at `gpa`."""
        return int.from_bytes(self.read(gpa, 8), "little")

    def write_u8(self, gpa: int, value: int) -> None:
        """Writes the low 8 bits of `value`; likewise the other widths, little-endian."""
        self.write(gpa, (value & 0xFF).to_bytes(1, "little"))

    def write_u16(self, gpa: int, value: int) -> None:
        """Writes the low 16 bits of `value`."""
        self.write(gpa, (value & 0xFFFF).to_bytes(2, "little"))

    def write_u32(self, gpa: int, value: int) -> None:
        """Writes the low 32 bits of `value`."""
        self.write(gpa, (value & 0xFFFFFFFF).to_bytes(4, "little"))

    def write_u64(self, gpa: int, value: int) -> None:
        """Writes the low 64 bits of `value`."""
        self.write(gpa, (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little"))

    def read_cstring(self, gpa: int, limit: int = 4096) -> bytes:
        """Bytes up to a zero byte, the end of memory, or `limit`."""
        out = bytearray()
        while len(out) < limit:
            try:
                region = self._find(gpa + len(out), 1)
            except MemoryAccessError:
                if not out:
                    raise
                break
            at = gpa + len(out) - region.gpa
            chunk = bytes(region.view[at : at + min(256, limit - len(out))])
            head, zero, _ = chunk.partition(b"\0")
            out += head
            if zero:
                break
        return bytes(out)

    # By linear address.

    def _space(self, cpu: int) -> LinearSpace:
        if self.spaces is None:
            raise ConfigError("this memory belongs to no machine: there are no page tables")
        return self.spaces(cpu)

    def virtual(self, address: int, size: int, cpu: int = 0) -> bytes:
        """`size` bytes at a linear address under the page tables of a vCPU. NotMappedError where a part is not mapped to memory."""
        data = self._space(cpu).read(address, size)
        if len(data) < size:
            raise NotMappedError(address + len(data), size - len(data))
        return data

    def write_virtual(self, address: int, data: Any, cpu: int = 0) -> None:
        """Writes a bytes-like object at a linear address, all of it or, with NotMappedError, nothing. The tables' rights do not count."""
        source = bytes(data)
        if not self._space(cpu).write(address, source):
            raise NotMappedError(address, len(source))

    def search_virtual(self, pattern: bytes, start: int = 0, end: int = 1 << 64, cpu: int = 0) -> Iterator[int]:
        """Linear addresses in [start, end) where `pattern` stands wholly in what is mapped to memory, in order."""
        return self._space(cpu).search(pattern, start, end)

    def search(self, pattern: bytes, start: int = 0, end: int | None = None, *, step: int = 1) -> Iterator[int]:
        """Addresses in [start, end) where `pattern` stands wholly, at multiples of `step`, in order."""
        if not pattern:
            return
        limit = self._regions[-1].end if end is None and self._regions else end or 0
        length = len(pattern)
        previous: Region | None = None
        for region in self.regions:
            if previous is not None and previous.end == region.gpa and length > 1:
                yield from self._search_border(pattern, previous, region, start, limit, step)
            low, high = max(start, region.gpa), min(limit, region.end)
            at = low
            while at + length <= high:
                base = region.offset - region.gpa
                hit = region.backing.map.find(pattern, at + base, high + base)
                if hit < 0:
                    break
                at = hit - base
                if at % step == 0:
                    yield at
                at += 1
            previous = region

    def _search_border(self, pattern: bytes, left: Region, right: Region, start: int, limit: int, step: int) -> Iterator[int]:
        reach = len(pattern) - 1
        low, high = max(start, left.gpa, left.end - reach), min(limit, right.end, right.gpa + reach)
        if low >= high:
            return
        window = self.read(low, high - low)
        at = window.find(pattern)
        while at >= 0:
            if (low + at) % step == 0:
                yield low + at
            at = window.find(pattern, at + 1)

    # The backend.

    def attach(self, vm: Vm) -> None:
        """Gives every region to the backend as a memory slot and from now on keeps it informed."""
        for region in self._regions:
            vm.set_memory(region.slot, region.gpa, region.host, region.size, readonly=region.readonly)
        self._vm = vm

    def clear(self) -> None:
        """Makes all RAM zero by giving its pages back to the host; ROMs stay."""
        self.ram.map.madvise(mmap.MADV_REMOVE)
        for gpa, size in self.ram_ranges():
            self.written(gpa, size)

    def discard(self, gpa: int, size: int) -> int:
        """Gives the whole pages of RAM in a range back to the host: they read as zero from now on. Returns the bytes given back;
        what is not RAM is left out."""
        start, end = -(-gpa // PAGE) * PAGE, (gpa + size) // PAGE * PAGE
        done = 0
        for region in self._regions:
            low, high = max(start, region.gpa), min(end, region.end)
            if low < high and not region.readonly:
                region.backing.map.madvise(mmap.MADV_REMOVE, region.offset + low - region.gpa, high - low)
                self.written(low, high - low)
                done += high - low
        return done

    def close(self) -> None:
        """Gives the memory back; views handed out stay valid until they go themselves. The VM must be closed before."""
        if self._closed:
            return
        self._closed = True
        self._vm = self._map = None
        for region in self._regions:
            region.view.release()
        self._regions.clear()
        self._starts.clear()
        for backing in (self.ram, *self._extra):
            backing.close()
