"""Locks that keep a second writer away from an image, by the convention of QEMU, so that its tools keep out as well.

Open-file-description locks on single bytes: 100 + n says "I use permission n", 200 + n says "nobody else may use permission n".
Permissions: 0 consistent reads, 1 writes, 3 changes of the file's size.
"""

from __future__ import annotations

import errno
import fcntl
import struct

USED, DENIED = 100, 200
READ, WRITE, RESIZE = 0, 1, 3

_FLOCK = struct.Struct("hhqqi4x")
# File systems without such locks say one of these; the image is used unlocked then, as QEMU does.
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def lock(fd: int, writer: bool) -> bool:
    """Takes the locks of a reader or a writer, which go with the descriptor; False when another process is in the way."""
    used = (READ, WRITE, RESIZE) if writer else (READ,)
    denied = (WRITE, RESIZE)
    try:
        for start, permissions in ((USED, used), (DENIED, denied)):
            for permission in permissions:
                _set(fd, start + permission)
        return not any(_held_by_others(fd, DENIED + n) for n in used) and not any(_held_by_others(fd, USED + n) for n in denied)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise


def _set(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))


def _held_by_others(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
