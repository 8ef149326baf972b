"""virtio over PCI, modern interface (virtio 1.2 §4.1), without the legacy one.

BAR 0 holds the four structures, each on a page of its own; BAR 1 holds the MSI-X table.

    0x0000  common configuration
    0x1000  ISR status
    0x2000  device configuration
    0x3000  notification: queue n at 4 * n
"""

from __future__ import annotations

from typing import Any

from kvmpy.devices.base import Platform
from kvmpy.devices.pci.device import PciDevice
from kvmpy.devices.virtio.device import FEATURES_OK, NEEDS_RESET, VirtioDevice
from kvmpy.devices.virtio.doorbells import QueueDoorbells
from kvmpy.devices.virtio.queue import Queue

VENDOR = 0x1AF4
FIRST_ID = 0x1040

VENDOR_CAPABILITY = 0x09
COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5
COMMON_AT, ISR_AT, DEVICE_AT, NOTIFY_AT = 0x0000, 0x1000, 0x2000, 0x3000
BAR_SIZE = 0x4000
NOTIFY_STEP = 4

# Common configuration: offset, size.
DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0x00, 0x04, 0x08, 0x0C
CONFIG_VECTOR, NUM_QUEUES, STATUS, GENERATION = 0x10, 0x12, 0x14, 0x15
QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 0x16, 0x18, 0x1A, 0x1C, 0x1E
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30
COMMON_SIZE = 0x38

_FIELDS = {
    DEVICE_FEATURE_SELECT: 4, DEVICE_FEATURE: 4, DRIVER_FEATURE_SELECT: 4, DRIVER_FEATURE: 4, CONFIG_VECTOR: 2, NUM_QUEUES: 2,
    STATUS: 1, GENERATION: 1, QUEUE_SELECT: 2, QUEUE_SIZE: 2, QUEUE_VECTOR: 2, QUEUE_ENABLE: 2, QUEUE_NOTIFY_OFF: 2,
    **dict.fromkeys(range(QUEUE_DESC, COMMON_SIZE, 4), 4),
}
_FIELD_AT = {at + byte: (at, size) for at, size in _FIELDS.items() for byte in range(size)}
_ADDRESSES = {QUEUE_DESC: "descriptors", QUEUE_DRIVER: "available", QUEUE_DEVICE: "used"}

NO_VECTOR = 0xFFFF
ISR_QUEUE, ISR_CONFIG = 1, 2


class VirtioPci(PciDevice):
    """Carries one virtio device as a PCI function; a vector per queue and one for the configuration, or INTA#."""

    vendor_id = VENDOR
    subsystem_vendor_id = VENDOR
    revision = 1

    def __init__(self, device: VirtioDevice, slot: int | None = None, function: int = 0) -> None:
        self.device = device
        self.name = device.name
        self.device_id = FIRST_ID + device.device_type
        self.subsystem_id = FIRST_ID + device.device_type
        self.class_code = device.pci_class
        super().__init__(slot, function)
        self._doorbells = QueueDoorbells(device, 2, self._doorbell)
        self.bar = self.add_bar(0, BAR_SIZE, self._read, self._write)
        queues = len(device.queues)
        self.add_msix(queues + 1, 1)
        self._add_structure(COMMON_CFG, COMMON_AT, COMMON_SIZE)
        self._add_structure(ISR_CFG, ISR_AT, 1)
        self._add_structure(DEVICE_CFG, DEVICE_AT, 0x1000)
        self._add_structure(NOTIFY_CFG, NOTIFY_AT, NOTIFY_STEP * queues, NOTIFY_STEP)
        self._window = self._add_structure(PCI_CFG, 0, 0, 0)
        self.config.define(self._window + 4, 1, 0, writable=0xFF)
        self.config.define(self._window + 8, 8, 0, writable=(1 << 64) - 1)
        self._forget()

    def _add_structure(self, kind: int, offset: int, size: int, extra: int | None = None) -> int:
        """A virtio_pci_cap (§4.1.4): where a structure lies. `extra` is the notification multiplier, or the window's data."""
        length = 16 if extra is None else 20
        at = self.add_capability(VENDOR_CAPABILITY, length)
        self.config.define(at + 2, 2, length | kind << 8)
        self.config.define(at + 8, 8, offset | size << 32)
        if extra is not None:
            self.config.define(at + 16, 4, extra)
        return at

    def _forget(self) -> None:
        self._device_select = self._driver_select = self._queue_select = 0
        self._config_vector = NO_VECTOR
        self._vectors = [NO_VECTOR] * len(self.device.queues)
        self._isr = 0

    def connect(self, platform: Platform) -> None:
        super().connect(platform)
        self._doorbells.connect(platform)
        self.device.connect(platform, self, self)

    def doorbell(self, queue: int) -> int | None:
        """Address of a queue's notification register (any value, 16 bits); None while the BAR is not decoded."""
        return None if self.bar.mapped is None else self.bar.mapped + NOTIFY_AT + NOTIFY_STEP * queue

    def _doorbell(self, queue: int) -> tuple[int, None] | None:
        address = self.doorbell(queue) if self.bus_master else None
        return None if address is None else (address, None)

    def bars_moved(self) -> None:
        self._doorbells.update()

    # BAR 0.

    def _read(self, offset: int, size: int) -> int:
        if offset < ISR_AT:
            return self._read_common(offset, size)
        if offset < DEVICE_AT:
            return self._read_isr() if offset == ISR_AT else 0
        if offset < NOTIFY_AT:
            return self.device.read_config(offset - DEVICE_AT, size)
        return 0

    def _write(self, offset: int, size: int, value: int) -> None:
        if offset >= NOTIFY_AT:
            if not offset % NOTIFY_STEP and self.bus_master:
                self.device.notify((offset - NOTIFY_AT) // NOTIFY_STEP)
        elif offset >= DEVICE_AT:
            self.device.write_config(offset - DEVICE_AT, size, value)
        elif offset < COMMON_SIZE:
            self._write_common(offset, size, value)

    def _read_isr(self) -> int:
        """Reading clears it, and lets go of INTA# (§4.1.4.5)."""
        isr, self._isr = self._isr, 0
        self.set_interrupt(0)
        return isr

    # Common configuration. A driver accesses fields whole, 64-bit ones perhaps as two halves (§4.1.3.1); reads have no side effect,
    # so those of other widths see the bytes that stand there: there are drivers that read a 32-bit field in part (iPXE's).

    def _read_common(self, offset: int, size: int) -> int:
        if _FIELDS.get(offset) == size:
            return self._read_field(offset)
        value, at = 0, offset
        while at < offset + size and at in _FIELD_AT:
            start, length = _FIELD_AT[at]
            value |= self._read_field(start) >> 8 * (at - start) << 8 * (at - offset)
            at = start + length
        return value & (1 << 8 * size) - 1

    def _read_field(self, offset: int) -> int:
        device = self.device
        if offset == STATUS:
            return device.status
        if offset == DEVICE_FEATURE:
            return device.offered >> 32 * self._device_select & 0xFFFFFFFF if self._device_select < 2 else 0
        if offset == DRIVER_FEATURE:
            return device.driver_features >> 32 * self._driver_select & 0xFFFFFFFF if self._driver_select < 2 else 0
        fixed = {
            DEVICE_FEATURE_SELECT: self._device_select, DRIVER_FEATURE_SELECT: self._driver_select, CONFIG_VECTOR: self._config_vector,
            NUM_QUEUES: len(device.queues), GENERATION: device.generation & 0xFF, QUEUE_SELECT: self._queue_select,
        }
        if offset in fixed:
            return fixed[offset]
        queue = self._queue()
        if queue is None:
            return 0  # size 0: there is no such queue (§4.1.4.3)
        if offset == QUEUE_SIZE:
            return queue.size & 0xFFFF
        if offset == QUEUE_VECTOR:
            return self._vectors[self._queue_select]
        if offset == QUEUE_ENABLE:
            return int(queue.ready)
        if offset == QUEUE_NOTIFY_OFF:
            return self._queue_select
        return getattr(queue, _ADDRESSES[offset & ~4]) >> 8 * (offset & 4) & 0xFFFFFFFF

    def _write_common(self, offset: int, size: int, value: int) -> None:
        if size == 8 and offset % 8 == 0 and offset >= QUEUE_DESC:
            self._write_common(offset, 4, value & 0xFFFFFFFF)
            self._write_common(offset + 4, 4, value >> 32)
            return
        if _FIELDS.get(offset) != size:
            return
        device = self.device
        if offset == STATUS:
            if value == 0:
                self._forget()
                self.set_interrupt(0)
            device.set_status(value)
            self._doorbells.update()
        elif offset == DEVICE_FEATURE_SELECT:
            self._device_select = value
        elif offset == DRIVER_FEATURE_SELECT:
            self._driver_select = value
        elif offset == DRIVER_FEATURE:
            if self._driver_select < 2:
                shift = 32 * self._driver_select
                device.set_driver_features(device.driver_features & ~(0xFFFFFFFF << shift) | value << shift)
            elif value:
                device.set_driver_features(device.driver_features | 1 << 64)  # a bit that nobody offers: refused
        elif offset == CONFIG_VECTOR:
            self._config_vector = self._vector(value)
        elif offset == QUEUE_SELECT:
            self._queue_select = value
        else:
            self._write_queue(offset, value)

    def _vector(self, value: int) -> int:
        assert self.msix is not None
        return value if value < self.msix.vectors else NO_VECTOR

    def _queue(self) -> Queue | None:
        return self.device.queues[self._queue_select] if self._queue_select < len(self.device.queues) else None

    def _write_queue(self, offset: int, value: int) -> None:
        queue = self._queue()
        if queue is None:
            return
        if offset == QUEUE_VECTOR:
            self._vectors[self._queue_select] = self._vector(value)
        elif queue.ready:
            return  # a live queue does not change (§4.1.4.3.2); only a reset turns it off
        elif offset == QUEUE_ENABLE:
            if value == 1 and self.device.status & (FEATURES_OK | NEEDS_RESET) == FEATURES_OK:
                self.device.enable_queue(self._queue_select)
                self._doorbells.update()
        elif offset == QUEUE_SIZE:
            queue.size = value
        elif offset >= QUEUE_DESC:
            name = _ADDRESSES[offset & ~4]
            shift = 8 * (offset & 4)
            setattr(queue, name, getattr(queue, name) & ~(0xFFFFFFFF << shift) | value << shift)

    # The window onto BARs in configuration space (§4.1.4.9), for software that has no MMIO yet.

    def _in_window(self, offset: int, size: int) -> bool:
        return offset < self._window + 20 and offset + size > self._window + 16

    def _window_access(self) -> tuple[int, int] | None:
        """(offset, size) in BAR 0, or None where the window points to nothing."""
        bar, offset, size = (self.config.get(self._window + at, n) for at, n in ((4, 1), (8, 4), (12, 4)))
        good = bar == 0 and size in (1, 2, 4) and not offset % size and offset + size <= BAR_SIZE
        return (offset, size) if good else None

    def config_read(self, offset: int, size: int) -> int:
        if self._in_window(offset, size) and (access := self._window_access()) is not None:
            self.config.set(self._window + 16, 4, self._read(*access) & (1 << 8 * access[1]) - 1)
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        if offset == self._window + 16:
            access = self._window_access()
            if access is not None and size >= access[1]:
                self._write(*access, value & (1 << 8 * access[1]) - 1)
            return
        super().config_write(offset, size, value)

    # Interrupts.

    def _interrupt_with(self, vector: int, isr: int) -> None:
        assert self.msix is not None
        if self.msix.enabled:
            self.signal(vector)
        else:
            self._isr |= isr
            self.set_interrupt(1)

    def queue_interrupt(self, index: int) -> None:
        self._interrupt_with(self._vectors[index], ISR_QUEUE)

    def config_interrupt(self) -> None:
        self._interrupt_with(self._config_vector, ISR_CONFIG)

    # State.

    def reset(self) -> None:
        super().reset()
        self._forget()
        self.device.reset()
        self._doorbells.update()

    def state(self) -> dict[str, Any]:
        return {
            **super().state(), "device_select": self._device_select, "driver_select": self._driver_select,
            "queue_select": self._queue_select, "config_vector": self._config_vector, "vectors": list(self._vectors), "isr": self._isr,
            "device": self.device.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._device_select, self._driver_select = state["device_select"], state["driver_select"]
        self._queue_select, self._config_vector = state["queue_select"], state["config_vector"]
        self._vectors, self._isr = list(state["vectors"]), state["isr"]
        super().restore(state)
        self.device.restore(state["device"])
        self._doorbells.update()

    def close(self) -> None:
        self.device.close()
