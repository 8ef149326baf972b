"""Character ends on files, pseudo-terminals and sockets, and their names on the command line."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmpy.errors import ConfigError, HostError
from kvmpy.host.chars import CharEnd, Null, Receive
from kvmpy.host.output import Output
from kvmpy.host.pump import Pump
from kvmpy.host.terminal import Terminal

if TYPE_CHECKING:
    pass


class File(CharEnd):
    """Output into a file, which is made or emptied; no input."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise HostError(f"open {path}", error.errno or 0) from error
        self.output = Output(self._fd)

    def write(self, data: bytes) -> None:
        self.output.write(data)

    def flush(self) -> None:
        self.output.flush()

    def close(self) -> None:
        if self._fd >= 0:
            self.output.close()
            os.close(self._fd)
            self._fd = -1


class _Pumped(CharEnd):
    """An end whose input and output both go through a pump."""

    _pump: Pump

    def __init__(self) -> None:
        self._receivers: list[Receive] = []

    def write(self, data: bytes) -> None:
        self._pump.send(data)

    def attach(self, receive: Receive) -> None:
        self._receivers.append(receive)

    def _input(self, data: bytes) -> None:
        for receive in self._receivers:
            receive(data)

    @property
    def lost(self) -> int:
        """Bytes of output that nobody took in time."""
        return self._pump.lost


class Pty(_Pumped):
    """A new pseudo-terminal in raw mode; `path` is what another program opens.

    Its other side is held open here too, so that a reader may come late, go, and come again.
    """

    def __init__(self) -> None:
        import termios
        import tty

        super().__init__()
        try:
            self._master, self._slave = os.openpty()
        except OSError as error:
            raise HostError("openpty", error.errno or 0) from error
        tty.setraw(self._slave, termios.TCSANOW)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self._pump = Pump(self._input, self._master)

    def close(self) -> None:
        if self._master >= 0:
            self._pump.close()
            os.close(self._master)
            os.close(self._slave)
            self._master = -1


class UnixSocket(_Pumped):
    """Listens on a Unix socket and serves one client at a time; output waits for the first client."""

    def __init__(self, path: str) -> None:
        import socket

        super().__init__()
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            remove_stale(path)
            self._listener.bind(path)
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise HostError(f"listen on {path}", error.errno or 0, "the path must be new and at most 107 bytes long") from error
        self._listener.setblocking(False)
        self._pump = Pump(self._input, listener=self._listener)

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._pump.close()
            self._listener.close()
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def remove_stale(path: str) -> None:
    """Removes a socket that nobody listens on any more; leaves anything else to make bind fail."""
    import socket

    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def open_end(name: str, announce: Callable[[str], None] | None = None) -> CharEnd:
    """The end that `name` describes: stdio, file:PATH, pty, unix:PATH, none.

    `announce` is told in one line where a pty or socket is to be found; without it, stderr is. Raises ConfigError, HostError.
    """
    say = announce or (lambda line: print(line, file=sys.stderr, flush=True))
    kind, _, path = name.partition(":")
    if kind == "stdio" and not path:
        return Terminal()
    if kind in ("none", "null") and not path:
        return Null()
    if kind == "pty" and not path:
        pty = Pty()
        say(f"serial port on {pty.path}")
        return pty
    if kind == "file" and path:
        return File(path)
    if kind == "unix" and path:
        end = UnixSocket(path)
        say(f"serial port on {path}")
        return end
    raise ConfigError(f"character end {name!r}: one of stdio, file:PATH, pty, unix:PATH, none")
