"""DP8390 network interface controller (National Semiconductor DP8390D data sheet) with the NE2000's 16 KiB of buffer memory,
address PROM and data port around it.

    0x00-0x0F  registers of the page that CR selects
    0x10-0x17  remote DMA data port, 8, 16 or 32 bits
    0x18-0x1F  reset
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from kvmpy.devices.netend import NetEnd

SIZE = 0x20
DATA_PORT, RESET_PORT = 0x10, 0x18

# Page 0, as read and as written; page 1 has the station address, CURR and the multicast table.
CR = 0
CLDA0, CLDA1, BNRY, TSR, NCR, FIFO, ISR, CRDA0, CRDA1, ID0, ID1, RSR, CNTR0, CNTR1, CNTR2 = range(1, 16)
PSTART, PSTOP, _, TPSR, TBCR0, TBCR1, _, RSAR0, RSAR1, RBCR0, RBCR1, RCR, TCR, DCR, IMR = range(1, 16)
PAR0, CURR, MAR0 = 1, 7, 8

CR_STOP, CR_START, CR_TRANSMIT = 1, 2, 4
CR_READ, CR_WRITE, CR_SEND, CR_ABORT = 0x08, 0x10, 0x18, 0x20
CR_DMA = 0x38

ISR_RECEIVED, ISR_SENT, ISR_RECEIVE_ERROR, ISR_OVERWRITE, ISR_COUNTER, ISR_DMA, ISR_RESET = 0x01, 0x02, 0x04, 0x10, 0x20, 0x40, 0x80
RCR_SHORT, RCR_BROADCAST, RCR_MULTICAST, RCR_PROMISCUOUS, RCR_MONITOR = 0x02, 0x04, 0x08, 0x10, 0x20
TCR_LOOPBACK = 0x06
DCR_WORD = 0x01
RSR_OK, RSR_GROUP, RSR_MISSED = 0x01, 0x20, 0x10
TSR_OK = 0x01

PROM_SIZE = 0x20
RAM, RAM_END = 0x4000, 0x8000
PAGE = 0x100
HEADER, FCS = 4, 4
SHORTEST, LONGEST = 60, 1518
MOST_PAGES = (HEADER + LONGEST + FCS + PAGE - 1) // PAGE
BROADCAST = b"\xff" * 6
COUNTER_LIMIT = 192  # from here on a counter's interrupt stands


def hash_bit(address: bytes) -> int:
    """Bit of the multicast table: the top 6 bits of the address's CRC, most significant bit first."""
    crc = zlib.crc32(address) ^ 0xFFFFFFFF
    return int(f"{crc & 0x3F:06b}"[::-1], 2)


class Dp8390:
    """`interrupt` drives the line. `identity` are the bytes at ID0 and ID1 (RTL8029: "PC")."""

    def __init__(self, end: NetEnd, mac: bytes, interrupt: Callable[[int], None], identity: bytes = b"\xff\xff") -> None:
        self.end = end
        self._interrupt = interrupt
        self._identity = identity
        # A byte for each half of a word: 16-bit cards double the address and have W W where 8-bit ones have B B.
        self._prom = bytes(byte for value in (*mac, *bytes(8), 0x57, 0x57) for byte in (value, value))
        self.ram = bytearray(RAM_END - RAM)
        self.page0 = bytearray(16)
        self.page1 = bytearray(16)
        self.power_on()

    def power_on(self) -> None:
        """RESET: stopped, interrupts off; memory is what it was."""
        self.command = CR_STOP | CR_ABORT
        self.isr = ISR_RESET
        self.page0[:] = bytes(16)
        self.page1[:] = bytes(16)
        self.remote_address = self.remote_count = 0
        self.rsr = self.tsr = 0
        self.counters = bytearray(3)
        self._holding = False
        self._update()
        self.end.set_receiving(True)

    def _update(self) -> None:
        self._interrupt(int(bool(self.isr & self.page0[IMR] & 0x7F)))

    def _cause(self, bits: int) -> None:
        self.isr |= bits
        self._update()

    # Registers.

    def read(self, offset: int, size: int) -> int:
        """A guest's read; accesses wider than a byte of registers take several."""
        if DATA_PORT <= offset < RESET_PORT:
            data = bytes(self._remote_read() for _ in range(self._data_bytes(size)))
            return int.from_bytes(data[:size], "little")
        value = 0
        for index in range(size):
            value |= self._read_byte(offset + index) << 8 * index
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write."""
        if DATA_PORT <= offset < RESET_PORT:
            for index in range(self._data_bytes(size)):
                self._remote_write(value >> 8 * index & 0xFF)
            return
        for index in range(size):
            self._write_byte(offset + index, value >> 8 * index & 0xFF)

    def _data_bytes(self, size: int) -> int:
        """Bytes that an access to the data port moves: set to words, the chip moves a whole one even where half of it is asked for."""
        return max(size, 2) if self.page0[DCR] & DCR_WORD else size

    def _read_byte(self, at: int) -> int:
        if at >= RESET_PORT:
            if at < SIZE:
                self._reset()
            return 0xFF
        if at >= DATA_PORT:
            return 0xFF
        if at == CR:
            return self.command
        page = self.command >> 6
        if page == 1:
            return self.page1[at]
        if page == 2:
            return self.page0[at] if at in (PSTART, PSTOP, TPSR, RCR, TCR, DCR, IMR) else 0xFF
        if page == 3:
            return 0
        return self._read_page0(at)

    def _read_page0(self, at: int) -> int:
        if CNTR0 <= at <= CNTR2:
            value = self.counters[at - CNTR0]
            self.counters[at - CNTR0] = 0
            return value
        current = self.remote_address
        return {
            CLDA0: 0, CLDA1: self.page1[CURR], BNRY: self.page0[BNRY], TSR: self.tsr, ISR: self.isr, CRDA0: current & 0xFF,
            CRDA1: current >> 8, ID0: self._identity[0], ID1: self._identity[1], RSR: self.rsr,
        }.get(at, 0)

    def _write_byte(self, at: int, value: int) -> None:
        if at >= DATA_PORT:
            return  # the reset port is read, its writes end a pulse that the card makes itself
        page = self.command >> 6
        if at == CR:
            self._set_command(value)
        elif page == 1:
            self.page1[at] = value
            self._look_for_room()
        elif page == 0:
            if at == ISR:
                self.isr &= ~(value & 0x7F)
                if value & ISR_RECEIVED and self._holding:
                    # Drivers leave frames in the ring and count on the next one's interrupt; here the next one waits for room.
                    self.isr |= ISR_RECEIVED
                self._update()
                return
            self.page0[at] = value
            if at in (RSAR0, RSAR1):
                self.remote_address = self.page0[RSAR0] | self.page0[RSAR1] << 8
            elif at in (RBCR0, RBCR1):
                self.remote_count = self.page0[RBCR0] | self.page0[RBCR1] << 8
            elif at == IMR:
                self._update()
            self._look_for_room()

    def _set_command(self, value: int) -> None:
        # Neither START nor STOP: the chip goes on as it was.
        kept = 0 if value & (CR_STOP | CR_START) else self.command & (CR_STOP | CR_START)
        self.command = value & ~CR_TRANSMIT | kept
        if value & CR_STOP:
            self.isr |= ISR_RESET
        elif value & CR_START:
            self.isr &= ~ISR_RESET
        if value & CR_DMA == CR_SEND:
            self._point_at_frame()
        if value & CR_DMA in (CR_READ, CR_WRITE) and not self.remote_count:
            self._cause(ISR_DMA)
        if value & CR_TRANSMIT and not self.command & CR_STOP:
            self._transmit()
        self._look_for_room()

    def _point_at_frame(self) -> None:
        """Send packet: remote DMA reads the frame at BNRY, whose length stands in its header (data sheet, "Send Packet")."""
        start = self.page0[BNRY] << 8
        self.remote_address = start
        self.remote_count = self._byte(start + 2) | self._byte(start + 3) << 8
        self.command = self.command & ~CR_DMA | CR_READ

    def _reset(self) -> None:
        self.command = CR_STOP | CR_ABORT
        self.isr |= ISR_RESET
        self.page0[IMR] = 0
        self._update()
        self._look_for_room()

    # Memory.

    def _byte(self, address: int) -> int:
        if RAM <= address < RAM_END:
            return self.ram[address - RAM]
        return self._prom[address] if address < PROM_SIZE else 0xFF

    def _step(self) -> None:
        """After one byte by the data port: the receive ring wraps, and the count ends the transfer."""
        self.remote_address = (self.remote_address + 1) & 0xFFFF
        if self.remote_address == self.page0[PSTOP] << 8:
            self.remote_address = self.page0[PSTART] << 8
        self.remote_count -= 1
        if not self.remote_count:
            self._cause(ISR_DMA)

    def _remote_read(self) -> int:
        if not self.remote_count or self.command & CR_DMA != CR_READ:
            return 0xFF
        value = self._byte(self.remote_address)
        self._step()
        return value

    def _remote_write(self, value: int) -> None:
        if self.remote_count and self.command & CR_DMA == CR_WRITE:
            if RAM <= self.remote_address < RAM_END:
                self.ram[self.remote_address - RAM] = value
            self._step()

    # Frames.

    def _transmit(self) -> None:
        start = self.page0[TPSR] << 8
        size = self.page0[TBCR0] | self.page0[TBCR1] << 8
        if not self.page0[TCR] & TCR_LOOPBACK and size <= LONGEST + FCS:
            if start >= RAM and start + size <= RAM_END:
                self.end.send([bytes(self.ram[start - RAM : start - RAM + size])])
            else:
                self.end.send([bytes(self._byte(address & 0xFFFF) for address in range(start, start + size))])
        self.tsr = TSR_OK
        self._cause(ISR_SENT)

    def _ring(self) -> tuple[int, int]:
        """(pages of the ring, free ones), 0 and 0 where CURR is not in the ring. The chip stops where it would come to BNRY:
        one that is outside stops it nowhere, but for the page before the first, which is how drivers write the last."""
        start, stop, current, boundary = self.page0[PSTART], self.page0[PSTOP], self.page1[CURR], self.page0[BNRY]
        if not start <= current < stop:
            return 0, 0
        pages = stop - start
        if boundary == start - 1:
            boundary = stop - 1
        if not start <= boundary < stop:
            return pages, pages
        return pages, (boundary - current) % pages or pages

    def _listening(self) -> bool:
        return self.command & (CR_STOP | CR_START) == CR_START and not self.page0[RCR] & RCR_MONITOR

    def _look_for_room(self) -> None:
        """The end holds frames back while the ring has no room for the longest one."""
        pages, free = self._ring()
        self._holding = self._listening() and free < pages and free <= MOST_PAGES
        self.end.set_receiving(not self._holding)

    def _passes(self, target: bytes) -> bool:
        control = self.page0[RCR]
        if control & RCR_PROMISCUOUS and not target[0] & 1:
            return True
        if target == BROADCAST:
            return bool(control & RCR_BROADCAST)
        if target[0] & 1:
            bit = hash_bit(target)
            return bool(control & RCR_MULTICAST and self.page1[MAR0 + bit // 8] >> bit % 8 & 1)
        return target == self.page1[PAR0 : PAR0 + 6]

    def receive(self, frame: bytes | memoryview) -> None:
        """A frame from the wire, without FCS."""
        if not self._listening() or not 14 <= len(frame) <= LONGEST or not self._passes(bytes(frame[:6])):
            return
        data = bytes(frame) + bytes(max(0, SHORTEST - len(frame)))
        data += zlib.crc32(data).to_bytes(4, "little")
        pages, free = self._ring()
        needed = (HEADER + len(data) + PAGE - 1) // PAGE
        if needed >= free:
            self._missed()
            return
        start, current = self.page0[PSTART], self.page1[CURR]
        following = start + (current - start + needed) % pages
        self.rsr = RSR_OK | (RSR_GROUP if frame[0] & 1 else 0)
        data = bytes((self.rsr, following, len(data) & 0xFF, len(data) >> 8)) + data
        for part in range(needed):
            page = start + (current - start + part) % pages
            at = (page << 8) - RAM
            piece = data[part * PAGE : (part + 1) * PAGE]
            if 0 <= at < len(self.ram):
                self.ram[at : at + len(piece)] = piece
        self.page1[CURR] = following
        self._cause(ISR_RECEIVED)
        self._look_for_room()

    def _missed(self) -> None:
        """No room: the ring's overwrite warning, and the tally of missed frames."""
        self.rsr = RSR_MISSED
        self.counters[2] = min(self.counters[2] + 1, 0xFF)
        self._cause(ISR_OVERWRITE | (ISR_COUNTER if self.counters[2] >= COUNTER_LIMIT else 0))

    # State.

    def state(self) -> dict[str, Any]:
        return {
            "ram": bytes(self.ram), "page0": bytes(self.page0), "page1": bytes(self.page1), "command": self.command, "isr": self.isr,
            "remote_address": self.remote_address, "remote_count": self.remote_count, "rsr": self.rsr, "tsr": self.tsr,
            "counters": bytes(self.counters),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.ram[:], self.page0[:], self.page1[:] = state["ram"], state["page0"], state["page1"]
        self.command, self.isr, self.rsr, self.tsr = state["command"], state["isr"], state["rsr"], state["tsr"]
        self.remote_address, self.remote_count = state["remote_address"], state["remote_count"]
        self.counters[:] = state["counters"]
        self._update()
        self._look_for_room()
