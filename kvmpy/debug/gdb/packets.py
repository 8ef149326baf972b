"""GDB's remote protocol on the wire: packets, acknowledgements, escapes (GDB manual, appendix E.1)."""

from __future__ import annotations

import socket
from collections import deque

INTERRUPT = 0x03
PACKET_SIZE = 0x4000
"""Largest content of a packet, as told to the debugger."""
_ROOM = 4 * PACKET_SIZE  # a peer that sends no packet's end is not kept in memory for ever


class Gone(Exception):
    """The debugger has closed the connection."""


class BadPacket(ValueError):
    """A packet's content cannot be understood."""


def checksum(content: bytes) -> int:
    """Sum of the bytes as they are sent, modulo 256."""
    return sum(content) & 0xFF


def escape(data: bytes) -> bytes:
    """Binary data with the bytes that frame packets escaped."""
    out = bytearray()
    for byte in data:
        if byte in b"#$}*":
            out += bytes((0x7D, byte ^ 0x20))
        else:
            out.append(byte)
    return bytes(out)


def unescape(data: bytes) -> bytes:
    """The reverse; BadPacket for an escape without its byte."""
    if 0x7D not in data:
        return data
    out = bytearray()
    at = 0
    while at < len(data):
        byte = data[at]
        if byte == 0x7D:
            at += 1
            if at == len(data):
                raise BadPacket("an escape at the packet's end")
            byte = data[at] ^ 0x20
        out.append(byte)
        at += 1
    return bytes(out)


def number(text: bytes, largest: int = (1 << 64) - 1) -> int:
    """Hexadecimal digits and nothing else; BadPacket otherwise, and for values above `largest`."""
    if not text or len(text) > 16 or any(byte not in b"0123456789abcdefABCDEF" for byte in text):
        raise BadPacket(f"not a number: {text[:20]!r}")
    value = int(text, 16)
    if value > largest:
        raise BadPacket(f"number too large: {value:#x}")
    return value


def unhex(text: bytes) -> bytes:
    """Bytes from pairs of digits; BadPacket otherwise."""
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise BadPacket("not hexadecimal") from None


class Connection:
    """One debugger on a socket: packets out of the stream, packets into it."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(True)
        if channel.family != socket.AF_UNIX:
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = channel
        self.acknowledge = True
        self._buffer = bytearray()
        self._packets: deque[bytes | None] = deque()
        """In the order of their coming; None is a Ctrl-C."""
        self._last = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    # In.

    def receive(self) -> None:
        """Takes what has arrived. Gone when the other side has closed."""
        try:
            data = self.socket.recv(65536)
        except OSError:
            raise Gone from None
        if not data:
            raise Gone
        self._buffer += data
        self._split()

    def _split(self) -> None:
        buffer = self._buffer
        while buffer:
            first = buffer[0]
            if first == 0x24:  # $
                end = buffer.find(b"#")
                if end < 0 or len(buffer) < end + 3:
                    if len(buffer) > _ROOM:
                        buffer.clear()
                    return
                content, sent = bytes(buffer[1:end]), bytes(buffer[end + 1 : end + 3])
                del buffer[: end + 3]
                self._take(content, sent)
                continue
            del buffer[0]
            if first == INTERRUPT:
                self._packets.append(None)
            elif first == 0x2D and self._last and self.acknowledge:  # -
                self._send(self._last)

    def _take(self, content: bytes, sent: bytes) -> None:
        if self.acknowledge:
            try:
                good = int(sent, 16) == checksum(content)
            except ValueError:
                good = False
            self._send(b"+" if good else b"-")
            if not good:
                return
        self._packets.append(content)

    def packet(self) -> bytes | None:
        """The next packet's content, escapes still in it; None when there is none yet. A Ctrl-C before it means nothing any more."""
        while self._packets:
            content = self._packets.popleft()
            if content is not None:
                return content
        return None

    def interrupted(self) -> bool:
        """Ctrl-C has come since the last packet that was taken."""
        came = None in self._packets
        if came:
            self._packets = deque(content for content in self._packets if content is not None)
        return came

    # Out.

    def send(self, content: bytes) -> None:
        """Sends a packet; binary data in it is escaped already."""
        self._last = b"$" + content + b"#%02x" % checksum(content)
        self._send(self._last)

    def _send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            raise Gone from None
