"""The binary statistics of a VM or vCPU (KVM API 4.133, KVM_GET_STATS_FD)."""

from __future__ import annotations

import errno
import os
import struct

from kvmpy.errors import HostError
from kvmpy.kvm.files import KvmFile
from kvmpy.native import ffi

_HEADER = ffi.sizeof("struct kvm_stats_header")
_DESCRIPTOR = ffi.sizeof("struct kvm_stats_desc")


class Statistics:
    """Names and places are read once, values at every `read`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        header = ffi.from_buffer("struct kvm_stats_header *", os.pread(fd, _HEADER, 0))
        self._data_offset = int(header.data_offset)
        stride = _DESCRIPTOR + header.name_size
        table = os.pread(fd, stride * header.num_desc, header.desc_offset)
        self._places: list[tuple[str, int]] = []
        self._size = 0
        for at in range(0, len(table) - stride + 1, stride):
            entry = ffi.from_buffer("struct kvm_stats_desc *", table[at : at + stride])
            name = table[at + _DESCRIPTOR : at + stride].split(b"\0", 1)[0].decode()
            for i in range(entry.size):
                self._places.append((name if entry.size == 1 else f"{name}[{i}]", entry.offset + 8 * i))
            self._size = max(self._size, entry.offset + 8 * entry.size)

    def read(self) -> dict[str, int]:
        """Every counter by name; those that are histograms as name[bucket]."""
        data = os.pread(self._fd, self._size, self._data_offset)
        return {name: struct.unpack_from("<Q", data, at)[0] for name, at in self._places if at + 8 <= len(data)}

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class StatisticsFile:
    """The statistics of one VM or vCPU, opened when they are first asked for."""

    def __init__(self) -> None:
        self._open: Statistics | None = None

    def read(self, owner: KvmFile) -> dict[str, int]:
        """Counters by name; empty where the kernel has none (before Linux 5.14)."""
        if self._open is None:
            try:
                self._open = Statistics(owner.ioctl("KVM_GET_STATS_FD"))
            except HostError as error:
                if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
                    return {}
                raise
        return self._open.read()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
