"""An ATA disk (ATA/ATAPI-7): PIO and DMA, LBA of 28 and 48 bits, CHS, SMART as far as being well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvmpy.devices.ata import identify
from kvmpy.devices.ata import registers as ata
from kvmpy.devices.ata.drive import Drive
from kvmpy.devices.blockend import BlockEnd

READS = {
    ata.READ_SECTORS, ata.READ_SECTORS + 1, ata.READ_SECTORS_EXT, ata.READ_DMA, ata.READ_DMA + 1, ata.READ_DMA_EXT,
    ata.READ_MULTIPLE, ata.READ_MULTIPLE_EXT,
}
WRITES = {
    ata.WRITE_SECTORS, ata.WRITE_SECTORS + 1, ata.WRITE_SECTORS_EXT, ata.WRITE_DMA, ata.WRITE_DMA + 1, ata.WRITE_DMA_EXT,
    ata.WRITE_MULTIPLE, ata.WRITE_MULTIPLE_EXT, ata.WRITE_DMA_FUA_EXT, ata.WRITE_MULTIPLE_FUA_EXT,
}
EXTENDED = {
    ata.READ_SECTORS_EXT, ata.READ_DMA_EXT, ata.READ_MULTIPLE_EXT, ata.WRITE_SECTORS_EXT, ata.WRITE_DMA_EXT,
    ata.WRITE_MULTIPLE_EXT, ata.WRITE_DMA_FUA_EXT, ata.WRITE_MULTIPLE_FUA_EXT, ata.VERIFY_EXT,
}
BY_DMA = {ata.READ_DMA, ata.READ_DMA + 1, ata.READ_DMA_EXT, ata.WRITE_DMA, ata.WRITE_DMA + 1, ata.WRITE_DMA_EXT, ata.WRITE_DMA_FUA_EXT}
MULTIPLE = {
    ata.READ_MULTIPLE, ata.READ_MULTIPLE_EXT, ata.WRITE_MULTIPLE, ata.WRITE_MULTIPLE_EXT, ata.WRITE_MULTIPLE_FUA_EXT,
}
FORCED = {ata.WRITE_DMA_FUA_EXT, ata.WRITE_MULTIPLE_FUA_EXT}
VERIFIES = {ata.VERIFY, ata.VERIFY + 1, ata.VERIFY_EXT}
NOTHING_TO_DO = {ata.STANDBY_IMMEDIATE, ata.IDLE_IMMEDIATE, ata.STANDBY, ata.IDLE, ata.SLEEP}

# SET FEATURES, SMART
WRITE_CACHE_ON, WRITE_CACHE_OFF, TRANSFER_MODE = 0x02, 0x82, 0x03
LOOK_AHEAD_ON, LOOK_AHEAD_OFF, KEEP_SETTINGS, FORGET_SETTINGS = 0xAA, 0x55, 0x66, 0xCC
SMART_KEY = (0x4F, 0xC2)
SMART_DATA, SMART_THRESHOLDS, SMART_AUTOSAVE, SMART_OFFLINE, SMART_LOG = 0xD0, 0xD1, 0xD2, 0xD4, 0xD5
SMART_ON, SMART_OFF, SMART_STATUS = 0xD8, 0xD9, 0xDA
TRIM = 0x01
MODES = {0x00, 0x01, 0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x20, 0x21, 0x22, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45}

_SETTINGS = ("multiple", "heads", "per_track", "write_cache", "smart")


class AtaDisk(Drive):
    """A disk on an image. Host errors: UNC for reads, a device fault for writes."""

    def __init__(self, image: BlockEnd) -> None:
        self.sectors = image.size // ata.SECTOR
        self.multiple = 0
        self.heads = self.per_track = 0
        self.write_cache = self.smart = True
        super().__init__(image)

    def power_on(self) -> None:
        self.multiple = identify.MOST_MULTIPLE
        _, self.heads, self.per_track = identify.geometry(self.sectors)
        self.write_cache = self.smart = True
        super().power_on()

    def start(self, code: int) -> None:
        if code in READS or code in WRITES or code in VERIFIES:
            self._move(code)
        elif code == ata.IDENTIFY:
            self.give(identify.disk(
                self.sectors, self.image.serial or "kvmpy0", self.transfer_mode, self.multiple, (self.heads, self.per_track),
                self.write_cache, self.smart,
            ))
        elif code in (ata.FLUSH, ata.FLUSH_EXT):
            if self._flushed():
                self.done()
        elif code == ata.SET_FEATURES:
            self._set_features()
        elif code == ata.SET_MULTIPLE:
            self._set_multiple(self.now[ata.COUNT])
        elif code == ata.INITIALIZE_PARAMETERS:
            self._initialize()
        elif code == ata.SMART:
            self._smart(self.now[ata.FEATURES])
        elif code == ata.CHECK_POWER:
            self.now[ata.COUNT] = 0xFF  # active or idle
            self.done()
        elif code in (ata.READ_NATIVE_MAX, ata.READ_NATIVE_MAX_EXT):
            self._put_address(self.sectors - 1, code == ata.READ_NATIVE_MAX_EXT)
            self.done()
        elif code == ata.DATA_SET_MANAGEMENT and self.now[ata.FEATURES] == TRIM:
            self._trim()
        elif code in NOTHING_TO_DO or code & 0xF0 in (0x10, ata.SEEK):
            self.done()
        elif code == ata.IDENTIFY_PACKET or code == ata.PACKET:
            self.fail()
        else:
            self.event("unknown command", command=code)
            self.fail()

    # Addresses.

    def _address(self, extended: bool) -> int | None:
        """The first sector; None for a CHS address that does not exist."""
        low, mid, high = self.now[ata.LBA_LOW : ata.LBA_HIGH + 1]
        if extended:
            previous = self.before
            return (
                low | mid << 8 | high << 16
                | previous[ata.LBA_LOW] << 24 | previous[ata.LBA_MID] << 32 | previous[ata.LBA_HIGH] << 40
            )
        if self.device & ata.LBA_MODE:
            return low | mid << 8 | high << 16 | (self.device & 0xF) << 24
        head = self.device & 0xF
        if not 1 <= low <= self.per_track or head >= self.heads:
            return None
        return ((mid | high << 8) * self.heads + head) * self.per_track + low - 1

    def _put_address(self, sector: int, extended: bool) -> None:
        """Where an error is, or the last sector."""
        if not extended and not self.device & ata.LBA_MODE:
            track, low = divmod(sector, self.per_track)
            cylinder, head = divmod(track, self.heads)
            self.now[ata.LBA_LOW : ata.LBA_HIGH + 1] = low + 1, cylinder & 0xFF, cylinder >> 8 & 0xFF
            self.device = self.device & 0xF0 | head
            return
        if not extended:
            sector = min(sector, identify.MOST_28)
            self.device = self.device & 0xF0 | sector >> 24
        self.now[ata.LBA_LOW : ata.LBA_HIGH + 1] = sector & 0xFF, sector >> 8 & 0xFF, sector >> 16 & 0xFF
        if extended:
            self.before[ata.LBA_LOW : ata.LBA_HIGH + 1] = sector >> 24 & 0xFF, sector >> 32 & 0xFF, sector >> 40 & 0xFF

    # Reading and writing.

    def _move(self, code: int) -> None:
        extended = code in EXTENDED
        if extended:
            count = (self.now[ata.COUNT] | self.before[ata.COUNT] << 8) or 65536
        else:
            count = self.now[ata.COUNT] or 256
        sector = self._address(extended)
        if code in MULTIPLE and not self.multiple:
            return self.fail()
        if sector is None or sector + count > self.sectors:
            return self.fail(ata.IDNF | (ata.ABRT if code in VERIFIES else 0))
        if code in WRITES and self.image.readonly:
            return self.fail(ata.ABRT | ata.WP)
        if code in VERIFIES:
            return self.done()
        self.offset, self.left = sector * ata.SECTOR, count * ata.SECTOR
        self.block = (self.multiple if code in MULTIPLE else 1) * ata.SECTOR
        if code in BY_DMA:
            self.want_dma(code in READS, self.left)
        elif code in READS:
            self._next_read()
        else:
            self.take(min(self.block, self.left), interrupt=False)

    def _next_read(self) -> None:
        size = min(self.block, self.left)
        data = bytearray(size)
        if self._transfer(True, [memoryview(data)], size):
            self.give(data)

    def _transfer(self, read: bool, views: Sequence[memoryview], size: int) -> bool:
        """Moves the next bytes; False after an error, which is told already."""
        try:
            if read:
                self.image.read_into(self.offset, views)
            else:
                self.image.write_from(self.offset, views)
        except OSError as error:
            self._failed("read" if read else "write", error)
            return False
        self.offset += size
        self.left -= size
        return True

    def _failed(self, what: str, error: OSError) -> None:
        self.warn(what, error)
        self._put_address(self.offset // ata.SECTOR, self.command_code in EXTENDED)
        if what == "read":
            self.fail(ata.UNC)
        else:
            self.fail(ata.ABRT, ata.DF)

    def _flushed(self) -> bool:
        try:
            if not self.image.readonly:
                self.image.flush()
        except OSError as error:
            self._failed("flush", error)
            return False
        return True

    def _wrote_all(self) -> None:
        """The last block is in the image; without a cache it has to be on stable storage."""
        if (self.write_cache and self.command_code not in FORCED) or self._flushed():
            self.done()

    def was_read(self) -> None:
        if self.left:
            self._next_read()
        else:
            self.go_idle()
            self.status = ata.DRDY | ata.DSC

    def was_written(self, data: bytearray) -> None:
        if not self._transfer(False, [memoryview(data)], len(data)):
            return
        if self.left:
            self.take(min(self.block, self.left), interrupt=True)
        else:
            self._wrote_all()

    def dma(self, views: Sequence[memoryview], length: int) -> None:
        if self.command_code == ata.DATA_SET_MANAGEMENT:
            data = b"".join(map(bytes, views))
            self.left -= length
            self._discard(data)
            return
        if not self._transfer(self.dma_to_memory, views, length) or self.left:
            return
        if self.dma_to_memory:
            self.done()
        else:
            self._wrote_all()

    # TRIM: blocks of 64 ranges, 48 bits of sector and 16 of count each (ATA/ATAPI-8, 7.10).

    def _trim(self) -> None:
        count = self.now[ata.COUNT] | self.before[ata.COUNT] << 8
        if not count or self.image.readonly:
            return self.fail()
        self.want_dma(False, count * ata.SECTOR)

    def _discard(self, data: bytes) -> None:
        for at in range(0, len(data) - 7, 8):
            entry = int.from_bytes(data[at : at + 8], "little")
            sector, count = entry & (1 << 48) - 1, entry >> 48
            if not count:
                continue
            if sector + count > self.sectors:
                return self.fail(ata.IDNF)
            try:
                self.image.discard(sector * ata.SECTOR, count * ata.SECTOR)
            except OSError as error:
                return self._failed("discard", error)
        if not self.left:
            self.done()

    # Settings.

    def _set_features(self) -> None:
        feature, value = self.now[ata.FEATURES], self.now[ata.COUNT]
        if feature in (WRITE_CACHE_ON, WRITE_CACHE_OFF):
            if feature == WRITE_CACHE_OFF and not self._flushed():
                return
            self.write_cache = feature == WRITE_CACHE_ON
        elif feature == TRANSFER_MODE and value in MODES:
            self.transfer_mode = value
        elif feature not in (LOOK_AHEAD_ON, LOOK_AHEAD_OFF, KEEP_SETTINGS, FORGET_SETTINGS):
            return self.fail()
        self.done()

    def _set_multiple(self, count: int) -> None:
        if count > identify.MOST_MULTIPLE or count & (count - 1):
            return self.fail()
        self.multiple = count
        self.done()

    def _initialize(self) -> None:
        if not self.now[ata.COUNT]:
            return self.fail()
        self.heads, self.per_track = (self.device & 0xF) + 1, self.now[ata.COUNT]
        self.done()

    def _smart(self, function: int) -> None:
        if (self.now[ata.LBA_MID], self.now[ata.LBA_HIGH]) != SMART_KEY:
            return self.fail()
        if function == SMART_ON:
            self.smart = True
        elif not self.smart:
            return self.fail()
        elif function == SMART_OFF:
            self.smart = False
        elif function in (SMART_DATA, SMART_THRESHOLDS, SMART_LOG):
            table = bytearray(512)
            table[0] = 1  # revision
            table[511] = -sum(table) & 0xFF
            return self.give(table)
        elif function not in (SMART_AUTOSAVE, SMART_OFFLINE, SMART_STATUS):
            return self.fail()
        self.done()  # after SMART_STATUS the key still stands there: no threshold is exceeded

    # State.

    def state(self) -> dict[str, Any]:
        return super().state() | {name: getattr(self, name) for name in _SETTINGS}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        for name in _SETTINGS:
            setattr(self, name, state[name])
