"""What a PC's firmware leaves behind for the system it starts: BIOS data, EBDA, ACPI and MP tables.

Written for every boot protocol, so that a kernel started without a BIOS finds the same tables.

    00400  BIOS data area: COM ports, EBDA segment, KiB of base memory
    9FC00  EBDA: its size, then the MP floating pointer
    E0000  ACPI tables, RSDP, MP configuration table
    EF000  firmware table (see `firmware`)
    F0000  BIOS, when one is used
"""

from __future__ import annotations

import struct

from kvmpy.boot import mptable
from kvmpy.boot.acpi import tables
from kvmpy.boot.hardware import Hardware
from kvmpy.boot.layout import BIOS, EBDA, Layout
from kvmpy.errors import ConfigError
from kvmpy.units import KIB

BDA = 0x400
FIRMWARE_TABLE = 0xEF000
FIRMWARE = 0xF0000


class _Cursor:
    """Hands out the bytes between BIOS and FIRMWARE_TABLE in order."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.at = BIOS

    def place(self, data: bytes, align: int) -> int:
        base = -(-self.at // align) * align
        if base + len(data) > FIRMWARE_TABLE:
            raise ConfigError("so many vCPUs that their ACPI tables do not fit below 1 MiB")
        self.layout.memory.write(base, data)
        self.at = base + len(data)
        return base


def install(layout: Layout, hardware: Hardware) -> int:
    """Writes all of it as far as RAM reaches; returns the RSDP's address, 0 when RAM ends below 1 MiB."""
    memory = layout.memory
    if layout.in_ram(BDA, 0x100):
        ports = [port for port, _ in hardware.com_ports[:4]]
        memory.write(BDA, struct.pack("<4H", *ports, *[0] * (4 - len(ports))))
        # Equipment: FPU, 80x25 colour, number of serial ports.
        memory.write(BDA + 0x10, struct.pack("<HBH", 0x0022 | len(ports) << 9, 0, EBDA // KIB))
        memory.write(BDA + 0x0E, struct.pack("<H", EBDA >> 4))
    if not layout.in_ram(BIOS, FIRMWARE - BIOS):
        return 0
    cursor = _Cursor(layout)
    pointer = tables.build(hardware, cursor.place)
    config = cursor.place(mptable.config_table(hardware), 16)
    memory.write(EBDA, b"\x01".ljust(16, b"\0") + mptable.floating_pointer(config))
    return pointer
