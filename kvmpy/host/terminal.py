"""The process's own terminal as a character end: stdin and stdout.

On a terminal, input is raw: every key goes to the guest except after Ctrl-A (x: quit, h: help, Ctrl-A: one Ctrl-A).
Without one (a pipe, a file, nothing at all) bytes pass as they are until the end of input.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import termios
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from kvmpy.host.chars import CharEnd, Receive
from kvmpy.host.output import Output
from kvmpy.host.pump import Pump

ESCAPE = 0x01  # Ctrl-A
HELP = "\r\nCtrl-A x  quit\r\nCtrl-A h  this help\r\nCtrl-A Ctrl-A  send Ctrl-A\r\n"


class RawMode:
    """A terminal in raw mode until `restore`, which also happens at interpreter exit, on SIGTERM and on SIGHUP; SIGCONT sets it anew.

    Output processing is left as it was, so that a bare newline of a small guest still begins a line.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._saved: list[Any] | None = termios.tcgetattr(fd)
        mode = termios.tcgetattr(fd)
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        self._mode = mode
        termios.tcsetattr(fd, termios.TCSANOW, mode)
        atexit.register(self.restore)
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGTERM, self._ended), (signal.SIGHUP, self._ended), (signal.SIGCONT, self._continued)):
                if signal.getsignal(number) is signal.SIG_DFL:  # a handler of the program's own is the program's business
                    signal.signal(number, handler)
                    self._handlers[number] = handler

    def _continued(self, number: int, frame: FrameType | None) -> None:
        """The shell has set its own mode meanwhile."""
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(self.fd, termios.TCSANOW, self._mode)

    def _ended(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def restore(self) -> None:
        if self._saved is None:
            return
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(self.fd, termios.TCSANOW, self._saved)
        self._saved = None
        atexit.unregister(self.restore)
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == handler:
                    signal.signal(number, signal.SIG_DFL)


def _interrupt() -> None:
    """Ctrl-C for the main thread, by a signal that also ends a system call."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


class Terminal(CharEnd):
    """stdin and stdout, or the descriptors given.

    `on_quit` is called from the input thread when the user asks to quit; unset, the main thread gets KeyboardInterrupt.
    """

    def __init__(self, input_fd: int = 0, output_fd: int = 1, on_quit: Callable[[], None] | None = None) -> None:
        self.on_quit = on_quit
        self.output = Output(output_fd)
        self._input_fd = input_fd
        self._pump: Pump | None = None
        self._raw: RawMode | None = None
        self._escaped = False
        self._receivers: list[Receive] = []

    def write(self, data: bytes) -> None:
        self.output.write(data)

    def flush(self) -> None:
        self.output.flush()

    def attach(self, receive: Receive) -> None:
        self._receivers.append(receive)
        if self._pump is None and self._usable():
            if os.isatty(self._input_fd):
                self._raw = RawMode(self._input_fd)
            self._pump = Pump(self._input, self._input_fd)

    def _usable(self) -> bool:
        """An open descriptor, and not a terminal that another job owns (reading it or setting its mode would stop the process)."""
        try:
            os.fstat(self._input_fd)
            return not os.isatty(self._input_fd) or os.tcgetpgrp(self._input_fd) == os.getpgrp()
        except OSError:
            return False

    def _input(self, data: bytes) -> None:
        if self._raw is not None:
            data = self._keys(data)
        if data:
            for receive in self._receivers:
                receive(data)

    def _keys(self, data: bytes) -> bytes:
        keys = bytearray()
        for key in data:
            if not self._escaped:
                if key == ESCAPE:
                    self._escaped = True
                else:
                    keys.append(key)
                continue
            self._escaped = False
            if key == ESCAPE:
                keys.append(key)
            elif key in b"xX":
                (self.on_quit or _interrupt)()
            elif key in b"hH?":
                self.output.write(HELP.encode())
        return bytes(keys)

    def close(self) -> None:
        try:
            if self._pump is not None:
                self._pump.close()
            self.output.close()
        finally:
            if self._raw is not None:
                self._raw.restore()
