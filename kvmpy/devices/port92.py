"""System control port A (0x92) of the PS/2, and the A20 gate that it shares with the keyboard controller.

The gate starts open, as a BIOS leaves it. No backend masks address line 20: code that closes the gate reads back that it is closed,
but addresses do not wrap at 1 MiB.
"""

from __future__ import annotations

from typing import Any

from kvmpy.devices.bytewise import ByteDevice
from kvmpy.verdicts import Reset

FAST_RESET = 0x01  # a rising edge resets
A20 = 0x02


class A20Gate:
    """One latch with two writers, this port and the keyboard controller's output port: the last write counts."""

    def __init__(self) -> None:
        self.enabled = True


class Port92(ByteDevice):
    """Bit 1 is the A20 gate, bit 0 resets the machine when it rises; the other bits are kept."""

    name = "port 0x92"
    ports = 0x92, 1

    def __init__(self, a20: A20Gate | None = None) -> None:
        self.a20 = a20 or A20Gate()
        self._value = 0

    def read_byte(self, offset: int) -> int:
        return self._value | (A20 if self.a20.enabled else 0)

    def write_byte(self, offset: int, value: int) -> None:
        reset = value & ~self._value & FAST_RESET
        self.a20.enabled = bool(value & A20)
        self._value = value & ~A20
        if reset:
            self.platform.stop(Reset(self.name))

    def reset(self) -> None:
        self._value = 0
        self.a20.enabled = True

    def state(self) -> dict[str, Any]:
        return {"value": self._value, "a20": self.a20.enabled}

    def restore(self, state: dict[str, Any]) -> None:
        self._value = state["value"]
        self.a20.enabled = state["a20"]
