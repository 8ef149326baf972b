"""IDENTIFY DEVICE and IDENTIFY PACKET DEVICE: 256 words (ATA/ATAPI-7 volume 1, 6.17 and 6.18)."""

from __future__ import annotations

import struct

MODEL = "kvmpy disk"
MODEL_CD = "kvmpy CD-ROM"
FIRMWARE = "1.0"
MOST_MULTIPLE = 16
MOST_28 = (1 << 28) - 1

# Transfer modes, as SET FEATURES 03h takes them.
MULTIWORD, ULTRA = 0x20, 0x40


def text(value: str, length: int) -> bytes:
    """ASCII, padded with blanks, the first letter in the high half of each word."""
    raw = value.encode("ascii", "replace")[:length].ljust(length)
    return bytes(raw[at ^ 1] for at in range(length))


def geometry(sectors: int) -> tuple[int, int, int]:
    """The default translation: (cylinders, heads, sectors per track)."""
    return max(1, min(16383, sectors // (16 * 63))), 16, 63


class Words:
    """The 512 bytes."""

    def __init__(self) -> None:
        self.data = bytearray(512)

    def __setitem__(self, index: int, value: int) -> None:
        struct.pack_into("<H", self.data, 2 * index, value)

    def text(self, index: int, value: str, length: int) -> None:
        """A string from a word on."""
        self.data[2 * index : 2 * index + length] = text(value, length)

    def number(self, index: int, value: int, words: int) -> None:
        """A number of several words, the low one first."""
        self.data[2 * index : 2 * (index + words)] = value.to_bytes(2 * words, "little")

    def sealed(self) -> bytes:
        """With the checksum."""
        self.data[510] = 0xA5
        self.data[511] = -sum(self.data[:511]) & 0xFF
        return bytes(self.data)


def _modes(words: Words, mode: int) -> None:
    words[49] = 0x0F00  # IORDY, LBA, DMA
    words[53] = 0x0007
    words[63] = 0x0007 | (1 << 8 + (mode & 7) if mode & 0xF8 == MULTIWORD else 0)
    words[64] = 0x0003
    for index in (65, 66, 67, 68):
        words[index] = 120
    words[80] = 0x00F0  # ATA/ATAPI-4 to 7
    words[88] = 0x003F | (1 << 8 + (mode & 7) if mode & 0xF8 == ULTRA else 0)


def disk(
    sectors: int, serial: str, mode: int, multiple: int, current: tuple[int, int], write_cache: bool, smart: bool,
) -> bytes:
    """`current` are heads and sectors per track as INITIALIZE DEVICE PARAMETERS set them."""
    words = Words()
    cylinders, heads, per_track = geometry(sectors)
    words[0] = 0x0040
    words[1], words[3], words[6] = cylinders, heads, per_track
    words.text(10, serial, 20)
    words.text(23, FIRMWARE, 8)
    words.text(27, MODEL, 40)
    words[47] = 0x8000 | MOST_MULTIPLE
    words[50] = 0x4000
    words[51] = 0x0200
    heads, per_track = current
    cylinders = min(65535, sectors // (heads * per_track))
    words[54], words[55], words[56] = cylinders, heads, per_track
    words.number(57, cylinders * heads * per_track, 2)
    words[59] = 0x0100 | multiple if multiple else 0
    words.number(60, min(sectors, MOST_28), 2)
    _modes(words, mode)
    words[82] = 0x4029  # NOP, write cache, power management, SMART
    words[83] = 0x7400  # FLUSH CACHE EXT, FLUSH CACHE, 48 bits
    words[84] = 0x4042  # WRITE FUA EXT, SMART self-test
    words[85] = 0x4008 | (0x20 if write_cache else 0) | smart
    words[86] = 0x3400
    words[87] = 0x4042
    words[93] = 0x600B  # 80-wire cable, device 0 found by its jumper
    words.number(100, sectors, 4)
    words[169] = 0x0001  # TRIM
    words[217] = 0x0001  # no spindle
    return words.sealed()


def cdrom(serial: str, mode: int) -> bytes:
    """A CD-ROM drive with packets of 12 bytes, whose DRQ comes within 50 us."""
    words = Words()
    words[0] = 0x85C0
    words.text(10, serial, 20)
    words.text(23, FIRMWARE, 8)
    words.text(27, MODEL_CD, 40)
    _modes(words, mode)
    words[82] = 0x4210  # NOP, DEVICE RESET, packets
    words[83] = 0x4000
    words[84] = 0x4000
    words[85] = 0x4210
    words[87] = 0x4000
    words[93] = 0x600B
    return words.sealed()
