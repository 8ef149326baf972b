"""Split virtqueues (virtio 1.2 §2.7), the device's side: chains out of the available ring, used elements back, notifications.

Everything in guest memory is the guest's to forge. What the specification forbids raises QueueError, which the device turns into
DEVICE_NEEDS_RESET; nothing outside RAM is touched and no loop is followed twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from kvmpy.errors import MemoryAccessError
from kvmpy.iovector import HostMap, IoVector
from kvmpy.memory import GuestMemory
from kvmpy.native import CData, ffi, lib

NO_INTERRUPT = 1  # flags of the available ring
NO_NOTIFY = 1  # flags of the used ring

U16 = struct.Struct("<H")
USED = struct.Struct("<II")  # head of the chain, bytes written

MOST_INDIRECT = 1024
"""Descriptors of one chain, where an indirect table makes it longer than the queue."""


PIECES = 4096
"""Buffers of one chain, neighbours joined."""

_BAD = {
    lib.KP_CHAIN_INDEX: "descriptor {} of {}",
    lib.KP_CHAIN_NESTED: "indirect descriptor where none is allowed",
    lib.KP_CHAIN_TABLE: "indirect table of {} bytes, flags {:#x}",
    lib.KP_CHAIN_COUNT: "indirect table of {} descriptors",
    lib.KP_CHAIN_LOOP: "descriptor chain that is too long or loops",
    lib.KP_CHAIN_SIZE: "descriptor chain of more than 4 GiB",
    lib.KP_CHAIN_ORDER: "readable descriptor after a writable one",
    lib.KP_CHAIN_OUTSIDE: "descriptor outside memory: {1} bytes at {0:#x}",
    lib.KP_CHAIN_PIECES: "descriptor chain in more than {} pieces",
}


class QueueError(Exception):
    """The driver has broken the rules of virtqueues; the text says which."""


class Chain:
    """One request: buffers that the device reads, then buffers that it writes, in guest memory."""

    __slots__ = ("head", "ranges", "read_size", "readable", "writable", "write_size")

    def __init__(self, head: int, where: HostMap, found: CData) -> None:
        """From what `kp_chain_walk` has found, which is copied."""
        self.head = head
        count = found.readable + found.writable
        buffers = ffi.new("struct kp_buffer[]", count)
        ffi.memmove(buffers, found.buffer, count * ffi.sizeof("struct kp_buffer"))
        self.read_size: int = found.read_size
        self.write_size: int = found.write_size
        self.readable = IoVector(where, buffers, 0, found.readable, self.read_size, False)
        self.writable = IoVector(where, buffers, found.readable, found.writable, self.write_size, True)
        self.ranges: CData = ffi.new("struct kp_range[]", found.ranges)
        """Guest addresses behind `writable`."""
        ffi.memmove(self.ranges, found.range, ffi.sizeof(self.ranges))

    @property
    def writes(self) -> list[tuple[int, int]]:
        """(address, length) behind `writable`."""
        return [(each.gpa, each.size) for each in self.ranges]

    def write_last(self, value: int, memory: GuestMemory) -> None:
        """Writes the last writable byte, where many devices have their status."""
        self.writable.set_last(value)
        last = self.ranges[len(self.ranges) - 1]
        memory.written(last.gpa + last.size - 1, 1)

    def read(self, size: int, offset: int = 0) -> bytes:
        """Up to `size` bytes of the readable part; its framing is the driver's choice (§2.7.4.1)."""
        return self.readable.tobytes(offset, size)

    def write(self, data: bytes, offset: int = 0) -> int:
        """Puts data into the writable part, as far as there is room; gives how much."""
        done = 0
        for view in self.writable.cut(offset, len(data)):
            view[:] = data[done : done + len(view)]
            done += len(view)
        return done


class Queue:
    """One virtqueue. The transport sets `size`, the three addresses and `ready`; the device pops and pushes."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Largest size, a power of two."""
        self.memory: GuestMemory | None = None
        self.event_index = False
        self.indirect = False
        self._buffers: CData = ffi.new("struct kp_buffer[]", PIECES)
        self._ranges: CData = ffi.new("struct kp_range[]", PIECES)
        self._found: CData = ffi.new("struct kp_chain *", {"buffer": self._buffers, "range": self._ranges, "room": PIECES})
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
            memory.view(self.descriptors, 16 * size)
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
        where, found = self.memory.map, self._found
        longest = MOST_INDIRECT if self.indirect else 0
        code = lib.kp_chain_walk(where.regions, where.count, self.descriptors, self.size, head, longest, found)
        if code:
            raise QueueError(_BAD[code].format(*found.bad))
        return Chain(head, where, found)

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
            if written:
                self.memory.ranges_written(chain.ranges, len(chain.ranges), written)
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
        if wanted:
            lib.kp_fence()  # a driver that has not seen it has offered its buffer before the next look

    def wants_interrupt(self) -> bool:
        """Whether what was pushed since the last call is worth an interrupt to the driver (§2.7.7)."""
        old, new = self.signalled, self.next_used
        if old == new:
            return False
        self.signalled = new
        lib.kp_fence()
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
