"""What a disk device wants of the image behind it. Images live in `kvmpy.host`; a device gets one as a constructor argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class BlockEnd(Protocol):
    """A disk image. Offsets and lengths are bytes, multiples of 512; all calls raise OSError where the host fails
    (ENOSPC, EIO, EROFS for a write to a read-only image): the device turns that into its own error status."""

    size: int
    """Bytes, a multiple of 512."""
    readonly: bool
    serial: str
    """At most 20 characters."""

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fills the buffers, which lie in guest memory, in order."""

    def write_from(self, offset: int, buffers: Sequence[memoryview]) -> None: ...
    def flush(self) -> None:
        """Everything written before is on stable storage when this returns."""

    def discard(self, offset: int, length: int) -> None:
        """The range's content is of no more use; it may read as zeroes or as before."""

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool) -> None: ...
    def close(self) -> None: ...
