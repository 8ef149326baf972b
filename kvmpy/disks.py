"""Disks of a machine: images opened as they were asked for, each put on its bus.

A disk without a bus goes where the guest looks for it: to the BIOS when the guest is started by it, else to virtio. That is
known when the first image is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmpy.board import Board
    from kvmpy.host.images import DiskSpec, Image

BY_BIOS = frozenset({"bios", "bios-memory", "sector", "flat16", "linux16"})
"""Boot protocols of 16-bit code."""
MOST_QUEUES = 4


class Disks:
    """Opens all images at once, so that what is wrong with one shows early. `add` puts a device into the machine."""

    def __init__(self, wanted: Sequence[str | PathLike[str] | DiskSpec], board: Board, add: Callable[[Any], Any], cpus: int) -> None:
        self._board = board
        self._add = add
        self._queues = min(cpus, MOST_QUEUES)
        self.waiting: list[Image] = []
        """Those without a bus yet."""
        self.images: list[Image] = []
        """All that were opened, in the order given; a disk booted by its file's name comes last."""
        self._booted: str | None = None
        self._count = 0
        if not wanted:
            return
        from kvmpy.host.images import DiskSpec, open_image, parse_disk  # a machine without disks needs none of the formats

        specs = [spec if isinstance(spec, DiskSpec) else parse_disk(spec) for spec in wanted]
        try:
            for spec in specs:
                image = open_image(spec)
                self.images.append(image)
                if spec.bus:
                    self._put(image, spec.bus)
                else:
                    self.waiting.append(image)
        except BaseException:
            self.close()
            raise

    def settle(self, protocol: str) -> None:
        """The guest is started by this boot protocol: disks without a bus get one."""
        while self.waiting:
            self._put(self.waiting.pop(0), "bios" if self._board.has_bios and protocol in BY_BIOS else "virtio")

    def boot_from(self, path: str | PathLike[str]) -> None:
        """The first disk of the BIOS is this image; once is enough."""
        name = fspath(path)
        if name != self._booted:
            from kvmpy.host.images import DiskSpec, open_image

            image = open_image(DiskSpec(name))
            try:
                self._board.boot_from(image)
            except BaseException:
                image.close()
                raise
            self._booted = name
            self.images.append(image)

    def _put(self, image: Image, bus: str) -> None:
        try:
            if bus == "virtio":
                from kvmpy.devices.virtio.blk import VirtioBlk

                self._count += 1
                self._add(VirtioBlk(image, self._queues, f"virtio-blk {self._count}"))
            elif bus == "bios":
                self._board.add_bios_disk(image)
            else:
                self._board.add_ata(image, bus == "cdrom", self._add)
        except BaseException:
            image.close()
            raise

    def close(self) -> None:
        """Images that no device has taken."""
        while self.waiting:
            self.waiting.pop().close()

