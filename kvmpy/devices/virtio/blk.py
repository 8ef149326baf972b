"""virtio-blk (virtio 1.2 §5.2) on a disk image. Requests are done at the doorbell, image and guest pages without a copy between."""

from __future__ import annotations

import struct

from kvmpy.devices.blockend import BlockEnd
from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.devices.virtio.queue import Chain, QueueError

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
        self.requests = {"read": 0, "write": 0, "flush": 0, "errors": 0}
        """Counts since the device was made."""

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == WRITEBACK and size == 1 and self.has(CONFIG_WCE):
            self.config[WRITEBACK] = value & 1

    def stopped(self) -> None:
        self.config[WRITEBACK] = 1

    def queue_notify(self, index: int) -> None:
        self.serve(index, self._handle)

    def _write_through(self) -> bool:
        """Without FLUSH the driver cannot ask for stable storage, so every write gets there (§5.2.5.2)."""
        return not self.has(FLUSH) or (self.has(CONFIG_WCE) and not self.config[WRITEBACK])

    def _handle(self, chain: Chain) -> int:
        """One request; gives the bytes written to the guest, status included."""
        if chain.read_size < HEADER.size or not chain.write_size:
            raise QueueError("virtio-blk request without header or status")
        kind, _, sector = HEADER.unpack(chain.read(HEADER.size))
        written, status = 0, S_OK
        try:
            written = self._do(kind, sector, chain)
        except Unsupported:
            status = S_UNSUPP
        except ValueError as error:
            status = S_IOERR
            self.event("bad request", request=NAMES.get(kind, kind), why=str(error))
        except OSError as error:
            status = S_IOERR
            self.requests["errors"] += 1
            self.event("host error", request=NAMES.get(kind, kind), error=str(error))
            self.platform.warn(self.owner, f"{NAMES.get(kind, kind)}: {error.strerror or error}")
        chain.write_last(status, self.platform.memory)
        # The used length counts what was written from the front on without a gap (§2.7.8.2).
        return chain.write_size if written == chain.write_size - 1 else written

    def _do(self, kind: int, sector: int, chain: Chain) -> int:
        if kind == T_IN:
            size = chain.write_size - 1
            self._check(sector, size)
            self.requests["read"] += 1
            if size:
                self.image.read_into(sector * SECTOR, chain.writable.cut(0, size))
            return size
        if kind == T_OUT:
            size = chain.read_size - HEADER.size
            self._check(sector, size)
            self._check_writable()
            self.requests["write"] += 1
            if size:
                self.image.write_from(sector * SECTOR, chain.readable.cut(HEADER.size, size))
            if self._write_through():
                self.image.flush()
        elif kind == T_FLUSH:
            self.requests["flush"] += 1
            if not self.image.readonly:
                self.image.flush()
        elif kind == T_GET_ID:
            size = min(chain.write_size - 1, ID_BYTES)
            chain.write(self.image.serial.encode("ascii", "replace")[:ID_BYTES].ljust(ID_BYTES, b"\0")[:size])
            return size
        elif kind in (T_DISCARD, T_WRITE_ZEROES) and self.has(DISCARD if kind == T_DISCARD else WRITE_ZEROES):
            self._do_ranges(kind, chain)
        else:
            raise Unsupported
        return 0

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
        self.image.close()
