"""virtio over MMIO, version 2 (virtio 1.2 §4.2): 512 bytes of registers and one interrupt line."""

from __future__ import annotations

from typing import Any

from kvmpy.devices.base import Device, Platform
from kvmpy.devices.virtio.device import FEATURES_OK, NEEDS_RESET, VirtioDevice
from kvmpy.devices.virtio.doorbells import QueueDoorbells
from kvmpy.devices.virtio.queue import Queue
from kvmpy.irq import Line

SIZE = 0x200

MAGIC, VERSION, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
DEVICE_FEATURES, DEVICE_FEATURES_SEL = 0x010, 0x014
DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x020, 0x024
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY = 0x030, 0x034, 0x038, 0x044
QUEUE_NOTIFY = 0x050
INTERRUPT_STATUS, INTERRUPT_ACK = 0x060, 0x064
STATUS = 0x070
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x080, 0x090, 0x0A0  # low half, high half 4 bytes on
SHM_SEL, SHM_LEN, SHM_BASE = 0x0AC, 0x0B0, 0x0B8
CONFIG_GENERATION = 0x0FC
CONFIG = 0x100

MAGIC_VALUE = 0x74726976  # "virt"
VENDOR = 0x59504D4B  # "KMPY"

USED_BUFFER, CONFIG_CHANGE = 1, 2  # interrupt status

_ADDRESSES = {
    QUEUE_DESC: ("descriptors", 0), QUEUE_DESC + 4: ("descriptors", 32),
    QUEUE_DRIVER: ("available", 0), QUEUE_DRIVER + 4: ("available", 32),
    QUEUE_DEVICE: ("used", 0), QUEUE_DEVICE + 4: ("used", 32),
}


class VirtioMmio(Device):
    """Carries one virtio device at a fixed address. The line is a level, high while the interrupt status is not 0."""

    def __init__(self, device: VirtioDevice, base: int, line: Line) -> None:
        self.device = device
        self.name = device.name
        self.mmio = base, SIZE
        self.base = base
        self.line = line
        self._doorbells = QueueDoorbells(device, 4, lambda queue: (self.doorbell, queue))
        self._forget()

    def _forget(self) -> None:
        self._device_sel = self._driver_sel = self._queue_sel = 0
        self._interrupt = 0

    def connect(self, platform: Platform) -> None:
        super().connect(platform)
        self._doorbells.connect(platform)
        self.device.connect(platform, self, self)

    @property
    def doorbell(self) -> int:
        """Address to which the driver writes a queue's number (32 bits)."""
        return self.base + QUEUE_NOTIFY

    # Registers. All but the configuration are 32 bits wide and accessed so (§4.2.2.2).

    def read(self, offset: int, size: int) -> int:
        device = self.device
        if offset >= CONFIG:
            return device.read_config(offset - CONFIG, size)
        if size != 4 or offset % 4:
            return 0
        if offset == INTERRUPT_STATUS:
            return self._interrupt
        if offset == STATUS:
            return device.status
        if offset == MAGIC:
            return MAGIC_VALUE
        if offset == VERSION:
            return 2
        if offset == DEVICE_ID:
            return device.device_type
        if offset == VENDOR_ID:
            return VENDOR
        if offset == DEVICE_FEATURES:
            return device.offered >> 32 * self._device_sel & 0xFFFFFFFF if self._device_sel < 2 else 0
        if offset == CONFIG_GENERATION:
            return device.generation & 0xFFFFFFFF
        if SHM_LEN <= offset < SHM_BASE + 8:
            return 0xFFFFFFFF  # no shared memory: length and base are -1 (§4.2.2.1)
        queue = self._queue()
        if queue is not None:
            if offset == QUEUE_NUM_MAX:
                return queue.most
            if offset == QUEUE_READY:
                return int(queue.ready)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        device = self.device
        if offset >= CONFIG:
            device.write_config(offset - CONFIG, size, value)
            return
        if size != 4 or offset % 4:
            return
        if offset == QUEUE_NOTIFY:
            device.notify(value)
        elif offset == INTERRUPT_ACK:
            self._set_interrupt(self._interrupt & ~value)
        elif offset == STATUS:
            self._set_status(value & 0xFF)
        elif offset == DEVICE_FEATURES_SEL:
            self._device_sel = value
        elif offset == DRIVER_FEATURES_SEL:
            self._driver_sel = value
        elif offset == DRIVER_FEATURES:
            if self._driver_sel < 2:
                shift = 32 * self._driver_sel
                device.set_driver_features(device.driver_features & ~(0xFFFFFFFF << shift) | value << shift)
            elif value:
                device.set_driver_features(device.driver_features | 1 << 64)  # a bit that is offered by nobody: refused
        elif offset == QUEUE_SEL:
            self._queue_sel = value
        else:
            self._write_queue(offset, value)

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._forget()
            self.line.set(0)
        self.device.set_status(value)
        self._doorbells.update()

    def _queue(self) -> Queue | None:
        return self.device.queues[self._queue_sel] if self._queue_sel < len(self.device.queues) else None

    def _write_queue(self, offset: int, value: int) -> None:
        queue = self._queue()
        if queue is None:
            return
        if offset == QUEUE_READY:
            if not value & 1:
                self.device.stop_queue(self._queue_sel)
            elif self.device.status & (FEATURES_OK | NEEDS_RESET) == FEATURES_OK:
                self.device.enable_queue(self._queue_sel)
            self._doorbells.update()
        elif queue.ready:
            return  # neither size nor addresses change while the queue is live (§4.2.2.2)
        elif offset == QUEUE_NUM:
            queue.size = value
        elif offset in _ADDRESSES:
            name, shift = _ADDRESSES[offset]
            setattr(queue, name, getattr(queue, name) & ~(0xFFFFFFFF << shift) | value << shift)

    # Interrupts.

    def _set_interrupt(self, status: int) -> None:
        self._interrupt = status
        # Dropping the line first gives a guest that has it as an edge a new edge for what it did not acknowledge.
        self.line.set(0)
        self.line.set(bool(status))

    def queue_interrupt(self, index: int) -> None:
        self._set_interrupt(self._interrupt | USED_BUFFER)

    def config_interrupt(self) -> None:
        self._set_interrupt(self._interrupt | CONFIG_CHANGE)

    # State.

    def reset(self) -> None:
        self._forget()
        self.line.set(0)
        self.device.reset()
        self._doorbells.update()

    def state(self) -> dict[str, Any]:
        return {
            "device_sel": self._device_sel, "driver_sel": self._driver_sel, "queue_sel": self._queue_sel, "interrupt": self._interrupt,
            "device": self.device.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._device_sel, self._driver_sel = state["device_sel"], state["driver_sel"]
        self._queue_sel, self._interrupt = state["queue_sel"], state["interrupt"]
        self.line.set(bool(self._interrupt))
        self.device.restore(state["device"])
        self._doorbells.update()

    def close(self) -> None:
        self.device.close()
