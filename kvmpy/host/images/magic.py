"""Formats of disk images by their first bytes (or last ones)."""

from __future__ import annotations

import os

QCOW2 = b"QFI\xfb"

# Offset, magic, name. Those at the start decide whether a guest's write to the first sector is let through.
_AT_START = (
    (0, QCOW2, "qcow2"), (0, b"KDMV", "vmdk"), (0, b"COWD", "vmdk"), (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"conectix", "vhd"), (0, b"vhdxfile", "vhdx"), (0x40, b"\x7f\x10\xda\xbe", "vdi"), (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"), (0, b"WithouFreSpacExt", "parallels"), (0, b"LUKS\xba\xbe", "luks"),
)


def recognise(first: bytes) -> str:
    """Name of the format that a file with this first sector has; "" for none of those known."""
    for offset, magic, name in _AT_START:
        if first[offset : offset + len(magic)] == magic:
            return name
    return ""


def recognise_last(last: bytes) -> str:
    """The same by the last 512 bytes: a fixed VHD has its footer there."""
    return "vhd" if last[:8] == b"conectix" else ""


def is_qcow2(path: str | os.PathLike[str]) -> bool:
    """True for a file that begins as qcow2 does; False too when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == QCOW2
    except (OSError, ValueError):
        return False
