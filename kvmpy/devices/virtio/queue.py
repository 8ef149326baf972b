"""Split virtqueues (virtio 1.2 §2.7), the device's side: chains out of the available ring, used elements back, notifications.

Everything in guest memory is the guest's to forge. What the specification forbids raises QueueError, which the device turns into
DEVICE_NEEDS_RESET; nothing outside RAM is touched and no loop is followed twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from kvmpy.errors import MemoryAccessError
from kvmpy.memory import GuestMemory

# Descriptor flags.
NEXT = 1
WRITE = 2
INDIRECT = 4

NO_INTERRUPT = 1  # flags of the available ring
NO_NOTIFY = 1  # flags of the used ring

DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
U16 = struct.Struct("<H")
USED = struct.Struct("<II")  # head of the chain, bytes written

MOST_INDIRECT = 1024
"""Descriptors of one chain, where an indirect table makes it longer than the queue."""


class QueueError(Exception):
    """The driver has broken the rules of virtqueues; the text says which."""


class Chain:
    """One request: buffers that the device reads, then buffers that it writes, as views into guest memory."""

    __slots__ = ("head", "read_size", "readable", "writable", "write_size", "writes")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.writes: list[tuple[int, int]] = []
        """(address, length) behind `writable`."""
        self.read_size = 0
        self.write_size = 0

    def write_last(self, value: int, memory: GuestMemory) -> None:
        """Writes the last writable byte, where many devices have their status."""
        address, length = self.writes[-1]
        self.writable[-1][-1] = value
        memory.written(address + length - 1, 1)

    def read(self, size: int, offset: int = 0) -> bytes:
        """Up to `size` bytes of the readable part; its framing is the driver's choice (§2.7.4.1)."""
        return b"".join(cut(self.readable, offset, size))

    def write(self, data: bytes, offset: int = 0) -> int:
        """Puts data into the writable part, as far as there is room; gives how much."""
        done = 0
        for view in cut(self.writable, offset, len(data)):
            view[:] = data[done : done + len(view)]
            done += len(view)
        return done


def cut(views: list[memoryview], offset: int, size: int) -> list[memoryview]:
    """The part of a list of buffers from `offset` on, at most `size` bytes."""
    out = []
    for view in views:
        length = len(view)
        if offset >= length:
            offset -= length
            continue
        if size <= 0:
            break
        part = view[offset : offset + size] if offset or size < length else view
        out.append(part)
        size -= len(part)
        offset = 0
    return out


class Queue:
    """One virtqueue. The transport sets `size`, the three addresses and `ready`; the device pops and pushes."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Largest size, a power of two."""
        self.memory: GuestMemory | None = None
        self.event_index = False
        self.indirect = False
        self.reset()

    def reset(self) -> None:
        self.size = self.most
        self.ready = False
        self.descriptors = self.available = self.used = 0
        self.next_available = 0
        self.next_used = 0
        self.signalled = 0
        """The used index at the last look for whether to interrupt."""
        self.held: dict[int, Chain] = {}
        """Chains popped and not pushed, by head."""

    def stop(self) -> None:
        """Off: chains in work are forgotten, and the next start begins at index 0."""
        self.ready = False
        self.next_available = self.next_used = self.signalled = 0
        self.held.clear()

    def start(self, memory: GuestMemory, *, event_index: bool, indirect: bool) -> None:
        """Takes the rings into use; QueueError where they are not wholly in RAM, misaligned, or of an impossible size."""
        size = self.size
        if not 0 < size <= self.most or size & (size - 1):
            raise QueueError(f"queue size {size}")
        if self.descriptors % 16 or self.available % 2 or self.used % 4:
            raise QueueError("misaligned ring")
        self.memory = memory
        self.event_index = event_index
        self.indirect = indirect
        try:
            self._table = memory.view(self.descriptors, 16 * size)
            self._available = memory.view(self.available, 6 + 2 * size)
            self._used = memory.view(self.used, 6 + 8 * size, writable=True)
        except MemoryAccessError as error:
            raise QueueError(f"ring outside memory: {error}") from None
        self.ready = True

    # The available ring.

    def pop(self) -> Chain | None:
        """The next chain, or None when the driver has offered no more."""
        if not self.ready:
            return None
        (index,) = U16.unpack_from(self._available, 2)
        waiting = (index - self.next_available) & 0xFFFF
        if not waiting:
            return None
        if waiting > self.size:
            raise QueueError(f"available index {index:#x} is {waiting} ahead of the device")
        (head,) = U16.unpack_from(self._available, 4 + 2 * (self.next_available % self.size))
        if head in self.held:
            raise QueueError(f"descriptor {head} is in use already")
        chain = self.chain(head)
        self.next_available = (self.next_available + 1) & 0xFFFF
        self.held[head] = chain
        return chain

    def unpop(self, chain: Chain) -> None:
        """Gives the chain popped last back, to be popped again."""
        del self.held[chain.head]
        self.next_available = (self.next_available - 1) & 0xFFFF

    def chain(self, head: int) -> Chain:
        """The chain that begins at a descriptor, every link and buffer checked."""
        assert self.memory is not None
        table, count = self._table, self.size
        chain = Chain(head)
        views = self.memory.views
        at, seen, total = head, 0, 0
        most = count
        nested = False
        try:
            while True:
                if at >= count:
                    raise QueueError(f"descriptor {at} of {count}")
                address, length, flags, following = DESCRIPTOR.unpack_from(table, 16 * at)
                if flags & INDIRECT:
                    if nested or not self.indirect:
                        raise QueueError("indirect descriptor where none is allowed")
                    if flags & NEXT or not length or length % 16:
                        raise QueueError(f"indirect table of {length} bytes, flags {flags:#x}")
                    count = length // 16
                    if count > 0xFFFF + 1:
                        raise QueueError(f"indirect table of {count} descriptors")
                    table, at, nested = self.memory.view(address, length), 0, True
                    most = min(count, max(self.size, MOST_INDIRECT))
                    seen = 0
                    continue
                seen += 1
                if seen > most:
                    raise QueueError("descriptor chain that is too long or loops")
                total += length
                if total > 1 << 32:
                    raise QueueError("descriptor chain of more than 4 GiB")
                if flags & WRITE:
                    if length:
                        chain.writable += views(address, length, writable=True)
                        chain.writes.append((address, length))
                        chain.write_size += length
                elif chain.writes:
                    raise QueueError("readable descriptor after a writable one")
                elif length:
                    chain.readable += views(address, length)
                    chain.read_size += length
                if not flags & NEXT:
                    return chain
                at = following
        except MemoryAccessError as error:
            raise QueueError(f"descriptor outside memory: {error}") from None

    # The used ring.

    def push(self, chain: Chain, written: int = 0) -> None:
        """Returns a chain of which the first `written` writable bytes were written."""
        self.push_all(((chain, written),))

    def push_all(self, chains: Iterable[tuple[Chain, int]]) -> None:
        """Returns several chains, which the driver sees all at once (§5.1.6.4: the buffers of one frame)."""
        assert self.memory is not None
        for chain, written in chains:
            if self.held.get(chain.head) is not chain:
                continue  # the queue was turned off meanwhile
            del self.held[chain.head]
            left = written
            for address, length in chain.writes:
                if left <= 0:
                    break
                self.memory.written(address, min(length, left))
                left -= length
            USED.pack_into(self._used, 4 + 8 * (self.next_used % self.size), chain.head, written)
            self.next_used = (self.next_used + 1) & 0xFFFF
        U16.pack_into(self._used, 2, self.next_used)
        self.memory.written(self.used, 6 + 8 * self.size)

    def set_notify(self, wanted: bool) -> None:
        """Tells the driver whether the next available buffer is worth a notification (§2.7.10)."""
        assert self.memory is not None
        if self.event_index:
            # Without the wish the event stays at a place that the driver has passed.
            event = self.next_available if wanted else (self.next_available - 1) & 0xFFFF
            U16.pack_into(self._used, 4 + 8 * self.size, event)
        else:
            U16.pack_into(self._used, 0, 0 if wanted else NO_NOTIFY)

    def wants_interrupt(self) -> bool:
        """Whether what was pushed since the last call is worth an interrupt to the driver (§2.7.7)."""
        old, new = self.signalled, self.next_used
        if old == new:
            return False
        self.signalled = new
        if self.event_index:
            (event,) = U16.unpack_from(self._available, 4 + 2 * self.size)
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not U16.unpack_from(self._available, 0)[0] & NO_INTERRUPT

    # State.

    def state(self) -> dict[str, Any]:
        return {
            "size": self.size, "ready": self.ready, "descriptors": self.descriptors, "available": self.available, "used": self.used,
            "next_available": self.next_available, "next_used": self.next_used, "signalled": self.signalled, "held": list(self.held),
        }

    def restore(self, state: dict[str, Any], memory: GuestMemory, *, event_index: bool, indirect: bool) -> None:
        """Takes what `state` gave; chains that the device held are walked again. QueueError as from `start` and `chain`."""
        self.reset()
        for name in ("size", "descriptors", "available", "used", "next_available", "next_used", "signalled"):
            setattr(self, name, state[name])
        if state["ready"]:
            self.start(memory, event_index=event_index, indirect=indirect)
            self.held = {head: self.chain(head) for head in state["held"]}
