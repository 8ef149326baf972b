"""The 82540EM's transmitter (SDM 3.3 to 3.5): legacy, context and data descriptors, checksums, segmentation."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from kvmpy.devices.net import e1000_regs as r
from kvmpy.devices.net.checksum import insert

if TYPE_CHECKING:
    from kvmpy.devices.net.e1000 import E1000

SIZE = 16
DESCRIPTOR = struct.Struct("<QII")  # address, command and length, status and options
CONTEXT = struct.Struct("<BBHBBHII")

# Command byte.
EOP, INSERT_CHECKSUM, SEGMENT, REPORT, REPORT_SENT, EXTENDED, VLAN = 0x01, 0x04, 0x04, 0x08, 0x10, 0x20, 0x40
DONE = 1  # status
IP_CHECKSUM, L4_CHECKSUM = 1, 2  # options
TUCMD_TCP, TUCMD_IP = 1, 2

LARGEST_FRAME = 16288
LARGEST_SEGMENTED = 1 << 18
"""Bytes of one frame, and of what is to be cut into several (SDM 3.5.2)."""
SHORTEST = 60
TCP_FIN_PSH = 0x09


class Context:
    """Where checksums are and how to cut, as a context descriptor sets it (SDM 3.3.6)."""

    def __init__(self, raw: bytes = bytes(SIZE)) -> None:
        self.raw = bytes(raw)
        self.ip_start, self.ip_at, self.ip_end, self.l4_start, self.l4_at, self.l4_end, command, sizes = CONTEXT.unpack(raw)
        self.payload = command & 0xFFFFF
        self.is_tcp, self.is_ip4 = bool(command >> 24 & TUCMD_TCP), bool(command >> 24 & TUCMD_IP)
        self.header = sizes >> 8 & 0xFF
        self.mss = sizes >> 16


class Transmitter:
    """Works off the ring from TDH to TDT, as soon as the guest writes TDT."""

    def __init__(self, nic: E1000) -> None:
        self._nic = nic
        self.reset()

    def reset(self) -> None:
        self._plain, self._segmented = Context(), Context()
        self._pieces: list[bytes | memoryview] = []
        self._begin()

    def _begin(self) -> None:
        """Nothing is left of the frame before."""
        self._pieces.clear()
        self._size = 0
        self._bad = False
        self._first: tuple[bool, bool, int] | None = None  # extended, segmented, options: of the first data descriptor
        self._tag: int | None = None

    def run(self) -> None:
        """Sends what the guest has handed over. A tail outside the ring gets one turn of it and no more."""
        registers, nic = self._nic.registers, self._nic
        count = registers[r.TDLEN] // SIZE
        if not registers[r.TCTL] & r.TCTL_EN or not count or not nic.bus_master:
            return
        base = registers[r.TDBAL] | registers[r.TDBAH] << 32
        causes = 0
        for _ in range(count):
            at = registers[r.TDH]
            if at == registers[r.TDT]:
                break
            if at >= count:
                nic.event("transmit head outside the ring", head=at, count=count)
                break
            address = (base + at * SIZE) & 0xFFFFFFFFFFFFFFFF
            raw = nic.dma_read(address, SIZE)
            if raw is None:
                break
            if self._descriptor(raw):
                nic.dma_write(address + 12, bytes([raw[12] | DONE]))
                causes |= r.TXDW
            registers[r.TDH] = (at + 1) % count
        if registers[r.TDH] == registers[r.TDT]:
            causes |= r.TXQE
        # Pieces point into guest memory, which is the guest's again.
        self._pieces = [bytes(piece) for piece in self._pieces]
        nic.cause(causes)

    def _descriptor(self, raw: bytes) -> bool:
        """Takes one in; true when its status is to be written back."""
        address, lower, upper = DESCRIPTOR.unpack(raw)
        command = lower >> 24
        if command & EXTENDED and not lower >> 20 & 0xF:
            context = Context(raw)
            if command & SEGMENT:
                self._segmented = context
            else:
                self._plain = context
            return bool(command & REPORT)
        extended = bool(command & EXTENDED)
        if self._first is None:
            self._first = extended, extended and bool(command & SEGMENT), upper >> 8 & 0xFF
        if command & VLAN and command & EOP:
            self._tag = upper >> 16
        self._add(address, lower & (0xFFFFF if extended else 0xFFFF))
        if command & EOP:
            self._frame(command, lower, upper)
            self._begin()
        return bool(command & (REPORT | REPORT_SENT))

    def _add(self, address: int, size: int) -> None:
        assert self._first is not None
        self._size += size
        if self._bad or not size:
            return
        views = None
        if self._size <= (LARGEST_SEGMENTED if self._first[1] else LARGEST_FRAME):
            views = self._nic.dma_views(address, size)
        if views is None:
            self._bad = True
            self._pieces.clear()
        else:
            self._pieces += views

    def _frame(self, command: int, lower: int, upper: int) -> None:
        assert self._first is not None
        extended, segmented, options = self._first
        if self._bad or not self._size:
            self._nic.event("frame not sent", bytes=self._size)
        elif segmented:
            self._cut(bytes(b"".join(self._pieces)), options)
        elif extended and options & (IP_CHECKSUM | L4_CHECKSUM):
            frame = bytearray().join(self._pieces)
            self._sums(frame, self._plain, options)
            self._out([frame])
        elif not extended and command & INSERT_CHECKSUM:
            frame = bytearray().join(self._pieces)
            insert(frame, upper >> 8 & 0xFF, lower >> 16 & 0xFF)
            self._out([frame])
        else:
            self._out(self._pieces)

    @staticmethod
    def _sums(frame: bytearray, context: Context, options: int) -> None:
        if options & IP_CHECKSUM:
            end = context.ip_end + 1 if context.ip_end else 0
            # The header's field counts as 0: what stands there is of no use to the sum.
            if context.ip_at + 2 <= len(frame):
                frame[context.ip_at : context.ip_at + 2] = bytes(2)
            insert(frame, context.ip_start, context.ip_at, end)
        if options & L4_CHECKSUM:
            insert(frame, context.l4_start, context.l4_at, context.l4_end + 1 if context.l4_end else 0)

    def _cut(self, data: bytes, options: int) -> None:
        """Segmentation (SDM 3.5.2 to 3.5.8): the header before every MSS bytes, its lengths and numbers set for each."""
        context = self._segmented
        header, mss = context.header, context.mss
        payload = data[header : header + context.payload]
        if not mss or header >= len(data) or not payload:
            self._nic.event("impossible segmentation", mss=mss, header=header, bytes=len(data))
            return
        self._nic.count(r.TSCTC)
        prefix = data[:header]
        last = (len(payload) - 1) // mss
        for number in range(last + 1):
            frame = bytearray(prefix) + payload[number * mss : (number + 1) * mss]
            self._number(frame, context, number, number == last)
            self._sums(frame, context, options)
            self._out([frame])

    @staticmethod
    def _number(frame: bytearray, context: Context, number: int, is_last: bool) -> None:
        """Lengths, identification, sequence number and flags of one segment."""

        def add(at: int, size: int, value: int) -> None:
            if at + size <= len(frame):
                old = int.from_bytes(frame[at : at + size], "big")
                frame[at : at + size] = ((old + value) % (1 << 8 * size)).to_bytes(size, "big")

        def put(at: int, value: int) -> None:
            if at + 2 <= len(frame):
                frame[at : at + 2] = (value & 0xFFFF).to_bytes(2, "big")

        l4_size = len(frame) - context.l4_start
        if context.is_ip4:
            put(context.ip_start + 2, len(frame) - context.ip_start)
            add(context.ip_start + 4, 2, number)
        else:
            put(context.ip_start + 4, len(frame) - context.ip_start - 40)
        if context.is_tcp:
            add(context.l4_start + 4, 4, number * context.mss)
            flags = context.l4_start + 13
            if not is_last and flags < len(frame):
                frame[flags] &= ~TCP_FIN_PSH
        else:
            put(context.l4_start + 4, l4_size)
        # The field holds the pseudo header's sum without the length (SDM 3.5.7); carries go round.
        if context.l4_at + 2 <= len(frame):
            total = int.from_bytes(frame[context.l4_at : context.l4_at + 2], "big") + max(l4_size, 0)
            put(context.l4_at, (total & 0xFFFF) + (total >> 16))

    def _out(self, pieces: list[bytearray] | list[bytes | memoryview]) -> None:
        nic = self._nic
        frame: list[Any] = list(pieces)
        size = sum(map(len, frame))
        if self._tag is not None and nic.registers[r.CTRL] & r.CTRL_VME and size >= 12:
            whole = b"".join(frame)
            frame = [whole[:12], nic.registers[r.VET].to_bytes(2, "big"), self._tag.to_bytes(2, "big"), whole[12:]]
            size += 4
        if size < SHORTEST and nic.registers[r.TCTL] & r.TCTL_PSP:
            frame.append(bytes(SHORTEST - size))
            size = SHORTEST
        nic.out(frame, size)

    # State.

    def state(self) -> dict[str, Any]:
        return {
            "plain": self._plain.raw, "segmented": self._segmented.raw, "frame": b"".join(self._pieces), "size": self._size,
            "bad": self._bad, "first": None if self._first is None else list(self._first), "tag": self._tag,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._plain, self._segmented = Context(state["plain"]), Context(state["segmented"])
        self._pieces = [state["frame"]] if state["frame"] else []
        self._size, self._bad, self._tag = state["size"], state["bad"], state["tag"]
        first = state["first"]
        self._first = None if first is None else (first[0], first[1], first[2])
