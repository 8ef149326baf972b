"""The stub as a server: waits for a debugger, runs the machine for it, watches for Ctrl-C meanwhile."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kvmpy.debug.control import Control, Stop
from kvmpy.debug.gdb.fields import ARCHITECTURES
from kvmpy.debug.gdb.packets import Connection, Gone
from kvmpy.debug.gdb.session import STOPPED_BY_DEBUGGER, Resume, Session
from kvmpy.errors import ConfigError, HostError, MissingCapability
from kvmpy.threads import HelperThread
from kvmpy.verdicts import Stopped, Verdict

if TYPE_CHECKING:
    from kvmpy.machine import Machine

_TICK = 0.1
_AGAIN = 0.01


def _open(where: str) -> tuple[socket.socket, str]:
    """A listening socket for ":PORT", "HOST:PORT" or "unix:PATH", and its address as `target remote` takes it."""
    if where.startswith("unix:"):
        path = where[5:]
        if not path:
            raise ConfigError(f"gdb {where!r}: a path is wanted after unix:")
        _make_room(where, path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
        except OSError as error:
            listener.close()
            raise HostError(f"gdb {where}", error.errno or 0) from None
        listener.listen(1)
        return listener, path
    host, _, port_text = where.rpartition(":")
    if not port_text.isdigit() or int(port_text) > 65535:
        raise ConfigError(f"gdb {where!r}: one of :PORT, HOST:PORT, unix:PATH is wanted")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, int(port_text), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigError(f"gdb {where!r}: {error.strerror}") from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise MissingCapability(f"gdb {where}: the port is taken; another number, or :0 for any that is free") from None
        raise HostError(f"gdb {where}", error.errno or 0) from None
    listener.listen(1)
    name = listener.getsockname()
    return listener, f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def _make_room(where: str, path: str) -> None:
    """Takes away the socket that a server which has gone left behind, and nothing else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise MissingCapability(f"gdb {where}: there is something else than a socket; another path is wanted")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise MissingCapability(f"gdb {where}: somebody listens there; another path is wanted")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"gdb {where}", error.errno or 0) from None


class GdbServer:
    """The debugger's end of a machine. While it is open, `machine.run` is driven by the debugger that is connected.

    `address` is what `target remote` takes. With `wait` a run begins once a debugger has come; without, the guest runs until one does.
    """

    def __init__(self, machine: Machine, where: str, *, wait: bool = True, arch: str = "auto", python: bool = False) -> None:
        if arch not in ("auto", *ARCHITECTURES):
            raise ConfigError(f"architecture {arch!r} for GDB: one of auto, {', '.join(ARCHITECTURES)} is wanted")
        self.machine = machine
        self.wait = wait
        self.arch = arch
        self.python = python
        self._listener, self.address = _open(where)
        self._path = self.address if where.startswith("unix:") else None
        self._connection: Connection | None = None
        self._end: float | None = None
        self._until: Any = None

    def __enter__(self) -> GdbServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """No debugger any more, neither now nor later. Calling it twice is harmless."""
        self._drop()
        self._listener.close()
        if self._path is not None:
            try:
                os.unlink(self._path)
            except OSError:
                pass
            self._path = None
        if getattr(self.machine, "debugger", None) is self:
            self.machine.debugger = None

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _left(self) -> float | None:
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    # The run.

    def run(self, timeout: float | None, until: Any) -> Verdict:
        """As Machine.run, under the debugger's command."""
        self._end = None if timeout is None else time.monotonic() + timeout
        self._until = until
        wait = self.wait
        while True:
            if wait and self._connection is None and not self._accept():
                return Stopped("timeout")
            if self._connection is None:
                verdict = self._run_free()
                if verdict != STOPPED_BY_DEBUGGER:
                    return verdict
                continue
            wait = False  # after a detach the guest runs on alone
            ended = self._serve(self._connection)
            if ended is not None:
                return ended

    def _accept(self) -> bool:
        """Waits for a debugger. False: time is up."""
        while True:
            left = self._left()
            if left == 0:
                return False
            ready, _, _ = select.select([self._listener], [], [], _TICK if left is None else min(left, _TICK))
            if ready and self._take():
                return True

    def _take(self) -> bool:
        try:
            channel, _ = self._listener.accept()
        except OSError:
            return False
        self._connection = Connection(channel)
        return True

    def _run_free(self) -> Verdict:
        """Runs without a debugger until one comes, or to the end."""
        with _Watch(self.machine, self._listener, self._take):
            return self.machine.run(self._left(), self._until)

    def _serve(self, connection: Connection) -> Verdict | None:
        """A debugger's session; None: it has gone, and the guest runs on."""
        control = Control(self.machine)
        session = None
        try:
            session = Session(control, connection, self.arch, python=self.python)
            return self._talk(connection, session)
        except Gone:
            verdict: Verdict | None = session.ended if session is not None else None
            return verdict
        finally:
            control.release()
            self._drop()

    def _talk(self, connection: Connection, session: Session) -> Verdict | None:
        while True:
            content = self._next(connection)
            if content is None:
                connection.send(b"X0e")
                return Stopped("timeout")
            outcome = session.handle(content)
            if outcome.reply is not None:
                connection.send(outcome.reply)
            if content == b"QStartNoAckMode":
                connection.acknowledge = False
            if outcome.resume is not None:
                connection.send(session.stop_reply(self._resume(connection, session, outcome.resume)))
            ended: Verdict | None = session.ended
            if outcome.end == "kill":
                return ended or Stopped("quit")
            if outcome.end == "detach" or (ended is not None and not session.extended):
                return ended

    def _next(self, connection: Connection) -> bytes | None:
        """The next packet; None when time is up. Raises Gone."""
        while True:
            content = connection.packet()
            if content is not None:
                return content
            left = self._left()
            if left == 0:
                return None
            ready, _, _ = select.select([connection], [], [], _TICK if left is None else min(left, _TICK))
            if ready:
                connection.receive()

    def _resume(self, connection: Connection, session: Session, resume: Resume) -> Stop:
        """Runs for the debugger. Raises Gone when it closes the connection meanwhile."""
        control = session.control
        session.forget()
        watch = _Watch(self.machine, connection, lambda: self._listen(connection), fired=connection.interrupted())
        with watch:
            if resume.inside is None:
                stop = control.run(resume.steps, resume.only, timeout=self._left(), until=self._until)
            else:
                vcpu = next(iter(resume.steps))
                low, high = resume.inside
                registers = session.registers[vcpu]

                def inside() -> bool:
                    registers.forget()
                    return low <= registers.linear_pc() < high

                stop = control.run_while(vcpu, inside, only=resume.only, timeout=self._left(), stopped=lambda: watch.fired)
        if watch.gone:
            raise Gone
        return stop

    @staticmethod
    def _listen(connection: Connection) -> bool:
        connection.receive()
        return connection.interrupted()


class _Watch:
    """A thread that waits on a socket while the machine runs, and stops the machine when `come` says so or the peer has gone."""

    def __init__(self, machine: Machine, what: Any, come: Any, *, fired: bool = False) -> None:
        self.fired, self.gone = fired, False
        self._machine = machine
        self._what = what
        self._come = come
        self._over = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = HelperThread(self._wait, "kvmpy-gdb")

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        os.write(self._wake_write, b"x")
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _wait(self) -> None:
        while not self.fired:
            ready, _, _ = select.select([self._what, self._wake_read], [], [])
            if self._wake_read in ready:
                return
            try:
                self.fired = self._come()
            except Gone:
                self.fired = self.gone = True
        # A stop that comes before the run has begun is forgotten by it: again until the run has ended.
        while not self._over.is_set():
            self._machine.stop(STOPPED_BY_DEBUGGER)
            self._over.wait(_AGAIN)
