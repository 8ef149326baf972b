"""File descriptors of KVM: one object per descriptor, ioctls by name, mappings that outlive their file."""

from __future__ import annotations

import os
from typing import Any

from kvmpy.native import CData, check, ffi, lib

PAGE = 4096


class KvmFile:
    """A descriptor of /dev/kvm, a VM or a vCPU."""

    _fd = -1

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor's number; -1 once closed (calls then fail with EBADF)."""
        return self._fd

    def ioctl(self, name: str, argument: int = 0) -> int:
        """A request by its name in <linux/kvm.h> with a number as argument; raises HostError."""
        return check(name, lib.kvm_ioctl(self._fd, getattr(lib, name), argument))

    def ioctl_ptr(self, name: str, argument: CData) -> int:
        """A request whose argument is a pointer to a struct; raises HostError."""
        return check(name, lib.kvm_ioctl_ptr(self._fd, getattr(lib, name), argument))

    def fetch(self, name: str, struct: str) -> CData:
        """A fresh `struct` filled by a KVM_GET_* request."""
        value = ffi.new(f"struct {struct} *")
        self.ioctl_ptr(name, value)
        return value

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 when absent, else 1 or a number with a meaning of the capability's own."""
        return self.ioctl("KVM_CHECK_EXTENSION", capability)

    def close(self) -> None:
        """Closes the descriptor; twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Mapping:
    """Shared memory of a vCPU's file, as a pointer to `ctype`."""

    def __init__(self, call: str, fd: int, offset: int, size: int, ctype: str) -> None:
        error = ffi.new("int *")
        raw = lib.kvm_map(fd, offset, size, error)
        check(call, error[0])
        self.size = size
        unmap = lib.kvm_unmap
        self._attached = attached = [True]

        def end(pointer: Any) -> None:
            attached.clear()  # among garbage in a cycle, the pointer may go before its owner is closed
            unmap(pointer, size)

        self.pointer: Any = ffi.gc(ffi.cast(ctype, raw), end)
        """Unmapped when the last reference to this pointer goes."""

    def detach(self) -> None:
        """Lets the file go; the memory keeps its first page and becomes private, so that old pointers stay valid."""
        if self._attached:
            self._attached.clear()
            check("mmap", lib.kvm_map_detach(self.pointer, self.size))
