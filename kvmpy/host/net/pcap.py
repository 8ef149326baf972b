"""Packet captures in the classic pcap format, with nanosecond timestamps (draft-ietf-opsawg-pcap)."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence

from kvmpy.errors import HostError

MAGIC_NANOSECONDS = 0xA1B23C4D
LINKTYPE_ETHERNET = 1
SNAP = 262144
"""Bytes kept of a frame: more than any frame has, and what Wireshark takes at most."""

SECOND = 1_000_000_000
PIECES = 1000  # writev takes 1024


class Pcap:
    """A capture file, made or emptied. Every frame is on its way to the file when `record` returns, so that
    another program may read along. A host that takes no more (full disk) ends the capture: `on_trouble` is told once."""

    def __init__(self, path: str, on_trouble: Callable[[str], None] | None = None) -> None:
        self.path = path
        self.frames = 0
        self._on_trouble = on_trouble
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise HostError(f"open {path}", error.errno or 0) from error
        self._write([struct.pack("=IHHiIII", MAGIC_NANOSECONDS, 2, 4, 0, 0, SNAP, LINKTYPE_ETHERNET)])

    def record(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Appends a frame, given in pieces, under the present time."""
        if self._fd < 0:
            return
        size = sum(map(len, pieces))
        seconds, ns = divmod(time.time_ns(), SECOND)
        head = struct.pack("=IIII", seconds & 0xFFFFFFFF, ns, size, size)
        self._write([head, *pieces] if len(pieces) < PIECES else [head, b"".join(pieces)])
        self.frames += 1

    def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        try:
            size = sum(map(len, pieces))
            done = os.writev(self._fd, pieces)
            if done < size:
                rest = memoryview(b"".join(pieces))[done:]
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self.close()
            if self._on_trouble is not None:
                self._on_trouble(f"{self.path}: {os.strerror(error.errno or 0)}: the capture ends here")

    def close(self) -> None:
        """Ends the capture; harmless when it has ended."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
