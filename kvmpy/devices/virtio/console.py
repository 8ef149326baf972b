"""virtio-console (virtio 1.2 §5.3) with its one port on a character end."""

from __future__ import annotations

import struct
from typing import Any

from kvmpy.devices.chars import CharEnd
from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.devices.virtio.queue import Chain

RECEIVE, TRANSMIT = 0, 1
QUEUE_SIZE = 128

# Features.
SIZE = 1 << 0
EMERGENCY_WRITE = 1 << 2

EMERGENCY = 8  # offset of emerg_wr
CONFIG = struct.Struct("<HHII")  # columns, rows, ports (only with several), emergency write

PIECE = 1 << 16
"""Bytes of output copied at a time."""
MOST_WAITING = 1 << 16
"""Bytes of input kept for a driver that gives no buffers; what comes beyond is dropped, with an event."""


class VirtioConsole(VirtioDevice):
    """Port 0: output to `end`, input from it. `resize` tells the guest the size of its screen."""

    name = "virtio-console"
    device_type = 3
    pci_class = 0x078000
    features = SIZE | EMERGENCY_WRITE

    def __init__(self, end: CharEnd, columns: int = 80, rows: int = 25) -> None:
        super().__init__([QUEUE_SIZE, QUEUE_SIZE], CONFIG.pack(columns, rows, 1, 0))
        self.end = end
        self._input = bytearray()

    def connected(self) -> None:
        self.end.attach(lambda data: self.platform.call(lambda: self.receive(data)))

    def receive(self, data: bytes) -> None:
        """Input for the guest; under the machine's lock."""
        room = MOST_WAITING - len(self._input)
        if len(data) > room:
            self.event("input dropped", bytes=len(data) - room)
        self._input += data[:room]
        self._deliver()

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has a new size; under the machine's lock."""
        self.config_changed(0, struct.pack("<HH", columns, rows))

    def write_config(self, offset: int, size: int, value: int) -> None:
        """One character, before any queue works (§5.3.4)."""
        if offset == EMERGENCY and size in (1, 2, 4):
            self.end.write(bytes([value & 0xFF]))

    def started(self) -> None:
        self._deliver()

    def queue_notify(self, index: int) -> None:
        if index == TRANSMIT:
            self.serve(TRANSMIT, self._transmit)
        else:
            self._fill()

    def _transmit(self, chain: Chain) -> int:
        for view in chain.readable:
            for at in range(0, len(view), PIECE):
                self.end.write(bytes(view[at : at + PIECE]))
        return 0

    def _deliver(self) -> None:
        if self.running and self.queues[RECEIVE].ready:
            self.guard(self._fill)

    def _fill(self) -> None:
        queue = self.queues[RECEIVE]
        while self._input and (chain := queue.pop()) is not None:
            count = chain.write(bytes(self._input[: chain.write_size]))
            del self._input[:count]
            queue.push(chain, count)
        queue.set_notify(bool(self._input))
        # A buffer may have come between the last look and the request to notify.
        if self._input and (chain := queue.pop()) is not None:
            queue.unpop(chain)
            self._fill()
        self.interrupt(RECEIVE)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "input": bytes(self._input)}

    def restore(self, state: dict[str, Any]) -> None:
        self._input[:] = state["input"]
        super().restore(state)

    def close(self) -> None:
        self.end.close()
