"""virtio-rng (virtio 1.2 §5.4): fills buffers with random bytes."""

from __future__ import annotations

import os
from collections.abc import Callable

from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.devices.virtio.queue import Chain

QUEUE_SIZE = 64
MOST = 4096
"""Bytes given for one buffer; a driver that wants more asks again."""


class VirtioRng(VirtioDevice):
    """`source(count)` gives that many bytes: the host's random numbers, or a seeded generator where runs must repeat."""

    name = "virtio-rng"
    device_type = 4
    pci_class = 0xFF0000

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__([QUEUE_SIZE])
        self._source = source

    def queue_notify(self, index: int) -> None:
        self.serve(index, self._fill)

    def _fill(self, chain: Chain) -> int:
        return chain.write(self._source(min(chain.write_size, MOST)))
