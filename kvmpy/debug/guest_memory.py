"""Guest memory by linear or physical address, as far as it is there: reads and writes across unmapped pages end at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kvmpy import x86
from kvmpy.debug.pagetable import pages
from kvmpy.debug.pagewalk import walk
from kvmpy.errors import MemoryAccessError
from kvmpy.memory import GuestMemory
from kvmpy.units import PAGE

_LAST = (1 << 64) - 1
_CHUNK = 1 << 20


class AddressSpace:
    """Memory as one vCPU sees it at this moment; `physical` leaves its page tables out."""

    def __init__(self, memory: GuestMemory, sregs: Callable[[], Any]) -> None:
        """`sregs` gives the vCPU's present struct kvm_sregs."""
        self.memory = memory
        self.physical = False
        self._sregs = sregs

    def to_physical(self, address: int) -> int | None:
        """The physical address behind an address; None where nothing is mapped."""
        if self.physical:
            return address
        sregs = self._sregs()
        return walk(self.memory, address, cr0=sregs.cr0, cr3=sregs.cr3, cr4=sregs.cr4, efer=sregs.efer).gpa

    def _parts(self, address: int, size: int) -> Iterator[tuple[int | None, int]]:
        """Physical address and size of each part inside a page; addresses wrap at 2**64."""
        while size > 0:
            part = min(size, PAGE - address % PAGE)
            yield self.to_physical(address), part
            address = address + part & _LAST
            size -= part

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes: fewer where a page is not mapped or no memory lies behind it."""
        out = bytearray()
        for gpa, part in self._parts(address, size):
            if gpa is None:
                break
            try:
                out += self.memory.read(gpa, part)
            except MemoryAccessError:
                break
        return bytes(out)

    def search(self, pattern: bytes, start: int = 0, end: int = 1 << 64) -> Iterator[int]:
        """Addresses in [start, end) where `pattern` stands wholly in what is mapped to memory, in order."""
        if not pattern:
            return
        keep = len(pattern) - 1
        for low, high in self._mapped():
            at, stop, left = max(low, start), min(high, end), b""
            while at < stop:
                chunk = self.read(at, min(_CHUNK, stop - at))
                window = left + chunk
                base, found = at - len(left), window.find(pattern)
                while found >= 0:
                    yield base + found
                    found = window.find(pattern, found + 1)
                if not chunk:  # a page table may map what is no memory
                    at, left = (at // PAGE + 1) * PAGE, b""
                else:
                    at, left = at + len(chunk), window[-keep:] if keep else b""

    def _mapped(self) -> Iterator[tuple[int, int]]:
        """First and end of every run of linear addresses that are mapped, with holes where there is no memory left out."""
        ram = [(region.gpa, region.end) for region in self.memory.regions]
        sregs = self._sregs()
        if self.physical or not sregs.cr0 & x86.CR0_PG:
            yield from ram
            return
        run: tuple[int, int] | None = None
        for mapping in pages(self.memory, sregs):
            for first, after in ram:
                low, high = max(mapping.gpa, first), min(mapping.gpa + mapping.size, after)
                if low >= high:
                    continue
                at = mapping.linear + low - mapping.gpa
                if run is not None and run[1] == at:
                    run = run[0], at + high - low
                else:
                    if run is not None:
                        yield run
                    run = at, at + high - low
        if run is not None:
            yield run

    def write(self, address: int, data: bytes) -> bool:
        """Writes all of it, or nothing where a part is not mapped or cannot be written; gives whether it did."""
        parts = list(self._parts(address, len(data)))
        if any(gpa is None or not self.memory.contains(gpa, part, write=True) for gpa, part in parts):
            return False
        done = 0
        for gpa, part in parts:
            assert gpa is not None
            self.memory.write(gpa, data[done : done + part])
            done += part
        return True
