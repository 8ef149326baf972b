"""vsock streams over UNIX sockets, by Firecracker's convention.

A host program connects to PATH, sends "CONNECT <port>\\n", and reads "OK <port>\\n" once the guest has accepted.
A guest that connects to port P of the host reaches a program that listens on PATH_P.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from kvmpy.errors import HostError
from kvmpy.host.ends import remove_stale
from kvmpy.threads import start_thread

CHUNK = 1 << 16
MOST_GREETING = 32
Post = Callable[[Callable[[], None]], None]


class UnixStream:
    """One connected socket. Its descriptor belongs to the end's thread; the device's calls leave notes for it."""

    def __init__(self, end: UnixVsock, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.out: deque[bytes] = deque()
        self.paused = False
        self.closing = False
        self.attached = False
        self._shut = False
        self._shut_told = False
        self._input_ended = False
        self._hung_up = False
        self._end = end
        self._receive: Callable[[bytes], None] = lambda data: None
        self._sent: Callable[[int], None] = lambda count: None
        self._ended: Callable[[bool], None] = lambda whole: None

    # The device's side.

    def attach(self, receive: Callable[[bytes], None], sent: Callable[[int], None], ended: Callable[[bool], None]) -> None:
        self._receive, self._sent, self._ended = receive, sent, ended
        self.attached = True
        self._end.start_stream(self)

    def send(self, data: bytes) -> None:
        self.out.append(data)
        self._end.wake()

    def pause(self, paused: bool) -> None:
        self.paused = paused
        self._end.wake()

    def shut(self) -> None:
        self._shut = True
        self._end.wake()

    def close(self) -> None:
        self.closing = True
        self._end.start_stream(self)

    # The thread's side.

    @property
    def events(self) -> int | None:
        """What to wait for; None: for nothing, not even that the other side hangs up (it has, and its input is held back)."""
        reading = self.attached and not self.paused and not self.closing and not self._input_ended
        if self._hung_up and not reading and not self.out:
            return None
        return (select.POLLIN if reading else 0) | (select.POLLOUT if self.out else 0)

    def tell(self, what: Callable[[], None]) -> None:
        """Calls the device, unless it has closed the stream by then."""
        self._end.post(lambda: None if self.closing else what())

    def flush(self) -> None:
        """Passes on that there is no more output, once all of it has gone."""
        if self._shut and not self._shut_told and not self.out:
            self._shut_told = True
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def serve(self, events: int) -> bool:
        """Reads and writes what is ready; false when nothing goes either way any more."""
        try:
            if events & select.POLLOUT:
                self._write()
            if events & (select.POLLHUP | select.POLLERR):
                self._hung_up = True
                if self._input_ended or self.closing:
                    return False
            if events & select.POLLIN:
                data = self.socket.recv(CHUNK)
                if data:
                    self.tell(lambda: self._receive(data))
                elif self._hung_up:
                    return False
                else:
                    self._input_ended = True
                    self.tell(lambda: self._ended(False))
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _write(self) -> None:
        while self.out:
            data = self.out[0]
            count = self.socket.send(data)
            if count < len(data):
                self.out[0] = data[count:]
            else:
                self.out.popleft()
            self.tell(lambda count=count: self._sent(count))  # type: ignore[misc]

    def finish(self) -> None:
        """The socket is gone; the device hears of it."""
        self.socket.close()
        self.tell(lambda: self._ended(True))


class UnixVsock:
    """The end of one machine: a listening socket at `path`, and a thread for all streams."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            remove_stale(path)
            self._listener.bind(path)
            self._listener.listen(16)
        except OSError as error:
            self._listener.close()
            raise HostError(f"listen on {path}", error.errno or 0, "the path must be new and at most 107 bytes long") from error
        self._listener.setblocking(False)
        self._streams: dict[UnixStream, None] = {}
        self._new: deque[UnixStream] = deque()
        self._greetings: dict[socket.socket, bytes] = {}
        self._accepted: Callable[[Any, int], None] = lambda stream, port: None
        self.post: Post = lambda call: None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopped = False
        self._thread: Any = None

    def listen(self, accepted: Callable[[Any, int], None], post: Post) -> None:
        self._accepted, self.post = accepted, post
        self._thread = start_thread(self._run, "vsock")

    def connect(self, port: int) -> UnixStream:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.setblocking(False)
            connection.connect(f"{self.path}_{port}")
        except OSError:
            connection.close()
            raise
        return UnixStream(self, connection)

    def start_stream(self, stream: UnixStream) -> None:
        """A stream has something to do for the thread."""
        self._new.append(stream)
        self.wake()

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full, or closed: the thread looks anyway
            os.write(self._wake_write, b"\0")

    # The thread.

    def _run(self) -> None:
        while not self._stopped:
            while self._new:
                self._streams[self._new.popleft()] = None
            for stream in [stream for stream in self._streams if stream.closing and not stream.out]:
                self._drop(stream)
            for stream in self._streams:
                stream.flush()
            poll = select.poll()
            for fd in (self._wake_read, self._listener.fileno(), *(connection.fileno() for connection in self._greetings)):
                poll.register(fd, select.POLLIN)
            by_fd = {stream.socket.fileno(): (stream, stream.events) for stream in self._streams}
            for fd, (_, events) in by_fd.items():
                if events is not None:
                    poll.register(fd, events)
            greeting = {connection.fileno(): connection for connection in self._greetings}
            for fd, found in poll.poll():
                if fd == self._wake_read:
                    with contextlib.suppress(OSError):
                        os.read(self._wake_read, CHUNK)
                elif fd == self._listener.fileno():
                    with contextlib.suppress(OSError):
                        connection, _ = self._listener.accept()
                        connection.setblocking(False)
                        self._greetings[connection] = b""
                elif fd in greeting:
                    self._greet(greeting[fd])
                elif not by_fd[fd][0].serve(found):
                    self._drop(by_fd[fd][0])

    def _drop(self, stream: UnixStream) -> None:
        if self._streams.pop(stream, stream) is None:
            stream.finish()

    def _greet(self, connection: socket.socket) -> None:
        """Reads up to the end of "CONNECT <port>\\n", byte by byte: what follows is the guest's."""
        try:
            byte = connection.recv(1)
        except BlockingIOError:
            return
        except OSError:
            byte = b""
        line = self._greetings[connection] + byte
        self._greetings[connection] = line
        if byte and byte != b"\n" and len(line) < MOST_GREETING:
            return
        del self._greetings[connection]
        word, _, number = line.rstrip(b"\r\n").partition(b" ")
        if byte != b"\n" or word.upper() != b"CONNECT" or not number.isdigit() or int(number) >= 1 << 32:
            connection.close()
            return
        stream = UnixStream(self, connection)
        self.post(lambda: self._accepted(stream, int(number)))

    def close(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self.wake()
        if self._thread is not None:
            self._thread.join(2.0)
        for each in (self._listener, *self._greetings, *(stream.socket for stream in self._streams)):
            each.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        with contextlib.suppress(OSError):
            os.unlink(self.path)
