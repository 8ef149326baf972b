"""The check of a qcow2 image: every reference to every cluster is counted and compared with the refcounts."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvmpy.errors import ImageError
from kvmpy.host.images import qcow2_compressed as compressed
from kvmpy.host.images.hostfile import HostFile
from kvmpy.host.images.qcow2_header import BITMAP_DIRECTORY, BITMAPS, MOST_L1, Header
from kvmpy.host.images.qcow2_refcounts import Refcounts
from kvmpy.host.images.qcow2_tables import load

if TYPE_CHECKING:
    from kvmpy.host.images.qcow2 import Qcow2Image

OFFSET = 0x00FFFFFFFFFFFE00
COPIED, COMPRESSED = 1 << 63, 1 << 62
MOST_CLUSTERS = 1 << 28
MOST_MESSAGES = 20


@dataclass
class Finding:
    """What a check found. `leaks` cost room, `errors` cost data."""

    clusters: int = 0
    """Clusters of the file."""
    allocated: int = 0
    """Clusters of the disk that have content of their own."""
    errors: int = 0
    leaks: int = 0
    messages: list[str] = field(default_factory=list)
    """The first few of them in words."""

    def error(self, text: str) -> None:
        """Counts an error."""
        self.errors += 1
        self._say(text)

    def leak(self, text: str) -> None:
        """Counts a leaked cluster."""
        self.leaks += 1
        self._say(text)

    def _say(self, text: str) -> None:
        if len(self.messages) < MOST_MESSAGES:
            self.messages.append(text)


class Counter:
    """Counts references, each from 0 to 2^32."""

    def __init__(self, file: HostFile, header: Header) -> None:
        self.file = file
        self.header = header
        self.finding = Finding()
        clusters = -(-file.size // header.cluster)
        if clusters > MOST_CLUSTERS:
            raise ImageError(f"{file.path}: a file of {clusters} clusters is too large for a check")
        self.finding.clusters = clusters
        self.counts = array("I", bytes(4 * clusters))

    def add(self, offset: int, length: int, what: str) -> None:
        """One reference to each cluster of a range."""
        bits = self.header.cluster_bits
        first, end = offset >> bits, (offset + length - 1 >> bits) + 1
        # The last cluster of a file may be cut off.
        if end > len(self.counts):
            self.finding.error(f"{what} at {offset:#x} lies outside the file")
        for index in range(first, min(end, len(self.counts))):
            self.counts[index] += 1

    def disk(self, l1_offset: int, entries: int, refcounts: Refcounts | None) -> None:
        """An L1 table, its L2 tables and their clusters. With `refcounts` the marks of single ownership are compared too."""
        header, finding = self.header, self.finding
        if entries:
            self.add(l1_offset, entries * 8, "L1 table")
        for number, entry in enumerate(load(self.file, l1_offset, entries)):
            offset = entry & OFFSET
            if not offset:
                continue
            if offset % header.cluster:
                finding.error(f"L1 entry {number}: {entry:#x} is not aligned to a cluster")
                continue
            self.add(offset, header.cluster, "L2 table")
            if refcounts is not None:
                self._compare_mark(entry, offset, refcounts, "L1")
            self._l2(offset, refcounts)

    def _l2(self, table: int, refcounts: Refcounts | None) -> None:
        header, finding = self.header, self.finding
        for at, entry in enumerate(load(self.file, table, header.l2_entries)):
            if not entry:
                continue
            if entry & COMPRESSED:
                offset, length = compressed.place(entry, header.cluster_bits)
                if entry & COPIED:
                    finding.error(f"L2 entry {at} at {table:#x}: a compressed cluster is marked as owned")
                # The last sector may lie behind the end of the file, which is not padded.
                room = -(-self.file.size // 512) * 512 - offset
                self.add(offset, min(length, room) if room > 0 else length, "compressed cluster")
            else:
                offset = entry & OFFSET
                if not offset:
                    continue
                if offset % header.cluster:
                    finding.error(f"L2 entry {at} at {table:#x}: {entry:#x} is not aligned to a cluster")
                    continue
                self.add(offset, header.cluster, "cluster")
                if refcounts is not None:
                    self._compare_mark(entry, offset, refcounts, "L2")
            if refcounts is not None:
                finding.allocated += 1

    def _compare_mark(self, entry: int, offset: int, refcounts: Refcounts, level: str) -> None:
        count = refcounts.get(offset // self.header.cluster)
        if bool(entry & COPIED) != (count == 1):
            self.finding.error(f"{level} entry {entry:#x}: the mark of single ownership is wrong, refcount {count}")

    def everything(self, refcounts: Refcounts | None) -> None:
        """All references but those of the refcounts themselves; their table and blocks too, where they are given."""
        header = self.header
        self.add(0, header.cluster, "header")
        self.disk(header.l1_offset, header.l1_entries, refcounts)
        last = header.snapshots_offset + 1
        for l1_offset, entries, end in snapshots(self.file, header):
            last = end
            if entries * 8 > MOST_L1 or l1_offset % header.cluster:
                self.finding.error(f"snapshot with an L1 table of {entries} entries at {l1_offset:#x}")
            else:
                self.disk(l1_offset, entries, None)
        if header.snapshots:
            self.add(header.snapshots_offset, last - header.snapshots_offset, "snapshot table")
        if header.autoclear & BITMAPS:
            self._bitmaps()
        if refcounts is not None:
            self.add(header.refcount_table_offset, header.refcount_table_clusters * header.cluster, "refcount table")
            for entry in refcounts.table:
                if entry & OFFSET:
                    self.add(entry & OFFSET, header.cluster, "refcount block")

    def _bitmaps(self) -> None:
        """Dirty bitmaps: a directory, whose entries name tables, whose entries name clusters."""
        header = self.header
        extension = header.extensions.get(BITMAP_DIRECTORY, b"")
        if len(extension) < 24:
            return
        count, _, size, offset = struct.unpack_from(">IIQQ", extension)
        if size > 64 << 20 or count > 65535:
            return self.finding.error(f"bitmap directory of {size} bytes")
        self.add(offset, size, "bitmap directory")
        directory = self.file.read_bytes(offset, size)
        at = 0
        for _ in range(count):
            if at + 24 > len(directory):
                return self.finding.error("the bitmap directory is cut off")
            table, entries, _, _, _, name, extra = struct.unpack_from(">QIIBBHI", directory, at)
            at += -(-(24 + name + extra) // 8) * 8
            if entries * 8 > MOST_L1:
                return self.finding.error(f"bitmap table of {entries} entries")
            self.add(table, entries * 8, "bitmap table")
            for entry in load(self.file, table, entries):
                if entry & OFFSET:
                    self.add(entry & OFFSET, header.cluster, "bitmap")

    def compare(self, refcounts: Refcounts) -> None:
        """The counts with the image's refcounts."""
        finding = self.finding
        limit = max(len(self.counts), len(refcounts.table) * refcounts.per_block)
        for number in range(-(-limit // refcounts.per_block)):
            if number < len(refcounts.table) and refcounts.table[number] & OFFSET:
                first = number * refcounts.per_block
                # Behind the file there should be nothing; one look at each block suffices to see that.
                for index in range(first, first + refcounts.per_block):
                    self._compare_one(index, refcounts.get(index))
            else:
                for index in range(number * refcounts.per_block, min((number + 1) * refcounts.per_block, len(self.counts))):
                    if self.counts[index]:
                        finding.error(f"cluster {index}: refcount 0, {self.counts[index]} references")

    def _compare_one(self, index: int, count: int) -> None:
        expected = self.counts[index] if index < len(self.counts) else 0
        if count > expected:
            self.finding.leak(f"cluster {index}: refcount {count}, {expected} references")
        elif count < expected:
            self.finding.error(f"cluster {index}: refcount {count}, {expected} references")


def snapshots(file: HostFile, header: Header) -> Iterator[tuple[int, int, int]]:
    """(L1 table, its entries, end of the record) of each internal snapshot."""
    at = header.snapshots_offset
    for _ in range(header.snapshots):
        record = file.read_bytes(at, 40)
        if len(record) < 40:
            raise ImageError(f"{file.path}: qcow2: the snapshot table is cut off")
        l1_offset, entries, id_size, name_size = struct.unpack_from(">QIHH", record)
        (extra,) = struct.unpack_from(">I", record, 36)
        end = at + 40 + extra + id_size + name_size
        yield l1_offset, entries, end
        at = -(-end // 8) * 8


def check(file: HostFile, header: Header) -> Finding:
    """Checks an image that nobody writes. ImageError where it cannot even be walked."""
    counter = Counter(file, header)
    try:
        refcounts = Refcounts(file, header)
        counter.everything(refcounts)
        counter.compare(refcounts)
    except OSError as error:
        counter.finding.error(error.strerror or str(error))
    return counter.finding


def mend(image: Qcow2Image) -> None:
    """Makes an image that was not closed consistent: new refcounts from what its tables point to. ImageError where it is damaged."""
    counter = Counter(image.file, image.header)
    counter.everything(None)
    if counter.finding.errors:
        raise ImageError(f"{image.path}: was not closed and is damaged ({counter.finding.messages[0]}): qemu-img check -r all mends it")
    image.refcounts.rebuild(counter.counts)
    image.mark_owned()
    image.clear_dirty()
