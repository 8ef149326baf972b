"""Debug exit at port 0xF4: the value that the guest writes is how it ended.

The value is taken as it is: a guest that writes 0 succeeded. A process can pass on only its low 8 bits as exit status.
"""

from __future__ import annotations

from kvmpy.devices.base import Device
from kvmpy.verdicts import GuestExit


class DebugExit(Device):
    """A write of 1, 2 or 4 bytes at the first port ends the run with GuestExit(value); at the others it is ignored."""

    name = "debug exit"

    def __init__(self, port: int = 0xF4) -> None:
        self.ports = port, 4

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.platform.stop(GuestExit(value & (1 << 8 * size) - 1))
        else:
            self.platform.event(self, "write ignored", offset=offset, value=value)
