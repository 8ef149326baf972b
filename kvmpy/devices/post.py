"""Diagnostic port 0x80: a BIOS shows its progress there, others write to it to pass a microsecond."""

from __future__ import annotations

from collections import deque
from typing import Any

from kvmpy.devices.bytewise import ByteDevice

KEPT = 16


class Post(ByteDevice):
    """`codes` holds the last 16 codes, newest last; a read gives the newest (the port is a latch of the DMA page registers)."""

    name = "POST"
    ports = 0x80, 1

    def __init__(self) -> None:
        self.codes: deque[int] = deque(maxlen=KEPT)

    def read_byte(self, offset: int) -> int:
        return self.codes[-1] if self.codes else 0

    def write_byte(self, offset: int, value: int) -> None:
        self.codes.append(value)

    def reset(self) -> None:
        self.codes.clear()

    def state(self) -> dict[str, Any]:
        return {"codes": list(self.codes)}

    def restore(self, state: dict[str, Any]) -> None:
        self.codes = deque(state["codes"], KEPT)
