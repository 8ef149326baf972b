"""virtio-blk (virtio 1.2 §5.2) on a disk image, image and guest pages without a copy between.

A request that the host answers at once is done at the doorbell: handing it to a thread and back costs more than the request. One that
may wait for the host's disk (a flush; a read or write while those before it were slow) is done by a thread while the guest runs on.
"""

from __future__ import annotations

import resource
import struct
import time
from collections import deque
from functools import partial
from typing import Any

from kvmpy.devices.blockend import BlockEnd
from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.devices.virtio.queue import Chain, QueueError
from kvmpy.workers import Workers

SECTOR = 512
QUEUE_SIZE = 256
MOST_SEGMENTS = 254
"""A request's data descriptors: the queue's size less header and status."""

# Features (§5.2.3).
SEG_MAX = 1 << 2
RO = 1 << 5
BLK_SIZE = 1 << 6
FLUSH = 1 << 9
TOPOLOGY = 1 << 10
CONFIG_WCE = 1 << 11
MQ = 1 << 12
DISCARD = 1 << 13
WRITE_ZEROES = 1 << 14

# Requests (§5.2.6).
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
NAMES = {T_IN: "read", T_OUT: "write", T_FLUSH: "flush", T_DISCARD: "discard", T_WRITE_ZEROES: "write zeroes"}
COUNTED = {T_IN: "read", T_OUT: "write", T_FLUSH: "flush"}
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
HEADER = struct.Struct("<IIQ")  # type, reserved, sector
RANGE = struct.Struct("<QII")  # sector, sectors, flags: discard and write zeroes
UNMAP = 1
ID_BYTES = 20

# Configuration (§5.2.4). Writeback is the one byte that the driver may write.
CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
WRITEBACK = 32
MOST_RANGE_SECTORS = 1 << 22
MOST_RANGES = 16


class Unsupported(Exception):
    """A request that the device does not know, or whose flags it refuses."""


SLOW_NS = 500_000
"""A request is slow that took longer, by this and half a nanosecond for each byte, and in which the thread gave up the processor of
itself: one that was merely crowded out by others did not wait for a disk."""
CAUTION = 32
"""Requests that threads do after a slow one."""


def _waits() -> int:
    """Times that this thread has waited for anything (getrusage(2), ru_nvcsw)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Request:
    """One request on its way."""

    __slots__ = ("chain", "error", "index", "kind", "sector", "slow", "status", "written")

    def __init__(self, index: int, chain: Chain) -> None:
        if chain.read_size < HEADER.size or not chain.write_size:
            raise QueueError("virtio-blk request without header or status")
        self.index = index
        """Of its queue."""
        self.chain = chain
        self.kind, _, self.sector = HEADER.unpack(chain.read(HEADER.size))
        self.status = S_OK
        self.written = 0
        """Bytes of data given to the guest."""
        self.error: Exception | None = None
        self.slow = False


class VirtioBlk(VirtioDevice):
    """A disk. `queues` are request queues, for guests with several vCPUs. A host's error is the request's error status."""

    device_type = 2
    pci_class = 0x018000

    def __init__(self, image: BlockEnd, queues: int = 1, name: str = "virtio-blk") -> None:
        self.name = name
        self.image = image
        self.features = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE | DISCARD | WRITE_ZEROES
        if image.readonly:
            self.features = self.features & ~(DISCARD | WRITE_ZEROES) | RO
        if queues > 1:
            self.features |= MQ
        self._sectors = image.size // SECTOR
        blocks_of_4k = 3  # physical block: 2**3 sectors
        super().__init__([QUEUE_SIZE] * queues, CONFIG.pack(
            self._sectors, 0, MOST_SEGMENTS, 0, 0, 0, SECTOR, blocks_of_4k, 0, 8, 0, 1, queues,
            MOST_RANGE_SECTORS, MOST_RANGES, 8, MOST_RANGE_SECTORS, MOST_RANGES, 1,
        ))
        self.requests = {"read": 0, "write": 0, "flush": 0, "errors": 0, "threaded": 0}
        """Counts since the device was made; "threaded" are those of them that threads have done."""
        self._workers = Workers(f"kvmpy-{name}")
        self._done: deque[Request] = deque()
        """Ended by a thread, the driver not told yet."""
        self._flying = 0
        """Requests that threads have."""
        self._caution = 0

    def connected(self) -> None:
        self.platform.at_rest(self._finish_all)

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == WRITEBACK and size == 1 and self.has(CONFIG_WCE):
            self.config[WRITEBACK] = value & 1

    def stopped(self) -> None:
        self.config[WRITEBACK] = 1

    def queue_notify(self, index: int) -> None:
        self.serve(index, partial(self._begin, index))

    def _begin(self, index: int, chain: Chain) -> int | None:
        """Does a request and gives the bytes written to the guest, status included, or None where a thread does it."""
        request = Request(index, chain)
        if self._waits(request.kind):
            self._flying += 1
            self.requests["threaded"] += 1
            self._workers.submit(partial(self._in_thread, request))
            return None
        self._do(request)
        return self._end(request)

    def _waits(self, kind: int) -> bool:
        if not self.platform.asynchronous or kind == T_GET_ID:
            return False
        # Images have locks: behind a request that waits, the next one would wait too.
        return self._flying > 0 or self._caution > 0 or kind not in (T_IN, T_OUT) or (kind == T_OUT and self._write_through())

    def _in_thread(self, request: Request) -> None:
        self._do(request)
        self._done.append(request)
        self.platform.call(self._finish)

    def _finish(self) -> None:
        """Tells the driver of the requests that threads have ended."""
        told = set()
        while self._done:
            request = self._done.popleft()
            self._flying -= 1
            queue = self.queues[request.index]
            if self.running and queue.held.get(request.chain.head) is request.chain:
                queue.push(request.chain, self._end(request))
                told.add(request.index)
        for index in sorted(told):
            self.interrupt(index)

    def _finish_all(self) -> None:
        self._workers.wait()
        self._finish()

    def _abandon(self) -> None:
        """Threads touch neither memory nor image for the driver any more, and it hears nothing of their requests."""
        self._workers.wait()
        self._done.clear()
        self._flying = 0

    def stop_queue(self, index: int) -> None:
        self._finish_all()
        super().stop_queue(index)

    def reset(self) -> None:
        self._abandon()
        super().reset()

    def restore(self, state: dict[str, Any]) -> None:
        """Requests that threads had are done anew: all of them can be."""
        self._abandon()
        super().restore(state)
        if any(queue.held for queue in self.queues):
            self.platform.call(lambda: self.guard(self._do_held))

    def _do_held(self) -> None:
        if not self.running:
            return
        for index, queue in enumerate(self.queues):
            for chain in list(queue.held.values()):
                request = Request(index, chain)
                self._do(request)
                queue.push(chain, self._end(request))
            self.interrupt(index)

    def _write_through(self) -> bool:
        """Without FLUSH the driver cannot ask for stable storage, so every write gets there (§5.2.5.2)."""
        return not self.has(FLUSH) or (self.has(CONFIG_WCE) and not self.config[WRITEBACK])

    def _do(self, request: Request) -> None:
        """Does what the request asks of the image. In any thread: touches the request, its buffers and the image alone."""
        start, waits = time.perf_counter_ns(), _waits()
        try:
            self._ask_image(request)
        except Unsupported:
            request.status = S_UNSUPP
        except (ValueError, OSError) as error:
            request.status = S_IOERR
            request.error = error
        size = request.chain.read_size + request.chain.write_size
        request.slow = time.perf_counter_ns() - start > SLOW_NS + size // 2 and _waits() != waits

    def _end(self, request: Request) -> int:
        """Writes the status, counts and reports; gives the bytes written to the guest."""
        chain, kind, error = request.chain, request.kind, request.error
        if kind in COUNTED and not isinstance(error, ValueError):
            self.requests[COUNTED[kind]] += 1
        if kind in (T_IN, T_OUT):
            self._caution = CAUTION if request.slow else max(self._caution - 1, 0)
        if isinstance(error, OSError):
            self.requests["errors"] += 1
            self.event("host error", request=NAMES.get(kind, kind), error=str(error))
            self.platform.warn(self.owner, f"{NAMES.get(kind, kind)}: {error.strerror or error}")
        elif error is not None:
            self.event("bad request", request=NAMES.get(kind, kind), why=str(error))
        chain.write_last(request.status, self.platform.memory)
        # The used length counts what was written from the front on without a gap (§2.7.8.2).
        return chain.write_size if request.written == chain.write_size - 1 else request.written

    def _ask_image(self, request: Request) -> None:
        kind, sector, chain = request.kind, request.sector, request.chain
        if kind == T_IN:
            size = chain.write_size - 1
            self._check(sector, size)
            if size:
                self.image.read_into(sector * SECTOR, chain.writable.cut(0, size))
            request.written = size
        elif kind == T_OUT:
            size = chain.read_size - HEADER.size
            self._check(sector, size)
            self._check_writable()
            if size:
                self.image.write_from(sector * SECTOR, chain.readable.cut(HEADER.size, size))
            if self._write_through():
                self.image.flush()
        elif kind == T_FLUSH:
            if not self.image.readonly:
                self.image.flush()
        elif kind == T_GET_ID:
            size = min(chain.write_size - 1, ID_BYTES)
            chain.write(self.image.serial.encode("ascii", "replace")[:ID_BYTES].ljust(ID_BYTES, b"\0")[:size])
            request.written = size
        elif kind in (T_DISCARD, T_WRITE_ZEROES) and self.has(DISCARD if kind == T_DISCARD else WRITE_ZEROES):
            self._do_ranges(kind, chain)
        else:
            raise Unsupported

    def _check(self, sector: int, size: int) -> None:
        if size % SECTOR:
            raise ValueError(f"{size} bytes are no whole sectors")
        if sector + size // SECTOR > self._sectors:
            raise ValueError(f"sector {sector}, {size} bytes: beyond the end, {self._sectors}")

    def _check_writable(self) -> None:
        if self.image.readonly:
            raise ValueError("the disk is read-only")

    def _do_ranges(self, kind: int, chain: Chain) -> None:
        """Discard and write zeroes: all ranges are checked before the first is touched (§5.2.6.2)."""
        size = chain.read_size - HEADER.size
        if size % RANGE.size or not 0 < size <= MOST_RANGES * RANGE.size:
            raise ValueError(f"{size} bytes of ranges")
        self._check_writable()
        ranges = list(RANGE.iter_unpack(chain.read(size, HEADER.size)))
        for sector, sectors, flags in ranges:
            if flags & ~UNMAP or (kind == T_DISCARD and flags):
                raise Unsupported
            if sectors > MOST_RANGE_SECTORS:
                raise ValueError(f"a range of {sectors} sectors")
            self._check(sector, sectors * SECTOR)
        for sector, sectors, flags in ranges:
            if not sectors:
                continue
            if kind == T_DISCARD:
                self.image.discard(sector * SECTOR, sectors * SECTOR)
            else:
                self.image.write_zeroes(sector * SECTOR, sectors * SECTOR, may_unmap=bool(flags & UNMAP))
        if kind == T_WRITE_ZEROES and self._write_through():
            self.image.flush()

    def close(self) -> None:
        self._workers.close()
        self.image.close()
