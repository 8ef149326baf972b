"""A file or block device of the host that holds an image."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import tempfile

from kvmpy.errors import ImageError
from kvmpy.host.images.lock import lock
from kvmpy.host.images.views import Buffers, Cursor, length_of, zero, zeroes
from kvmpy.iovector import IoVector

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
"""Modes of fallocate(2)."""
MOST_BUFFERS = 1024
"""IOV_MAX of Linux."""
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EPERM)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class HostFile:
    """An open file or block device."""

    def __init__(self, path: str, fd: int, readonly: bool = False) -> None:
        self.path = path
        self.fd = fd
        self.readonly = readonly
        self.is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.size = os.lseek(fd, 0, os.SEEK_END)
        """Bytes at first; formats keep it up to date."""
        self._written = False
        self._can_punch = self._can_zero = True

    def identity(self) -> tuple[int, int]:
        """Device and inode numbers."""
        found = os.fstat(self.fd)
        return found.st_dev, found.st_ino

    def read_some(self, offset: int, buffers: Buffers) -> int:
        """Fills the buffers up to the end of the file; gives the number of bytes."""
        if isinstance(buffers, IoVector):
            return buffers.read_file(self.fd, offset)
        done = os.preadv(self.fd, buffers[:MOST_BUFFERS], offset)
        length = length_of(buffers)
        if done == length:
            return done
        cursor = Cursor(buffers)
        cursor.take(done)
        while done < length:
            # At most as many bytes at a time as their cut is certain to fit into one call.
            rest = cursor.take(min(length - done, 1 << 20))
            wanted = length_of(rest)
            while rest:
                count = os.preadv(self.fd, rest[:MOST_BUFFERS], offset + done)
                if count == 0:
                    return done
                done += count
                wanted -= count
                again = Cursor(rest)
                again.take(count)
                rest = again.take(wanted)
        return done

    def read(self, offset: int, buffers: Buffers) -> None:
        """Fills the buffers; what lies behind the end of the file is zero."""
        done = self.read_some(offset, buffers)
        length = length_of(buffers)
        if done < length:
            cursor = Cursor(buffers)
            cursor.take(done)
            zero(cursor.take(length - done))

    def read_bytes(self, offset: int, length: int) -> bytes:
        """At most `length` bytes; less at the end of the file."""
        data = b""
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, offset: int, buffers: Buffers) -> None:
        """Writes all of the buffers."""
        try:
            self._write(offset, buffers)
        finally:
            self._written = True  # when the data is there: a sync meanwhile may have missed it

    def _write(self, offset: int, buffers: Buffers) -> None:
        length = length_of(buffers)
        if isinstance(buffers, IoVector):
            if buffers.write_file(self.fd, offset) < length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        done = os.pwritev(self.fd, buffers[:MOST_BUFFERS], offset)
        rest = buffers
        while done < length:
            if done == 0 and length_of(rest[:MOST_BUFFERS]):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            cursor = Cursor(rest)
            cursor.take(done)
            length -= done
            offset += done
            rest = cursor.take(length)
            done = os.pwritev(self.fd, rest[:MOST_BUFFERS], offset)

    def write_bytes(self, offset: int, data: bytes) -> None:
        """Likewise, of one object."""
        self.write(offset, [memoryview(data)])

    def sync(self) -> None:
        """Everything written is on stable storage; free when nothing was written since the last time."""
        if self._written:
            self._written = False  # what another thread writes from here on is for the next sync
            try:
                os.fdatasync(self.fd)
            except OSError:
                self._written = True
                raise

    def punch(self, offset: int, length: int) -> bool:
        """Gives the range's blocks back; it reads as zeroes then. False where the host cannot."""
        if self._can_punch:
            self._can_punch = self._allocate(PUNCH_HOLE | KEEP_SIZE, offset, length)
        return self._can_punch

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """The range reads as zeroes, with its blocks given back where `unmap` allows it and the host can."""
        if unmap and self.punch(offset, length):
            return
        if self._can_zero:
            # A file may have to grow: a range behind its end would otherwise stay outside.
            self._can_zero = self._allocate(ZERO_RANGE | (KEEP_SIZE if self.is_block else 0), offset, length)
            if self._can_zero:
                return
        for start in range(0, length, 1 << 24):
            self.write(offset + start, zeroes(min(length - start, 1 << 24)))

    def _allocate(self, mode: int, offset: int, length: int) -> bool:
        while _libc.fallocate(self.fd, mode, offset, length) < 0:
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number in _UNSUPPORTED:
                return False
            raise OSError(number, os.strerror(number))
        self._written = True
        return True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_file(path: str, *, readonly: bool = False) -> HostFile:
    """Opens and locks an image; one that may not be written is read-only. ImageError names the file and what is wrong."""
    fd = -1
    try:
        fd, readonly = _open(path, readonly)
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path}: is a directory, not a disk image")
        if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            raise ImageError(f"{path}: not a file that can be a disk")
        if not lock(fd, not readonly):
            raise ImageError(f"{path}: the image is in use{': something writes it' if readonly else ''} (its lock is held)")
        return HostFile(path, fd, readonly)
    except (OSError, ValueError) as error:
        _close(fd)
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except ImageError:
        _close(fd)
        raise


def temporary_file(path: str) -> HostFile:
    """An empty file without a name, in the directory that TMPDIR names. ImageError, in the name of `path`, when it cannot be made."""
    try:
        with tempfile.TemporaryFile(prefix="kvmpy-") as file:
            return HostFile(path, os.dup(file.fileno()))
    except OSError as error:
        raise ImageError(f"{path}: no temporary file can be made: {error.strerror}") from None


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _open(path: str, readonly: bool) -> tuple[int, bool]:
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    if not readonly:
        try:
            return os.open(path, os.O_RDWR | flags), False
        except OSError as error:
            if error.errno == errno.EISDIR:
                raise ImageError(f"{path}: is a directory, not a disk image") from None
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    return os.open(path, os.O_RDONLY | flags), True
