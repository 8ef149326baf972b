"""The base of every virtio device, apart from its transport: features, status, configuration, queues (virtio 1.2 chapter 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kvmpy.devices.base import Platform
from kvmpy.devices.virtio.queue import Chain, Queue, QueueError

# Device status (§2.1).
ACKNOWLEDGE = 1
DRIVER = 2
DRIVER_OK = 4
FEATURES_OK = 8
NEEDS_RESET = 64
FAILED = 128

# Features of all devices (§6).
RING_INDIRECT_DESC = 1 << 28
RING_EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32
COMMON_FEATURES = RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1


class Transport(Protocol):
    """What a device asks of the transport that carries it."""

    def queue_interrupt(self, index: int) -> None:
        """Queue `index` has used buffers that the driver wants to know of."""

    def config_interrupt(self) -> None:
        """The configuration, or the status, has changed."""


class VirtioDevice:
    """A virtio device. A subclass sets `device_type`, `queue_sizes`, `features`, fills `config`, and serves `queue_notify`."""

    name = "virtio"
    device_type = 0
    """Device ID (§5)."""
    pci_class = 0xFF0000
    """Class code on PCI."""
    features = 0
    """What the device offers beyond COMMON_FEATURES."""

    def __init__(self, queue_sizes: Sequence[int], config: bytes = b"") -> None:
        self.queues = [Queue(size) for size in queue_sizes]
        self.config = bytearray(config)
        self.generation = 0
        """Changes with every change of `config` by the device."""
        self.status = 0
        self.driver_features = 0
        self.platform: Platform
        self.transport: Transport
        self.owner: Any = None
        """The Device that carries it: events are told in its name."""

    # Called by the transport.

    def connect(self, platform: Platform, transport: Transport, owner: Any) -> None:
        """Called once, when the transport is placed."""
        self.platform, self.transport, self.owner = platform, transport, owner
        self.connected()

    @property
    def offered(self) -> int:
        """Feature bits that the device shows."""
        return self.features | COMMON_FEATURES

    def has(self, feature: int) -> bool:
        """A feature was negotiated."""
        return bool(self.driver_features & feature)

    def set_driver_features(self, value: int) -> None:
        """What the driver accepts; fixed once FEATURES_OK stands."""
        if not self.status & FEATURES_OK:
            self.driver_features = value

    def set_status(self, value: int) -> None:
        """A write of the device status: 0 resets, other bits are only ever added (§2.1.1)."""
        if value == 0:
            self.reset()
            return
        added = value & ~self.status & ~NEEDS_RESET
        if added & FEATURES_OK and not self._features_good():
            added &= ~(FEATURES_OK | DRIVER_OK)
            self.event("features refused", features=self.driver_features, offered=self.offered)
        if added & DRIVER_OK and not (self.status | added) & FEATURES_OK:
            added &= ~DRIVER_OK
        self.status |= added
        if added & DRIVER_OK:
            self.guard(self.started)

    def _features_good(self) -> bool:
        return bool(self.driver_features & VERSION_1) and not self.driver_features & ~self.offered

    def enable_queue(self, index: int) -> None:
        """The driver has given the queue's addresses and turns it on."""
        queue = self.queues[index]

        def start() -> None:
            queue.start(self.platform.memory, event_index=self.has(RING_EVENT_IDX), indirect=self.has(RING_INDIRECT_DESC))

        if not queue.ready:
            self.guard(start)

    def notify(self, index: int) -> None:
        """The doorbell of a queue. Ignored before DRIVER_OK, for queues that are off, and while the device needs a reset."""
        if index < len(self.queues) and self.running and self.queues[index].ready:
            self.guard(lambda: self.queue_notify(index))

    @property
    def running(self) -> bool:
        """DRIVER_OK stands and nothing has gone wrong since."""
        return self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK

    def guard(self, action: Callable[[], None]) -> None:
        """Runs what looks at rings: a driver's error in them ends in DEVICE_NEEDS_RESET and nothing else."""
        try:
            action()
        except QueueError as error:
            self.fail(str(error))

    def fail(self, why: str) -> None:
        """The device needs a reset (§2.1.2)."""
        if not self.status & NEEDS_RESET:
            self.status |= NEEDS_RESET
            self.event("needs reset", why=why)
            if self.status & DRIVER_OK:
                self.transport.config_interrupt()

    def read_config(self, offset: int, size: int) -> int:
        """Device-specific configuration; bytes past its end are 0."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Subclasses that have writable fields override it; the driver's writes are otherwise ignored."""

    # For subclasses.

    def connected(self) -> None:
        """The platform is there: host ends may be attached."""

    def started(self) -> None:
        """DRIVER_OK was set."""

    def stopped(self) -> None:
        """The device was reset, queues and all: forget what the driver set."""

    def stop_queue(self, index: int) -> None:
        """The driver turns a queue off: what is in work is forgotten."""
        self.queues[index].stop()

    def queue_notify(self, index: int) -> None:
        """The driver says that queue `index` has buffers. QueueError passes through."""

    def close(self) -> None:
        """Releases host ends."""

    def event(self, what: str, **payload: Any) -> None:
        """A trace event in the name of the device."""
        self.platform.event(self.owner, what, **payload)

    def serve(self, index: int, handle: Callable[[Chain], int | None]) -> None:
        """Takes every chain of a queue through `handle`, which gives the bytes written, then interrupts if the driver wants it.
        A chain for which it gives None is pushed later, by whoever keeps it.

        The driver is asked not to notify meanwhile; buffers it adds between the last look and the request to notify are seen.
        """
        queue = self.queues[index]
        try:
            while True:
                queue.set_notify(False)
                while (chain := queue.pop()) is not None:
                    if (written := handle(chain)) is not None:
                        queue.push(chain, written)
                queue.set_notify(True)
                chain = queue.pop()
                if chain is None:
                    break
                if (written := handle(chain)) is not None:
                    queue.push(chain, written)
        finally:
            self.interrupt(index)

    def interrupt(self, index: int) -> None:
        """Interrupts the driver if it wants to hear of what was pushed to a queue."""
        if self.queues[index].wants_interrupt():
            self.transport.queue_interrupt(index)

    def config_changed(self, offset: int, data: bytes) -> None:
        """Changes configuration bytes, and tells the driver."""
        self.config[offset : offset + len(data)] = data
        self.generation = (self.generation + 1) & 0xFFFFFFFF
        if self.running:
            self.transport.config_interrupt()

    # Reset and state.

    def reset(self) -> None:
        """Everything the driver set is forgotten (§2.4)."""
        self.status = 0
        self.driver_features = 0
        for queue in self.queues:
            queue.reset()
        self.stopped()

    def state(self) -> dict[str, Any]:
        """Subclasses add to it."""
        return {
            "status": self.status, "features": self.driver_features, "config": bytes(self.config), "generation": self.generation,
            "queues": [queue.state() for queue in self.queues],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.status = state["status"]
        self.driver_features = state["features"]
        self.config[:] = state["config"]
        self.generation = state["generation"]

        def restore_queues() -> None:
            for queue, saved in zip(self.queues, state["queues"], strict=True):
                queue.restore(
                    saved, self.platform.memory, event_index=self.has(RING_EVENT_IDX), indirect=self.has(RING_INDIRECT_DESC)
                )

        self.guard(restore_queues)
