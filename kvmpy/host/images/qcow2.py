"""qcow2 images, versions 2 and 3.

What a crash leaves behind is consistent, at any moment, because every pointer is written after what it points to:
data and refcounts, then L2 tables, then the L1 table, with barriers between; a cluster is free again only after the
pointer to it is gone from the file. Refcounts may be too high after a crash (a leak), never too low.
"""

from __future__ import annotations

import errno
import struct
import threading

from kvmpy.errors import ImageError
from kvmpy.host.images import qcow2_compressed as compressed
from kvmpy.host.images.hostfile import HostFile
from kvmpy.host.images.image import Image, read_padded
from kvmpy.host.images.qcow2_header import AUTOCLEAR_AT, CORRUPT, DIRTY, INCOMPATIBLE_AT, parse
from kvmpy.host.images.qcow2_refcounts import Refcounts
from kvmpy.host.images.qcow2_tables import Table, TableCache, load, packed
from kvmpy.host.images.views import Buffers, Cursor, put, zero, zeroes

OFFSET = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
"""The cluster has one reference: it may be written in place."""
COMPRESSED = 1 << 62
ZERO = 1

L2_CACHE = 8 << 20
"""Bytes of L2 tables kept in memory; with 64 KiB clusters they map 64 GiB."""
MOST_FREED = 1 << 16
UNPACKED = 4
"""Decompressed clusters kept in memory."""

# Where bytes of the disk come from.
DATA, HOLE, BACKING, PACKED = range(4)


class Qcow2Image(Image):
    """An open qcow2 image. `backing` is closed with it. ImageError where the image is damaged or cannot be used."""

    format = "qcow2"

    def __init__(self, file: HostFile, backing: Image | None = None) -> None:
        self.backing = backing
        self.file = file
        try:
            self.header = header = parse(file)
            super().__init__(file.path, header.size, file.readonly)
            self._lock = threading.Lock()
            self._bits = header.cluster_bits
            self._cluster = header.cluster
            self._entries = header.l2_entries
            self._l1 = load(file, header.l1_offset, header.l1_entries)
            self._l1_changed: set[int] = set()
            self._l2 = TableCache(file, self._cluster, max(16, L2_CACHE // self._cluster))
            self._freed: list[int] = []
            self._unpacked: dict[int, bytes] = {}
            self._unpack = compressed.decompressor(header.compression, file.path)
            self._refcounts: Refcounts | None = None
            if not self.readonly:
                self._open_for_writing()
        except (ImageError, OSError) as error:
            file.close()
            if backing is not None:
                backing.close()
            if isinstance(error, OSError):
                raise ImageError(f"{file.path}: {error.strerror}") from None
            raise

    def files(self) -> set[tuple[int, int]]:
        behind = self.backing.files() if self.backing is not None else set()
        return {self.file.identity()} | behind

    def _open_for_writing(self) -> None:
        header = self.header
        if header.incompatible & CORRUPT:
            raise ImageError(f"{self.path}: the image is marked as corrupt: qemu-img check -r all mends it; readonly=on reads it as it is")
        self._refcounts = Refcounts(self.file, header)
        self._mark_metadata()
        if header.incompatible & DIRTY:
            from kvmpy.host.images.qcow2_check import mend

            mend(self)
        if header.autoclear:
            # Whoever writes without keeping these up to date has to take the bits away.
            header.autoclear = 0
            self.file.write_bytes(AUTOCLEAR_AT, bytes(8))

    def _mark_metadata(self) -> None:
        """Tells the allocator where metadata is, whatever the refcounts say."""
        header, used = self.header, self.refcounts.used
        used.add(0)
        first = header.l1_offset // self._cluster
        used.update(range(first, first + -(-header.l1_entries * 8 // self._cluster)))
        used.update((entry & OFFSET) // self._cluster for entry in self._l1 if entry)
        if header.snapshots:
            used.add(header.snapshots_offset // self._cluster)

    @property
    def refcounts(self) -> Refcounts:
        """Those of an image that is open for writing."""
        assert self._refcounts is not None
        return self._refcounts

    def clear_dirty(self) -> None:
        """The refcounts are right."""
        self.header.incompatible &= ~DIRTY
        self.file.write_bytes(INCOMPATIBLE_AT, struct.pack(">Q", self.header.incompatible))
        self.file.sync()

    def mark_owned(self) -> None:
        """Makes the marks of single ownership in the L1 table and all L2 tables agree with the refcounts."""
        refcounts = self.refcounts
        self._mark_metadata()
        for number, entry in enumerate(self._l1):
            table = self._l2_table(number)
            if table is None:
                continue
            self._l1[number] = entry & ~COPIED | (COPIED if refcounts.get(table.offset >> self._bits) == 1 else 0)
            if self._l1[number] != entry:
                self._l1_changed.add(number)
            for at, old in enumerate(table.numbers):
                if not old & OFFSET or old & COMPRESSED:
                    continue
                new = old & ~COPIED | (COPIED if refcounts.get((old & OFFSET) >> self._bits) == 1 else 0)
                if new != old:
                    table.numbers[at] = new
                    self._l2.change(table, at, at + 1)
            self._relieve()
        self._write_back()
        self.file.sync()

    # Finding.

    def _l2_table(self, number: int) -> Table | None:
        """The L2 table of an L1 entry, None where there is none."""
        offset = self._l1[number] & OFFSET
        if not offset:
            return None
        if offset % self._cluster or offset < self._cluster:
            raise OSError(errno.EIO, "qcow2: an L2 table is not aligned to a cluster")
        return self._l2.get(offset)

    def _kind(self, entry: int, position: int) -> int:
        """Where the bytes of the cluster at `position` of the disk come from."""
        if entry & COMPRESSED:
            return PACKED
        if entry & ZERO and self.header.version >= 3:
            return HOLE
        if entry & OFFSET:
            return DATA
        return BACKING if self.backing is not None and position < self.backing.size else HOLE

    def _host(self, entry: int) -> int:
        offset = entry & OFFSET
        if offset % self._cluster or offset < self._cluster:
            raise OSError(errno.EIO, "qcow2: a cluster's offset is not aligned")
        return offset

    def _extent(self, offset: int, length: int) -> tuple[int, int, int]:
        """(kind, offset in the file or the L2 entry, bytes) of the longest run from `offset` that is of one kind and lies together."""
        index, inner = offset >> self._bits, offset & self._cluster - 1
        number, at = divmod(index, self._entries)
        table = self._l2_table(number)
        if table is None:
            run = min(length, ((number + 1) * self._entries << self._bits) - offset)
            if self.backing is None or offset >= self.backing.size:
                return HOLE, 0, run
            return BACKING, 0, run
        numbers = table.numbers
        entry = numbers[at]
        kind = self._kind(entry, index << self._bits)
        run = self._cluster - inner
        if kind == PACKED:
            return kind, entry, min(run, length)
        host = self._host(entry) if kind == DATA else 0
        expected = (entry & OFFSET) + self._cluster
        while run < length and at + 1 < self._entries:
            at += 1
            index += 1
            entry = numbers[at]
            if self._kind(entry, index << self._bits) != kind or (kind == DATA and entry & OFFSET != expected):
                break
            expected += self._cluster
            run += self._cluster
        return kind, host + inner, min(run, length)

    # Reading.

    def _read(self, offset: int, length: int, buffers: Buffers) -> None:
        with self._lock:
            cursor: Cursor | None = None
            while length:
                kind, where, run = self._extent(offset, length)
                if cursor is None:
                    if run == length and kind == DATA:
                        return self.file.read(where, buffers)
                    cursor = Cursor(buffers)
                views = cursor.take(run)
                if kind == DATA:
                    self.file.read(where, views)
                elif kind == HOLE:
                    zero(views)
                elif kind == BACKING:
                    assert self.backing is not None
                    read_padded(self.backing, offset, views)
                else:
                    inner = offset & self._cluster - 1
                    put(views, memoryview(self._cluster_unpacked(where))[inner : inner + run])
                offset += run
                length -= run

    def _cluster_unpacked(self, entry: int) -> bytes:
        data = self._unpacked.get(entry)
        if data is None:
            offset, length = compressed.place(entry, self._bits)
            data = self._unpack(self.file.read_bytes(offset, length), self._cluster)
            while len(self._unpacked) >= UNPACKED:
                del self._unpacked[next(iter(self._unpacked))]
            self._unpacked[entry] = data
        return data

    def _old(self, entry: int, position: int, start: int, length: int) -> bytes | None:
        """What a cluster holds in a part of it; None for zeroes."""
        kind = self._kind(entry, position)
        if kind == HOLE or not length:
            return None
        if kind == PACKED:
            return self._cluster_unpacked(entry)[start : start + length]
        data = bytearray(length)
        if kind == DATA:
            self.file.read(self._host(entry) + start, [memoryview(data)])
        else:
            assert self.backing is not None
            read_padded(self.backing, position + start, [memoryview(data)])
        return bytes(data)

    # Writing.

    def _write(self, offset: int, length: int, buffers: Buffers) -> None:
        with self._lock:
            cursor = Cursor(buffers)
            while length:
                index, inner = offset >> self._bits, offset & self._cluster - 1
                number, at = divmod(index, self._entries)
                table = self._table_for_writing(number)
                most = min(self._entries - at, -(-(inner + length) >> self._bits))
                if _in_place(table.numbers[at]):
                    run = self._overwrite(table, at, most, inner, length, cursor)
                else:
                    run = self._write_new(table, at, most, index, inner, length, cursor)
                offset += run
                length -= run
            self._relieve()

    def _overwrite(self, table: Table, at: int, most: int, inner: int, length: int, cursor: Cursor) -> int:
        """Writes to clusters that this image alone owns and that lie together in the file."""
        numbers = table.numbers
        host = self._host(numbers[at])
        count = 1
        while count < most and _in_place(numbers[at + count]) and numbers[at + count] & OFFSET == host + (count << self._bits):
            count += 1
        first = host >> self._bits
        refcounts = self.refcounts
        if first + count > refcounts.end or not refcounts.used.isdisjoint(range(first, first + count)):
            raise OSError(errno.EIO, "qcow2: a cluster of the disk lies in metadata or outside the file")
        run = min(length, (count << self._bits) - inner)
        self.file.write(host + inner, cursor.take(run))
        return run

    def _write_new(self, table: Table, at: int, most: int, index: int, inner: int, length: int, cursor: Cursor) -> int:
        """Writes to clusters that have to be allocated first, filling up what the request leaves of them."""
        numbers = table.numbers
        count = 1
        while count < most and not _in_place(numbers[at + count]):
            count += 1
        refcounts = self.refcounts
        first, count = refcounts.allocate(count)
        run = min(length, (count << self._bits) - inner)
        tail = (count << self._bits) - inner - run
        fresh = refcounts.is_fresh(first)
        host = first << self._bits
        try:
            before = self._old(numbers[at], index << self._bits, 0, inner)
            last = index + count - 1
            after = self._old(numbers[at + count - 1], last << self._bits, self._cluster - tail, tail)
            views = cursor.take(run)
            start = host + inner
            if before is not None or (inner and not fresh):
                views = [*([memoryview(before)] if before is not None else zeroes(inner)), *views]
                start = host
            if after is not None or (tail and not fresh):
                views = [*views, *([memoryview(after)] if after is not None else zeroes(tail))]
            self.file.write(start, views)
        except OSError:
            refcounts.wrote(first + count)
            for each in range(first, first + count):
                refcounts.release(each)
            raise
        refcounts.wrote(first + count)
        for each in range(count):
            self._free_entry(numbers[at + each])
            numbers[at + each] = host + (each << self._bits) | COPIED
        self._l2.change(table, at, at + count)
        return run

    def _table_for_writing(self, number: int) -> Table:
        """The L2 table of an L1 entry, made or copied where this image has none of its own."""
        entry = self._l1[number]
        table = self._l2_table(number)
        if table is not None and entry & COPIED:
            return table
        index, _ = self.refcounts.allocate(1)
        self.refcounts.wrote(index + 1)
        self.refcounts.used.add(index)
        new = self._l2.make(index << self._bits, table.numbers if table is not None else None)
        self._l1[number] = index << self._bits | COPIED
        self._l1_changed.add(number)
        if table is not None:
            self._freed.append(table.offset >> self._bits)
        return new

    def _free_entry(self, entry: int) -> None:
        """Marks what an L2 entry pointed to as free, from the next write-back on."""
        if entry & COMPRESSED:
            offset, length = compressed.place(entry, self._bits)
            self._unpacked.pop(entry, None)
            self._freed.extend(range(offset >> self._bits, (offset + length - 1 >> self._bits) + 1))
        elif entry & OFFSET:
            self._freed.append((entry & OFFSET) >> self._bits)

    # Zeroes.

    def _discard(self, offset: int, length: int) -> None:
        """Whole clusters only; version 2 cannot hide what a backing file has."""
        if self.header.version < 3 and self.backing is not None:
            return
        with self._lock:
            start = -(-offset >> self._bits) << self._bits
            end = offset + length
            if end < self.size:
                end = end >> self._bits << self._bits
            while start < end:
                start += self._zero_clusters(start, end - start, True)
            self._relieve()

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        end = offset + length
        while offset < end:
            inner = offset & self._cluster - 1
            run = min(end - offset, self._cluster - inner)
            with self._lock:
                whole = inner == 0 and (run == self._cluster or offset + run == self.size)
                if whole and self._can_zero(offset, unmap):
                    # Up to the last whole cluster of the range.
                    room = end - offset if end == self.size else (end - offset) >> self._bits << self._bits
                    run = self._zero_clusters(offset, room, unmap)
                    self._relieve()
                    offset += run
                    continue
                kind, _, known = self._extent(offset, run)
            if kind == HOLE:
                run = known
            else:
                self._write(offset, run, zeroes(run))
            offset += run

    def _can_zero(self, position: int, unmap: bool) -> bool:
        """Whether an L2 entry can say that the cluster reads as zeroes."""
        return self.header.version >= 3 or (unmap and (self.backing is None or position >= self.backing.size))

    def _zero_clusters(self, offset: int, length: int, unmap: bool) -> int:
        """Makes whole clusters read as zeroes, within one L2 table; gives the bytes dealt with."""
        index = offset >> self._bits
        number, at = divmod(index, self._entries)
        count = min(self._entries - at, -(-length >> self._bits))
        run = min(length, count << self._bits)
        if self._l1[number] & OFFSET == 0 and (self.backing is None or offset >= self.backing.size):
            return run
        table: Table | None = None
        for each in range(at, at + count):
            position = number * self._entries + each << self._bits
            hidden = self.backing is not None and position < self.backing.size
            present = table or self._l2_table(number)
            entry = present.numbers[each] if present is not None else 0
            keep = not unmap and entry & OFFSET and not entry & COMPRESSED
            new = entry | ZERO if keep else ZERO if hidden else 0
            if new == entry or (entry == ZERO and not keep):
                continue
            if table is None:
                table = self._table_for_writing(number)
            if not keep:
                self._free_entry(entry)
            table.numbers[each] = new
            self._l2.change(table, each, each + 1)
        return run

    # Order.

    def _relieve(self) -> None:
        if self._l2.crowded or self.refcounts.blocks.crowded or len(self._freed) > MOST_FREED:
            self._write_back()

    def _flush(self) -> None:
        with self._lock:
            self._write_back()
            self.file.sync()

    def _write_back(self) -> None:
        """Brings the file up to date, everything after what it points to."""
        refcounts = self.refcounts
        refcounts.blocks.write_back()
        if self._l2.changed or self._l1_changed:
            self.file.sync()
            self._l2.write_back()
        if self._l1_changed:
            self.file.sync()
            for number in sorted(self._l1_changed):
                self.file.write_bytes(self.header.l1_offset + number * 8, packed(self._l1[number : number + 1]))
            self._l1_changed.clear()
        if self._freed:
            self.file.sync()
            self._release()

    def _release(self) -> None:
        """Gives clusters back that the file has no pointers to any more, and their blocks to the host."""
        freed, self._freed = sorted(self._freed), []
        start = end = -1
        for index in freed:
            if not self.refcounts.release(index):
                continue
            self._l2.forget(index << self._bits)
            self.refcounts.used.discard(index)
            if index == end:
                end += 1
                continue
            if end > start:
                self._punch(start, end)
            start, end = index, index + 1
        if end > start:
            self._punch(start, end)

    def _punch(self, start: int, end: int) -> None:
        try:
            self.file.punch(start << self._bits, end - start << self._bits)
        except OSError:
            pass  # The clusters are free all the same.

    def _close(self) -> None:
        try:
            if not self.readonly:
                self.refcounts.blocks.write_back()  # what the last flush has freed
        finally:
            self.file.close()
            if self.backing is not None:
                self.backing.close()


def _in_place(entry: int) -> bool:
    return entry & COPIED != 0 and entry & (COMPRESSED | ZERO) == 0 and entry & OFFSET != 0
