"""virtio-balloon (virtio 1.2 §5.5): pages that the guest gives up, or reports as free, go back to the host."""

from __future__ import annotations

import struct
from collections.abc import Callable

from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.devices.virtio.queue import Chain, QueueError

INFLATE, DEFLATE, STATISTICS, REPORTING = "inflate", "deflate", "statistics", "reporting"
QUEUE_SIZE = 128
PAGE_SHIFT = 12
MOST_BYTES = 1 << 20
"""Of page numbers in one request: 1 GiB of pages."""
MOST_STATISTICS = 64

# Features.
STATS_VQ = 1 << 1
DEFLATE_ON_OOM = 1 << 2
PAGE_REPORTING = 1 << 5

CONFIG = struct.Struct("<IIII")  # pages wanted, pages given, free page hint, poison value
WANTED, GIVEN = 0, 4

STATISTIC = struct.Struct("<HQ")
STATISTIC_NAMES = (
    "swap_in", "swap_out", "major_faults", "minor_faults", "free_memory", "total_memory", "available_memory", "disk_caches",
    "hugetlb_allocations", "hugetlb_failures",
)


class VirtioBalloon(VirtioDevice):
    """`target` is how many pages of 4 KiB the guest shall give up; `given` how many it has. Free pages are taken as reported."""

    name = "virtio-balloon"
    device_type = 5
    pci_class = 0x050000
    features = STATS_VQ | DEFLATE_ON_OOM | PAGE_REPORTING

    def __init__(self, target: int = 0) -> None:
        super().__init__([QUEUE_SIZE] * 4, CONFIG.pack(target, 0, 0, 0))
        self.reported = 0
        """Bytes that free page reporting gave back so far."""
        self.statistics: dict[str, int] = {}
        """The guest's last answer to `ask_statistics`, by name."""

    @property
    def given(self) -> int:
        """Pages in the balloon, as the driver says."""
        return int.from_bytes(self.config[GIVEN : GIVEN + 4], "little")

    def set_target(self, pages: int) -> None:
        """The guest shall give up this many pages in all; under the machine's lock."""
        self.config_changed(WANTED, struct.pack("<I", pages))

    def ask_statistics(self) -> None:
        """The guest fills `statistics` soon, if its driver has that; under the machine's lock."""
        index = self._index(STATISTICS)
        if index is None or not self.running:
            return
        queue = self.queues[index]
        for chain in list(queue.held.values()):
            queue.push(chain)
        self.guard(lambda: self.interrupt(index))

    def _roles(self) -> list[str]:
        """What the queues are for: those of features that were not negotiated do not exist, and the rest move up."""
        roles = [INFLATE, DEFLATE]
        if self.has(STATS_VQ):
            roles.append(STATISTICS)
        if self.has(PAGE_REPORTING):
            roles.append(REPORTING)
        return roles

    def _index(self, role: str) -> int | None:
        roles = self._roles()
        return roles.index(role) if role in roles else None

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == GIVEN and size == 4:
            self.config[GIVEN : GIVEN + 4] = struct.pack("<I", value)

    def stopped(self) -> None:
        self.config[GIVEN : GIVEN + 4] = bytes(4)

    def queue_notify(self, index: int) -> None:
        roles = self._roles()
        role = roles[index] if index < len(roles) else ""
        handlers: dict[str, Callable[[Chain], int]] = {INFLATE: self._inflate, DEFLATE: lambda chain: 0, REPORTING: self._report}
        if role in handlers:
            self.serve(index, handlers[role])
        elif role == STATISTICS:
            self._take_statistics(index)

    def _inflate(self, chain: Chain) -> int:
        """The readable part is page numbers, 32 bits each; runs of them go back to the host at once."""
        if chain.read_size > MOST_BYTES:
            raise QueueError(f"{chain.read_size} bytes of page numbers")
        size = chain.read_size & ~3
        first = count = 0
        for (number,) in struct.iter_unpack("<I", chain.read(size)):
            if count and number == first + count:
                count += 1
                continue
            self._discard(first << PAGE_SHIFT, count << PAGE_SHIFT)
            first, count = number, 1
        self._discard(first << PAGE_SHIFT, count << PAGE_SHIFT)
        return 0

    def _report(self, chain: Chain) -> int:
        """The writable buffers are the free pages themselves."""
        for address, length in chain.writes:
            self.reported += self._discard(address, length)
        return 0

    def _discard(self, address: int, size: int) -> int:
        done = self.platform.memory.discard(address, size)
        if done != size:
            self.event("pages that are no RAM", address=address, size=size)
        return done

    def _take_statistics(self, index: int) -> None:
        """The one buffer of that queue stays here until the next question (§5.5.6.3)."""
        queue = self.queues[index]
        while (chain := queue.pop()) is not None:
            size = min(chain.read_size // STATISTIC.size, MOST_STATISTICS) * STATISTIC.size
            self.statistics = {
                STATISTIC_NAMES[tag] if tag < len(STATISTIC_NAMES) else f"tag_{tag}": value
                for tag, value in STATISTIC.iter_unpack(chain.read(size))
            }
            for old in [held for held in queue.held.values() if held is not chain]:
                queue.push(old)
        queue.set_notify(True)
        self.interrupt(index)
