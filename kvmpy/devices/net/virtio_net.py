"""virtio-net (virtio 1.2 §5.1): one pair of queues and the control queue.

Frames of the driver go from guest memory to the end without copying. Offloads are offered where the end has them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from kvmpy.devices.net.rxfilter import FLAGS, RxFilter
from kvmpy.devices.netend import NetEnd
from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.devices.virtio.queue import Chain
from kvmpy.frames import GSO_NONE, NEEDS_CSUM, Offload, Takes

RECEIVE, TRANSMIT, CONTROL = 0, 1, 2
QUEUE_SIZES = (256, 256, 64)

# Features (§5.1.3).
CSUM = 1 << 0
GUEST_CSUM = 1 << 1
CTRL_GUEST_OFFLOADS = 1 << 2
MTU = 1 << 3
MAC = 1 << 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO = 1 << 7, 1 << 8, 1 << 9, 1 << 10
HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO = 1 << 11, 1 << 12, 1 << 13, 1 << 14
MRG_RXBUF = 1 << 15
STATUS = 1 << 16
CTRL_VQ, CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA = 1 << 17, 1 << 18, 1 << 19, 1 << 20
GUEST_ANNOUNCE = 1 << 21
CTRL_MAC_ADDR = 1 << 23

GUEST_OFFLOADS = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO
"""What the driver takes unfinished; CTRL_GUEST_OFFLOADS changes it at run time."""
WITH_OFFLOADS = CSUM | GUEST_OFFLOADS | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | CTRL_GUEST_OFFLOADS
ALWAYS = MAC | MRG_RXBUF | STATUS | CTRL_VQ | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | GUEST_ANNOUNCE | CTRL_MAC_ADDR

# Configuration: mac, status, max_virtqueue_pairs, mtu.
CONFIG = struct.Struct("<6sHHH")
STATUS_AT = 6
LINK_UP, ANNOUNCE = 1, 2

HEADER = struct.Struct("<BBHHHHH")
"""struct virtio_net_hdr; num_buffers is always there with VERSION_1."""
FEWEST = 14  # an Ethernet header

# Control queue: class, command (§5.1.6.5).
RX, MAC_CLASS, VLAN, ANNOUNCE_CLASS, OFFLOADS_CLASS = 0, 1, 2, 3, 5
MAC_TABLE_SET, MAC_ADDR_SET = 0, 1
VLAN_ADD, VLAN_DEL = 0, 1
OK, ERR = 0, 1
LONGEST_COMMAND = 1 << 16


class VirtioNet(VirtioDevice):
    """`mtu` is told to the driver where given. The frame that found no buffer waits here, those after it in the end."""

    name = "virtio-net"
    device_type = 1
    pci_class = 0x020000

    def __init__(self, end: NetEnd, mac: bytes, *, mtu: int = 0) -> None:
        super().__init__(QUEUE_SIZES, CONFIG.pack(mac, LINK_UP, 1, mtu))
        self.end = end
        self.features = ALWAYS | (WITH_OFFLOADS if end.offloads else 0) | (MTU if mtu else 0)
        self.filter = RxFilter(mac)
        self._waiting: tuple[bytes, Offload | None] | None = None
        self._takes = 0
        self.dropped = 0
        """Frames that the driver could not have: not running, buffers too small."""

    def connected(self) -> None:
        self.end.attach(self.receive, self.platform.call)

    def close(self) -> None:
        self.end.close()

    def set_link(self, up: bool) -> None:
        """Plugs the cable in or out; under the machine's lock. A cable plugged in asks the driver to announce itself."""
        status = (LINK_UP | ANNOUNCE * self.has(GUEST_ANNOUNCE)) if up else 0
        self.config_changed(STATUS_AT, struct.pack("<H", status))

    @property
    def link(self) -> bool:
        """The cable is plugged in."""
        return bool(self.config[STATUS_AT] & LINK_UP)

    # Driver's life.

    def started(self) -> None:
        self.filter.by_vlan = self.has(CTRL_VLAN)
        self._set_takes(self.driver_features & GUEST_OFFLOADS)
        self.end.set_receiving(True)

    def stopped(self) -> None:
        self.filter.reset()
        self._waiting = None
        self._set_takes(0)
        self.end.set_receiving(True)  # what comes for a driver that is not there is lost, as on a wire

    def _set_takes(self, bits: int) -> None:
        self._takes = bits
        self.end.set_offloads(Takes(
            bool(bits & GUEST_CSUM), bool(bits & GUEST_TSO4), bool(bits & GUEST_TSO6), bool(bits & GUEST_ECN), bool(bits & GUEST_UFO),
        ))  # fmt: skip

    def queue_notify(self, index: int) -> None:
        if index == TRANSMIT:
            self.serve(TRANSMIT, self._transmit)
        elif index == RECEIVE:
            self._take_waiting()
        else:
            self.serve(CONTROL, self._control)

    # From the driver to the end.

    def _transmit(self, chain: Chain) -> int:
        size = chain.read_size - HEADER.size
        if size < FEWEST:
            self.event("frame too short", bytes=chain.read_size)
            return 0
        if not self.link:
            return 0
        flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, _ = HEADER.unpack(chain.read(HEADER.size))
        offload = None
        if self.end.offloads and ((flags & NEEDS_CSUM and self.has(CSUM)) or gso_type != GSO_NONE):
            offload = Offload(flags & NEEDS_CSUM, gso_type, hdr_len, gso_size, csum_start, csum_offset)
        self.end.send(chain.readable.cut(HEADER.size, size), offload)
        return 0

    # From the end to the driver.

    def receive(self, frame: bytes | memoryview, offload: Offload | None) -> None:
        """A frame for the driver, under the machine's lock."""
        if not self.running or not self.queues[RECEIVE].ready or not self.link:
            self.dropped += 1
            return
        if len(frame) < FEWEST or not self.filter.passes(frame):
            return
        if self._waiting is not None:  # the end has not held back
            self.dropped += 1
            return

        def put() -> None:
            if not self._put(frame, offload):
                self._wait_for_room(bytes(frame), offload)

        self.guard(put)

    def _wait_for_room(self, frame: bytes, offload: Offload | None) -> None:
        queue = self.queues[RECEIVE]
        queue.set_notify(True)
        # Buffers may have come between the last look and the request to notify.
        if not self._put(frame, offload):
            self._waiting = frame, offload
            self.end.set_receiving(False)

    def _take_waiting(self) -> None:
        if self._waiting is not None:
            frame, offload = self._waiting
            if not self._put(frame, offload):
                return
            self._waiting = None
            self.end.set_receiving(True)

    def _put(self, frame: bytes | memoryview, offload: Offload | None) -> bool:
        """Writes a frame into as many buffers as it needs; false, and nothing is taken, when there are too few of them."""
        queue = self.queues[RECEIVE]
        size = HEADER.size + len(frame)
        chains: list[Chain] = []
        room = 0
        while room < size:
            chain = queue.pop()
            if chain is None:
                break
            chains.append(chain)
            room += chain.write_size
            if not self.has(MRG_RXBUF):
                break
        if room < size:
            for chain in reversed(chains):
                queue.unpop(chain)
            if chains and (not self.has(MRG_RXBUF) or len(chains) == queue.size):
                self.dropped += 1
                self.event("receive buffers too small", bytes=room)
                return True  # no notification will ever bring enough room
            return False
        if chains[0].write_size < HEADER.size:
            self.fail("receive buffer smaller than the header")
            return True
        flags = gso_type = hdr_len = gso_size = csum_start = csum_offset = 0
        if offload is not None:
            flags, gso_type, hdr_len = offload.flags, offload.gso_type, offload.hdr_len
            gso_size, csum_start, csum_offset = offload.gso_size, offload.csum_start, offload.csum_offset
        data = HEADER.pack(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, len(chains)) + frame
        pushes: list[tuple[Chain, int]] = []
        at = 0
        for chain in chains:
            written = chain.write(data[at : at + chain.write_size] if len(chains) > 1 else data)
            pushes.append((chain, written))
            at += written
        queue.push_all(pushes)
        queue.set_notify(False)
        self.interrupt(RECEIVE)
        return True

    # The control queue.

    def _control(self, chain: Chain) -> int:
        if chain.read_size < 2 or not chain.write_size:
            self.event("control command without room for its status")
            return 0
        command = chain.read(LONGEST_COMMAND)
        status = OK if chain.read_size <= LONGEST_COMMAND and self._command(command[0], command[1], command[2:]) else ERR
        return chain.write(bytes([status]))

    def _command(self, kind: int, what: int, data: bytes) -> bool:
        """Carries a command out; false for one that is unknown, malformed or was not negotiated."""
        handlers: dict[int, tuple[int, Callable[[int, bytes], bool]]] = {
            RX: (CTRL_RX, self._set_mode), MAC_CLASS: (CTRL_VQ, self._set_addresses), VLAN: (CTRL_VLAN, self._set_vlan),
            ANNOUNCE_CLASS: (GUEST_ANNOUNCE, self._announced), OFFLOADS_CLASS: (CTRL_GUEST_OFFLOADS, self._set_guest_offloads),
        }
        if kind not in handlers:
            return False
        feature, handle = handlers[kind]
        return self.has(feature) and handle(what, data)

    def _set_mode(self, what: int, data: bytes) -> bool:
        if what >= len(FLAGS) or len(data) != 1 or (what > 1 and not self.has(CTRL_RX_EXTRA)):
            return False
        setattr(self.filter, FLAGS[what], bool(data[0]))
        return True

    def _set_addresses(self, what: int, data: bytes) -> bool:
        if what == MAC_ADDR_SET:
            if len(data) != 6 or not self.has(CTRL_MAC_ADDR):
                return False
            self.filter.mac = data
            self.config[:6] = data
            return True
        if what != MAC_TABLE_SET or not self.has(CTRL_RX):
            return False
        tables: list[list[bytes]] = []
        for _ in range(2):
            if len(data) < 4:
                return False
            count = int.from_bytes(data[:4], "little")
            if len(data) < 4 + 6 * count:
                return False
            tables.append([data[at : at + 6] for at in range(4, 4 + 6 * count, 6)])
            data = data[4 + 6 * count :]
        if data:
            return False
        self.filter.set_tables(*tables)
        return True

    def _set_vlan(self, what: int, data: bytes) -> bool:
        number = int.from_bytes(data, "little")
        if what not in (VLAN_ADD, VLAN_DEL) or len(data) != 2 or number >= 4096:
            return False
        self.filter.set_vlan(number, what == VLAN_ADD)
        return True

    def _announced(self, what: int, data: bytes) -> bool:
        if what or data:
            return False
        self.config[STATUS_AT] &= ~ANNOUNCE
        return True

    def _set_guest_offloads(self, what: int, data: bytes) -> bool:
        bits = int.from_bytes(data, "little")
        if what or len(data) != 8 or bits & ~(self.driver_features & GUEST_OFFLOADS):
            return False
        self._set_takes(bits)
        return True

    # State.

    def reset(self) -> None:
        self.config[:6] = self.filter.power_on
        super().reset()

    def state(self) -> dict[str, Any]:
        waiting = None
        if self._waiting is not None:
            frame, offload = self._waiting
            fields = None if offload is None else [getattr(offload, name) for name in Offload.__slots__]
            waiting = [frame, fields]
        return {**super().state(), "filter": self.filter.state(), "takes": self._takes, "waiting": waiting}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.filter.restore(state["filter"])
        self._set_takes(state["takes"])
        self._waiting = None
        if state["waiting"] is not None:
            frame, fields = state["waiting"]
            self._waiting = frame, None if fields is None else Offload(*fields)
        self.end.set_receiving(self._waiting is None)
