"""Memory of a traced process, and of its guest as far as its memory slots are known."""

from __future__ import annotations

import os
from typing import NamedTuple

from kvmpy.errors import MemoryAccessError


class ProcessMemory:
    """A process's memory by its own addresses, through /proc/PID/mem."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = -1

    def fileno(self) -> int:
        """The open file; opened at the first need, since it stays bound to the program that runs at that moment."""
        if self._fd < 0:
            self._fd = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        return self._fd

    def close(self) -> None:
        """Closes the file; the next access opens it anew (after exec there is another memory)."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes. Raises MemoryAccessError where they cannot be read as a whole."""
        try:
            data = os.pread(self.fileno(), size, address)
        except (OSError, OverflowError):
            data = b""
        if len(data) < size:
            raise MemoryAccessError(address, size)
        return data

    def write(self, address: int, data: bytes) -> None:
        """Raises MemoryAccessError where it cannot be written."""
        try:
            if os.pwrite(self.fileno(), data, address) == len(data):
                return
        except (OSError, OverflowError):
            pass
        raise MemoryAccessError(address, len(data))


class Slot(NamedTuple):
    """A memory slot: guest physical address, bytes, address in the process."""

    gpa: int
    size: int
    address: int


class GuestMemory:
    """RAM of a traced guest, from the slots that were seen being set; what page walks and disassembly need of it."""

    def __init__(self, memory: ProcessMemory) -> None:
        self._memory = memory
        self.slots: dict[int, Slot] = {}
        """By slot number."""

    def set_slot(self, number: int, gpa: int, size: int, address: int) -> None:
        """As KVM_SET_USER_MEMORY_REGION: size 0 deletes."""
        if size:
            self.slots[number] = Slot(gpa, size, address)
        else:
            self.slots.pop(number, None)

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes at a guest physical address. Raises MemoryAccessError outside the known slots."""
        for number, slot in self.slots.items():
            # The upper half of a slot's number is its address space; 1 is that of system management mode.
            if number < 1 << 16 and slot.gpa <= gpa and gpa + size <= slot.gpa + slot.size:
                return self._memory.read(slot.address + gpa - slot.gpa, size)
        raise MemoryAccessError(gpa, size)

    def read_u32(self, gpa: int) -> int:
        return int.from_bytes(self.read(gpa, 4), "little")

    def read_u64(self, gpa: int) -> int:
        return int.from_bytes(self.read(gpa, 8), "little")
