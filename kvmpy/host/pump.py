"""A thread that reads a descriptor, and writes to it what did not go at once; it can be stopped at any time."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

from kvmpy.host.chars import Receive
from kvmpy.threads import start_thread

if TYPE_CHECKING:
    from socket import socket

CHUNK = 4096
BACKLOG = 1 << 20
"""Bytes of output kept for a reader that is slow or has not come yet; what is beyond is lost and counted."""


class Pump:
    """Serves one descriptor, or one client after the other of a listening socket.

    `receive` gets what was read. At the end of input a plain descriptor is left alone, a client makes room for the next.
    """

    def __init__(self, receive: Receive, fd: int | None = None, listener: socket | None = None) -> None:
        self.lost = 0
        self._receive = receive
        self._fd = fd
        self._listener = listener
        self._client: socket | None = None
        self._out = bytearray()
        self._lock = threading.Lock()
        self._stopped = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = start_thread(self._run, "host input")

    def send(self, data: bytes) -> None:
        """Writes at once what the descriptor takes (it must be non-blocking), keeps the rest."""
        with self._lock:
            if self._stopped:
                return
            if not self._out and self._fd is not None:
                data = data[self._try_write(data) :]
                if not data:
                    return
            room = BACKLOG - len(self._out)
            self.lost += max(0, len(data) - room)
            self._out += data[:room]
            self._wake()

    def _try_write(self, data: bytes | bytearray) -> int:
        """Bytes that went out; those for a reader that is gone count as gone out."""
        assert self._fd is not None
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def _wake(self) -> None:
        """The lock is held."""
        with contextlib.suppress(OSError):  # full: the thread will wake anyway
            os.write(self._wake_write, b"\0")

    def _run(self) -> None:
        try:
            self._loop()
        finally:
            with self._lock:
                self._stopped = True
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_write = -1
                self._drop_client()

    def _loop(self) -> None:
        while not self._stopped:
            waiting = select.poll()  # poll takes regular files, epoll does not
            waiting.register(self._wake_read, select.POLLIN)
            if self._fd is not None:
                waiting.register(self._fd, select.POLLIN | (select.POLLOUT if self._out else 0))
            elif self._listener is not None:
                waiting.register(self._listener, select.POLLIN)
            for fd, events in waiting.poll():
                if fd == self._wake_read:
                    with contextlib.suppress(OSError):
                        os.read(self._wake_read, CHUNK)
                elif fd == self._fd:
                    self._serve(events)
                else:
                    self._accept()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            self._client, self._fd = client, client.fileno()

    def _serve(self, events: int) -> None:
        if events & ~select.POLLIN:  # an error shows in the attempt
            with self._lock:
                if self._stopped:
                    return
                del self._out[: self._try_write(self._out)]
        if events & ~select.POLLOUT and self._fd is not None:
            try:
                data = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if self._stopped:
                return
            if data:
                self._receive(data)
            else:
                with self._lock:
                    self._drop_client()

    def _drop_client(self) -> None:
        """The end of input. The lock is held."""
        self._fd = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        """Stops the thread (safe from within `receive`) and closes a client; a descriptor that was given stays open."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)
