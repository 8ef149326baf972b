"""A guest's network stack, just enough of it: Ethernet, ARP, IPv4, ICMP, UDP, DHCP, TFTP and a TCP that sends and receives in order."""

from __future__ import annotations

import socket
import struct
from typing import Any

from kvmpy.devices.net.checksum import checksum

ETHERNET = struct.Struct("!6s6sH")
ARP, IP4 = 0x0806, 0x0800
ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
BROADCAST = b"\xff" * 6


def ip(text: str) -> bytes:
    return socket.inet_aton(text)


def ip4(source: bytes, target: bytes, protocol: int, payload: bytes, identity: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), identity, 0, 64, protocol, 0, source, target)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def udp(source: bytes, target: bytes, source_port: int, target_port: int, data: bytes) -> bytes:
    head = struct.pack("!HHHH", source_port, target_port, 8 + len(data), 0)
    pseudo = source + target + struct.pack("!HH", UDP, 8 + len(data))
    total = checksum(pseudo + head + data)
    return ip4(source, target, UDP, head[:6] + (total or 0xFFFF).to_bytes(2, "big") + data)


def tcp(source: bytes, target: bytes, ports: tuple[int, int], seq: int, ack: int, flags: int, data: bytes = b"") -> bytes:
    head = struct.pack("!HHIIBBHHH", *ports, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 0xFFFF, 0, 0)
    pseudo = source + target + struct.pack("!HH", TCP, len(head) + len(data))
    total = checksum(pseudo + head + data)
    return ip4(source, target, TCP, head[:16] + total.to_bytes(2, "big") + head[18:] + data)


def parse_ip(frame: bytes, protocol: int) -> tuple[bytes, bytes, bytes] | None:
    """(source, target, payload) of an IPv4 frame whose header adds up."""
    if frame[12:14] != b"\x08\0" or frame[23] != protocol:
        return None
    total = int.from_bytes(frame[16:18], "big")
    assert checksum(frame[14:34]) == 0
    return frame[26:30], frame[30:34], frame[34 : 14 + total]


class Guest:
    """Works on a Bench: sends frames and waits for answers."""

    def __init__(self, bench: Any, mac: bytes = b"\x52\x54\x00\x12\x34\x56") -> None:
        self.bench = bench
        self.mac = mac
        self.address = ip("0.0.0.0")
        self.gateway_mac = BROADCAST

    def send(self, kind: int, payload: bytes, target: bytes | None = None) -> None:
        self.bench.send(ETHERNET.pack(target or self.gateway_mac, self.mac, kind), payload)

    def resolve(self, address: bytes) -> bytes:
        """ARP."""
        self.send(ARP, struct.pack("!HHBBH6s4s6s4s", 1, IP4, 6, 4, 1, self.mac, self.address, bytes(6), address), BROADCAST)
        start = b"\x08\x06" + bytes.fromhex("0001080006040002")
        found = self.bench.expect(lambda frame: frame[12:22] == start and frame[28:32] == address and frame)
        return bytes(found[22:28])

    def arp_reply(self, frame: bytes) -> bool:
        """Answers who asks for us."""
        if frame[12:14] != b"\x08\x06" or frame[20:22] != b"\0\1" or frame[38:42] != self.address:
            return False
        self.send(ARP, struct.pack("!HHBBH6s4s6s4s", 1, IP4, 6, 4, 2, self.mac, self.address, frame[22:28], frame[28:32]), frame[6:12])
        return True

    def dhcp(self) -> dict[int, bytes]:
        """Gets an address; gives the options of the acknowledgement, the boot file under 67 where it stands in the header."""
        offer = self._dhcp(1, b"")
        asked = self._dhcp(3, b"\x32\x04" + offer[0] + b"\x36\x04" + offer[54])
        assert asked[53] == b"\5"
        self.address = asked[0]
        self.gateway_mac = self.resolve(asked.get(3, ip("10.0.2.2")))
        return asked

    def _dhcp(self, kind: int, options: bytes) -> dict[int, bytes]:
        body = struct.pack("!BBBBIHH4s4s4s4s16s64s128s", 1, 1, 6, 0, 0x1234, 0, 0x8000, b"", b"", b"", b"", self.mac, b"", b"")
        body += b"\x63\x82\x53\x63\x35\x01" + bytes([kind]) + options + b"\x37\x04\x01\x03\x06\x43\xff"
        self.send(IP4, udp(ip("0.0.0.0"), ip("255.255.255.255"), 68, 67, body), BROADCAST)

        def answer(frame: bytes) -> dict[int, bytes] | None:
            found = parse_ip(frame, UDP)
            if found is None or found[2][2:4] != b"\0\x44":
                return None
            data = found[2][8:]
            given: dict[int, bytes] = {0: data[16:20]}
            if name := data[108:236].rstrip(b"\0"):
                given[67] = name
            at = 240
            while at < len(data) and data[at] != 255:
                if data[at]:
                    given[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
                    at += 2 + data[at + 1]
                else:
                    at += 1
            return given

        return self.bench.expect(answer)

    def ask(self, target: str, port: int, data: bytes, source_port: int = 4000) -> tuple[bytes, int]:
        """(payload, port) of the UDP answer."""
        self.send(IP4, udp(self.address, ip(target), source_port, port, data))

        def answer(frame: bytes) -> tuple[bytes, int] | None:
            if self.arp_reply(frame):
                return None
            found = parse_ip(frame, UDP)
            if found is None or int.from_bytes(found[2][2:4], "big") != source_port:
                return None
            return found[2][8:], int.from_bytes(found[2][:2], "big")

        return self.bench.expect(answer)

    def tftp(self, name: str) -> bytes:
        """Reads a file from 10.0.2.2 in octet mode."""
        data, port = self.ask("10.0.2.2", 69, b"\0\1" + name.encode() + b"\0octet\0")
        out = b""
        while True:
            assert data[:2] == b"\0\3", data
            out += data[4:]
            if len(data) < 516:
                self.send(IP4, udp(self.address, ip("10.0.2.2"), 4000, port, b"\0\4" + data[2:4]))
                return out
            data, _ = self.ask("10.0.2.2", port, b"\0\4" + data[2:4])

    def connect(self, target: str, port: int, source_port: int = 40000) -> Connection:
        return Connection(self, ip(target), (source_port, port))

    def accept(self, port: int) -> Connection:
        """Waits for a connection to `port`."""

        def syn(frame: bytes) -> tuple[bytes, int, int] | None:
            if self.arp_reply(frame):
                return None
            found = parse_ip(frame, TCP)
            if found is None or found[2][2:4] != port.to_bytes(2, "big") or not found[2][13] & SYN:
                return None
            return found[0], int.from_bytes(found[2][:2], "big"), int.from_bytes(found[2][4:8], "big")

        peer, peer_port, seq = self.bench.expect(syn)
        return Connection(self, peer, (port, peer_port), seq)


class Connection:
    """One TCP connection, without loss and with every segment acknowledged at once."""

    def __init__(self, guest: Guest, peer: bytes, ports: tuple[int, int], accepted: int | None = None) -> None:
        self.guest, self.peer, self.ports = guest, peer, ports
        self.seq, self.ack = 1000, 0
        if accepted is None:
            self._send(SYN)
            self.seq += 1
            segment = self._next()
            assert segment[13] & (SYN | ACK) == SYN | ACK, "connection refused"
            self.ack = int.from_bytes(segment[4:8], "big") + 1
            self._send(ACK)
        else:
            self.ack = accepted + 1
            self._send(SYN | ACK)
            self.seq += 1

    def _send(self, flags: int, data: bytes = b"") -> None:
        self.guest.send(IP4, tcp(self.guest.address, self.peer, self.ports, self.seq, self.ack, flags, data))

    def _next(self) -> bytes:
        def segment(frame: bytes) -> bytes | None:
            if self.guest.arp_reply(frame):
                return None
            found = parse_ip(frame, TCP)
            if found is None or struct.unpack_from("!HH", found[2]) != self.ports[::-1]:
                return None
            pseudo = found[0] + found[1] + struct.pack("!HH", TCP, len(found[2]))
            assert checksum(pseudo + found[2]) == 0, "checksum"
            return found[2]

        return self.guest.bench.expect(segment)

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), 1400):
            piece = data[at : at + 1400]
            self._send(ACK | PSH, piece)
            self.seq += len(piece)

    def receive(self, size: int | None = None) -> bytes:
        """Everything to the end of the stream, or `size` bytes."""
        out = b""
        while size is None or len(out) < size:
            segment = self._next()
            assert not segment[13] & RST, "reset"
            data = segment[(segment[12] >> 4) * 4 :]
            if int.from_bytes(segment[4:8], "big") != self.ack & 0xFFFFFFFF:
                self._send(ACK)
                continue
            out += data
            self.ack += len(data)
            if segment[13] & FIN:
                self.ack += 1
                self._send(ACK | FIN)
                self.seq += 1
                break
            if data:
                self._send(ACK)
        return out
