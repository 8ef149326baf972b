"""The commands of a CD-ROM drive (SPC-3, MMC-5), apart from how packets come to it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvmpy.devices.blockend import BlockEnd

BLOCK = 2048
LEAD_IN = 150
"""Frames from the start of the disc to the first block."""

# Operation codes
TEST_UNIT_READY, REQUEST_SENSE, INQUIRY, START_STOP, PREVENT_REMOVAL = 0x00, 0x03, 0x12, 0x1B, 0x1E
READ_CAPACITY, READ_10, SEEK_10, READ_TOC, GET_CONFIGURATION, GET_EVENT = 0x25, 0x28, 0x2B, 0x43, 0x46, 0x4A
READ_DISC_INFORMATION, MODE_SENSE_6, MODE_SENSE_10, READ_12, MECHANISM_STATUS = 0x51, 0x1A, 0x5A, 0xA8, 0xBD

# Sense: key, additional code, qualifier
NO_SENSE = (0x00, 0x00, 0x00)
NO_MEDIUM = (0x02, 0x3A, 0x00)
MEDIUM_ERROR = 0x03
READ_ERROR = (MEDIUM_ERROR, 0x11, 0x00)
INVALID_COMMAND = (0x05, 0x20, 0x00)
OUT_OF_RANGE = (0x05, 0x21, 0x00)
INVALID_FIELD = (0x05, 0x24, 0x00)
UNIT_ATTENTION = 0x06
MEDIUM_CHANGED = (UNIT_ATTENTION, 0x28, 0x00)
POWERED_ON = (UNIT_ATTENTION, 0x29, 0x00)
SAVING_UNSUPPORTED = (0x05, 0x39, 0x00)

PROFILE_CD, PROFILE_DVD = 0x0008, 0x0010
LARGEST_CD = 449850 * BLOCK
"""Bytes on a disc of 100 minutes; a larger image is a DVD."""


@dataclass(frozen=True)
class Blocks:
    """A reply that is a part of the image."""

    offset: int
    length: int


Reply = bytes | Blocks | None
"""None: CHECK CONDITION, `Unit.sense` says why."""


class Check(Exception):
    """A command ends with CHECK CONDITION and this sense."""

    def __init__(self, sense: tuple[int, int, int]) -> None:
        super().__init__()
        self.sense = sense


class Unit:
    """The drive and its disc, which can be ejected and loaded again."""

    def __init__(self, image: BlockEnd) -> None:
        self.image = image
        self.blocks = -(-image.size // BLOCK)
        self.host_error: OSError | None = None
        self.power_on()

    def power_on(self) -> None:
        """Disc in, drive unlocked; the first command is told of the reset."""
        self.sense = NO_SENSE
        self._attention: tuple[int, int, int] | None = POWERED_ON
        self.loaded = True
        self.locked = False
        self._event = False  # new media, not yet told

    def command(self, packet: bytes) -> Reply:
        """One command of 12 bytes."""
        try:
            return self._command(packet)
        except Check as check:
            self.sense = check.sense
            return None

    def _command(self, packet: bytes) -> Reply:
        code = packet[0]
        handler = _HANDLERS.get(code)
        # A pending attention is told by whatever comes first, but for those that never fail so (SPC-3 4.5.3, MMC-5 4.1.6.1).
        if self._attention is not None and code not in (INQUIRY, REQUEST_SENSE, GET_CONFIGURATION, GET_EVENT):
            attention, self._attention = self._attention, None
            raise Check(attention)
        if handler is None:
            raise Check(INVALID_COMMAND)
        if code in _NEED_DISC and not self.loaded:
            raise Check(NO_MEDIUM)
        if code != REQUEST_SENSE:
            self.sense = NO_SENSE
        return handler(self, packet)

    def read(self, offset: int, views: Sequence[memoryview]) -> bool:
        """Fills the views from the disc; a last block that the image has only a part of ends in zeroes."""
        try:
            length = sum(map(len, views))
            inside = max(0, min(length, self.image.size - offset))
            if inside == length:
                whole = offset % 512 == 0 and length % 512 == 0
                if whole:
                    self.image.read_into(offset, views)
                    return True
            start = offset // 512 * 512
            end = min(-(-(offset + inside) // 512) * 512, self.image.size)
            data = bytearray(max(end - start, 0))
            if data:
                self.image.read_into(start, [memoryview(data)])
            piece = memoryview(bytes(data[offset - start : offset - start + inside]) + bytes(length - inside))
            for view in views:
                view[:] = piece[: len(view)]
                piece = piece[len(view) :]
        except OSError as error:
            self.host_error = error
            self.sense = READ_ERROR
            return False
        return True

    # Commands.

    def _nothing(self, packet: bytes) -> Reply:
        return b""

    def _request_sense(self, packet: bytes) -> Reply:
        if self._attention is not None:
            self.sense, self._attention = self._attention, None
        key, code, qualifier = self.sense
        self.sense = NO_SENSE
        return struct.pack(">BBBIB4xBB4x", 0x70, 0, key, 0, 10, code, qualifier)[: packet[4]]

    def _inquiry(self, packet: bytes) -> Reply:
        if packet[1] & 1 or packet[2]:
            raise Check(INVALID_FIELD)
        data = bytes((0x05, 0x80, 0x05, 0x32, 31, 0, 0, 0)) + b"kvmpy   " + b"CD-ROM          " + b"1.0 "
        return data[: packet[4]]

    def _start_stop(self, packet: bytes) -> Reply:
        if packet[4] & 2:
            load = bool(packet[4] & 1)
            if not load and self.locked:
                raise Check((0x05, 0x53, 0x02))
            if load and not self.loaded:
                self._attention = MEDIUM_CHANGED
                self._event = True
            self.loaded = load
        return b""

    def _prevent(self, packet: bytes) -> Reply:
        self.locked = bool(packet[4] & 1)
        return b""

    def _read_capacity(self, packet: bytes) -> Reply:
        return struct.pack(">II", self.blocks - 1, BLOCK)

    def _read_10(self, packet: bytes) -> Reply:
        lba, count = struct.unpack_from(">I", packet, 2)[0], struct.unpack_from(">H", packet, 7)[0]
        return self._blocks(lba, count)

    def _read_12(self, packet: bytes) -> Reply:
        lba, count = struct.unpack_from(">II", packet, 2)
        return self._blocks(lba, count)

    def _blocks(self, lba: int, count: int) -> Reply:
        if lba + count > self.blocks:
            raise Check(OUT_OF_RANGE)
        return Blocks(lba * BLOCK, count * BLOCK)

    def _read_toc(self, packet: bytes) -> Reply:
        in_time = bool(packet[1] & 2)
        form = packet[2] & 0x0F or packet[9] >> 6
        (room,) = struct.unpack_from(">H", packet, 7)
        start, end = self._address(0, in_time), self._address(self.blocks, in_time)
        if form == 0:
            if packet[6] > 1 and packet[6] != 0xAA:
                raise Check(INVALID_FIELD)
            tracks = b"" if packet[6] == 0xAA else bytes((0, 0x14, 1, 0)) + start
            body = bytes((1, 1)) + tracks + bytes((0, 0x14, 0xAA, 0)) + end
        elif form == 1:
            body = bytes((1, 1, 0, 0x14, 1, 0)) + start
        elif form == 2:
            # Full TOC: first track, last track, lead-out, track 1; always in minutes, seconds, frames.
            points = ((0xA0, bytes((1, 0, 0))), (0xA1, bytes((1, 0, 0))), (0xA2, _time(self.blocks)), (1, _time(0)))
            body = bytes((1, 1)) + b"".join(bytes((1, 0x14, 0, point, 0, 0, 0, 0)) + place for point, place in points)
        else:
            raise Check(INVALID_FIELD)
        return (struct.pack(">H", len(body)) + body)[:room]

    @staticmethod
    def _address(block: int, in_time: bool) -> bytes:
        return b"\0" + _time(block) if in_time else struct.pack(">I", block)

    def _mode_sense_10(self, packet: bytes) -> Reply:
        (room,) = struct.unpack_from(">H", packet, 7)
        pages = self._pages(packet)
        return (struct.pack(">HB5x", len(pages) + 6, self._medium_type()) + pages)[:room]

    def _mode_sense_6(self, packet: bytes) -> Reply:
        pages = self._pages(packet)
        return (bytes((min(len(pages) + 3, 255), self._medium_type(), 0, 0)) + pages)[: packet[4]]

    def _medium_type(self) -> int:
        return 0x01 if self.loaded else 0x70

    def _pages(self, packet: bytes) -> bytes:
        if packet[2] >> 6 == 3:
            raise Check(SAVING_UNSUPPORTED)
        page = packet[2] & 0x3F
        changeable = packet[2] >> 6 == 1
        tray = 0x29 | self.locked << 1
        capabilities = struct.pack(">BBBBBBBBHHHHxxHxx", 0x2A, 0x14, 0x03, 0x00, 0x71, 0x00, tray, 0, 706, 2, 512, 706, 0)
        known = {
            0x01: bytes((0x01, 0x06, 0, 5, 0, 0, 0, 0)),  # error recovery
            0x0D: bytes((0x0D, 0x06, 0, 0x0D, 0, 60, 0, 75)),
            0x0E: bytes((0x0E, 0x0E, 4, 0, 0, 0, 0, 75, 1, 255, 2, 255, 0, 0, 0, 0)),  # audio
            0x2A: capabilities,
        }
        if page != 0x3F and page not in known:
            raise Check(INVALID_FIELD)
        found = list(known.values()) if page == 0x3F else [known[page]]
        if changeable:
            found = [each[:2] + bytes(len(each) - 2) for each in found]
        return b"".join(found)

    def _get_configuration(self, packet: bytes) -> Reply:
        kind = packet[1] & 3
        first, room = struct.unpack_from(">H", packet, 2)[0], struct.unpack_from(">H", packet, 7)[0]
        if kind == 3:
            raise Check(INVALID_FIELD)
        current = 0 if not self.loaded else PROFILE_DVD if self.image.size > LARGEST_CD else PROFILE_CD
        profiles = b"".join(struct.pack(">HBx", profile, profile == current) for profile in (PROFILE_DVD, PROFILE_CD))
        disc = int(self.loaded)
        features = (
            (0x0000, 0x03, profiles),
            (0x0001, 0x0B, struct.pack(">IB3x", 2, 0x01)),  # core, on ATAPI
            (0x0003, 0x03, bytes((0x29, 0, 0, 0))),  # tray that locks and ejects
            (0x0010, disc, struct.pack(">IHBx", BLOCK, 1, 0)),  # random reads
            (0x001E, disc and int(current == PROFILE_CD), bytes(4)),  # CD read
            (0x001F, disc and int(current == PROFILE_DVD), bytes(4)),  # DVD read
        )
        body = b""
        for code, flags, data in features:
            if (kind == 2 and code != first) or code < first or (kind == 1 and not flags & 1):
                continue
            body += struct.pack(">HBB", code, flags, len(data)) + data
        return (struct.pack(">IHH", len(body) + 4, 0, current) + body)[:room]

    def _get_event(self, packet: bytes) -> Reply:
        if not packet[1] & 1:
            raise Check(INVALID_FIELD)  # asynchronous operation
        (room,) = struct.unpack_from(">H", packet, 7)
        if not packet[4] & 0x10:
            return struct.pack(">HBB", 2, 0x80, 0x10)[:room]
        code = 2 if self._event and self.loaded else 0
        self._event = False
        return struct.pack(">HBBBBxx", 6, 0x04, 0x10, code, 0x02 if self.loaded else 0x01)[:room]

    def _disc_information(self, packet: bytes) -> Reply:
        (room,) = struct.unpack_from(">H", packet, 7)
        data = bytearray(34)
        struct.pack_into(">HB", data, 0, 32, 0x0E)  # finished disc, last session complete
        data[3:8] = bytes((1, 1, 1, 1, 0x20))
        data[16:24] = b"\xff" * 8
        return bytes(data[:room])

    def _mechanism_status(self, packet: bytes) -> Reply:
        (room,) = struct.unpack_from(">H", packet, 8)
        return bytes(8)[:room]

    # State.

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "sense": list(self.sense), "attention": None if self._attention is None else list(self._attention),
            "loaded": self.loaded, "locked": self.locked, "event": self._event,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave."""
        key, code, qualifier = state["sense"]
        self.sense = key, code, qualifier
        attention = state["attention"]
        self._attention = None if attention is None else (attention[0], attention[1], attention[2])
        self.loaded, self.locked, self._event = state["loaded"], state["locked"], state["event"]


def _time(block: int) -> bytes:
    """Minute, second, frame of a block."""
    frames = block + LEAD_IN
    return bytes((min(frames // (75 * 60), 255), frames // 75 % 60, frames % 75))


_HANDLERS: dict[int, Callable[[Unit, bytes], Reply]] = {
    TEST_UNIT_READY: Unit._nothing, REQUEST_SENSE: Unit._request_sense, INQUIRY: Unit._inquiry, START_STOP: Unit._start_stop,
    PREVENT_REMOVAL: Unit._prevent, READ_CAPACITY: Unit._read_capacity, READ_10: Unit._read_10, SEEK_10: Unit._nothing,
    READ_TOC: Unit._read_toc, GET_CONFIGURATION: Unit._get_configuration, GET_EVENT: Unit._get_event,
    READ_DISC_INFORMATION: Unit._disc_information, MODE_SENSE_6: Unit._mode_sense_6, MODE_SENSE_10: Unit._mode_sense_10,
    READ_12: Unit._read_12, MECHANISM_STATUS: Unit._mechanism_status,
}
_NEED_DISC = frozenset({TEST_UNIT_READY, READ_CAPACITY, READ_10, READ_12, SEEK_10, READ_TOC, READ_DISC_INFORMATION})
