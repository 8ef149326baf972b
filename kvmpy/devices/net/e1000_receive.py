"""The 82540EM's receiver (SDM 3.2): address filters, descriptors, checksum verification."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

from kvmpy.devices.net import e1000_regs as r
from kvmpy.devices.net.checksum import ones_sum

if TYPE_CHECKING:
    from kvmpy.devices.net.e1000 import E1000

SIZE = 16
WRITE_BACK = struct.Struct("<HHBBH")  # length, checksum, status, errors, special: the second half of a descriptor

DONE, END, IGNORE_CHECKSUM, VLAN_PACKET, L4_CHECKED, IP_CHECKED, INEXACT = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40, 0x80
L4_ERROR, IP_ERROR = 0x20, 0x40

BROADCAST = b"\xff" * 6
SHORTEST, LONGEST, LONGEST_JUMBO, FCS = 60, 1518, 16380, 4
TAG = 4
MULTICAST_SHIFTS = (4, 3, 2, 0)
"""Lowest of the 12 bits of the last two address bytes that choose a bit of the table, by RCTL.MO."""

ETHERTYPE_IP4 = 0x0800
TCP, UDP = 6, 17
LENGTH_FIELDS = 6  # PRC64 to PRC1522


class Receiver:
    """Puts frames into the ring's buffers from RDH on. The one that finds no buffer waits, and holds the end back."""

    def __init__(self, nic: E1000) -> None:
        self._nic = nic
        self.reset()

    def reset(self) -> None:
        self.waiting: bytes | None = None

    # Filters.

    def _passes(self, frame: bytes | memoryview) -> int:
        """0: not for us; 1: exact match, or taken without a look at the filters; 2: by the multicast table alone."""
        registers, nic = self._nic.registers, self._nic
        control = registers[r.RCTL]
        target = bytes(frame[:6])
        if control & r.RCTL_VFE and self._tagged(frame):
            vlan = (frame[14] << 8 | frame[15]) & 0xFFF
            if not nic.vlans[vlan >> 5] >> (vlan & 31) & 1:
                return 0
        if target == BROADCAST and control & r.RCTL_BAM:
            return 1
        if target[0] & 1 and control & r.RCTL_MPE:
            return 1
        if not target[0] & 1 and control & r.RCTL_UPE:
            return 1
        for number in range(0, len(nic.addresses), 2):
            low, high = nic.addresses[number], nic.addresses[number + 1]
            if high & r.RAH_AV:
                station = bytes(frame[6:12]) if high >> 16 & 3 == 1 else target
                if station == low.to_bytes(4, "little") + (high & 0xFFFF).to_bytes(2, "little"):
                    return 1
        if target[0] & 1:
            shift = MULTICAST_SHIFTS[control >> r.RCTL_MO_SHIFT & 3]
            bit = (target[5] << 8 | target[4]) >> shift & 0xFFF
            if nic.multicast[bit >> 5] >> (bit & 31) & 1:
                return 2
        return 0

    def _tagged(self, frame: bytes | memoryview) -> bool:
        return len(frame) >= 16 and frame[12] << 8 | frame[13] == (self._nic.registers[r.VET] or 0x8100)

    def _buffer_size(self) -> int:
        control = self._nic.registers[r.RCTL]
        size = 2048 >> (control >> r.RCTL_BSIZE_SHIFT & 3)
        return size << 4 if control & r.RCTL_BSEX and size != 2048 else size

    def _free(self) -> int:
        """Descriptors that the guest has given."""
        registers = self._nic.registers
        count = registers[r.RDLEN] // SIZE
        head, tail = registers[r.RDH], registers[r.RDT]
        if head >= count or tail >= count:
            return 0
        return (tail - head) % count

    # Frames.

    def receive(self, frame: bytes | memoryview) -> None:
        """A frame from the wire, without FCS."""
        nic = self._nic
        control = nic.registers[r.RCTL]
        if not control & r.RCTL_EN or not nic.phy.link or len(frame) < 14:
            return
        longest = LONGEST_JUMBO if control & r.RCTL_LPE else LONGEST
        if len(frame) > longest:
            nic.count(r.ROC)
            return
        match = self._passes(frame)
        if not match:
            return
        if self.waiting is not None:
            nic.count(r.MPC)
            nic.cause(r.RXO)
            return
        if not self._put(frame, match):
            self.waiting = bytes(frame)
            nic.end.set_receiving(False)

    def room(self) -> None:
        """The guest has moved RDT."""
        if self.waiting is not None and self._nic.registers[r.RCTL] & r.RCTL_EN:
            frame = self.waiting
            match = self._passes(frame)
            if match and not self._put(frame, match):
                return
            self.waiting = None
            self._nic.end.set_receiving(True)

    def _put(self, frame: bytes | memoryview, match: int) -> bool:
        """Writes a frame into buffers; false where there are too few."""
        nic, registers = self._nic, self._nic.registers
        data = bytes(frame) + bytes(max(0, SHORTEST - len(frame)))
        special, flags = 0, INEXACT if match == 2 else 0
        wire = len(data) + FCS
        if registers[r.CTRL] & r.CTRL_VME and self._tagged(data):
            special, flags = data[14] << 8 | data[15], flags | VLAN_PACKET
            data = data[:12] + data[12 + TAG :]
        status, errors, packet_sum = self._verify(data)
        flags |= status
        if not registers[r.RCTL] & r.RCTL_SECRC:
            data += zlib.crc32(data).to_bytes(4, "little")
        size = self._buffer_size()
        needed = -(-len(data) // size)
        free = self._free()
        count = registers[r.RDLEN] // SIZE
        if needed > free or not nic.bus_master:
            if needed >= count > 0:  # no ring of this size will ever hold it
                nic.count(r.MPC)
                return True
            return False
        base = registers[r.RDBAL] | registers[r.RDBAH] << 32
        for part in range(needed):
            at = registers[r.RDH]
            address = (base + at * SIZE) & 0xFFFFFFFFFFFFFFFF
            piece = data[part * size : (part + 1) * size]
            is_last = part == needed - 1
            raw = nic.dma_read(address, 8)
            if raw is not None:
                buffer = int.from_bytes(raw, "little")
                if buffer:  # null descriptors are passed over (SDM 3.2.4)
                    nic.dma_write(buffer, piece)
                end = END | flags if is_last else 0
                written = WRITE_BACK.pack(len(piece), packet_sum, DONE | end, errors if is_last else 0, special if is_last else 0)
                nic.dma_write(address + 8, written)
            registers[r.RDH] = (at + 1) % count
        nic.count_received(frame, wire)
        causes = r.RXT0
        if free - needed <= count >> 1 + (registers[r.RCTL] >> r.RCTL_RDMTS_SHIFT & 3):
            causes |= r.RXDMT0
        nic.cause(causes)
        return True

    def _verify(self, data: bytes) -> tuple[int, int, int]:
        """(status, errors, packet checksum) after RXCSUM (SDM 3.2.9)."""
        control = self._nic.registers[r.RXCSUM]
        if not control & (r.RXCSUM_IPOFL | r.RXCSUM_TUOFL):
            return IGNORE_CHECKSUM, 0, ones_sum(data[control & 0xFF :])
        packet_sum = ones_sum(data[control & 0xFF :])
        if data[12] << 8 | data[13] != ETHERTYPE_IP4 or len(data) < 34 or data[14] >> 4 != 4:
            return IGNORE_CHECKSUM, 0, packet_sum
        header = (data[14] & 0xF) * 4
        total = data[16] << 8 | data[17]
        if header < 20 or total < header or 14 + total > len(data):
            return IGNORE_CHECKSUM, 0, packet_sum
        status = errors = 0
        if control & r.RXCSUM_IPOFL:
            status |= IP_CHECKED
            errors |= IP_ERROR if ones_sum(data[14 : 14 + header]) != 0xFFFF else 0
        protocol = data[23]
        fragment = (data[20] << 8 | data[21]) & 0x3FFF
        if control & r.RXCSUM_TUOFL and protocol in (TCP, UDP) and not fragment:
            l4 = data[14 + header : 14 + total]
            if protocol == UDP and l4[6:8] == b"\0\0":
                return status, errors, packet_sum  # sent without one
            pseudo = ones_sum(data[26:34], protocol + len(l4))
            status |= L4_CHECKED
            errors |= L4_ERROR if ones_sum(l4, pseudo) != 0xFFFF else 0
        return status, errors, packet_sum

    # State.

    def state(self) -> dict[str, Any]:
        return {"waiting": self.waiting}

    def restore(self, state: dict[str, Any]) -> None:
        self.waiting = state["waiting"]
        self._nic.end.set_receiving(self.waiting is None)
