"""Reference counts of a qcow2 image's clusters, and the allocation of clusters by them."""

from __future__ import annotations

import errno
import os
import struct
from array import array

from kvmpy.host.images.hostfile import HostFile
from kvmpy.host.images.qcow2_header import MOST_REFCOUNT_TABLE, REFCOUNT_TABLE_AT, Header
from kvmpy.host.images.qcow2_tables import Table, TableCache, load, packed

OFFSET = 0xFFFFFFFFFFFFFE00
CACHE = 1 << 20
"""Bytes of refcount blocks kept in memory."""


class Refcounts:
    """Counts of 1 to 64 bits. `used` names clusters that hold metadata, which are never given out; `end` is the first
    cluster behind the file: clusters from there on have never been written."""

    def __init__(self, file: HostFile, header: Header) -> None:
        self.file = file
        self.header = header
        self.cluster = header.cluster
        self.bits = 1 << header.refcount_order
        self.per_block = header.cluster * 8 // self.bits
        code = {3: "B", 4: "H", 5: "I", 6: "Q"}.get(header.refcount_order, "B")
        self.blocks = TableCache(file, header.cluster, max(8, CACHE // header.cluster), code)
        self.table = load(file, header.refcount_table_offset, header.refcount_table_clusters * header.cluster // 8)
        self.end = -(-file.size // header.cluster)
        self.used: set[int] = set()
        self.hint = 0
        for entry in self.table:
            if entry:
                self.used.add((entry & OFFSET) // self.cluster)
        first = header.refcount_table_offset // self.cluster
        self.used.update(range(first, first + header.refcount_table_clusters))

    def _block(self, number: int) -> Table | None:
        entry = self.table[number] & OFFSET if number < len(self.table) else 0
        if not entry:
            return None
        if entry % self.cluster:
            raise OSError(errno.EIO, "qcow2: a refcount block is not aligned to a cluster")
        return self.blocks.get(entry)

    def get(self, index: int) -> int:
        """The count of a cluster."""
        number, at = divmod(index, self.per_block)
        block = self._block(number)
        return self._count(block, at) if block is not None else 0

    def _count(self, block: Table, at: int) -> int:
        if self.bits >= 8:
            return block.numbers[at]
        byte, shift = divmod(at * self.bits, 8)
        return block.numbers[byte] >> shift & (1 << self.bits) - 1

    def _put(self, block: Table, at: int, value: int) -> None:
        if self.bits >= 8:
            block.numbers[at] = value
        else:
            at, shift = divmod(at * self.bits, 8)
            mask = (1 << self.bits) - 1 << shift
            block.numbers[at] = block.numbers[at] & ~mask | value << shift
        self.blocks.change(block, at, at + 1)

    def _free_from(self, block: Table, at: int) -> int:
        """The first count of zero at or after `at`, or `per_block`."""
        if self.bits >= 8:
            try:
                return block.numbers.index(0, at)
            except ValueError:
                return self.per_block
        while at < self.per_block and self._count(block, at):
            at += 1
        return at

    def allocate(self, count: int) -> tuple[int, int]:
        """Takes a run of at most `count` free clusters: (its first one, how many)."""
        index = self.hint
        while True:
            number, at = divmod(index, self.per_block)
            block = self._block(number)
            if block is None:
                block = self._make_block(number)
            at = self._free_from(block, at)
            first = number * self.per_block + at
            run = 0
            while run < count and at + run < self.per_block and not self._count(block, at + run) and first + run not in self.used:
                run += 1
            if run:
                break
            index = first + 1 if at < self.per_block else (number + 1) * self.per_block
        if self.file.is_block and (first + run) * self.cluster > self.file.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for each in range(at, at + run):
            self._put(block, each, 1)
        self.hint = first + run
        return first, run

    def is_fresh(self, first: int) -> bool:
        """True for a cluster that has never been written, and so reads as zeroes; `wrote` ends that."""
        return first >= self.end and not self.file.is_block

    def wrote(self, end: int) -> None:
        """Clusters up to `end`, exclusive, may have content now."""
        if end > self.end:
            self.end = end
            self.file.size = max(self.file.size, end * self.cluster)

    def release(self, index: int) -> bool:
        """Takes one reference away; True when that was the last."""
        number, at = divmod(index, self.per_block)
        block = self._block(number)
        count = self._count(block, at) if block is not None else 0
        if block is None or not count:
            raise OSError(errno.EIO, f"qcow2: cluster {index} is freed, but has no references")
        self._put(block, at, count - 1)
        if count == 1:
            self.hint = min(self.hint, index)
        return count == 1

    def _make_block(self, number: int) -> Table:
        """A refcount block for a range that has none: the range's first cluster, which so counts itself."""
        if number >= len(self.table):
            self._grow(number)
            block = self._block(number)
            if block is not None:
                return block
        index = number * self.per_block
        if index in self.used or index == 0:
            raise OSError(errno.EIO, "qcow2: metadata in clusters without refcounts: qemu-img check -r all mends it")
        if self.file.is_block and (index + 1) * self.cluster > self.file.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        block = self.blocks.make(index * self.cluster)
        self._put(block, 0, 1)
        # The block is in the file before the table points to it.
        self.blocks.write_back()
        self.wrote(index + 1)
        self.file.sync()
        self._set_entry(number, index * self.cluster)
        return block

    def _set_entry(self, number: int, offset: int) -> None:
        self.table[number] = offset
        self.used.add(offset // self.cluster)
        self.file.write_bytes(self.header.refcount_table_offset + number * 8, struct.pack(">Q", offset))

    def _grow(self, number: int) -> None:
        """A larger refcount table, behind everything else, with the blocks that count it."""
        covered = len(self.table)
        start = max(self.end, covered * self.per_block)
        clusters = -(-max(number + 1, covered * 3 // 2) * 8 // self.cluster)
        blocks = 0
        while True:
            needed = -(-(start + clusters + blocks) // self.per_block) - covered
            clusters = max(clusters, -(-(covered + needed) * 8 // self.cluster))
            if needed <= blocks:
                break
            blocks = needed
        if clusters * self.cluster > MOST_REFCOUNT_TABLE:
            raise OSError(errno.EFBIG, "qcow2: the refcount table cannot grow any more")
        if self.file.is_block and (start + clusters + blocks) * self.cluster > self.file.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        table = self.table[:]
        table.frombytes(bytes(clusters * self.cluster - len(table) * 8))
        made = [self.blocks.make((start + index) * self.cluster) for index in range(blocks)]
        for index, block in enumerate(made):
            table[covered + index] = block.offset
        for index in range(start, start + blocks + clusters):
            which, at = divmod(index, self.per_block)
            self._put(made[which - covered], at, 1)
        self.blocks.write_back()
        offset = (start + blocks) * self.cluster
        self.file.write_bytes(offset, packed(table))
        self.wrote(start + blocks + clusters)
        self.file.sync()
        self.file.write_bytes(REFCOUNT_TABLE_AT, struct.pack(">QI", offset, clusters))
        self.file.sync()
        old, count = self.header.refcount_table_offset // self.cluster, self.header.refcount_table_clusters
        self.header.refcount_table_offset, self.header.refcount_table_clusters = offset, clusters
        self.table = table
        self.used.update(range(start, start + blocks + clusters))
        for index in range(old, old + count):
            self.used.discard(index)
            self.release(index)

    def rebuild(self, counts: array[int]) -> None:
        """New refcounts, behind everything else, that say `counts` for the file's clusters; what was the old ones' is free."""
        start = len(counts)
        blocks = clusters = 0
        while True:
            needed = -(-(start + blocks + clusters) // self.per_block)
            table_clusters = -(-needed * 8 // self.cluster)
            if (needed, table_clusters) == (blocks, clusters):
                break
            blocks, clusters = needed, table_clusters
        if clusters * self.cluster > MOST_REFCOUNT_TABLE:
            raise OSError(errno.EFBIG, "qcow2: the refcounts do not fit")
        if self.file.is_block and (start + clusters + blocks) * self.cluster > self.file.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for offset in list(self.blocks.changed):
            self.blocks.forget(offset)
        table = array("Q", bytes(clusters * self.cluster))
        most = (1 << self.bits) - 1
        for number in range(blocks):
            block = self.blocks.make((start + number) * self.cluster)
            table[number] = block.offset
            for at in range(self.per_block):
                index = number * self.per_block + at
                count = counts[index] if index < start else int(index < start + blocks + clusters)
                if count > most:
                    raise OSError(errno.EFBIG, f"qcow2: {count} references to one cluster")
                if count:
                    self._put(block, at, count)
            self.blocks.write_back()
        offset = (start + blocks) * self.cluster
        self.file.write_bytes(offset, packed(table))
        self.wrote(start + blocks + clusters)
        self.file.sync()
        self.file.write_bytes(REFCOUNT_TABLE_AT, struct.pack(">QI", offset, clusters))
        self.file.sync()
        self.header.refcount_table_offset, self.header.refcount_table_clusters = offset, clusters
        self.table = table
        self.used = set(range(start, start + blocks + clusters))
        self.hint = 0
