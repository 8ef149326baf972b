"""Configuration space by both ways, BARs that move, MSI and MSI-X."""

from __future__ import annotations

from functools import partial
from typing import Any

from kvmpy.devices.pci.bridges import HostBridge, IsaBridge
from kvmpy.devices.pci.device import PciDevice
from kvmpy.devices.pci.host import ECAM_BASE
from tests.fuzz.ops import Input
from tests.fuzz.world import World, drive


class Function(PciDevice):
    """A function with every kind of BAR, and with MSI or MSI-X."""

    vendor_id, device_id = 0x1234, 1

    def __init__(self, name: str, msix: bool) -> None:
        self.name = name
        super().__init__()
        self.cells = bytearray(16)
        self.add_bar(0, 0x1000, self.get, self.put)
        self.add_bar(1, 32, self.get, self.put, io=True)
        self.add_bar(2, 0x4000, self.get, self.put, wide=True)
        if msix:
            self.add_msix(5, 4)
        else:
            self.add_msi(4)

    def get(self, offset: int, size: int) -> int:
        return int.from_bytes((self.cells * 2)[offset % 16 :][:size], "little")

    def put(self, offset: int, size: int, value: int) -> None:
        self.cells[offset % 16] = value & 0xFF
        if offset & 16:
            self.set_interrupt(value & 1)
        elif offset & 32:
            self.signal(value & 7)

    def reset(self) -> None:
        super().reset()
        self.cells[:] = bytes(16)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "cells": bytes(self.cells)}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.cells[:] = state["cells"]


class PciWorld(World):
    def build(self) -> None:
        self.plug(HostBridge(), IsaBridge(), Function("one", True), Function("two", False))

    def special(self, source: Input) -> tuple[Any, ...]:
        """A configuration access that hits a function."""
        what = source.byte()
        size = (1, 2, 4, 4)[what & 3]
        where, offset = (what >> 2 & 3) << 15, source.byte()
        if what & 0x40:
            return "read", False, ECAM_BASE + where + offset, size
        return "write", False, ECAM_BASE + where + offset, size, source.value(size)

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "signal", source.byte(), source.byte()

    def signal(self, which: int, vector: int) -> None:
        self.devices[3 + (which & 1)].signal(vector & 7)


RUN = {"pci": partial(drive, PciWorld)}
