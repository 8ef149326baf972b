"""The doorbells of a virtio device's queues: asked for while the device works, and where the transport shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmpy.devices.base import Doorbell

if TYPE_CHECKING:
    from kvmpy.devices.base import Platform
    from kvmpy.devices.virtio.device import VirtioDevice


class QueueDoorbells:
    """Keeps what the machine has registered in step with the device: call `update` after whatever may change it."""

    def __init__(self, device: VirtioDevice, size: int, place: Callable[[int], tuple[int, int | None] | None]) -> None:
        """`place(queue)` gives the address of a queue's doorbell and the value that rings it, None for any, or no place at all."""
        self._device = device
        self._size = size
        self._place = place
        self._registered: dict[int, tuple[tuple[int, int | None], Doorbell]] = {}
        self._platform: Platform | None = None

    def connect(self, platform: Platform) -> None:
        self._platform = platform

    def _wanted(self) -> dict[int, tuple[int, int | None]]:
        if not self._device.running:
            return {}
        places = {index: self._place(index) for index, queue in enumerate(self._device.queues) if queue.ready}
        return {index: place for index, place in places.items() if place is not None}

    def update(self) -> None:
        """Registers doorbells that are there now, and ends those that are not, or not there any more."""
        platform = self._platform
        if platform is None:
            return
        wanted = self._wanted()
        for index, (place, doorbell) in list(self._registered.items()):
            if wanted.get(index) != place:
                del self._registered[index]
                doorbell.remove()
        for index, place in wanted.items():
            if index not in self._registered:
                doorbell_or_none = platform.doorbell(place[0], self._size, place[1], self._ring(index))
                if doorbell_or_none is None:
                    return
                self._registered[index] = place, doorbell_or_none

    def _ring(self, index: int) -> Callable[[], None]:
        def ring() -> None:
            if self._place(index) is not None:  # it may have gone since the driver wrote
                self._device.notify(index)

        return ring
