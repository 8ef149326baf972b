"""Debug console at port 0xE9, as Bochs has it: every byte written is output, a read tells that the port is there."""

from __future__ import annotations

from kvmpy.devices.bytewise import ByteDevice
from kvmpy.devices.chars import CharEnd, NullEnd

PRESENT = 0xE9
"""What a read gives."""


class DebugConsole(ByteDevice):
    """Output only; wider writes give their bytes lowest first."""

    name = "debug console"

    def __init__(self, host: CharEnd | None = None, port: int = 0xE9) -> None:
        self.ports = port, 1
        self.host: CharEnd = host or NullEnd()

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(bytes((PRESENT,)) * size, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.host.write((value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def close(self) -> None:
        self.host.close()
