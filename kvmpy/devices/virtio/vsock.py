"""virtio-vsock (virtio 1.2 §5.10): byte streams between programs of the guest and of the host."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Any

from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.devices.virtio.queue import Chain
from kvmpy.devices.vsockend import Stream, VsockEnd
from kvmpy.errors import ConfigError

RECEIVE, TRANSMIT, EVENT = 0, 1, 2
QUEUE_SIZE = 128
HOST_CID = 2
FIRST_PORT = 1 << 30
"""Ports that the host end takes for connections it begins."""

# Source and destination CID, source and destination port, length, type, operation, flags, buffer space, bytes taken from it.
HEADER = struct.Struct("<QQIIIHHIII")
STREAM = 1
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = 1, 2, 3, 4, 5, 6, 7
NO_MORE_RECEIVE, NO_MORE_SEND = 1, 2  # flags of SHUTDOWN: what its sender will not do any more
NOTHING_MORE = NO_MORE_RECEIVE | NO_MORE_SEND
TRANSPORT_RESET = 0  # event

BUFFER = 1 << 18
"""Bytes of a guest's output kept for a host program that is slow: the credit that the guest has."""
MOST_INPUT = 1 << 18
"""Bytes of a host program's output kept here before it is held back."""
MOST_CONNECTIONS = 1024
MOST_CONTROL = 4 * MOST_CONNECTIONS
MOST_PACKET = 1 << 16

Key = tuple[int, int]
"""(port of the host, port of the guest)."""


@dataclass(eq=False)
class Connection:
    """One stream and its credit."""

    key: Key
    stream: Stream
    open: bool
    """The guest has accepted, or asked itself."""
    input: bytearray
    to_guest: int = 0
    """Bytes sent to the guest; all counts are modulo 2**32."""
    guest_space: int = 0
    guest_taken: int = 0
    taken: int = 0
    """Bytes of the guest that the host program has taken."""
    told: int = 0
    """What of `taken` the guest has been told."""
    waiting: int = 0
    """Bytes of the guest that the host program has not taken yet."""
    guest_shut: int = 0
    """What the guest does no more, as flags of SHUTDOWN."""
    host_shut: int = 0
    """The same of the host program, and what of it the guest was told."""
    host_shut_told: int = 0

    def credit(self) -> int:
        """Bytes that the guest has room for."""
        return max(0, self.guest_space - ((self.to_guest - self.guest_taken) & 0xFFFFFFFF))


class VirtioVsock(VirtioDevice):
    """`cid` is the guest's address, 3 or more. Connections do not outlive a reset or a restored state: the guest is told."""

    name = "virtio-vsock"
    device_type = 19
    pci_class = 0x078000

    def __init__(self, end: VsockEnd, cid: int = 3) -> None:
        if not 3 <= cid < 0xFFFFFFFF:
            raise ConfigError(f"vsock address {cid}: a guest has 3 to 4294967294")
        super().__init__([QUEUE_SIZE] * 3, struct.pack("<Q", cid))
        self.cid = cid
        self.end = end
        self.connections: dict[Key, Connection] = {}
        self._control: deque[bytes] = deque()
        self._next_port = FIRST_PORT
        self._tell_reset = False

    def connected(self) -> None:
        self.end.listen(self._accept, self.platform.call)

    # The host's side.

    def _accept(self, stream: Stream, port: int) -> None:
        """A host program wants to reach a port of the guest."""
        if not self.running or len(self.connections) >= MOST_CONNECTIONS:
            stream.close()
            return
        while (key := (self._next_port, port)) in self.connections:
            self._next_port = FIRST_PORT + (self._next_port + 1 - FIRST_PORT) % FIRST_PORT
        self._next_port = FIRST_PORT + (self._next_port + 1 - FIRST_PORT) % FIRST_PORT
        connection = self.connections[key] = Connection(key, stream, False, bytearray())
        self._send(connection, REQUEST)
        self._deliver()

    def _attach(self, connection: Connection) -> None:
        connection.open = True
        connection.stream.attach(
            lambda data: self._received(connection, data),
            lambda count: self._taken(connection, count),
            lambda whole: self._ended(connection, whole),
        )

    def _received(self, connection: Connection, data: bytes) -> None:
        if connection.guest_shut & NO_MORE_RECEIVE:
            return
        connection.input += data
        if len(connection.input) >= MOST_INPUT:
            connection.stream.pause(True)
        self._deliver()

    def _taken(self, connection: Connection, count: int) -> None:
        """The host program has taken bytes of the guest. The "OK" before them is not the guest's."""
        count = min(count, connection.waiting)
        connection.waiting -= count
        connection.taken = (connection.taken + count) & 0xFFFFFFFF
        if (connection.taken - connection.told) & 0xFFFFFFFF >= BUFFER // 4:
            self._send(connection, CREDIT_UPDATE)
            self._deliver()

    def _ended(self, connection: Connection, whole: bool) -> None:
        connection.host_shut |= NOTHING_MORE if whole else NO_MORE_SEND
        self._deliver()

    # The guest's side.

    def queue_notify(self, index: int) -> None:
        if index == TRANSMIT:
            self.serve(TRANSMIT, self._packet)
        self._fill()

    def _packet(self, chain: Chain) -> int:
        header = chain.read(HEADER.size)
        if len(header) < HEADER.size:
            self.event("vsock packet without header")
            return 0
        source, target, guest_port, host_port, length, kind, operation, flags, space, taken = HEADER.unpack(header)
        key = host_port, guest_port
        if source != self.cid or target != HOST_CID or kind != STREAM or length > chain.read_size - HEADER.size or length > MOST_PACKET:
            if operation != RST:
                self._reset_peer(key, kind)
            return 0
        connection = self.connections.get(key)
        if connection is None:
            if operation == REQUEST:
                self._request(key, space, taken)
            elif operation != RST:
                self._reset_peer(key)
            return 0
        connection.guest_space, connection.guest_taken = space, taken
        if operation == RESPONSE and not connection.open:
            self._attach(connection)
            connection.stream.send(b"OK %d\n" % host_port)
        elif operation == RW and connection.open and not connection.guest_shut & NO_MORE_SEND:
            self._write(connection, chain.read(length, HEADER.size))
        elif operation == CREDIT_REQUEST and connection.open:
            self._send(connection, CREDIT_UPDATE)
        elif operation == SHUTDOWN and connection.open:
            self._shut(connection, flags & NOTHING_MORE)
        elif operation == RST:
            self._drop(connection)
        elif operation != CREDIT_UPDATE:
            self._drop(connection)
            self._reset_peer(key)
        return 0

    def _request(self, key: Key, space: int, taken: int) -> None:
        """A program of the guest wants to reach a port of the host."""
        try:
            if len(self.connections) >= MOST_CONNECTIONS:
                raise OSError("too many connections")
            stream = self.end.connect(key[0])
        except OSError:
            self._reset_peer(key)
            return
        connection = self.connections[key] = Connection(key, stream, True, bytearray(), guest_space=space, guest_taken=taken)
        self._send(connection, RESPONSE)
        self._attach(connection)

    def _write(self, connection: Connection, data: bytes) -> None:
        if connection.waiting + len(data) > BUFFER:
            self.event("vsock packet beyond the credit", bytes=len(data))
            self._drop(connection)
            self._reset_peer(connection.key)
        elif data:
            connection.waiting += len(data)
            connection.stream.send(data)

    def _shut(self, connection: Connection, flags: int) -> None:
        """The guest closes its half, or what is left of the connection."""
        before, connection.guest_shut = connection.guest_shut, connection.guest_shut | flags
        if connection.guest_shut == NOTHING_MORE:
            self._drop(connection)
            self._reset_peer(connection.key)
            return
        if connection.guest_shut & ~before & NO_MORE_SEND:
            connection.stream.shut()
        if connection.guest_shut & NO_MORE_RECEIVE:
            connection.input.clear()
            connection.stream.pause(False)

    def _drop(self, connection: Connection) -> None:
        if self.connections.pop(connection.key, None) is not None:
            connection.stream.close()

    # Packets to the guest.

    def _header(self, key: Key, operation: int, length: int = 0, flags: int = 0, taken: int = 0, kind: int = STREAM) -> bytes:
        return HEADER.pack(HOST_CID, self.cid, *key, length, kind, operation, flags, BUFFER, taken)

    def _reset_peer(self, key: Key, kind: int = STREAM) -> None:
        self._queue_control(self._header(key, RST, kind=kind))

    def _send(self, connection: Connection, operation: int, flags: int = 0) -> None:
        connection.told = connection.taken
        self._queue_control(self._header(connection.key, operation, flags=flags, taken=connection.taken))

    def _queue_control(self, packet: bytes) -> None:
        if len(self._control) < MOST_CONTROL:
            self._control.append(packet)
        else:
            self.event("vsock answer dropped")

    def _deliver(self) -> None:
        if self.running:
            self.guard(self._fill)

    def _fill(self) -> None:
        """Gives the guest what waits for it, as far as it has buffers and room."""
        if self._tell_reset and self.queues[EVENT].ready and (chain := self.queues[EVENT].pop()) is not None:
            self.queues[EVENT].push(chain, chain.write(struct.pack("<I", TRANSPORT_RESET)))
            self._tell_reset = False
            self.interrupt(EVENT)
        queue = self.queues[RECEIVE]
        if not queue.ready:
            return
        while self._control and (chain := queue.pop()) is not None:
            queue.push(chain, chain.write(self._control.popleft()))
        if not self._control:
            for connection in list(self.connections.values()):
                self._fill_from(connection)
        self.interrupt(RECEIVE)

    def _fill_from(self, connection: Connection) -> None:
        queue = self.queues[RECEIVE]
        while connection.open and connection.input and (room := connection.credit()):
            chain = queue.pop()
            if chain is None:
                return
            count = min(len(connection.input), room, max(chain.write_size - HEADER.size, 0), MOST_PACKET)
            data = bytes(connection.input[:count])
            del connection.input[:count]
            header = self._header(connection.key, RW, count, taken=connection.taken)
            queue.push(chain, chain.write(header + data))
            connection.told = connection.taken
            connection.to_guest = (connection.to_guest + count) & 0xFFFFFFFF
            if len(connection.input) < MOST_INPUT:
                connection.stream.pause(False)
        if connection.host_shut != connection.host_shut_told and not connection.input and (chain := queue.pop()) is not None:
            # When it is told that there is nothing more, it answers with RST.
            queue.push(chain, chain.write(self._header(connection.key, SHUTDOWN, flags=connection.host_shut, taken=connection.taken)))
            connection.told, connection.host_shut_told = connection.taken, connection.host_shut

    # Reset and state.

    def stopped(self) -> None:
        for connection in list(self.connections.values()):
            self._drop(connection)
        self._control.clear()
        self._tell_reset = False

    def state(self) -> dict[str, Any]:
        return {**super().state(), "control": list(self._control), "tell_reset": self._tell_reset or bool(self.connections)}

    def restore(self, state: dict[str, Any]) -> None:
        self.stopped()
        super().restore(state)
        self._control.extend(state["control"])
        self._tell_reset = state["tell_reset"]
        self._deliver()

    def close(self) -> None:
        self.stopped()
        self.end.close()
