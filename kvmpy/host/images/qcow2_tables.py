"""Tables of a qcow2 image in memory: big-endian numbers of one cluster each, written back by their changed part."""

from __future__ import annotations

import errno
from array import array
from collections import OrderedDict

from kvmpy.host.images.hostfile import HostFile


def load(file: HostFile, offset: int, count: int, code: str = "Q") -> array[int]:
    """`count` numbers of the file; what lies behind its end is zero."""
    numbers = array(code)
    size = count * numbers.itemsize
    data = file.read_bytes(offset, size)
    numbers.frombytes(data + bytes(size - len(data)))
    numbers.byteswap()
    return numbers


def packed(numbers: array[int]) -> bytes:
    """The numbers as they stand in the file."""
    swapped = numbers[:]
    swapped.byteswap()
    return swapped.tobytes()


class Table:
    """The numbers of one cluster; `low` to `high` have changed since they were read or written."""

    __slots__ = ("high", "low", "numbers", "offset")

    def __init__(self, offset: int, numbers: array[int]) -> None:
        self.offset = offset
        self.numbers = numbers
        self.low = len(numbers)
        self.high = 0

    def touched(self, low: int, high: int) -> None:
        """Numbers from `low` to `high`, exclusive, have changed."""
        self.low = min(self.low, low)
        self.high = max(self.high, high)


class TableCache:
    """Tables by their offset in the file, those used last. Changed ones stay until they are written back."""

    def __init__(self, file: HostFile, cluster: int, most: int, code: str = "Q") -> None:
        self._file = file
        self._count = cluster // array(code).itemsize
        self._code = code
        self._most = most
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self.changed: dict[int, Table] = {}

    @property
    def crowded(self) -> bool:
        """Changed tables take so much room that they should be written back."""
        return len(self.changed) > self._most // 2

    def get(self, offset: int) -> Table:
        """The table at `offset`, read when it is not in memory."""
        table = self._tables.get(offset)
        if table is not None:
            self._tables.move_to_end(offset)
            return table
        table = self.changed.get(offset)
        if table is not None:
            return self._keep(table)
        if offset >= self._file.size:
            raise OSError(errno.EIO, "qcow2: a table lies outside the file")
        return self._keep(Table(offset, load(self._file, offset, self._count, self._code)))

    def make(self, offset: int, numbers: array[int] | None = None) -> Table:
        """A new table, wholly changed: zeroes, or a copy of `numbers`."""
        table = Table(offset, numbers[:] if numbers is not None else array(self._code, bytes(self._count * array(self._code).itemsize)))
        self.change(table, 0, self._count)
        return self._keep(table)

    def change(self, table: Table, low: int, high: int) -> None:
        """Numbers from `low` to `high`, exclusive, of the table have changed."""
        table.touched(low, high)
        self.changed[table.offset] = table

    def forget(self, offset: int) -> None:
        """The cluster is a table no more."""
        self._tables.pop(offset, None)
        self.changed.pop(offset, None)

    def write_back(self) -> None:
        """Writes the changed parts, in the order of the file."""
        for offset in sorted(self.changed):
            table = self.changed[offset]
            # Whole sectors: the host reads nothing that it would have to merge on a device with such blocks.
            unit = 512 // table.numbers.itemsize
            low, high = table.low // unit * unit, -(-table.high // unit) * unit
            part = table.numbers[low:high]
            self._file.write_bytes(offset + low * part.itemsize, packed(part))
            self._file.size = max(self._file.size, offset + high * part.itemsize)
            table.low, table.high = len(table.numbers), 0
            del self.changed[offset]

    def _keep(self, table: Table) -> Table:
        self._tables[table.offset] = table
        if len(self._tables) > self._most:
            for offset in list(self._tables):
                if offset not in self.changed and offset != table.offset:
                    del self._tables[offset]
                    if len(self._tables) <= self._most:
                        break
        return table
