"""What an ATA disk and a packet device share: registers, the data port, DMA's side of a transfer, resets.

A command runs to its end at once, except where it waits for the guest: to read a block from the data port (IN), to write one
(OUT), or for the bus master (DMA_IN, DMA_OUT).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvmpy.devices.ata import registers as ata
from kvmpy.devices.blockend import BlockEnd

IDLE, IN, OUT, DMA_IN, DMA_OUT = "idle", "in", "out", "dma in", "dma out"

Warn = Callable[[str, OSError], None]

_PLAIN = ("_phase", "_at", "offset", "left", "block", "command_code", "status", "error", "device", "intrq", "transfer_mode")


class Drive:
    """One device on a channel. `changed` is called when the interrupt or the DMA request has changed."""

    signature = (0x01, 0x01, 0x00, 0x00)
    """Count, LBA low, mid, high after a reset."""
    status_after_reset = ata.DRDY | ata.DSC
    whole_sectors = True
    """DMA moves multiples of 512 bytes."""

    def __init__(self, image: BlockEnd) -> None:
        self.image = image
        self.changed: Callable[[], None] = lambda: None
        self.warn: Warn = lambda what, error: None
        self.event: Callable[..., None] = lambda what, **payload: None
        self.now = [0] * 6
        self.before = [0] * 6
        """The registers' values before the last write, for commands of 48 bits."""
        self.transfer_mode = 0
        self.power_on()

    def power_on(self) -> None:
        """Everything forgotten."""
        self.transfer_mode = 0
        self.reset()

    def reset(self) -> None:
        """After a software reset or a diagnostic: the signature says what kind of device this is."""
        self.now[:] = [0, 0, *self.signature]
        self.before[:] = [0] * 6
        self.device = 0
        self.status = self.status_after_reset
        self.error = ata.PASSED
        self.intrq = False
        self.command_code = 0
        self.go_idle()

    def go_idle(self) -> None:
        """No transfer."""
        self._phase = IDLE
        self._buffer = bytearray()
        self._at = 0
        self.offset = self.left = self.block = 0

    # Registers.

    def get(self, number: int, previous: bool) -> int:
        """A register of the command block but data, device and status."""
        if number == ata.ERROR:
            return self.error
        return (self.before if previous else self.now)[number]

    def put(self, number: int, value: int) -> None:
        """Likewise."""
        if not self.status & ata.BSY:
            self.before[number], self.now[number] = self.now[number], value

    def command(self, code: int) -> None:
        """A write of the command register."""
        self.intrq = False
        self.error = 0
        self.go_idle()
        self.command_code = code
        self.start(code)
        self.changed()

    def start(self, code: int) -> None:
        """Carries a command out, or begins to."""
        raise AssertionError

    # Ends of commands.

    def done(self) -> None:
        """The command has succeeded."""
        self.go_idle()
        self.status = ata.DRDY | ata.DSC
        self.interrupt()

    def fail(self, error: int = ata.ABRT, status: int = 0) -> None:
        """The command has failed."""
        self.go_idle()
        self.error = error
        self.status = ata.DRDY | ata.DSC | ata.ERR | status
        self.interrupt()

    def interrupt(self) -> None:
        """Requests an interrupt."""
        self.intrq = True
        self.changed()

    # Data port.

    def give(self, data: bytes | bytearray, *, interrupt: bool = True) -> None:
        """The guest shall read this from the data port."""
        self._phase = IN
        self._buffer = bytearray(data)
        self._at = 0
        self.status = ata.DRDY | ata.DSC | ata.DRQ
        if interrupt:
            self.interrupt()

    def take(self, length: int, *, interrupt: bool) -> None:
        """The guest shall write so much to the data port."""
        self._phase = OUT
        self._buffer = bytearray(length)
        self._at = 0
        self.status = ata.DRDY | ata.DSC | ata.DRQ
        if interrupt:
            self.interrupt()

    def read_data(self, size: int) -> int:
        """A read of the data port; without a transfer the bus floats at zero."""
        if self._phase != IN:
            return 0
        piece = self._buffer[self._at : self._at + size]
        self._at += size
        if self._at >= len(self._buffer):
            self._phase = IDLE
            self.was_read()
        return int.from_bytes(piece, "little")

    def write_data(self, size: int, value: int) -> None:
        """A write of the data port."""
        if self._phase != OUT:
            return
        end = min(self._at + size, len(self._buffer))
        self._buffer[self._at : end] = value.to_bytes(size, "little")[: end - self._at]
        self._at = end
        if end == len(self._buffer):
            self._phase = IDLE
            self.was_written(self._buffer)

    def was_read(self) -> None:
        """The guest has read all that was given."""
        raise AssertionError

    def was_written(self, data: bytearray) -> None:
        """The guest has written all that was to be taken."""
        raise AssertionError

    # DMA.

    def want_dma(self, to_memory: bool, length: int) -> None:
        """The rest is the bus master's."""
        self._phase = DMA_IN if to_memory else DMA_OUT
        self.left = length
        self.status = ata.DRDY | ata.DSC | ata.DRQ
        self.changed()

    @property
    def dma_wanted(self) -> int:
        """Bytes that the drive waits to transfer by DMA; 0 for none."""
        return self.left if self._phase in (DMA_IN, DMA_OUT) else 0

    @property
    def dma_to_memory(self) -> bool:
        """Direction of that."""
        return self._phase == DMA_IN

    def dma(self, views: Sequence[memoryview], length: int) -> None:
        """Moves the next `length` bytes, at most those wanted, between the drive and guest memory."""
        raise AssertionError

    def dma_failed(self) -> None:
        """The bus master could not reach memory."""
        self.fail(ata.ICRC | ata.ABRT)

    # State.

    def state(self) -> dict[str, Any]:
        """As plain data, transfers under way included."""
        state = {name.lstrip("_"): getattr(self, name) for name in _PLAIN}
        return state | {"now": list(self.now), "before": list(self.before), "buffer": bytes(self._buffer)}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave."""
        for name in _PLAIN:
            setattr(self, name, state[name.lstrip("_")])
        self.now[:] = state["now"]
        self.before[:] = state["before"]
        self._buffer = bytearray(state["buffer"])
