"""An ATAPI CD-ROM drive: PACKET over PIO and DMA (ATA/ATAPI-7 volume 1, 6.24; volume 2, 9.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvmpy.devices.ata import identify, mmc
from kvmpy.devices.ata import registers as ata
from kvmpy.devices.ata.drive import Drive
from kvmpy.devices.blockend import BlockEnd

PACKET_SIZE = 12
DMA = 0x01
"""Feature: data goes by DMA."""
CHECK = ata.ERR
TRANSFER_MODE = 0x03
MODES = {0x00, 0x01, 0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x20, 0x21, 0x22, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45}


class AtapiCdrom(Drive):
    """A drive whose disc is an image; what the packets mean is in `mmc`."""

    signature = (0x01, 0x01, 0x14, 0xEB)
    status_after_reset = 0
    whole_sectors = False

    def __init__(self, image: BlockEnd) -> None:
        self.unit = mmc.Unit(image)
        self._reply = b""
        super().__init__(image)

    def power_on(self) -> None:
        self.unit.power_on()
        super().power_on()

    def go_idle(self) -> None:
        super().go_idle()
        self._reply = b""

    def start(self, code: int) -> None:
        if code == ata.PACKET:
            self.now[ata.COUNT] = ata.COD
            self.take(PACKET_SIZE, interrupt=False)
            self.status = ata.DRDY | ata.DRQ
        elif code == ata.IDENTIFY_PACKET:
            self.give(identify.cdrom(self.image.serial or "kvmpy0", self.transfer_mode))
        elif code == ata.DEVICE_RESET:
            self.reset()
        elif code == ata.IDENTIFY:
            # The signature in the registers tells the asker what to ask instead.
            self.now[ata.COUNT:] = list(self.signature)
            self.fail()
        elif code == ata.SET_FEATURES and self.now[ata.FEATURES] == TRANSFER_MODE and self.now[ata.COUNT] in MODES:
            self.transfer_mode = self.now[ata.COUNT]
            self.done()
        elif code == ata.CHECK_POWER:
            self.now[ata.COUNT] = 0xFF
            self.done()
        elif code in (ata.STANDBY_IMMEDIATE, ata.IDLE_IMMEDIATE, ata.SLEEP):
            self.done()
        else:
            self.fail()

    def done(self) -> None:
        super().done()
        if self.command_code == ata.PACKET:
            self.now[ata.COUNT] = ata.IO | ata.COD

    # Packets.

    def was_written(self, data: bytearray) -> None:
        by_dma = bool(self.now[ata.FEATURES] & DMA)
        limit = (self.now[ata.LBA_MID] | self.now[ata.LBA_HIGH] << 8) & 0xFFFE
        reply = self.unit.command(bytes(data))
        if reply is None:
            self._check()
        elif isinstance(reply, mmc.Blocks):
            self.offset, self.left = reply.offset, reply.length
            self._send(by_dma, limit)
        else:
            self._reply = reply
            self.left = len(reply)
            self._send(by_dma, limit)

    def _check(self) -> None:
        """CHECK CONDITION: the sense key is in the error register."""
        key = self.unit.sense[0]
        self.fail(key << 4 | ata.ABRT)
        self.status = ata.DRDY | CHECK
        self.now[ata.COUNT] = ata.IO | ata.COD
        if key == mmc.MEDIUM_ERROR and self.unit.host_error is not None:
            self.warn("read", self.unit.host_error)
            self.unit.host_error = None

    def _send(self, by_dma: bool, limit: int) -> None:
        if not self.left:
            self.done()
        elif by_dma:
            self.want_dma(True, self.left)
        elif not limit:
            self.unit.sense = mmc.INVALID_FIELD
            self._check()
        else:
            self.block = limit
            self._next_block()

    def _next(self, views: Sequence[memoryview], size: int) -> bool:
        """Fills the views with the next bytes of the reply."""
        if self._reply:
            data = memoryview(self._reply)
            for view in views:
                view[:] = data[: len(view)]
                data = data[len(view) :]
            self._reply = bytes(data)
        else:
            if not self.unit.read(self.offset, views):
                self._check()
                return False
            self.offset += size
        self.left -= size
        return True

    def _next_block(self) -> None:
        size = min(self.left, self.block)
        data = bytearray(size)
        if self._next([memoryview(data)], size):
            self.now[ata.COUNT] = ata.IO
            self.now[ata.LBA_MID], self.now[ata.LBA_HIGH] = size & 0xFF, size >> 8
            self.give(data)

    def was_read(self) -> None:
        if self.command_code != ata.PACKET:
            self.go_idle()
            self.status = ata.DRDY | ata.DSC
        elif self.left:
            self._next_block()
        else:
            self.done()

    def dma(self, views: Sequence[memoryview], length: int) -> None:
        if self._next(views, length) and not self.left:
            self.done()

    # State.

    def state(self) -> dict[str, Any]:
        return super().state() | {"reply": self._reply, "unit": self.unit.state()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._reply = state["reply"]
        self.unit.restore(state["unit"])
