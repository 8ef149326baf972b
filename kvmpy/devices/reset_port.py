"""Reset control register of the PIIX and ICH south bridges, port 0xCF9; also the FADT's RESET_REG (value 0x06)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvmpy.devices.base import Range
from kvmpy.devices.bytewise import ByteDevice
from kvmpy.verdicts import Reset

SYSTEM_RESET = 0x02  # hard instead of soft
RESET_CPU = 0x04  # a rising edge resets
FULL_RESET = 0x08  # with a power cycle


class ResetPort(ByteDevice):
    """Hard, soft and full resets are the same to the machine."""

    name = "port 0xcf9"
    ports: Range | Sequence[Range] = (0xCF9, 1)

    def __init__(self) -> None:
        self._value = 0

    def read_byte(self, offset: int) -> int:
        return self._value

    def write_byte(self, offset: int, value: int) -> None:
        rising = value & ~self._value & RESET_CPU
        self._value = value & (SYSTEM_RESET | RESET_CPU | FULL_RESET)
        if rising:
            self.platform.stop(Reset(self.name))

    def reset(self) -> None:
        self._value = 0

    def state(self) -> dict[str, Any]:
        return {"value": self._value}

    def restore(self, state: dict[str, Any]) -> None:
        self._value = state["value"]
