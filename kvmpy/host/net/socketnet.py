"""`socket`: two VMs over a UNIX stream socket. Every frame goes behind its length, 4 bytes big-endian, as with QEMU's `-netdev stream`.

Whoever comes first listens, the second connects. When one goes the other waits for a new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import threading
from collections.abc import Iterator

from kvmpy.errors import ConfigError, HostError
from kvmpy.frames import MAX_FRAME, Offload
from kvmpy.host.net.end import ETHERNET_HEADER, End, Pieces, Poller

LENGTH = struct.Struct(">I")
UNSENT = 1 << 20
"""Bytes kept for a peer that is slow; frames beyond are dropped whole."""
CHUNK = 1 << 18
RETRY = 500  # ms between attempts to find the other one again
PATH_SIZE = 108  # sun_path
PIECES = 1000


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """Of two that start at once, one looks for the other after it has begun to listen."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


class SocketNet(End):
    """`listening` says which side this is. HostError where the path can be neither connected to nor listened on."""

    kind = "socket"

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = os.path.abspath(path)
        if len(os.fsencode(self.path)) >= PATH_SIZE:
            raise ConfigError(f"--net socket: path={path} is longer than {PATH_SIZE - 1} bytes")
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._connected = threading.Event()
        self._out = bytearray()
        self._in = bytearray()
        self._paused = False
        self._io = threading.Lock()
        try:
            self._open()
        except OSError as error:
            raise HostError(f"--net socket: {self.path}", error.errno or 0) from error
        self.listening = self._listener is not None
        self._poller = Poller("socket network", self._prepare, self._serve, self.fail)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the other side is there."""
        return self._connected.wait(timeout)

    def _open(self) -> None:
        with _alone(self.path):
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                peer.connect(self.path)
            except OSError as error:
                peer.close()
                if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                    raise
                self._listen(stale=error.errno == errno.ECONNREFUSED)
                return
            peer.setblocking(False)
            self._adopt(peer)

    def _listen(self, stale: bool) -> None:
        if stale:
            if not stat.S_ISSOCK(os.stat(self.path).st_mode):
                raise FileExistsError(errno.EEXIST, "no socket")
            os.unlink(self.path)  # nobody listens there any more
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(self.path)
            listener.listen(1)
        except BaseException:
            listener.close()
            raise
        listener.setblocking(False)
        self._listener = listener

    def _adopt(self, peer: socket.socket) -> None:
        self._out.clear()
        self._in.clear()
        self._peer = peer
        self._connected.set()

    def _start(self) -> None:
        self._poller.start()

    def _send(self, frame: Pieces, size: int, offload: Offload | None) -> bool:
        with self._io:
            if self._peer is None or len(self._out) + size > UNSENT:
                return False
            head = LENGTH.pack(size)
            done = 0
            if not self._out:
                try:
                    done = self._peer.sendmsg([head, *frame] if len(frame) < PIECES else [head, b"".join(frame)])
                except BlockingIOError:
                    pass
                except OSError:
                    return False  # the thread sees the end of the stream and acts on it
            if done < size + LENGTH.size:
                self._out += b"".join((head, *frame))[done:]
                self._poller.wake()
            return True

    # The thread.

    def _prepare(self) -> tuple[list[tuple[int, int]], int | None]:
        with self._io:
            wanted = [] if self._listener is None else [(self._listener.fileno(), select.POLLIN)]
            if self._peer is not None:
                events = (0 if self._paused else select.POLLIN) | (select.POLLOUT if self._out else 0)
                wanted.append((self._peer.fileno(), events))
            return wanted, RETRY if self._peer is None and self._listener is None else None

    def _serve(self, found: dict[int, int]) -> None:
        if self._peer is None and self._listener is None:
            with self._io, contextlib.suppress(OSError):
                self._open()
            return
        if self._peer is not None and found.get(self._peer.fileno(), 0):
            self._serve_peer(found[self._peer.fileno()])
        if self._listener is not None and found.get(self._listener.fileno(), 0):
            self._accept()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if self._peer is not None:
            peer.close()
            self.trouble(f"{self.path}: a third one was sent away")
            return
        peer.setblocking(False)
        with self._io:
            self._adopt(peer)

    def _serve_peer(self, events: int) -> None:
        assert self._peer is not None
        if events & select.POLLOUT:
            with self._io:
                try:
                    del self._out[: self._peer.send(self._out)]
                except BlockingIOError:
                    pass
                except OSError:
                    events |= select.POLLHUP
        if self._paused:
            if events & (select.POLLHUP | select.POLLERR):
                self._drop()
            return
        if not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            data = self._peer.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._in += data
            self._take()
        else:
            self._drop()

    def _take(self) -> None:
        """Delivers the whole frames of what was read."""
        data, at, room = self._in, 0, True
        while room and len(data) - at >= LENGTH.size:
            (size,) = LENGTH.unpack_from(data, at)
            if not ETHERNET_HEADER <= size <= MAX_FRAME:
                self.trouble(f"{self.path}: a frame of {size} bytes: the other side is sent away")
                self._drop()
                return
            if len(data) - at - LENGTH.size < size:
                break
            at += LENGTH.size + size
            room = self.deliver(bytes(data[at - size : at]))
        del data[:at]
        if not room:
            self._paused = True

    def _drop(self) -> None:
        with self._io:
            if self._peer is not None:
                self._peer.close()
                self._peer = None
            self._connected.clear()
            self._paused = False
            self._in.clear()
            self._out.clear()

    def _resume(self) -> None:
        self._paused = False
        self._poller.wake()

    def _close(self) -> None:
        self._poller.stop()
        self._drop()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self._listener.close()
