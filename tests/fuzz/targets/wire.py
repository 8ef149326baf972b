"""Streams from other programs: a debugger's packets, and the other side of a socket network."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import Any

from kvmpy.debug.control import Control
from kvmpy.debug.gdb.packets import Connection, Gone, checksum
from kvmpy.debug.gdb.session import Session
from kvmpy.host.net.socketnet import LENGTH, SocketNet
from tests.fuzz.ops import Input

CODE = bytes.fromhex("b83412 01c3 50 5b e412 ebf5")
"""mov, add, push, pop, in, jmp: something to step through."""
WORDS = (
    b"g", b"G", b"m", b"M", b"x", b"X", b"Z0,", b"Z1,", b"Z2,", b"z0,", b"vCont;", b"vCont;s:1", b"qXfer:features:read:", b"qSupported",
    b"qRcmd,", b"H", b"T", b"p", b"P", b"s", b"?", b"qSearch:memory:", b"vCont;r7c00,7c09", b"qfThreadInfo", b"QPassSignals:", b"c", b"k",
    b"D", b"R", b"vRun;",
)
_machine: list[Any] = []


def machine() -> Any:
    """One for all inputs: to make one takes longer than to fuzz it."""
    if not _machine:
        from kvmpy import Machine

        made = Machine(memory="1M", backend="soft", clock="virtual")
        folder = tempfile.mkdtemp(prefix="kvmpy-fuzz-")
        path = os.path.join(folder, "code")
        with open(path, "wb") as file:
            file.write(CODE)
        made.load(path, boot="flat16")
        os.unlink(path)
        os.rmdir(folder)
        _machine.append(made)
    return _machine[0]


def gdb(data: bytes) -> None:
    """Packets, some of them framed as they should be; the session answers each, and runs a few steps where it is told to."""
    source = Input(data)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    control = Control(machine())
    try:
        connection = Connection(ours)
        session = Session(control, connection)
        for _ in range(60):
            if not source:
                break
            kind = source.byte()
            if kind & 3 == 0:
                theirs.send(source.bytes(200) or b"+")
            else:
                content = (WORDS[(kind >> 2) % len(WORDS)] if kind & 3 > 1 else b"") + source.bytes(200)
                theirs.send(b"$" + content + b"#%02x" % checksum(content))
            connection.receive()
            while (content_ := connection.packet()) is not None:
                outcome = session.handle(content_)
                if outcome.reply is not None:
                    connection.send(outcome.reply)
                if outcome.resume is not None:
                    session.forget()
                    if outcome.resume.inside is None:
                        connection.send(session.stop_reply(control.run(outcome.resume.steps, outcome.resume.only, timeout=0.01)))
                if outcome.end:
                    return
                _drain(theirs)
            connection.interrupted()
    except Gone:
        pass
    finally:
        control.release()
        ours.close()
        theirs.close()


def _drain(channel: socket.socket) -> None:
    try:
        while channel.recv(1 << 16):
            pass
    except BlockingIOError:
        pass


def socket_net(data: bytes) -> None:
    """The stream of the other side, in pieces of any size: frames come out whole, or the other side is sent away."""
    source = Input(data)
    with tempfile.TemporaryDirectory(prefix="kvmpy-fuzz-") as folder:
        end = SocketNet(os.path.join(folder, "s"))
        frames: list[bytes] = []
        try:
            end.attach(lambda frame, offload: frames.append(bytes(frame)), lambda call: call())
            other = socket.socket(socket.AF_UNIX)
            other.connect(end.path)
            assert end.wait(5)
            wanted = []
            try:
                for _ in range(30):
                    if not source:
                        break
                    kind, content = source.byte(), source.bytes(300)
                    if kind & 3:
                        wanted.append(content)
                        other.sendall(LENGTH.pack(len(content)) + content)
                    else:
                        other.sendall(content)
                    if kind & 4:
                        end.send([b"\0" * (14 + kind)])
            except OSError:
                pass  # sent away
            other.close()
        finally:
            end.close()
        assert all(14 <= len(frame) <= 65536 + 64 for frame in frames)


RUN = {"gdb": gdb, "socket_net": socket_net}
